"""The Slurm scripts, without a Slurm, and on a real one where it is installed: interrupted jobs that share a run."""

import contextlib
import getpass
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.forks import Fork, wait_for
from tests.worlds import ROOT, SMALL_FLAGS, Run, World, as_arguments, comparable, refusal, run_command

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

    def wait_for_end(self, jobs: Sequence[str], limit: float) -> set[str]:
        """The final states of these jobs, and of the tasks of arrays."""

        def states() -> set[str]:
            said = "".join(self.run("scontrol", "show", "job", "--oneliner", job) for job in jobs)
            return set(re.findall(r" JobState=(\w+)", said))

        wait_for(lambda: states() <= FINAL_STATES, limit)
        return states()


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


@pytest.mark.skipif(bool(MISSING), reason=f"needs Slurm and munge; missing here: {', '.join(MISSING)}")
def test_jobs_that_were_requeued_give_the_tree_of_one_process(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """One is requeued by Slurm, one by itself on the signal before the time limit; each job has two tasks of srun."""
    out, alone = tmp_path / "out", tmp_path / "alone"
    # thirty batches, so that jobs can be interrupted between two
    slow = SMALL_FLAGS | {"use_train": True, "start_step": 9, "pad_batches": True, "batch_size": 1, "save_x_t": True}
    command = world.command(out, slow)
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
    undisturbed = Fork(world.command(alone, slow), tmp_path / "alone.log")

    assert cluster.wait_for_end([jobs, evaluation], 300) == {"COMPLETED"}, logs(out)
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


SLURM = ROOT / "slurm"

RECORDER = """#!{python}
import json, os, sys
from pathlib import Path
name, calls = Path(sys.argv[0]).name, Path({calls!r})
with calls.open("a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
count = calls.read_text().count('["sbatch"')
if name == "sbatch":
    if str(count) == os.environ.get("REFUSED"):
        sys.exit("sbatch: error: Batch job submission failed")
    print(f"{{100 + count}};cluster")
"""
"""Stands for Slurm's commands: records its calls; job 101 is the first. REFUSED: the sbatch that fails."""


class FakeSlurm:
    def __init__(self, folder: Path) -> None:
        self.folder, self._calls = folder, folder / "calls"
        for name in ("sbatch", "scancel", "scontrol"):
            self.program(name, RECORDER.format(python=sys.executable, calls=str(self._calls)))

    def program(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), os.environ["PATH"]])
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"PATH": path, "PYTHON": sys.executable, "SLURM_JOB_ID": "7"} | more

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []

    def submit(self, *arguments: str, **more: str) -> Run:
        command = [str(SLURM / "submit.sh"), *arguments]
        return run_command(command, env=self.environment(more), cwd=self.folder, timeout=300)

    def job(self, script: str, **more: str) -> subprocess.Popen:
        """A job that runs this shell script, "$@" being what is appended to its arguments."""
        command, pipe = [str(SLURM / "job.sh"), "bash", "-c", script, "command"], subprocess.PIPE
        return subprocess.Popen(command, env=self.environment(more), stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck():
    found = run_command(["shellcheck", *map(str, SLURM.glob("*.sh"))])
    assert found.code == 0, found.out


def test_the_documented_command_submits_an_array_and_what_waits_for_it(slurm):
    """With flags that main.py and evaluate.py take, the second knowing what the first was told."""
    text = (ROOT / "docs/reliability.md").read_text()
    words = re.search(r"^slurm/submit\.sh ((?:.*\\\n)*.*)$", text, re.MULTILINE)[1].replace("\\\n", " ").split()
    words = [word for word in words if word not in ("$MODEL_FLAGS", "$SAMPLE_FLAGS")]
    done = slurm.submit(*words)
    assert done.code == 0 and "scancel 101 102" in done.out, done.err
    explain, evaluation = (" ".join(call) for call in slurm.calls)
    count, _, at_once = words[0].partition("%")
    assert f"--array=0-{int(count) - 1}%{at_once}" in explain and "--num_chunks" not in explain
    assert "afterok:101" in evaluation and "--papers DiME" in evaluation
    given = dict(pairwise(words))
    assert f"--exp-name {given['--exp_name']}" in evaluation and f"--celeba-path {given['--data_dir']}" in evaluation
    for job, script in ((explain, "main.py"), (evaluation, "evaluate.py")):
        assert f"job.sh {sys.executable} -W ignore {ROOT / script}" in job
        assert all(option in job for option in words[1 : words.index("--")])  # sbatch's own
        log = Path(re.search(r"--output=(\S+)", job)[1])
        assert (slurm.folder / log).parent.is_dir()


@pytest.mark.parametrize("arguments", ["", "-- --gpu cpu", "0 --", "4 --gpu cpu"])
def test_a_wrong_call_is_one_line_and_queues_nothing(slurm, arguments):
    assert "submit.sh: error: " in refusal(slurm.submit(*arguments.split())) and not slurm.calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--exp_nam", "a"], "main.py: error: unrecognized arguments: --exp_nam"),
        (["--", "--paper", "DiME"], "evaluate.py: error: unrecognized arguments: --paper"),
        (["--overwrite", "True", "--output_path", "out", "--exp_name", "a/b"], "remove out/Results/a/b"),
    ],
)
def test_flags_that_the_jobs_would_refuse(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["check_flags.py", *words])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SLURM / "check_flags.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and said in err and err.count("\n") == 1 and not out


