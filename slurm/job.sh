#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
# A Slurm job that is ended in time and continued later: one call of main.py or evaluate.py. The tasks of an array share
# one run of main.py: each takes batches until none is left. slurm/submit.sh makes a whole run of such jobs.
#
# usage: sbatch [sbatch's options] slurm/job.sh python main.py FLAGS
#
# What becomes of the job when the command exits with
#   0    done
#   3    done but for the images in failed.yaml: the job ends with 0, so that the evaluation goes on without them
#   75   interrupted: shortly before its time is up (USR1) the job puts itself back into the queue. After TERM it does
#        not: Slurm itself requeues what it preempts, and what was cancelled shall stay so.
#   else a mistake or a crash, which the log names: never requeued, and what depends on this job is cancelled

signal= time_is_up= command=
trap 'signal=USR1 time_is_up=yes; [ -z "$command" ] || kill -USR1 "$command" 2>/dev/null' USR1
trap 'signal=TERM time_is_up=; [ -z "$command" ] || kill -TERM "$command" 2>/dev/null' TERM

job="$SLURM_JOB_ID"
if [ -n "$SLURM_ARRAY_TASK_ID" ]; then
    job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" # one task's SLURM_JOB_ID stands for the whole array
fi
echo "$(date '+%F %T') $(hostname), job $job, restart ${SLURM_RESTART_COUNT:-0}: $*"

"$@" &
command=$!
if [ -n "$signal" ]; then # it came before there was a command, which right after its birth might not feel it
    sleep 0.5
    kill "-$signal" "$command" 2>/dev/null
fi
until # a signal ends `wait` although the command still runs
    signal=
    wait "$command"
    code=$?
    [ -z "$signal" ]
do :; done
trap '' USR1 TERM

case "$code" in
    3)
        echo "job.sh: the images in failed.yaml are left out; submit again to try them again" >&2
        exit 0
        ;;
    75 | 138) # 138: USR1 came before main.py could handle it
        if [ -n "$time_is_up" ]; then
            scontrol requeue "$job" && echo "job.sh: the time is up; in the queue again, to continue" >&2
        fi
        ;;
esac
exit "$code"
