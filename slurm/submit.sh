#!/usr/bin/env bash
# Explain images on a Slurm cluster: an array of jobs that share them, then the evaluation.
#
# usage: slurm/submit.sh JOBS[%AT_ONCE] [sbatch's options] -- main.py's flags [-- evaluate.py's flags]
#
#   slurm/submit.sh 20%8 --partition=gpu --gpus=1 --time=4:00:00 -- \
#       $MODEL_FLAGS $SAMPLE_FLAGS --data_dir $CELEBA --output_path $OUT --exp_name smile/dime ... -- --papers DiME
#
# explains in 20 jobs, of which 8 run at a time: each takes batches until none is left, and the last one sums up. SRUN="srun
# --ntasks-per-node=4" before the command starts as many processes in each job. What your site needs goes before the
# first --, and holds for all jobs; or once into your shell as sbatch's own variables: export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=me SBATCH_GPUS=1
# SBATCH_TIMELIMIT=4:00:00. Load modules and activate the environment before: jobs inherit both (PYTHON=... names
# another interpreter). evaluate.py is told the folder, data, weights and device of main.py.
#
# The jobs requeue themselves (see slurm/job.sh). After an error, put it right and give the same command again: what is
# finished is kept.
set -eo pipefail

fail() {
    echo "submit.sh: error: $1" >&2
    exit 2
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
# the environment that run-tests.sh and demo.sh make, where no other one is active
own="${DIME_VENV:-$root/.venv}/bin/python"
[ -z "$VIRTUAL_ENV$CONDA_PREFIX" ] && [ -x "$own" ] || own="$(command -v python || command -v python3)"
python="${PYTHON:-$own}"

[[ "$1" =~ ^([1-9][0-9]*)(%[1-9][0-9]*)?$ ]] ||
    fail "expected JOBS[%AT_ONCE] [sbatch's options] -- main.py's flags, found '$*'"
count="${BASH_REMATCH[1]}" at_once="${BASH_REMATCH[2]}"
shift
options=() explain=() evaluate=() part=0
for word in "$@"; do
    case "$part$word" in
        [01]--) part=$((part + 1)) ;;
        0*) options+=("$word") ;;
        1*) explain+=("$word") ;;
        2*) evaluate+=("$word") ;;
    esac
done
[ $part -gt 0 ] || fail "found no -- between sbatch's options and main.py's flags"

# what is wrong with the flags is said now, not when the jobs start
checked="$("$python" "$here/check_flags.py" "${explain[@]}" -- "${evaluate[@]}")" || exit
mapfile -t evaluate <<<"$checked" # --output-path OUT --exp-name EXP ...
results="${evaluate[1]}/Results/${evaluate[3]}"
logs="${evaluate[1]}/Logs/${evaluate[3]}"
mkdir -p "$logs"

jobs=()
submit() { # NAME LOG [sbatch's options] COMMAND: adds to jobs; all or none are submitted
    local job
    job="$(sbatch --parsable --job-name="dime-$1" --output="$logs/$2" --kill-on-invalid-dep=yes "${@:3}")" || {
        [ ${#jobs[@]} = 0 ] || scancel "${jobs[@]}"
        fail "sbatch did not take the job '$1'; nothing is queued"
    }
    jobs+=("${job%%;*}") # the cluster's name may follow
}
read -ra srun <<<"$SRUN"
submit explain explain-%a.log --array="0-$((count - 1))$at_once" "${options[@]}" \
    "$here/job.sh" "${srun[@]}" "$python" -W ignore "$root/main.py" "${explain[@]}"
submit evaluate evaluate.log --dependency="afterok:${jobs[0]}" "${options[@]}" \
    "$here/job.sh" "$python" -W ignore "$root/evaluate.py" "${evaluate[@]}"

cat <<END
Submitted: $count jobs that share the images as ${jobs[0]}, the evaluation as ${jobs[1]}
Results:   $results (summary.yaml, then evaluation.md)
Watch:     squeue --jobs ${jobs[0]},${jobs[1]}; tail -f $logs/*.log
Stop:      scancel ${jobs[*]}
Continue:  the same command again, after an error or a stop; jobs that Slurm preempts or times out continue by themselves
END
