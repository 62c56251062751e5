"""One process at a time works on one chunk."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dime.core.cli import say
from dime.core.errors import InputError


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which says who holds it. Raises InputError when another process does.

    The lock is the operating system's: it ends with its process, however that dies, so none is ever stale. Where there
    are no locks, that is said once and the work goes on.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = path.read_text(errors="replace") or "another process"
        raise InputError(
            f"{path.parent}: {holder} is working on the same images; wait for it, or end it and run again"
        ) from None
    except PermissionError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    except (OSError, NotImplementedError):
        say(f"{path.parent}: no file locks there; see to it that no two processes do the same chunk.")
        yield
        return
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
