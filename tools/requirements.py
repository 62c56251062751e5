"""Print the requirements of pyproject.toml that this interpreter lacks, one per line; arguments name extras.

    python tools/requirements.py [--oldest] test

--oldest: every lower bound stands for exactly that version. Needs nothing but Python's own library: it runs before
anything is installed.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def required(extras: list[str]) -> list[str]:
    """The lists `dependencies` and those of the extras (tomllib reads TOML from Python 3.11 on only)."""
    text = PYPROJECT.read_text(encoding="utf-8")
    lists = (re.search(rf"^{name} = \[(.*?)\]", text, re.DOTALL | re.MULTILINE) for name in ["dependencies", *extras])
    marked = [text.partition("; python_version >= ") for found in lists for text in re.findall(r'"([^"]+)"', found[1])]
    return [requirement for requirement, _, python in marked if sys.version_info >= _parts(python.strip("'") or "3")]


def is_satisfied(requirement: str) -> bool:
    """Whether the package is installed in a version that NAME>=X.Y or NAME==X.Y asks for."""
    name, operator, wanted = re.fullmatch(r"([\w.-]+)(?:([>=]=)([\d.]+))?", requirement).groups()
    try:
        installed = version(name)
    except PackageNotFoundError:
        return False
    if operator is None:
        return True
    return _parts(installed) >= _parts(wanted) if operator == ">=" else _parts(installed) == _parts(wanted)


def _parts(text: str) -> tuple[int, ...]:
    """2.6.0+cpu -> (2, 6): versions that differ in zeros at the end, or in where they were built, are one."""
    return tuple(int(part) for part in re.sub(r"(\.0+)+$", "", re.match(r"\d+(\.\d+)*", text)[0]).split("."))


if __name__ == "__main__":
    extras = [word for word in sys.argv[1:] if word != "--oldest"]
    wanted = required(extras)
    if "--oldest" in sys.argv:
        wanted = [requirement.replace(">=", "==") for requirement in wanted]
    print("\n".join(requirement for requirement in wanted if not is_satisfied(requirement)))
