"""The first installation: killed at any moment, or begun on a system without pip, the next call makes it whole."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import Run, run_command

TOOLS = Path(__file__).parents[2] / "tools"

INTERPRETER = """#!/bin/sh
venv="$(dirname "$(dirname "$0")")"
case "$*" in
    *requirements.py*) [ -e "$venv/listed" ] || echo tiny ;;
    "-m venv"*)
        [ ! -e "$venv/no-venv" ] || exit 1
        rm -rf "$4"; mkdir -p "$4/bin"; sleep 0.03; cp "$0" "$4/bin/python"; sleep 0.03; touch "$4/pip" ;;
    "-m pip --version") [ -e "$venv/pip" ] ;;
    "-m ensurepip") [ ! -e "$venv/no-venv" ] && [ -e "$venv/repairable" ] && touch "$venv/pip" ;;
    "-m pip install"*)
        [ -e "$venv/pip" ] || exit 1
        [ ! -e "$venv.busy" ] || touch "$venv.clash"
        touch "$venv.busy"; sleep 0.03; touch "$venv/listed"; sleep 0.1; touch "$venv/whole"; rm "$venv.busy" ;;
esac
"""
"""Stands for Python, venv and pip: a package is listed as installed before all of it is there."""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A folder with an interpreter that lacks the requirements, and the project beside it."""
    python = tmp_path / "usr/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    shutil.copytree(TOOLS, tmp_path / "project/tools")
    return tmp_path


def call(system: Path) -> dict[str, Any]:
    script = 'set -e; source ../project/tools/environment.sh; dime_environment; echo "$PYTHON"'
    environment = {name: value for name, value in os.environ.items() if name != "DIME_VENV"}
    environment["PYTHON"] = str(system / "usr/bin/python")
    return {"args": ["bash", "-c", script], "env": environment, "cwd": system / "usr"}


def install(system: Path) -> Run:
    options = call(system)
    return run_command(options.pop("args"), **options, timeout=60)


def assert_whole(system: Path, run: Run) -> None:
    venv = system / "project/.venv"
    assert run.code == 0, run.err
    assert run.out.splitlines()[-1] == str(venv / "bin/python")
    assert (venv / "whole").exists()


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock to wait with")
@pytest.mark.parametrize("everything", [True, False], ids=["its children too", "the script alone"])
def test_killed_at_ten_random_moments(system, everything):
    """Killed alone, the script leaves its pip at work, whose end the next call has to wait for."""
    rng = random.Random(0)
    for _ in range(10):
        shutil.rmtree(system / "project/.venv", ignore_errors=True)
        running = subprocess.Popen(**call(system), stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(0, 0.4))
        (os.killpg if everything else os.kill)(running.pid, signal.SIGKILL)
        running.wait()
        if everything:
            (system / "project/.venv.busy").unlink(missing_ok=True)
        assert_whole(system, install(system))
    assert not (system / "project/.venv.clash").exists()


def test_what_is_whole_is_left_alone_and_what_cannot_be_made_is_tried_again(system):
    (system / "usr/no-venv").touch()
    assert install(system).code != 0
    (system / "usr/no-venv").unlink()
    assert_whole(system, install(system))
    (system / "project/.venv/pip").unlink()  # and needs no pip
    run = install(system)
    assert_whole(system, run)
    assert run.out.count("\n") == 1


@pytest.mark.parametrize("repairable", [True, False])
def test_an_environment_without_pip_is_mended_or_made_anew(system, repairable):
    """Debian without python3-venv leaves such a one behind."""
    venv = system / "project/.venv"
    assert_whole(system, install(system))
    for name in ("pip", "listed", "whole"):
        (venv / name).unlink()
    (venv / "theirs").touch()
    if repairable:
        (venv / "repairable").touch()
    run = install(system)
    assert_whole(system, run)
    assert (venv / "theirs").exists() == repairable == ("made anew" not in run.out)
