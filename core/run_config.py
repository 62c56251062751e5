"""What a run says of itself: the flags in the config.yaml of its folder, for everything that comes after it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from dime.core.files import read_yaml
from dime.core.results import ResultTree


def configurations(tree: ResultTree) -> list[dict[str, Any]]:
    """The flags of the runs behind the experiment (one, or its chunks), where their configuration lies there."""
    found = []
    for path in tree.reports("config.yaml"):
        with suppress(FileNotFoundError, ValueError):
            found.append(read_yaml(path))
    return [config for config in found if isinstance(config, dict)]


def recorded(tree: ResultTree, flag: str) -> set:
    """The values of a flag in the runs behind the experiment; lists as tuples of texts."""
    values = [config[flag] for config in configurations(tree) if flag in config]
    values = [tuple(map(str, value)) if isinstance(value, list) else value for value in values]
    return {value for value in values if isinstance(value, (str, int, float, tuple))}