def test_all_jobs_or_none(slurm):
    refusing = slurm.program("python", "#!/bin/sh\necho main.py: error: a flag >&2; exit 2\n")
    assert slurm.submit("1", "--", PYTHON=refusing) == Run(2, "", "main.py: error: a flag\n") and not slurm.calls
    unchecked = slurm.program("python", "#!/bin/sh\nprintf '%s\\n' --output-path out --exp-name a/b\n")
    done = slurm.submit("1", "--", PYTHON=unchecked, REFUSED="2", SRUN="srun --ntasks=2")
    assert done.code == 2 and "'evaluate'" in done.err
    assert slurm.calls[2:] == [["scancel", "101"]] and "srun --ntasks=2" in " ".join(slurm.calls[0])


TASK = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(("code", "ends_with"), [(0, 0), (2, 2), (3, 0), (75, 75), (137, 137)])
def test_how_a_job_ends(slurm, code, ends_with):
    ended = slurm.job(f"exit {code}")
    _, err = ended.communicate(timeout=60)
    assert ended.returncode == ends_with
    assert ("failed.yaml" in err) == (code == 3)
    assert not slurm.calls


@pytest.mark.parametrize(
    ("does", "signals", "code", "task", "requeued"),
    [
        ("trap 'sleep 0.2; exit 75' USR1", ["USR1", "USR1"], 75, {}, "7"),  # Slurm may repeat itself
        ("trap 'exit 75' USR1", ["USR1"], 75, TASK, "5_3"),  # itself, not the array
        ("trap 'exit 0' USR1", ["USR1"], 0, {}, None),  # it was about to end
        ("trap 'exit 2' USR1", ["USR1"], 2, {}, None),
        ("trap 'exit 75' TERM", ["TERM"], 75, {}, None),  # Slurm requeues what it preempts
        ("trap 'sleep 0.4; exit 75' USR1; trap : TERM", ["USR1", "TERM"], 75, {}, None),  # cancelled meanwhile
        ("true", ["USR1"], 138, {}, "7"),  # before it could handle it
    ],
)
def test_a_signal_reaches_the_command_and_who_is_requeued(slurm, does, signals, code, task, requeued):
    running = slurm.job(f"{does}; echo ready; while :; do sleep 0.01; done", **task)
    while running.stdout.readline() != "ready\n":
        pass
    for name in signals:
        running.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.1)
    running.communicate(timeout=60)
    assert running.returncode == code
    assert slurm.calls == ([["scontrol", "requeue", requeued]] if requeued else [])


@pytest.mark.parametrize(("name", "requeued"), [("USR1", True), ("TERM", False)])
def test_a_signal_before_the_command_has_begun_is_handed_on(slurm, name, requeued):
    """job.sh asks for the host's name before it starts the command: here that takes long enough."""
    asked = slurm.folder / "asked"
    slurm.program("hostname", f"#!/bin/sh\ntouch {asked}\nsleep 0.3\n")
    running = slurm.job("sleep 60")
    wait_for(asked.exists)
    running.send_signal(getattr(signal, f"SIG{name}"))
    running.communicate(timeout=30)
    assert running.returncode == 128 + getattr(signal, f"SIG{name}")
    assert slurm.calls == [["scontrol", "requeue", "7"]] * requeued


def test_a_job_says_which_task_of_its_array_it_is(slurm):
    assert "job 5_3," in slurm.job("true", **TASK).communicate(timeout=60)[0]
