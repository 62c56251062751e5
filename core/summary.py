"""From the records of images to the published summary and statistics, and from their files back to the records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
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
    orig_conf, cf_conf: the probability before and after, of the explained attribute whatever the target, or of the
    target class.
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
        return "\n".join(f"{line}: {getattr(self, name)!r}" for name, line in INFO_LINES.items())

    @classmethod
    def from_text(cls, id: int, text: str) -> "ImageRecord":
        """The record whose `text` this is. Raises ValueError for any other text."""
        values = dict(line.split(": ") for line in text.split("\n"))
        try:
            columns = {f.name: f.type(values[INFO_LINES[f.name]]) for f in fields(cls) if f.name != "id"}
        except KeyError as error:
            raise ValueError(f"no line {error}") from None
        record = cls(id, **columns)
        if record.text() != text:
            raise ValueError("not the text of a record")
        return record


INFO_LINES = {
    name: {"cf_pred": "cf pred", "bkl": "BKL", "mad": "MAD"}.get(name, name)
    for name in ("label", "pred", "target", "cf_pred", "bkl", "l_1", "mad", "orig_conf", "cf_conf", "scale")
}
"""What a line of an Info file holds -> its name there, in their order."""


def summarise(records: Sequence[ImageRecord], failed: int = 0, classes: Sequence[str] = ()) -> Summary:
    """The published tables over n images; failed images are counted apart and enter no other figure.

    classes: names of the labels; those that occur get a table of their own.
    """
    table = pd.DataFrame([asdict(record) for record in records], columns=list(ImageRecord.__annotations__))
    table["mad"] = (table["orig_conf"] - table["cf_conf"]).abs()
    correct, flipped = table["pred"] == table["label"], table["cf_pred"] == table["target"]

    def figures(rows: pd.Series) -> Summary:
        return {"n": int(rows.sum()), **{key: _mean(table[key][rows]) for key in ("bkl", "l_1", "mad")}}

    def rates(rows: pd.Series) -> Summary:
        return {**figures(rows), "clean acc": 100 * _mean(correct[rows]), "cf acc": _mean(flipped[rows])}

    def halves(rows: pd.Series) -> Summary:
        return {"cf-cor": figures(rows & flipped), "cf-inc": figures(rows & ~flipped)}

    everything = pd.Series(True, table.index, dtype=bool)
    summary = {**rates(everything), "FVA": 0, "MNAC": 0, "failed": failed, **halves(everything)}
    for name, rows in (("class-cor", correct), ("class-inc", ~correct)):
        summary[name] = {**figures(rows), **halves(rows)}
    if classes:
        labels = sorted(set(table["label"]))
        summary["classes"] = {classes[label]: rates(table["label"] == label) for label in labels}
    return summary


def _mean(column: pd.Series) -> float:
    return float(column.mean()) if len(column) else 0


def write_summary(path: Path, summary: Summary) -> None:
    """summary.yaml: block style, sorted keys, plain numbers."""
    write_atomically(path, yaml.safe_dump(summary, default_flow_style=False, sort_keys=True))


STATS_COLUMNS = {field.name: "cf pred" if field.name == "cf_pred" else field.name for field in fields(ImageRecord)}
"""A record's field -> its name in stats.pth."""


def write_stats(path: Path, records: Sequence[ImageRecord]) -> None:
    """stats.pth: the figures of every image in the order processed.

    The columns are tensors: numpy arrays would not load with weights_only.
    """
    kinds = {int: torch.int64, float: torch.float32}
    stats: dict[str, Any] = {
        "n": len(records),
        "flipped": sum(record.flipped for record in records),
        "acc": 100 * _mean(pd.Series([record.correct for record in records], dtype=float)),
    }
    for field in fields(ImageRecord):
        values = [getattr(record, field.name) for record in records]
        stats[STATS_COLUMNS[field.name]] = torch.tensor(values, dtype=kinds[field.type])
    write_atomically(path, partial(torch.save, stats))


def read_stats(path: Path) -> list[ImageRecord]:
    """The records that `write_stats` wrote. Raises InputError for a file that holds anything else."""
    try:
        stats = checkpoint_util.load(path)
        columns = [stats[column].tolist() for column in STATS_COLUMNS.values()]
        return [ImageRecord(*row) for row in zip(*columns, strict=True)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the statistics of a run ({error}); remove it and run again") from None
