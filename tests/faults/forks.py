"""main.py in real processes that need no second for importing torch: forks of this one, with a fault arranged."""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from guided_diffusion.unet import UNetModel
from tests.worlds import SCRIPT

EXIT_OK, EXIT_ERROR, EXIT_SOME_FAILED, EXIT_CONTINUE = 0, 2, 3, 75
"""What main.py ends with (docs/reliability.md)."""
POLL = 0.002


class Fork:
    """A child process that runs main.py, its output in `log`; prepare is called in it first, to arrange a fault."""

    def __init__(self, arguments: Sequence[str], log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self.log = log
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(arguments, prepare))
        self._process.start()
        self.pid = self._process.pid

    def _run(self, arguments: Sequence[str], prepare: Callable[[], None]) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = [str(SCRIPT), *arguments]
        prepare()
        runpy.run_path(str(SCRIPT), run_name="__main__")

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, limit: float = 120.0) -> int:
        """The exit code, or minus the signal that ended it."""
        self._process.join(limit)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
            raise TimeoutError(f"still running after {limit} s: {self.said()}")
        return self._process.exitcode

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def wait_for(condition: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not come")
        time.sleep(POLL)


def around_unet(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """In a fork: every evaluation of the diffusion model gives change(images, its output)."""
    forward = UNetModel.forward
    UNetModel.forward = lambda self, x, *rest, **more: change(x, forward(self, x, *rest, **more))


def without(files: dict[str, bytes], ids: set[int]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if int(Path(name).stem) not in ids}
