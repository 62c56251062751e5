"""From the records of images to the published summary and statistics, and from their files back to the records."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from dime.core.errors import InputError
from dime.core.files import write_atomically
from guided_diffusion import checkpoint_util

Summary = dict[str, Any]


@dataclass(frozen=True)
class ImageRecord:
    """All figures about one image; the columns of the table behind the summary.

    bkl: 1 - p(target | counterfactual). l_1: mean |input - counterfactual| of the 8-bit images, in [0, 1].
    orig_conf, cf_conf: the explained attribute's probability before and after, whatever the target.
    scale: the last classifier scale tried. The floats are values of float32, so that every file holds them exactly.
    """

    id: int
    label: int
    pred: int
    target: int
    cf_pred: int
    bkl: float
    l_1: float
    orig_conf: float
    cf_conf: float
    scale: float

    @property
    def correct(self) -> bool:
        """Whether the input was classified as its label says."""
        return self.pred == self.label

    @property
    def flipped(self) -> bool:
        """Whether the counterfactual reached its target."""
        return self.cf_pred == self.target

    @property
    def mad(self) -> float:
        """How far the probability moved."""
        return abs(self.orig_conf - self.cf_conf)

    def text(self) -> str:
        """The image's Info file: the six published lines, then ours."""
        values = {line: getattr(self, name) for name, line in INFO_LINES.items()}
        return "\n".join(f"{line}: {value!r}" for line, value in values.items())

    @classmethod
    def from_text(cls, id: int, text: str) -> ImageRecord:
        """The record whose `text` this is. Raises ValueError for any other text."""
        values = dict(line.split(": ") for line in text.split("\n"))
        kinds = {field.name: {"int": int, "float": float}[field.type] for field in fields(cls)}
        try:
            record = cls(id, **{name: kinds[name](values[line]) for name, line in INFO_LINES.items() if name in kinds})
        except KeyError as error:
            raise ValueError(f"no line {error}") from None
        if record.text() != text:
            raise ValueError("not the text of a record")
        return record


INFO_LINES = {
    "label": "label",
    "pred": "pred",
    "target": "target",
    "cf_pred": "cf pred",
    "bkl": "BKL",
    "l_1": "l_1",
    "mad": "MAD",
    "orig_conf": "orig_conf",
    "cf_conf": "cf_conf",
    "scale": "scale",
}
"""What a line of an Info file holds -> its name there, in their order."""


def summarise(records: Sequence[ImageRecord], failed: int = 0) -> Summary:
    """The published tables over n images; failed images are counted apart and enter no other figure."""
    table = pd.DataFrame([asdict(record) for record in records], columns=list(ImageRecord.__annotations__))
    table["mad"] = (table["orig_conf"] - table["cf_conf"]).abs()
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


def write_summary(path: Path, summary: Summary) -> None:
    """summary.yaml: block style, sorted keys, plain numbers."""
    write_atomically(path, yaml.safe_dump(summary, default_flow_style=False, sort_keys=True))


STATS_COLUMNS = {
    "bkl": "bkl",
    "l_1": "l_1",
    "pred": "pred",
    "cf_pred": "cf pred",
    "target": "target",
    "label": "label",
    "id": "id",
    "orig_conf": "orig_conf",
    "cf_conf": "cf_conf",
    "scale": "scale",
}
"""Field of a record -> its array in stats.pth; the first six are the published ones."""


def write_stats(path: Path, records: Sequence[ImageRecord]) -> None:
    """stats.pth: the figures of every image in the order processed.

    The columns are tensors: numpy arrays would not load with weights_only.
    """
    kinds = {field.name: {"int": torch.int64, "float": torch.float32}[field.type] for field in fields(ImageRecord)}
    stats: dict[str, Any] = {
        "n": len(records),
        "flipped": sum(record.flipped for record in records),
        "acc": 100 * _mean(pd.Series([record.correct for record in records], dtype=float)),
    }
    for name, column in STATS_COLUMNS.items():
        stats[column] = torch.tensor([getattr(record, name) for record in records], dtype=kinds[name])
    buffer = io.BytesIO()
    torch.save(stats, buffer)
    write_atomically(path, buffer.getvalue())


def read_stats(path: Path) -> list[ImageRecord]:
    """The records that `write_stats` wrote. Raises InputError for a file that holds anything else."""
    try:
        stats = checkpoint_util.load(path)
        columns = {name: stats[column].tolist() for name, column in STATS_COLUMNS.items()}
        return [ImageRecord(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the statistics of a run ({error}); remove it and run again") from None
