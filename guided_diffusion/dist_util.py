"""One training over several processes: the process group, each one's device, collective operations, how it ends.

Without `setup_dist` everything here behaves as one process alone.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from guided_diffusion.checkpoint_util import load_state_dict  # noqa: F401 (published)
from guided_diffusion.launch import Launch, detect, leave_mpiexec, open_store

_GRACE = 2.0
"""Seconds that a process whose neighbour has ended still has to end by an error of its own, which says more."""

_device: torch.device | None = None


def setup_dist(devices: str = "") -> None:
    """Open the process group that the launcher asks for: of one process too, and on a CPU too. Twice is once.

    Raises as `_choose_device` and `launch.open_store`.
    """
    global _device
    if dist.is_initialized():
        return
    launch = detect()
    _device = _choose_device(launch, devices)
    if _device.type == "cuda":
        torch.cuda.set_device(_device)
    open_group(launch, "cpu:gloo,cuda:nccl" if _device.type == "cuda" else "gloo")


def open_group(launch: Launch, backend: str = "gloo") -> None:
    """A process group of all that the launcher has started. Raises as `launch.open_store`."""
    dist.init_process_group(
        backend=backend,
        store=open_store(launch),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timedelta(days=1),  # rank 0 may draw samples for long; that a process died shows in `watched`
    )


def _choose_device(launch: Launch, devices: str = "") -> torch.device:
    """The device of a process: GPU number local rank, or that entry of `devices`, GPU indices separated by commas.

    Where there is no GPU, it is the CPU. Raises ValueError when there is no such GPU, or nothing says which.
    """
    if not re.fullmatch(r"(\s*\d+\s*(,\s*\d+\s*)*)?", devices):
        raise ValueError(f"gpus {devices!r}: expected GPU indices separated by commas, such as 0,1")
    chosen, place = [int(index) for index in re.findall(r"\d+", devices)], launch.local_rank
    if chosen and place is not None and len(chosen) < (launch.local_size or place + 1):
        raise ValueError(
            f"gpus {devices!r} names {len(chosen)} GPU(s) for {launch.local_size or 'more'} processes on this machine: "
            "name one for each, or start fewer"
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    present = torch.cuda.device_count()
    choice = chosen or range(present)
    if place is None and len(choice) > 1:
        raise ValueError(
            f"{launch}: which of {len(choice)} GPUs is this process's? Set LOCAL_RANK and LOCAL_WORLD_SIZE, or "
            "name one by --gpus"
        )
    place = place or 0
    if max(place + 1, launch.local_size or 0) > len(choice) or max(choice) >= present:
        asked = f"gpus {devices!r}" if chosen else f"{launch.local_size or launch.world_size} processes"
        raise ValueError(f"{asked}: this machine has {present} GPU(s), counted from 0, one for each process")
    return torch.device("cuda", choice[place])


def close() -> None:
    """Leave the process group, if there is one."""
    global _device
    if dist.is_initialized():
        dist.destroy_process_group()
    _device = None


def dev() -> torch.device:
    """This process's device."""
    return _device or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rank() -> int:
    """This process's number, from 0; before the process group is open, as the launcher says."""
    return dist.get_rank() if dist.is_initialized() else detect().rank


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else detect().world_size


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


@torch.no_grad()
def sync_params(params: Iterable[Tensor]) -> None:
    """Give every process rank 0's values, in place."""
    for parameter in () if _alone() else params:
        dist.broadcast(parameter, src=0)


def on_rank_0(function: Callable[[], Any]) -> Any:
    """Call it in rank 0 alone; every process returns its (small) result, or raises its ValueError or OSError."""
    result = error = None
    if rank() == 0:
        try:
            result = function()
        except (ValueError, OSError) as raised:
            error = raised
    result, error = gather((result, error))[0]
    if error is not None:
        raise error
    return result


def gather(value: Any) -> list:
    """Every process's value in the order of ranks, in every process (small ones)."""
    values = [value] * world_size()
    if not _alone():
        dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag stands in at least one process; costs no wait for the GPU."""
    return bool(sum_over_ranks(torch.tensor(int(flag))))


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if not _alone():
        dist.all_reduce(tensor)
    return tensor


@contextmanager
def watched() -> Iterator[None]:
    """A context that every process enters: when one dies inside, or leaves by an error, the others end too.

    They print one line on stderr and exit with code 1, also out of an operation that would never return (NCCL's).
    Each process waits for a farewell from the next one, in a ring; a connection that closes without one is a death.
    """
    if _alone():
        yield
        return
    own, following = rank(), (rank() + 1) % world_size()
    group = dist.new_group(backend="gloo", timeout=timedelta(days=3650))  # longer than any training
    leaving, unsaid = threading.Event(), threading.Lock()

    def say_farewell(all_well: bool) -> None:
        if unsaid.acquire(blocking=False):
            with suppress(RuntimeError):  # nobody is there any more
                dist.send(torch.tensor([float(all_well)]), dst=(own - 1) % world_size(), group=group)

    def wait_for_farewell() -> None:
        all_well = torch.zeros(1)
        with suppress(RuntimeError):  # the connection was lost
            dist.recv(all_well, src=following, group=group)
        if not all_well:
            say_farewell(False)
            if not leaving.wait(_GRACE):
                said = f"rank {own}: rank {following} has ended, so this one stops too; what is written is whole"
                print(said, file=sys.stderr, flush=True)
                leave_mpiexec()
                os._exit(1)  # the main thread may be inside an operation that never returns

    watch = threading.Thread(target=wait_for_farewell, daemon=True)
    watch.start()
    try:
        yield
        say_farewell(True)
        watch.join()
    except BaseException as error:
        if isinstance(error, RuntimeError):  # of a lost connection, maybe: then `watch` is about to end this process
            watch.join(2 * _GRACE)
        leaving.set()
        say_farewell(False)
        watch.join(2 * _GRACE)
        raise


@contextmanager
def signals_noted(received: list[str]) -> Iterator[None]:
    """A context in which SIGINT, SIGTERM and SIGUSR1, where the system has them, only add their name to the list."""

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number).name)

    in_main = threading.current_thread() is threading.main_thread()  # handlers can be set nowhere else
    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if in_main and hasattr(signal, name)]
    previous = {name: signal.signal(getattr(signal, name), note) for name in names}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)
