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
from typing import Any

import yaml

from dime.core.errors import InputError

FOREIGN_ORPHAN_AGE = 24 * 3600.0
"""Seconds after which a temporary file of another machine, whose processes cannot be asked after, is an orphan."""

YAML_DEPTH = 20
"""Summaries need 3."""

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


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file. Raises FileNotFoundError, or ValueError for anything else that is wrong.

    No tag runs code (safe_load). References and deep nesting, by which a few bytes can cost gigabytes or hours, are
    refused as well: none of our files has them.
    """
    try:
        text = path.read_text()
        _require_shallow(text)
        return yaml.safe_load(text)
    except FileNotFoundError:
        raise
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _require_shallow(text: str) -> None:
    depth = 0
    for token in yaml.scan(text):
        opens = isinstance(token, (yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken))
        opens = opens or isinstance(token, (yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken))
        closes = isinstance(token, (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken))
        depth += opens - closes
        if depth > YAML_DEPTH:
            raise ValueError(f"it is nested more than {YAML_DEPTH} deep")
        if isinstance(token, yaml.AliasToken):
            raise ValueError("it holds references (*)")


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
