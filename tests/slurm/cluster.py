"""A Slurm of one machine for the length of a test: munged, slurmctld and slurmd, all they write in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
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


def missing_programs() -> list[str]:
    """What this machine lacks to run a Slurm."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Cluster:
    """A context in which the commands of Slurm, run with `environment`, speak to a Slurm of our own.

    Raises RuntimeError, with what the daemons said last, when it does not come up.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munge's socket needs a short path
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            key, socket_path = self.folder / "munge.key", self.folder / "munge.socket"
            places = [f"--{name}-file={self.folder / f'munge.{name}'}" for name in ("key", "pid", "seed")]
            self._start("munged", "--foreground", "--force", f"--socket={socket_path}", *places, "--log-file=/dev/null")
            key.chmod(0o600)
            self.wait_for(socket_path.exists, "munged", 10)
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-N", "node")
            self.wait_for(lambda: "idle" in self._try("sinfo", "--noheader", "--format=%T"), "the node", 20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the jobs, then the daemons, then whatever of theirs is still there."""
        self._try("scancel", f"--user={getpass.getuser()}")
        deadline = time.monotonic() + 10
        while self._try("squeue", "--noheader", "--states=R,CG") and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if ours in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str | Path, **environment: str) -> str:
        """What a command prints; raises CalledProcessError when it fails."""
        done = subprocess.run(
            command, env=self.environment | environment, check=True, capture_output=True, text=True, timeout=120
        )
        return done.stdout

    def states(self, job: str) -> list[str]:
        """PENDING, RUNNING, COMPLETED, ... of a job, or of each task of an array that has one of its own."""
        lines = self.run("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [line.split(" JobState=")[1].split()[0] for line in lines]

    def wait_for_end(self, jobs: Sequence[str], limit: float) -> list[str]:
        """The final states of these jobs, without repetition for each of them."""
        self.wait_for(lambda: all(FINAL_STATES.issuperset(self.states(job)) for job in jobs), f"jobs {jobs}", limit)
        return ["+".join(sorted(set(self.states(job)))) for job in jobs]

    def wait_for(self, condition: Callable[[], bool], what: str, limit: float) -> None:
        """Return when the condition holds."""
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                logs = {path.stem: path.read_text(errors="replace")[-500:] for path in self.folder.glob("*.log")}
                raise RuntimeError(f"waited {limit} s for {what} in vain; {logs}")
            time.sleep(0.05)

    def _configure(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]  # ports that nobody listens on
        controller_port, node_port = (listening.getsockname()[1] for listening in sockets)
        for listening in sockets:
            listening.close()
        configuration = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            controller_port=controller_port,
            node_port=node_port,
        )
        (self.folder / "slurm.conf").write_text(configuration)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded, and never used

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.log").open("wb") as log:
            command = [shutil.which(program, path=PATH) or program, *arguments]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _try(self, *command: str) -> str:
        try:
            return self.run(*command)
        except (OSError, subprocess.SubprocessError):
            return ""
