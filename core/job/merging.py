"""From the summaries of chunks to that of the whole, once it is proven that they are all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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
    _require_one_split(tree, num_chunks)
    summaries: dict[int, Summary] = {}
    missing: dict[int, str] = {}
    for chunk in range(num_chunks):
        path = tree.report("summary.yaml", num_chunks, chunk)
        try:
            summaries[chunk] = _read_summary(path)
        except InputError as error:
            missing[chunk] = str(error)
    _require_own_place(tree, num_chunks, summaries)
    _require_one_run(tree, num_chunks, summaries)
    if missing and not (allow_partial and summaries):
        reasons = "; ".join(missing.values())
        raise InputError(
            f"{tree.results}: {len(missing)} of {num_chunks} chunks are not there: {reasons}; run them (again) first, "
            "or merge the rest with --allow_partial True"
        )
    runs = {chunk: summary.pop(RUN, None) for chunk, summary in summaries.items()}
    merged = merge(list(summaries.values()))
    if missing:
        merged["missing"] = _what_is_missing(sorted(missing), merged, [run for run in runs.values() if run])
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
        elif key in ("n", "failed"):
            merged[key] = sum(values)
        elif key == "batch size":
            merged[key] = min(value for value in values if value)
        else:
            merged[key] = float(np.average(values, weights=counts)) if sum(counts) else 0
    return merged


def _read_summary(path: Path) -> Summary:
    """A finished chunk's summary. Raises InputError for one that is missing, damaged or does not hold all images."""
    try:
        summary = read_yaml(path)
    except FileNotFoundError:
        raise InputError(f"{path.name} is missing") from None
    except ValueError as error:
        raise InputError(f"{path.name} is not a readable summary ({error})") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("n"), int):
        raise InputError(f"{path.name} is not a summary of a run (no count n)")
    if not _holds_numbers(summary):
        raise InputError(f"{path.name} has a figure that is no number")
    images, found = (summary.get(RUN) or {}).get("images"), summary["n"] + summary.get("failed", 0)
    if images is not None and images != found:
        raise InputError(f"{path.name} is about {found} images instead of {images}")
    return summary


def _holds_numbers(summary: Summary) -> bool:
    return all(
        _holds_numbers(value) if isinstance(value, dict) else isinstance(value, (int, float))
        for value in summary.values()
    )


def _require_one_split(tree: ResultTree, num_chunks: int) -> None:
    """Raise InputError if chunks of another division of the images lie in the same folder."""
    own = {tree.report("summary.yaml", num_chunks, chunk) for chunk in range(num_chunks)}
    foreign = [path for path in tree.reports("summary.yaml") if path not in own and path.name != "summary.yaml"]
    if foreign:
        raise InputError(
            f"{foreign[0]}: belongs to another --num_chunks than {num_chunks}; merge with that one, or remove what "
            "does not belong to the experiment"
        )


def _require_own_place(tree: ResultTree, num_chunks: int, summaries: dict[int, Summary]) -> None:
    """Raise InputError for a summary under another chunk's name."""
    for chunk, summary in summaries.items():
        run = summary.get(RUN)
        if run and (run["chunk"], run["num_chunks"]) != (chunk, num_chunks):
            raise InputError(
                f"{tree.report('summary.yaml', num_chunks, chunk)}: is that of chunk {run['chunk']} of "
                f"{run['num_chunks']}; run chunk {chunk} again"
            )


def _require_one_run(tree: ResultTree, num_chunks: int, summaries: dict[int, Summary]) -> None:
    """Raise InputError for a chunk that was made with other flags, weights or images than the first one."""
    known = [(chunk, summary[RUN]["identity"]) for chunk, summary in summaries.items() if summary.get(RUN)]
    for chunk, identity in known[1:]:
        first, first_identity = known[0]
        if identity != first_identity:
            paths = [tree.report("config.yaml", num_chunks, number) for number in (chunk, first)]
            identities = [read_identity(path) if path.exists() else {} for path in paths]
            difference = difference_between(*identities) if all(identities) else "see their config.yaml"
            raise InputError(
                f"{tree.report('summary.yaml', num_chunks, chunk)}: is of another run than chunk {first}: {difference}"
            )


def _what_is_missing(chunks: list[int], merged: Summary, runs: list[dict[str, Any]]) -> Summary:
    """The chunks that are not in the whole, and how many images, where a chunk's summary says it."""
    found = merged["n"] + merged.get("failed", 0)
    return {"chunks": chunks, **({"images": runs[0]["total"] - found} if runs else {})}
