"""One training over several processes: the process group, each process's device, and a few collective operations.

Without `setup_dist` everything here behaves as one process alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from guided_diffusion import checkpoint_util
from guided_diffusion.heartbeat import Heartbeat
from guided_diffusion.launch import Launch, detect, open_store

# Others may wait long while rank 0 draws samples; a process that died is noticed by the heartbeat, not by this.
_COLLECTIVE_TIMEOUT = timedelta(days=1)

_device: torch.device | None = None
_store: dist.Store | None = None


def setup_dist(devices: str = "") -> None:
    """Open the process group that the launcher asks for: of one process too, and on a CPU too. Twice is once.

    `devices`: GPU indices separated by commas; the process with local rank r takes entry r. '' gives it GPU number r.
    Where there is no GPU, every process uses the CPU (gloo). Raises ValueError when a process would have no device.
    """
    global _device, _store
    if dist.is_initialized():
        return
    launch = detect()
    _device = _choose_device(launch, devices)
    if _device.type == "cuda":
        torch.cuda.set_device(_device)
    _store = open_store(launch)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if _device.type == "cuda" else "gloo",
        store=_store,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=_COLLECTIVE_TIMEOUT,
    )


def close() -> None:
    """Leave the process group, if there is one."""
    global _device, _store
    if dist.is_initialized():
        dist.destroy_process_group()
    _device = _store = None


def dev() -> torch.device:
    """This process's device."""
    if _device is not None:
        return _device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rank() -> int:
    """This process's number, from 0; before the process group is open, as the launcher says."""
    return dist.get_rank() if dist.is_initialized() else detect().rank


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else detect().world_size


def load_state_dict(path: str, **kwargs) -> OrderedDict[str, torch.Tensor]:
    """Read a network's weights in every process (see `checkpoint_util.load_state_dict`)."""
    return checkpoint_util.load_state_dict(path, **kwargs)


@torch.no_grad()
def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Give every process rank 0's values, in place."""
    if _alone():
        return
    for parameter in params:
        dist.broadcast(parameter, src=0)


def on_rank_0(function: Callable[[], Any]) -> Any:
    """Call it in rank 0 alone; every process returns its (small) result, or raises its ValueError or OSError."""
    box: list = [None, None]
    if rank() == 0:
        try:
            box[0] = function()
        except (ValueError, OSError) as error:
            box[1] = error
    if not _alone():
        dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def gather(value: Any) -> list:
    """Every process's value in the order of ranks, in every process (small ones)."""
    if _alone():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag stands in at least one process; costs no wait for the GPU."""
    if _alone():
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes)
    return bool(votes)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if not _alone():
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for all processes."""
    if not _alone():
        dist.barrier()


def watched() -> AbstractContextManager:
    """A context that ends when another process dies (see `heartbeat.Heartbeat`)."""
    return nullcontext() if _alone() or _store is None else Heartbeat(_store, rank(), world_size())


def _alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def _choose_device(launch: Launch, devices: str) -> torch.device:
    chosen = [entry.strip() for entry in devices.split(",")] if devices else []
    if not all(entry.isdecimal() for entry in chosen):
        raise ValueError(f"gpus {devices!r}: expected GPU indices separated by commas, such as 0,1")
    if chosen and len(chosen) < launch.local_size:
        raise ValueError(
            f"gpus {devices!r} names {len(chosen)} GPU(s) for {launch.local_size} processes on this machine: "
            "name one for each, or start fewer"
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    present = torch.cuda.device_count()
    index = int(chosen[launch.local_rank]) if chosen else launch.local_rank
    if index >= present:
        asked = f"gpus {devices!r}" if chosen else f"{launch.local_size} processes"
        raise ValueError(f"{asked}: this machine has {present} GPU(s), counted from 0, one for each process")
    return torch.device("cuda", index)
