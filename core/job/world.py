"""The processes that work on one experiment together: how they start, that all of them can, and each one's device."""

import contextlib
import io
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from dime.core.cli import EXIT_CONTINUE, EXIT_INPUT_ERROR, EXIT_SOME_FAILED, say, select_device
from dime.core.errors import InputError
from dime.core.job.identity import difference_between
from dime.core.job.queue import Begin, Queue
from guided_diffusion.dist_util import _choose_device, close, gather, open_group
from guided_diffusion.launch import detect, run_here


class World:
    """What a launcher has started, or a process alone.

    name: what these processes have in common, and all elements of a Slurm array; '' for a process alone.
    """

    def __init__(self) -> None:
        self.launch = detect()
        self.alone = self.launch.world_size == 1
        self.speaks = self.launch.rank == 0
        array = os.environ.get("SLURM_ARRAY_JOB_ID", "")
        self.name = f"Slurm array {array}" if array else ""
        task = f", array task {os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else ""
        rank = "" if self.alone else f" (rank {self.launch.rank})"
        self.me = f"process {os.getpid()} on {socket.gethostname()}{task}{rank}"
        self._have_met = self.alone

    @contextlib.contextmanager
    def one_voice(self) -> Iterator[None]:
        """Within, what is wrong in one process before all of them work ends all of them, and one says it."""
        try:
            self._agree()
            yield
        except InputError as error:
            if not self._have_met:
                self._agree(error=error)
            raise
        finally:
            close()

    def parsed(self, parse: Callable[[], Any]) -> Any:
        """What the parser of the flags gives; in several processes, its error is one of those that one of them says."""
        said = io.StringIO()
        try:
            with contextlib.nullcontext() if self.alone else contextlib.redirect_stderr(said):
                return parse()
        except SystemExit as exit:
            if self.alone or exit.code != EXIT_INPUT_ERROR:
                raise
            raise InputError(said.getvalue().partition(": error: ")[2]) from None

    def several(self, gpu: str) -> int | None:
        """Where --gpu names several devices and no launcher is there: the exit code of a process for each of them."""
        names = gpu.split(",")
        if not self.alone or len(names) == 1:
            return None
        codes = run_here(len(names))
        if EXIT_INPUT_ERROR not in codes and (ended := [code for code in codes if code in (0, EXIT_SOME_FAILED)]):
            return max(ended)  # the others have done the work of those that died
        return next((code for code in (EXIT_INPUT_ERROR, EXIT_CONTINUE) if code in codes), 1)

    def device(self, gpu: str) -> torch.device:
        """This process's device: that of its place on the machine, or of its place among those that --gpu names."""
        names, place = gpu.split(","), self.launch.local_rank
        if self.alone or not all(name.strip().isdecimal() for name in names):
            if len(names) > 1 and (place is None or max(place + 1, self.launch.local_size or 0) > len(names)):
                raise InputError(f"--gpu {gpu}: {self.launch} is one of more processes on its machine than these")
            return select_device(names[place if len(names) > 1 else 0])
        try:
            device = _choose_device(self.launch, "" if gpu == "0" else gpu)
        except ValueError as error:
            raise InputError(f"--gpu {gpu}: {error}") from None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        elif self.speaks:
            say(f"No CUDA GPU found: --gpu {gpu} runs on the CPU.")
        return device

    def compare(self, flags: Mapping[str, Any]) -> None:
        """Raise InputError where these flags are other ones than rank 0's."""
        if self._have_met:
            return
        words = self._agree([self.name or str(uuid.uuid4()), flags])
        self.name, theirs = words[0]
        difference = difference_between(words[self.launch.rank][1], theirs)
        if difference:
            raise InputError(f"{self.launch}: {difference}, in rank 0; all processes need the same command")

    @contextlib.contextmanager
    def at_work(self, queue: Queue, begin: Begin) -> Iterator[None]:
        """Share the queue within: rank 0 begins, and the others must find there what it has begun."""
        with contextlib.ExitStack() as until_the_end:
            if self._have_met or self.speaks:
                until_the_end.enter_context(queue.joined(begin))
            if not self._have_met:
                self._agree()
                if not self.speaks:
                    until_the_end.enter_context(queue.joined(None))
                self._agree()
                self._have_met = True
                close()  # from now on nobody needs the others
            yield

    def _agree(self, word: Any = None, error: InputError | None = None) -> list[Any]:
        """Every process's word. Raises the error of the first process that has one, in the others SystemExit."""
        words = [(word, error)]
        try:
            if not self.alone:
                if not dist.is_initialized():
                    open_group(self.launch)
                words = gather((word, error))
        except (ValueError, OSError, RuntimeError) as failed:  # they do not meet, or not any more
            lost = InputError(f"{self.launch}: the processes do not meet: {str(failed).splitlines()[0]}")
            first, error = (self.launch.rank, error) if error else (0, lost)
        else:
            first = next((rank for rank, (_, problem) in enumerate(words) if problem), None)
        if first is None:
            return [word for word, _ in words]
        self._have_met = True  # there is nothing more to agree on
        if self.launch.rank == first:
            raise error
        raise SystemExit(EXIT_INPUT_ERROR)
