"""Which process am I, of how many, and where do they meet: answered from what the launcher put in the environment.

torchrun, mpiexec (MPICH, Intel MPI, Open MPI, MVAPICH), srun and plain python. No launcher's library is needed on one
machine; mpiexec over several machines needs MASTER_ADDR and MASTER_PORT, or mpi4py.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

MEETING_TIMEOUT = timedelta(minutes=5)

# launcher: variables of rank, number of processes, rank on this machine, processes on this machine
_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # Only inside a job step: a batch script has a rank too, without being one of several processes.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}
_NOTHING_TO_JOIN = "python"


@dataclass(frozen=True)
class Launch:
    """One process's place: `rank` of `world_size`, `local_rank` of `local_size` on this machine."""

    launcher: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def spans_machines(self) -> bool:
        """Whether there are processes on another machine."""
        return self.local_size < self.world_size


def detect() -> Launch:
    """This process's place, from the environment; without a launcher it is rank 0 of 1."""
    for launcher, names in _VARIABLES.items():
        rank, size, local_rank, local_size = (_leading_integer(os.environ.get(name)) for name in names)
        if rank is not None and size is not None:
            return Launch(
                launcher=launcher,
                rank=rank,
                world_size=size,
                local_rank=rank if local_rank is None else local_rank,
                local_size=size if local_size is None else local_size,
            )
    return Launch(_NOTHING_TO_JOIN)


def open_store(launch: Launch) -> dist.Store:
    """The key-value store where the processes of this launch meet.

    Raises ValueError when nothing says where rank 0 is, and TimeoutError when it does not show up.
    """
    if launch.world_size == 1:
        return dist.HashStore()
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return next(dist.rendezvous("env://", launch.rank, launch.world_size, timeout=MEETING_TIMEOUT))[0]
    if launch.launcher == "srun":
        return _tcp_store(launch, *_slurm_address())
    if launch.spans_machines:
        return _meet_through_mpi(launch)
    return _meet_through_file(launch)


def _leading_integer(text: str | None) -> int | None:
    """The number that a variable begins with: Slurm writes '2(x3)' for two tasks on each of three machines."""
    found = re.match(r"\d+", text or "")
    return int(found.group()) if found else None


def _tcp_store(launch: Launch, host: str, port: int) -> dist.TCPStore:
    return dist.TCPStore(host, port, launch.world_size, launch.rank == 0, timeout=MEETING_TIMEOUT)


def _slurm_address() -> tuple[str, int]:
    """The step's first machine, where rank 0 runs, and a port that follows from the step's number."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "localhost")
    first = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    host = "".join(part or "" for part in first.groups())
    job, step = (_leading_integer(os.environ.get(name)) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return host, 20000 + (job * 7 + step) % 20000


def _meet_through_mpi(launch: Launch) -> dist.TCPStore:
    try:
        from mpi4py import MPI
    except ImportError:
        raise ValueError(
            f"{launch.launcher} started processes on several machines: set MASTER_ADDR and MASTER_PORT to rank 0's "
            "address and a free port there, or install mpi4py"
        ) from None
    store = _tcp_store_of_rank_0() if launch.rank == 0 else None
    address = (socket.getfqdn(), store.port) if store else None
    address = MPI.COMM_WORLD.bcast(address, root=0)
    return store or _tcp_store(launch, *address)


def _tcp_store_of_rank_0() -> dist.TCPStore:
    """A store on a port that the system chooses; it waits for nobody, since nobody knows the port yet."""
    return dist.TCPStore("0.0.0.0", 0, is_master=True, timeout=MEETING_TIMEOUT, wait_for_workers=False)


def _meet_through_file(launch: Launch) -> dist.TCPStore:
    """One machine: rank 0 leaves its port in a file that the processes of this launch, and no other, know."""
    path = Path(tempfile.gettempdir()) / f"torch-port-{os.getuid()}-{_launcher_identity(launch)}"
    if launch.rank == 0:
        store = _tcp_store_of_rank_0()
        partial = path.with_suffix(".partial")
        partial.write_text(str(store.port))
        partial.replace(path)
        store.wait([f"arrived/{rank}" for rank in range(1, launch.world_size)], MEETING_TIMEOUT)
        path.unlink(missing_ok=True)
        return store
    deadline = time.monotonic() + MEETING_TIMEOUT.total_seconds()
    while not _is_mine(path):
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {launch.rank} of {launch.world_size}: rank 0 did not start within 5 minutes")
        time.sleep(0.02)
    store = _tcp_store(launch, "localhost", int(path.read_text()))
    store.set(f"arrived/{launch.rank}", "")
    return store


def _is_mine(path: Path) -> bool:
    """Whether the file is there and this user's own: the temporary folder belongs to everyone."""
    return path.exists() and path.stat().st_uid == os.getuid()


def _launcher_identity(launch: Launch) -> str:
    """Process id and start time of the launcher: the nearest ancestor that is itself no rank.

    The parent may be a shell around this one rank, and so have a rank in its environment too.
    """
    rank_variable = f"{_VARIABLES[launch.launcher][0]}=".encode()
    pid = os.getppid()
    try:
        while any(entry.startswith(rank_variable) for entry in _environment(pid)):
            pid = int(_status(pid)[1])
        return f"{pid}-{_status(pid)[19]}"
    except OSError:  # no /proc (macOS), or another user's launcher: the parent it is
        return str(os.getppid())


def _environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …, start time at position 19."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
