"""The Slurm scripts without a Slurm: what they submit, and what becomes of a job for each way its command can end."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dime.core.job.flags import parse_flags
from evaluate import build_parser
from tests.faults.forks import wait_for
from tests.worlds import Run, run_command

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "slurm"

RECORDER = """#!{python}
import json, os, sys
from pathlib import Path
calls = Path({calls!r})
with calls.open("a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
count = calls.read_text().count('["sbatch"')
if Path(sys.argv[0]).name == "sbatch":
    if str(count) == os.environ.get("REFUSED"):
        sys.exit("sbatch: error: Batch job submission failed")
    print(f"{{100 + count}};cluster")
"""
"""Stands for Slurm's commands: records its calls; job 101 is the first. REFUSED: the sbatch that fails."""


class FakeSlurm:
    """Commands of Slurm on PATH that do nothing but record."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._calls = folder, folder / "calls"
        for name in ("sbatch", "scancel", "scontrol"):
            path = folder / name
            path.write_text(RECORDER.format(python=sys.executable, calls=str(self._calls)))
            path.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), os.environ["PATH"]])
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return clean | {"PATH": path, "PYTHON": sys.executable, "SLURM_JOB_ID": "7"} | more

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._calls.read_text().splitlines()] if self._calls.exists() else []

    def submit(self, *arguments: str, **environment: str) -> Run:
        return run_command(
            [str(SLURM / "submit.sh"), *arguments], env=self.environment(**environment), cwd=self.folder, timeout=300
        )


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path)


@pytest.fixture
def unchecked(tmp_path: Path) -> str:
    """An interpreter that takes all flags for good, which spares importing torch."""
    return python_that(tmp_path, "printf '%s\\n' --output-path out --exp-name a/b --gpu 0")


def python_that(folder: Path, does: str) -> str:
    path = folder / "python-that"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return str(path)


def check_flags(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check_flags.py", *words])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SLURM / "check_flags.py"), run_name="__main__")
    return exit.value.code


@pytest.mark.parametrize("name", ["submit.sh", "job.sh"])
def test_syntax(name):
    assert run_command(["bash", "-n", str(SLURM / name)]).code == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck():
    found = run_command(["shellcheck", *map(str, SLURM.glob("*.sh"))])
    assert found.code == 0, found.out


# submit.sh


def test_three_jobs_that_wait_for_each_other(slurm, tmp_path, monkeypatch, capsys):
    """Every command is one that main.py or evaluate.py takes."""
    flags = ["--output_path", "out", "--exp_name=smile/dime", "--data-dir", "faces", "--classifier_path", "c.pth"]
    checked = [*flags, "--num_chunks", "20", "--", "--papers", "DiME"]
    assert check_flags(monkeypatch, *checked) == 0
    (tmp_path / "checked").write_text(capsys.readouterr().out)
    python = python_that(tmp_path, f'echo "$*" >{tmp_path}/asked; cat {tmp_path}/checked')
    options = ["--partition=gpu", "--gpus", "1"]
    done = slurm.submit("20%8", *options, "--", *flags, "--", "--papers", "DiME", PYTHON=python)
    assert done.code == 0, done.err
    assert (tmp_path / "asked").read_text().split() == [str(SLURM / "check_flags.py"), *checked]
    chunks, merge, evaluation = ([part for part in call if part != "--parsable"] for call in slurm.calls)
    for call, name in ((chunks, "chunk-%a"), (merge, "merge"), (evaluation, "evaluate")):
        assert f"--output=out/Logs/smile/dime/{name}.log" in call and "--kill-on-invalid-dep=yes" in call
        assert call[call.index(str(SLURM / "job.sh")) - 3 :][:3] == options
    assert (slurm.folder / "out/Logs/smile/dime").is_dir()
    assert "--array=0-19%8" in chunks and not any(part.startswith("--dependency") for part in chunks)
    assert "--dependency=afterok:101" in merge and "--dependency=afterok:102" in evaluation
    assert not any(part.startswith("--array") for part in merge + evaluation)
    assert command(chunks, python) == [str(ROOT / "main.py"), *flags, "--num_chunks", "20"]
    assert command(merge, python) == [*command(chunks, python), "--merge_and_eval", "True"]
    assert parsed("main.py", *command(merge, python)[1:]).merge_and_eval
    script, *words = command(evaluation, python)
    args = build_parser().parse_args(words)
    assert script == str(ROOT / "evaluate.py")
    assert (str(args.output_path), args.exp_name, args.papers) == ("out", ["smile/dime"], ["DiME"])
    assert (args.celeba_path, str(args.classifier_path), args.gpu) == ("faces", "c.pth", "0")
    assert "scancel 101 102 103" in done.out and "the same command again" in done.out


def command(call: list[str], python: str) -> list[str]:
    """What the job runs, from its script on."""
    job = call.index(str(SLURM / "job.sh"))
    assert call[job + 1 : job + 4] == [python, "-W", "ignore"]
    return call[job + 4 :]


def parsed(*argv: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(argv))
        return parse_flags("")


def test_one_chunk_and_no_options(slurm, unchecked):
    assert slurm.submit("1", "--", PYTHON=unchecked).code == 0
    assert "--array=0-0" in slurm.calls[0]


@pytest.mark.parametrize("arguments", [(), ("--", "--gpu", "cpu"), ("0", "--"), ("4%", "--"), ("4", "--gpu", "cpu")])
def test_a_wrong_call_is_one_line(slurm, unchecked, arguments):
    done = slurm.submit(*arguments, PYTHON=unchecked)
    assert done.code == 2 and done.err.startswith("submit.sh: error: ") and done.err.count("\n") == 1
    assert not slurm.calls


def test_all_jobs_or_none(slurm, unchecked):
    done = slurm.submit("4", "--", PYTHON=unchecked, REFUSED="3")
    assert done.code == 2 and "'evaluate'" in done.err
    assert slurm.calls[3:] == [["scancel", "101", "102"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--exp_nam", "a"], "main.py: error: unrecognized arguments: --exp_nam"),
        (["--start_step", "many"], "main.py: error: argument --start_step"),
        (["--overwrite", "True", "--output_path", "out", "--exp_name", "a/b"], "remove out/Results/a/b"),
        (["--", "--paper", "DiME"], "evaluate.py: error: unrecognized arguments: --paper"),
    ],
)
def test_wrong_flags_are_one_line(monkeypatch, capsys, words, said):
    code = check_flags(monkeypatch, *words)
    out, err = capsys.readouterr()
    assert code == 2 and said in err and err.count("\n") == 1 and not out


def test_the_documented_command_is_taken(monkeypatch):
    text = (ROOT / "docs/reliability.md").read_text()
    words = re.search(r"^slurm/submit\.sh ((?:.*\\\n)*.*)$", text, re.MULTILINE)[1].replace("\\\n", " ").split()
    flags = [word for word in words[words.index("--") + 1 :] if word not in ("$MODEL_FLAGS", "$SAMPLE_FLAGS")]
    assert "--exp_name" in flags and "--papers" in flags
    assert check_flags(monkeypatch, *flags) == 0


def test_wrong_flags_are_found_before_anything_is_queued(slurm, tmp_path):
    done = slurm.submit("4", "--", PYTHON=python_that(tmp_path, "echo main.py: error >&2; exit 2"))
    assert (done.code, done.err, slurm.calls) == (2, "main.py: error\n", [])


# job.sh

TASK = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}


def job(slurm: FakeSlurm, script: str, **environment: str) -> subprocess.Popen:
    """A job that runs this shell script, "$@" being what is appended to its arguments."""
    return subprocess.Popen(
        [str(SLURM / "job.sh"), "bash", "-c", script, "command"],
        env=slurm.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("code", "ends_with"), [(0, 0), (1, 1), (2, 2), (3, 0), (75, 75), (137, 137)])
def test_how_a_job_ends(slurm, code, ends_with):
    ended = job(slurm, f"exit {code}")
    _, err = ended.communicate(timeout=60)
    assert ended.returncode == ends_with
    assert ("failed.yaml" in err) == (code == 3)
    assert not slurm.calls


@pytest.mark.parametrize(
    ("name", "code", "requeued"),
    [
        ("USR1", 75, True),
        ("USR1", 0, False),  # it was about to end
        ("USR1", 2, False),
        ("USR1", 1, False),
        ("TERM", 75, False),  # Slurm requeues what it preempts, and what was cancelled stays so
    ],
)
def test_a_signal_reaches_the_command_which_ends_in_its_own_time(slurm, name, code, requeued):
    signalled = f"trap 'sleep 0.2; echo got {name}; exit {code}' {name}; echo ready; while :; do sleep 0.01; done"
    running = job(slurm, signalled)
    assert "job 7" in running.stdout.readline() and running.stdout.readline() == "ready\n"
    running.send_signal(getattr(signal, f"SIG{name}"))
    time.sleep(0.05)
    running.send_signal(getattr(signal, f"SIG{name}"))  # Slurm may repeat itself
    out, _ = running.communicate(timeout=60)
    assert f"got {name}" in out and running.returncode == code
    assert slurm.calls == [["scontrol", "requeue", "7"]] * requeued


def test_a_job_that_is_cancelled_in_its_last_minute_stays_so(slurm):
    running = job(slurm, "trap 'sleep 0.4; exit 75' USR1; trap : TERM; echo ready; while :; do sleep 0.01; done")
    assert [running.stdout.readline(), running.stdout.readline()][1] == "ready\n"
    running.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 75 and not slurm.calls


@pytest.mark.parametrize(("name", "requeued"), [("USR1", True), ("TERM", False)])
def test_a_signal_before_the_command_has_begun_is_handed_on(slurm, name, requeued):
    """job.sh asks for the host's name before it starts the command: here that takes long enough."""
    asked = slurm.folder / "asked"
    hostname = slurm.folder / "hostname"
    hostname.write_text(f"#!/bin/sh\ntouch {asked}\nsleep 0.3\n")
    hostname.chmod(0o755)
    running = job(slurm, "sleep 60")
    wait_for(asked.exists)
    running.send_signal(getattr(signal, f"SIG{name}"))
    running.communicate(timeout=30)
    assert running.returncode == 128 + getattr(signal, f"SIG{name}")
    assert slurm.calls == [["scontrol", "requeue", "7"]] * requeued


def test_a_command_that_the_signal_found_unprepared_is_requeued(slurm):
    running = job(slurm, "echo ready; exec sleep 60")
    assert [running.stdout.readline(), running.stdout.readline()][1] == "ready\n"
    running.send_signal(signal.SIGUSR1)
    running.communicate(timeout=60)
    assert slurm.calls == [["scontrol", "requeue", "7"]]


def test_a_task_requeues_itself_and_not_the_array(slurm):
    """One of the tasks has the array's id for its own."""
    running = job(slurm, "trap 'exit 75' USR1; echo ready; while :; do sleep 0.01; done", **TASK)
    assert "job 5_3," in running.stdout.readline() and running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGUSR1)
    running.communicate(timeout=60)
    assert slurm.calls == [["scontrol", "requeue", "5_3"]]


def test_a_task_of_an_array_does_its_chunk(slurm):
    out, _ = job(slurm, 'echo "$@"', **TASK).communicate(timeout=60)
    assert "job 5_3," in out and out.endswith("\n--chunk 3\n")
    assert "--chunk" not in job(slurm, 'echo "$@"').communicate(timeout=60)[0]
