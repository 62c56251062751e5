"""The scripts on a real Slurm of one machine: interrupted jobs that share a run, and its evaluation, as one run."""

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.forks import Fork, wait_for
from tests.worlds import ROOT, SMALL_FLAGS, World, as_arguments, comparable

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
MISSING = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# cred_expire, the shortest that Slurm takes, is also how long a requeued job waits before it starts again
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""


pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs Slurm and munge; missing here: {', '.join(MISSING)}")


class Cluster:
    """munged, slurmctld and slurmd, all they write in one folder; Slurm's commands speak to them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munge's socket needs a short path
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons: list[subprocess.Popen] = []

    def begin(self) -> None:
        """Raises TimeoutError when it does not come up."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key, socket_path = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]  # ports that nobody listens on
        ports = [listening.getsockname()[1] for listening in sockets]
        for listening in sockets:
            listening.close()
        places = {"folder": self.folder, "host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
        text = CONFIGURATION.format(controller_port=ports[0], node_port=ports[1], **places)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded, and never used
        files = [f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("key", "pid", "seed")]
        self.start("munged", "--foreground", "--force", f"--socket={socket_path}", *files, "--log-file=/dev/null")
        wait_for(socket_path.exists, 10)
        self.start("slurmctld", "-D", "-c")
        self.start("slurmd", "-D", "-N", "node")
        wait_for(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T", check=False), 20)

    def end(self) -> None:
        """The jobs, then the daemons, then whatever of theirs is still there."""
        self.run("scancel", f"--user={getpass.getuser()}", check=False)
        deadline = time.monotonic() + 10
        while self.run("squeue", "--noheader", "--states=R,CG", check=False) and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if ours in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.log").open("wb") as log:
            options = {"env": self.environment, "stdout": log, "stderr": log, "start_new_session": True}
            self.daemons.append(subprocess.Popen([shutil.which(program, path=PATH), *arguments], **options))

    def run(self, *command: str | Path, check: bool = True, **environment: str) -> str:
        """What a command prints; raises CalledProcessError when it fails, unless that is not to be checked."""
        options = {"env": self.environment | environment, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run(command, check=check, **options).stdout

    def submit(self, *arguments: str | Path, **environment: str) -> list[str]:
        said = self.run(ROOT / "slurm/submit.sh", *arguments, **environment)
        return re.search(r"^Stop: +scancel (\d+) (\d+)$", said, re.MULTILINE).groups()

    def wait_for_end(self, jobs: Sequence[str], limit: float) -> list[str]:
        """The final states of these jobs, and of the tasks of arrays, without repetition for each of them."""

        def states(job: str) -> set[str]:
            lines = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()
            return {line.split(" JobState=")[1].split()[0] for line in lines}

        wait_for(lambda: all(states(job) <= FINAL_STATES for job in jobs), limit)
        return ["+".join(sorted(states(job))) for job in jobs]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.begin()
        yield cluster
    finally:
        cluster.end()


def logs(out: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in out.glob("Logs/exp/*.log")}


def test_jobs_that_were_requeued_give_the_tree_of_one_process(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """One is requeued by Slurm, one by itself on the signal before the time limit; each job has two tasks of srun."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    # thirty batches, so that jobs can be interrupted between two
    slow_enough = {
        "use_train": True,
        "start_step": 9,
        "pad_batches": True,
        "batch_size": 1,
        "save_z_t": True,
        "save_x_t": True,
    }
    command = world.command(out, SMALL_FLAGS | slow_enough)
    networks = as_arguments({"inception-weights": tmp_path / "none", "batch-size": 5})
    machine = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    srun = "srun --ntasks=2 --overlap"
    jobs, evaluation = cluster.submit("3", "--ntasks=2", "--", *command, "--", *networks, **machine, SRUN=srun)

    def begun(job: int) -> bool:
        """It is a member of the queue."""
        ids = "".join(path.read_text() for path in out.glob("Results/exp/running/state.*"))
        return f"array task {job}" in ids

    interrupt = {1: ["scontrol", "requeue"], 2: ["scancel", "--batch", "--signal=USR1"]}
    while interrupt:
        wait_for(lambda: any(map(begun, interrupt)), 300)
        for job in filter(begun, list(interrupt)):
            cluster.run(*interrupt.pop(job), f"{jobs}_{job}")
    assert len(list(out.rglob("Info/*.txt"))) < 30
    undisturbed = Fork(world.command(alone, SMALL_FLAGS | slow_enough), tmp_path / "alone.log")

    assert cluster.wait_for_end([jobs, evaluation], 300) == ["COMPLETED"] * 2, logs(out)
    said = logs(out)
    assert "SIGTERM" in said["explain-1"] and "restart 1" in said["explain-1"]
    assert "SIGUSR1" in said["explain-2"] and "restart 1" in said["explain-2"]
    assert "restart 1" not in said["explain-0"]
    assert undisturbed.wait(300) == 0, undisturbed.said()
    found, expected = comparable(out), comparable(alone)
    assert {name: content for name, content in found.items() if name in expected} == expected
    more = [name for name in found if name not in expected]
    assert all(re.search(r"Logs/|evaluation\.|features-", name) for name in more), more
    evaluated = json.loads((out / "Results/exp/evaluation.json").read_text())["measurements"]["exp"]
    assert evaluated["MAD"]["n"] == 30


@pytest.mark.parametrize(("code", "states"), [(2, ["COMPLETED+FAILED", "CANCELLED"]), (3, ["COMPLETED"] * 2)])
def test_a_job_that_fails(cluster: Cluster, tmp_path: Path, code: int, states: list[str]) -> None:
    """An error cancels what depends on the jobs and is not tried again; failed images hold nobody up."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *check_flags.py*) printf "%s\\n" --output-path {tmp_path} --exp-name exp ;;'
        f" *main.py*) [ $SLURM_ARRAY_TASK_ID != 1 ] || exit {code} ;; esac\n"
    )
    python.chmod(0o755)
    jobs = cluster.submit("2", "--time=5", "--", PYTHON=str(python))
    assert cluster.wait_for_end(jobs, 60) == states
    assert "restart 1" not in (tmp_path / "Logs/exp/explain-1.log").read_text()
