"""What a run says of itself: the flags in the config.yaml of its folder, for everything that comes after it."""

from __future__ import annotations

from typing import Any

from dime.core.files import read_yaml
from dime.core.results import ResultTree


def recorded(tree: ResultTree, flag: str) -> set:
    """The values of a flag in the runs behind the experiment, where their configuration lies there; lists as tuples."""
    found = set()
    for path in tree.reports("config.yaml"):
        try:
            config = read_yaml(path)
        except (FileNotFoundError, ValueError):
            continue
        value: Any = config.get(flag) if isinstance(config, dict) else None
        value = tuple(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, (str, int, float, tuple)):
            found.add(value)
    return found
