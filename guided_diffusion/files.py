"""Files here or in an object store (`gs://…`, by blobfile): opened, found, and written whole or not at all."""

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import blobfile as bf


def is_remote(path: str | Path) -> bool:
    """Whether the path has a scheme, as in gs://bucket/file."""
    return "://" in str(path)


def open_file(path: str | Path, mode: str) -> BinaryIO:
    """Open a file in a binary mode."""
    return bf.BlobFile(str(path), mode) if is_remote(path) else Path(path).open(mode)


def walk(folder: str | Path) -> Iterator[str]:
    """Every file below the folder in sorted order, without what is hidden (`.name`) or a Mac's (`__MACOSX`)."""
    found = bf.walk(str(folder)) if is_remote(folder) else os.walk(folder, followlinks=True)
    base = str(folder).replace(os.sep, "/").rstrip("/")
    paths = [f"{root.replace(os.sep, '/').rstrip('/')}/{name}" for root, _, names in found for name in names]
    shown = [path for path in paths if not re.search(r"/(\.|__MACOSX/)", path.removeprefix(base))]
    yield from sorted(shown, key=lambda path: path.split("/"))


def write_atomically(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that no reader, and no crash, ever finds a part of it: temporary sibling, on the disk, rename.

    `content`: what it is to hold, or a function that writes it. Raises OSError, in one line, when it cannot be
    written; what had that name before is then whole.
    """
    write = content if callable(content) else lambda file: file.write(content)
    if is_remote(path):  # object stores show an object only when its upload is complete
        with open_file(path, "wb") as file:
            write(file)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{socket.gethostname()}-{uuid.uuid4().hex[:8]}.tmp")
    write_to_disk(temporary, write, path)
    publish(temporary, path)


def write_to_disk(temporary: Path, write: Callable[[BinaryIO], object], path: Path) -> None:
    """The first half of `write_atomically`: the content of `path` is on the disk, under another name."""
    with _cleared_away(temporary, path), temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def publish(temporary: Path, path: Path) -> None:
    """The second half: what was written takes its name."""
    with _cleared_away(temporary, path):
        temporary.replace(path)
    with suppress(OSError):  # Windows, CIFS and FUSE cannot; the file is whole without it too
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _cleared_away(temporary: Path, path: Path) -> Iterator[None]:
    """What goes wrong within leaves no temporary file, and is an OSError of one line."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # torch hides a full disk in a RuntimeError of many lines
            reason = getattr(error, "strerror", None) or "is the disk full?"
            raise OSError(f"{path}: could not be written ({reason}); nothing that was there was changed") from error
        raise


def remove_orphans(folders: Iterable[Path]) -> None:
    """Remove the temporary files that dead processes left in these folders; those of living ones stay."""
    named = re.compile(r"\.(?P<pid>\d+)-(?P<host>.+)-[0-9a-f]{8}\.tmp$")
    for path in (path for folder in folders for path in folder.glob(".*.tmp")):
        if found := named.search(path.name):
            with suppress(FileNotFoundError):  # its writer has just finished
                # a day: the processes of another machine cannot be asked after
                is_old = time.time() - path.stat().st_mtime > 24 * 3600
                if is_old or (found["host"] == socket.gethostname() and not _is_alive(int(found["pid"]))):
                    path.unlink()


def _is_alive(pid: int) -> bool:
    if os.name == "posix":  # elsewhere, asking ends the process
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            pass
    return True
