"""From the records of images to the published summary, and from the summaries of chunks to the whole one's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from core.errors import InputError
from core.files import write_atomically
from core.results import ResultTree

Summary = dict[str, Any]


@dataclass(frozen=True)
class ImageRecord:
    """All figures about one image; the columns of the table behind the summary.

    bkl: 1 - p(target | counterfactual). l_1: mean |input - counterfactual| of the 8-bit images, in [0, 1].
    p_target, cf_p_target: the target's probability before and after. scale: the last classifier scale tried.
    """

    id: int
    label: int
    pred: int
    target: int
    cf_pred: int
    bkl: float
    l_1: float
    p_target: float
    cf_p_target: float
    scale: float

    @property
    def correct(self) -> bool:
        """Whether the input was classified as its label says."""
        return self.pred == self.label

    @property
    def flipped(self) -> bool:
        """Whether the counterfactual reached its target."""
        return self.cf_pred == self.target

    def text(self) -> str:
        """The image's Info file: the six published lines, then ours."""
        before, after = (p if self.target == 1 else 1 - p for p in (self.p_target, self.cf_p_target))
        lines = {
            "label": self.label,
            "pred": self.pred,
            "target": self.target,
            "cf pred": self.cf_pred,
            "BKL": self.bkl,
            "l_1": self.l_1,
            "MAD": abs(self.p_target - self.cf_p_target),
            "orig_conf": before,  # the attribute's probability, whatever the target
            "cf_conf": after,
            "scale": self.scale,
        }
        return "\n".join(f"{key}: {value!r}" for key, value in lines.items())


def summarise(records: Sequence[ImageRecord], failed: int = 0) -> Summary:
    """The published tables over n images; failed images are counted apart and enter no other figure."""
    table = pd.DataFrame([asdict(record) for record in records], columns=list(ImageRecord.__annotations__))
    table["mad"] = (table["p_target"] - table["cf_p_target"]).abs()
    correct, flipped = table["pred"] == table["label"], table["cf_pred"] == table["target"]
    summary: Summary = {
        **_figures(table),
        "clean acc": 100 * _mean(correct),
        "cf acc": _mean(flipped),
        "FVA": 0,
        "MNAC": 0,
        "failed": failed,
        "cf-cor": _figures(table[flipped]),
        "cf-inc": _figures(table[~flipped]),
    }
    for name, rows in (("class-cor", correct), ("class-inc", ~correct)):
        summary[name] = {
            **_figures(table[rows]),
            "cf-cor": _figures(table[rows & flipped]),
            "cf-inc": _figures(table[rows & ~flipped]),
        }
    return summary


def _figures(table: pd.DataFrame) -> Summary:
    return {"n": len(table), **{key: _mean(table[key]) for key in ("bkl", "l_1", "mad")}}


def _mean(column: pd.Series) -> float:
    return float(column.mean()) if len(column) else 0


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
        else:
            merged[key] = float(np.average(values, weights=counts)) if sum(counts) else 0
    return merged


def write_summary(path: Path, summary: Summary) -> None:
    """summary.yaml: block style, sorted keys, plain numbers."""
    write_atomically(path, yaml.safe_dump(summary, default_flow_style=False, sort_keys=True))


def write_stats(path: Path, records: Sequence[ImageRecord]) -> None:
    """stats.pth: the figures of every image in the order processed.

    The columns are tensors: numpy arrays would not load with weights_only.
    """

    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(record, name) for record in records], dtype=dtype)

    stats = {
        "n": len(records),
        "flipped": sum(record.flipped for record in records),
        "acc": 100 * _mean(pd.Series([record.correct for record in records], dtype=float)),
        "bkl": column("bkl", torch.float32),
        "l_1": column("l_1", torch.float32),
        "pred": column("pred", torch.int64),
        "cf pred": column("cf_pred", torch.int64),
        "target": column("target", torch.int64),
        "label": column("label", torch.int64),
        "id": column("id", torch.int64),
    }
    buffer = io.BytesIO()
    torch.save(stats, buffer)
    write_atomically(path, buffer.getvalue())


def merge_chunks(tree: ResultTree, num_chunks: int) -> Summary:
    """Read every chunk's summary and write the whole one's. Raises InputError naming what is missing or damaged."""
    paths = [tree.report("summary.yaml", num_chunks, chunk) for chunk in range(num_chunks)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{tree.results}: {len(missing)} of {num_chunks} chunk summaries are missing: {', '.join(missing)}; "
            "run those chunks first"
        )
    merged = merge([_read_summary(path) for path in paths])
    write_summary(tree.report("summary.yaml"), merged)
    return merged


def _read_summary(path: Path) -> Summary:
    try:
        summary = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable summary ({error})") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("n"), int):
        raise InputError(f"{path}: not a summary of a run (no count n); remove it and run that chunk again")
    if not _holds_numbers(summary):
        raise InputError(f"{path}: a figure is no number; remove it and run that chunk again")
    return summary


def _holds_numbers(summary: Summary) -> bool:
    return all(
        _holds_numbers(value) if isinstance(value, dict) else isinstance(value, (int, float))
        for value in summary.values()
    )
