"""Print the requirements of pyproject.toml that this interpreter lacks, one per line; arguments name extras.

    python tools/requirements.py [--oldest] test

--oldest: every lower bound stands for exactly that version. Needs nothing but Python's own library: it runs before
anything is installed.
"""

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
            wanted, _, python = requirement.partition("; python_version >= ")
            wanted = wanted.replace(">=", "==") if oldest else wanted
            if sys.version_info >= _parts(python.strip("'") or "3") and not is_satisfied(wanted):
                print(wanted)


def is_satisfied(requirement: str) -> bool:
    """Whether the package is installed in a version that NAME, NAME>=X.Y or NAME==X.Y asks for."""
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
    main()
