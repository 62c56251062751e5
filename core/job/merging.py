"""From the summaries of chunks to that of the whole, once it is proven that they are all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dime.core.errors import InputError
from dime.core.files import read_yaml
from dime.core.job.identity import difference_between, read_identity
from dime.core.results import ResultTree
from dime.core.summary import Summary, write_summary

RUN = "run"
"""The table in a chunk's summary that says which chunk of which run it is; published summaries have none."""


def merge_chunks(tree: ResultTree, num_chunks: int, allow_partial: bool = False) -> Summary:
    """Read every chunk's summary and write the whole one's.

    Raises InputError naming the chunks that are missing, damaged, unfinished, twice there or of another run. With
    allow_partial the first three may be missing from the whole, which then says so.
    """
    paths = [tree.report("summary.yaml", num_chunks, chunk) for chunk in range(num_chunks)]
    foreign = [path for path in tree.reports("summary.yaml") if path not in paths and path.name != "summary.yaml"]
    if foreign:
        raise InputError(
            f"{foreign[0]}: belongs to another --num_chunks than {num_chunks}; merge with that one, or remove what "
            "does not belong to the experiment"
        )
    summaries: dict[int, Summary] = {}
    missing: dict[int, str] = {}
    for chunk, path in enumerate(paths):
        try:
            summaries[chunk] = _readable(read_yaml(path))
        except FileNotFoundError:
            missing[chunk] = f"{path.name} is missing"
        except ValueError as error:
            missing[chunk] = f"{path.name} {error}"
    runs = {chunk: summary.pop(RUN) for chunk, summary in summaries.items() if summary.get(RUN)}
    _require_one_run(tree, num_chunks, runs)
    if missing and not (allow_partial and summaries):
        raise InputError(
            f"{tree.results}: {len(missing)} of {num_chunks} chunks are not there: {'; '.join(missing.values())}; run "
            "them (again) first, or merge the rest with --allow_partial True"
        )
    merged = merge(list(summaries.values()))
    if missing:
        merged["missing"] = {"chunks": sorted(missing)}
        for run in list(runs.values())[:1]:
            merged["missing"]["images"] = run["total"] - merged["n"] - merged.get("failed", 0)
    write_summary(tree.report("summary.yaml"), merged)
    return merged


def merge(summaries: Sequence[Summary]) -> Summary:
    """The summary of the whole from those of its chunks: every figure weighted by its own table's n.

    A figure that a chunk lacks counts as 0 there, as for the published FVA and MNAC.
    """
    counts = [summary.get("n", 0) for summary in summaries]
    merged: Summary = {}
    for key in sorted({key for summary in summaries for key in summary}):
        values = [summary.get(key, 0) for summary in summaries]
        if any(isinstance(value, dict) for value in values):
            merged[key] = merge([value or {} for value in values])
        elif key in ("n", "failed", "unlabelled"):
            merged[key] = sum(values)
        elif key == "batch size":
            merged[key] = min(value for value in values if value)
        else:
            merged[key] = float(np.average(values, weights=counts)) if sum(counts) else 0
    return merged


def _readable(summary: Any) -> Summary:
    """A finished chunk's summary. Raises ValueError, as the end of a sentence about the file, for anything else."""
    if not isinstance(summary, dict) or not isinstance(summary.get("n"), int):
        raise ValueError("is not a summary of a run (no count n)")
    tables = [summary]
    while tables:
        for value in tables.pop().values():
            if isinstance(value, dict):
                tables.append(value)
            elif not isinstance(value, (int, float)):
                raise ValueError("has a figure that is no number")
    images, found = (summary.get(RUN) or {}).get("images"), summary["n"] + summary.get("failed", 0)
    if images is not None and images != found:
        raise ValueError(f"is about {found} images instead of {images}")
    return summary


def _require_one_run(tree: ResultTree, num_chunks: int, runs: dict[int, dict[str, Any]]) -> None:
    """Raise InputError for a summary under another chunk's name, and for one of another run than the first one's."""
    for chunk, run in runs.items():
        path, first = tree.report("summary.yaml", num_chunks, chunk), next(iter(runs))
        if (run["chunk"], run["num_chunks"]) != (chunk, num_chunks):
            raise InputError(f"{path}: is that of chunk {run['chunk']} of {run['num_chunks']}; run chunk {chunk} again")
        if run["identity"] != runs[first]["identity"]:
            configs = [tree.report("config.yaml", num_chunks, number) for number in (chunk, first)]
            identities = [read_identity(config) if config.exists() else {} for config in configs]
            difference = difference_between(*identities) if all(identities) else "see their config.yaml"
            raise InputError(f"{path}: is of another run than chunk {first}: {difference}")
