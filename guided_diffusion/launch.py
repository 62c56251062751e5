"""Which process am I, of how many, and where do they meet: answered from what the launcher put in the environment.

torchrun, mpiexec (MPICH, Intel MPI, Open MPI, MVAPICH), srun and plain python. What a launcher leaves unsaid stays
unknown (None). Only Open MPI over several machines needs MASTER_ADDR and MASTER_PORT, or mpi4py.
"""

import atexit
import os
import re
import socket
import subprocess
import sys
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch.distributed as dist

MEETING_TIMEOUT = timedelta(minutes=5)
_MPI = "mpi4py.MPI"
_SILENCE = 20.0  # seconds of waiting before it is said
_WHERE = "MASTER_ADDR and MASTER_PORT to rank 0's address and a free port there"

# launcher: variables of rank, number of processes, rank on this machine, processes on this machine
_VARIABLES = {
    "RANK and WORLD_SIZE": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun, Kubernetes
    "Open MPI": tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "MVAPICH": tuple(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    # Only inside a job step: a batch script has a rank too, without being one of several processes.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}

_is_known_to_mpiexec = False


@dataclass(frozen=True)
class Launch:
    """One process's place: `rank` of `world_size`, `local_rank` of `local_size` on this machine (None: unknown)."""

    launcher: str
    rank: int = 0
    world_size: int = 1
    local_rank: int | None = 0
    local_size: int | None = 1

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size} ({self.launcher})"


def detect() -> Launch:
    """This process's place, from the environment; without a launcher it is rank 0 of 1.

    A launcher that tells the place on the machine goes before one that does not: srun sets some of MPICH's variables,
    and mpiexec inside a job of Slurm runs below tasks of srun.
    """
    told = []
    for launcher, names in _VARIABLES.items():
        rank, size, local_rank, local_size = (_numbers(os.environ.get(name)) for name in names)
        if rank and size == [1]:
            told.append(Launch(launcher))
        elif rank and size:
            node = (_numbers(os.environ.get("SLURM_NODEID")) or [0])[0]
            here = local_size[min(node, len(local_size) - 1)] if local_size else None
            told.append(Launch(launcher, rank[0], size[0], local_rank[0] if local_rank else None, here))
    return next((place for place in told if place.local_rank is not None), told[0] if told else Launch("python"))


def _numbers(text: str | None) -> list[int]:
    """The numbers of a variable: Slurm writes 2(x3),1 for two tasks on each of three machines and one on a fourth."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text or "")
    return [int(number) for number, times in found for _ in range(int(times or 1))]


def open_store(launch: Launch) -> dist.Store:
    """The key-value store where the processes of this launch meet, once all of them are there; a long wait is said.

    Raises ValueError when nothing says where rank 0 is, and TimeoutError when they do not meet in MEETING_TIMEOUT.
    """
    if launch.world_size == 1:
        return dist.HashStore()
    told = os.environ.keys() >= {"MASTER_ADDR", "MASTER_PORT"}
    place = "at {MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ) if told else "to meet"
    what = f"{launch}: waiting for the other processes {place}, {MEETING_TIMEOUT.seconds // 60} minutes at most"
    notice = threading.Timer(_SILENCE, lambda: print(what, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        # torchrun's store outlives a restart (--max-restarts), with the addresses of the dead
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), _connect(launch))
        everyone = [f"arrived/{rank}" for rank in range(launch.world_size)]
        store.set(everyone[launch.rank], "")
        store.wait(everyone, MEETING_TIMEOUT)
        return store
    except (RuntimeError, OSError) as error:  # torch's errors of stores are RuntimeErrors of many lines
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        advice = f"see that all of them start, or set {_WHERE}"
        raise TimeoutError(f"{launch}: the processes did not meet; {advice} ({reason})") from error
    finally:
        notice.cancel()


def run_here(count: int) -> list[int]:
    """Run this command `count` times on this machine, each told its place as torchrun does: their exit codes.

    That of a process which a signal has ended is minus its number. An exception in here ends them by SIGTERM.
    """
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    meeting |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "TORCHELASTIC_RESTART_COUNT": 0}
    environment = {"OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // count), **os.environ, **meeting}
    command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), *sys.argv]
    processes = []
    try:
        for rank in range(count):
            own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env={name: str(value) for name, value in own.items()}))
        return [process.wait() for process in processes]
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise


def _connect(launch: Launch) -> dist.Store:
    if os.environ.keys() >= {"MASTER_ADDR", "MASTER_PORT"}:
        return next(dist.rendezvous("env://", launch.rank, launch.world_size, timeout=MEETING_TIMEOUT))[0]
    store = partial(dist.TCPStore, is_master=launch.rank == 0, timeout=MEETING_TIMEOUT, wait_for_workers=False)
    one_machine = launch.local_size == launch.world_size
    if launch.launcher == "srun":
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "localhost")
        step = "{SLURM_JOB_ID}.{SLURM_STEP_ID}".format_map({"SLURM_JOB_ID": 0, "SLURM_STEP_ID": 0, **os.environ})
        return store("localhost" if one_machine else first_host(nodes), _port(step))
    if launch.launcher == "Open MPI" and one_machine and "PMIX_NAMESPACE" in os.environ:
        return store("localhost", _port(os.environ["PMIX_NAMESPACE"]))
    own = store("localhost", 0) if launch.rank == 0 else None  # on a port that the system chooses
    here = "localhost" if one_machine else socket.getfqdn()
    address = _told_by_mpi(launch.world_size, own and f"{here}:{own.port}")
    if not address:
        raise ValueError(f"{launch}: nothing says where rank 0 is; set {_WHERE}, or install mpi4py for this MPI")
    host, port = address.rsplit(":", 1)
    return own or store(host, int(port))


def first_host(nodes: str) -> str:
    """The first machine of a list of Slurm's: rack1node03 of rack[1-2]node[03-05,9],other."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes).group()
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _port(launch_name: str) -> int:
    """A port that follows from what identifies the launch, below those that systems give to outgoing connections."""
    return 20000 + zlib.crc32(launch_name.encode()) % 12000


def _told_by_mpi(world_size: int, address: str | None) -> str | None:
    """Rank 0's address, which is None elsewhere: over MPICH's notice board, else by mpi4py.

    The notice board announces no MPI program: mpi4py may still do that later.
    """
    global _is_known_to_mpiexec
    if "PMI_FD" in os.environ and _MPI not in sys.modules:
        _is_known_to_mpiexec = True
        atexit.register(leave_mpiexec)
        entry = f"kvsname={_ask_mpiexec('get_my_kvsname').get('kvsname')} key=torch"
        if address:
            _ask_mpiexec(f"put {entry} value={address}")
        _ask_mpiexec("barrier_in")
        return _ask_mpiexec(f"get {entry}").get("value")
    with suppress(ImportError, RuntimeError):
        from mpi4py.MPI import COMM_WORLD

        if COMM_WORLD.size == world_size:
            return COMM_WORLD.bcast(address, root=0)
    return None


def _ask_mpiexec(command: str) -> dict[str, str]:
    """PMI-1, the protocol between MPICH's mpiexec and what it has started: a line of words there, one back."""
    board = socket.socket(fileno=os.dup(int(os.environ["PMI_FD"])))
    board.settimeout(MEETING_TIMEOUT.total_seconds())
    with board, board.makefile("rw") as lines:
        lines.write(f"cmd={command}\n")
        lines.flush()
        answer = lines.readline()
        board.setblocking(True)  # as mpi4py expects it
    return dict(word.partition("=")[::2] for word in answer.split())


def leave_mpiexec() -> None:
    """Tell mpiexec, where it has been asked, that this process ends by itself; else it ends the others at once."""
    global _is_known_to_mpiexec
    if _is_known_to_mpiexec and _MPI not in sys.modules:  # mpi4py says it too
        _is_known_to_mpiexec = False
        with suppress(OSError):
            _ask_mpiexec("finalize")
