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


def main() -> None:
    """Read the lists `dependencies` and those of the extras (tomllib reads TOML from Python 3.11 on only)."""
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    oldest, extras = "--oldest" in sys.argv, [word for word in sys.argv[1:] if word != "--oldest"]
    for name in ["dependencies", *extras]:
        listed = re.search(rf"^{name} = \[(.*?)\]", text, re.DOTALL | re.MULTILINE)[1]
        for requirement in re.findall(r'"([^"]+)"', listed):
            wanted = requirement.replace(">=", "==") if oldest else requirement
            if not is_satisfied(wanted):
                print(wanted)


def is_satisfied(requirement: str) -> bool:
    """Whether the package is installed in a version that NAME, NAME>=X.Y or NAME==X.Y asks for.

    2.6.0+cpu is 2.6: versions that differ in zeros at the end, or in where they were built, are one.
    """
    name, operator, *numbers = re.fullmatch(r"([\w.-]+)(?:([>=]=)([\d.]+))?", requirement).groups(default="")
    try:
        numbers.append(re.match(r"\d+(\.\d+)*", version(name))[0])
    except PackageNotFoundError:
        return False
    wanted, found = (re.sub(r"(\.0+)+$", "", number).split(".") if number else ["0"] for number in numbers)
    wanted, found = list(map(int, wanted)), list(map(int, found))
    return found == wanted if operator == "==" else found >= wanted


if __name__ == "__main__":
    main()
