"""main.py in real processes that need no second for importing torch: forks of this one."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import main as main_script
from dime.core.cli import run

POLL = 0.002


class Fork:
    """A child process that runs main.py with these arguments, its output in `log`.

    prepare: called in the child first, to arrange a fault.
    """

    def __init__(self, arguments: Sequence[str], log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self.log = log
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, prepare)

    def _run(self, arguments: Sequence[str], prepare: Callable[[], None]) -> None:
        code = 1
        try:
            torch.set_num_threads(1)  # a pool of threads does not survive a fork
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv = [str(main_script.__file__), *arguments]
            prepare()
            try:
                run(main_script.main)
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever has happened, a fork never goes back into the code of its parent
            os._exit(code)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, limit: float = 120.0) -> int:
        """The exit code, or minus the signal that ended it."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(POLL)
        self.kill()
        os.waitpid(self.pid, 0)
        raise TimeoutError(f"still running after {limit} s: {self.said()}")

    def said(self) -> str:
        """All that it printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def wait_for(condition: Callable[[], bool], limit: float = 60.0) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(POLL)
