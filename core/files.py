"""Files that are either complete or absent, whatever happens to the process, the disk or the power."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from core.errors import InputError

FOREIGN_ORPHAN_AGE = 24 * 3600.0
"""Seconds after which a temporary file of another machine, whose processes cannot be asked after, is an orphan."""

_TEMPORARY = re.compile(r"\.(?P<pid>\d+)-(?P<host>.+)-[0-9a-f]{8}\.tmp$")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that no reader, and no crash, ever finds a part of it: temporary sibling, on the disk, rename.

    Raises InputError when it cannot be written (full or read-only disk); what had that name before is then whole.
    """
    data = content.encode() if isinstance(content, str) else content
    owner = f"{os.getpid()}-{socket.gethostname()}"
    temporary = path.with_name(f".{path.name}.{owner}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"{path}: could not be written ({error.strerror or error}); nothing that was there was changed; "
                "see to the disk, then run the same command again"
            ) from error
        raise


def remove_orphans(folders: Iterable[Path]) -> None:
    """Remove the temporary files that dead processes left in these folders; those of living ones stay."""
    for folder in folders:
        if folder.is_dir():
            for path in folder.glob(".*.tmp"):
                if _is_orphan(path):
                    path.unlink(missing_ok=True)


def _is_orphan(path: Path) -> bool:
    found = _TEMPORARY.search(path.name)
    if found is None:
        return False
    if found["host"] == socket.gethostname() and not _is_alive(int(found["pid"])):
        return True
    try:
        return time.time() - path.stat().st_mtime > FOREIGN_ORPHAN_AGE
    except FileNotFoundError:  # its writer has just finished
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
