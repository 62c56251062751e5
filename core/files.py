"""Files that are either complete or absent."""

from __future__ import annotations

import uuid
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that no reader, and no crash of this process, leaves a part of it: temporary sibling, rename."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
