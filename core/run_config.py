"""What a run says of itself: the flags in the config.yaml of its folder, for everything that comes after it."""

from __future__ import annotations

from dime.core.files import read_yaml
from dime.core.results import ResultTree


def recorded(tree: ResultTree, flag: str) -> set:
    """The values of a flag in the runs behind the experiment, where their configuration lies there."""
    found = set()
    for path in tree.reports("config.yaml"):
        try:
            config = read_yaml(path)
        except (FileNotFoundError, ValueError):
            continue
        if isinstance(config, dict) and flag in config:
            found.add(config[flag])
    return found
