"""The page of results: one section per benchmark, each replaced when it is measured again."""

from __future__ import annotations

import re
from pathlib import Path

from dime.core.files import write_atomically

HEAD = "# Measured\n\nEvery section says where, when and by which command; bench/README.md explains the columns.\n"


def write_section(path: Path, title: str, text: str) -> None:
    """Put text below the heading `## title` of a Markdown page, in place of what stood there; the rest stays."""
    page = path.read_text() if path.exists() else HEAD
    section = f"## {title}\n\n{text.strip()}\n\n"
    page, replaced = re.subn(
        rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", lambda _: section, page, count=1, flags=re.MULTILINE | re.DOTALL
    )
    if not replaced:
        page = f"{page.rstrip()}\n\n{section}"
    write_atomically(path, page.rstrip() + "\n")
