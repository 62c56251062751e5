"""Experiments as one HTML file: it opens offline, asks for nothing, and stays usable with thousands of images.

The page is templates/report.html.j2; its images travel as one JSON block, from which the script fills what comes
into view. Nothing that a file says is trusted: Jinja escapes text and JSON, the script writes text nodes only, and a
content security policy lets no other script run.
"""

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm import tqdm

from dime.core.datasets import ATTRIBUTES, read_image
from dime.core.metrics.protocol import METRIC_NAMES
from dime.core.report.data import Experiment, ImageResult
from dime.core.report.images import STRIP_FRAMES, difference_image, embedded, film_strip

TEMPLATES = Path(__file__).with_name("templates")
PLOT_PIXELS = 1200


@dataclass(frozen=True)
class Limits:
    """What bounds the file: images shown, images with a film strip, the longest side of an image."""

    images: int = 5000
    strips: int = 50
    pixels: int = 128


def chosen_ids(experiments: Sequence[Experiment], limits: Limits) -> tuple[list[int], int]:
    """The ids that the report shows, the lowest ones, and how many there are altogether."""
    ids = sorted(set().union(*(experiment.images for experiment in experiments)))
    return ids[: limits.images], len(ids)


def render(experiments: Sequence[Experiment], limits: Limits, num_workers: int = 2) -> str:
    """The whole page. Raises InputError for a damaged image."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    style_hash, script_hash = (
        "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in (style, script)
    )
    ids, total = chosen_ids(experiments, limits)

    def image(item: tuple[int, int]) -> dict[str, Any]:
        row, id = item
        results = [experiment.images.get(id) for experiment in experiments]
        original = next(result for result in results if result is not None).pair.original
        runs = [
            result and _run(result, experiment.changes.get(id), limits.pixels, with_strips=row < limits.strips)
            for result, experiment in zip(results, experiments, strict=True)
        ]
        return {"id": id, "input": embedded(read_image(str(original)), limits.pixels), "runs": runs}

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        images = list(tqdm(pool.map(image, enumerate(ids)), total=len(ids), unit="image", leave=False, disable=None))
    return environment.get_template("report.html.j2").render(
        style=style,
        script=script,
        style_hash=style_hash,
        script_hash=script_hash,
        explained=", ".join(dict.fromkeys(e.attribute for e in experiments if e.attribute)),
        experiments=experiments,
        plots={
            e.tree.exp_name: embedded(read_image(str(e.plot)), PLOT_PIXELS, quality=90) for e in experiments if e.plot
        },
        at=_at,
        figure=_figure,
        evaluation=_evaluation_table(experiments),
        remarks=_remarks(experiments),
        notes=_notes(experiments, ids, total, limits),
        data={
            "attributes": [name.replace("_", " ") for name in ATTRIBUTES],
            "experiments": [
                {"name": e.tree.exp_name, "attribute": e.attribute, "classes": e.classes} for e in experiments
            ],
            "images": images,
        },
    )


def _run(result: ImageResult, changes: list[tuple[int, int]] | None, pixels: int, with_strips: bool) -> dict[str, Any]:
    films = result.frames.items() if with_strips else ()
    return {
        "correct": result.pair.correct,
        "flipped": result.pair.flipped,
        "info": {name: value for name, value in result.info.items() if math.isfinite(value)},
        "changes": changes,
        "cf": embedded(read_image(str(result.pair.counterfactual)), pixels),
        "difference": embedded(difference_image(result), pixels),
        "strips": {
            kind: {"image": embedded(film_strip(paths)), "shown": min(len(paths), STRIP_FRAMES), "of": len(paths)}
            for kind, paths in films
        },
        "saved": sorted(result.frames),
    }


# the tables


def _at(table: Any, *place: str) -> dict:
    """The table below these keys; empty where there is none."""
    for key in place:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}


def _evaluation_table(experiments: Sequence[Experiment]) -> list[tuple[str, list[dict]]]:
    """Rows of (metric, what each experiment has measured of it)."""
    measured = [_at(e.evaluation, "measurements", e.tree.exp_name) for e in experiments]
    found = dict.fromkeys(name for metrics in measured for name in metrics)
    known = [name for name in METRIC_NAMES if name in found] + [str(n) for n in found if n not in METRIC_NAMES]
    return [(name, [_at(metrics, name) for metrics in measured]) for name in known]


def _remarks(experiments: Sequence[Experiment]) -> Iterable[str]:
    """What evaluate.py said below its table, and why a value is undefined, every line once."""
    lines: list[str] = []
    for experiment in experiments:
        name, evaluation = experiment.tree.exp_name, experiment.evaluation
        for kind, heading in (("missing", "Not computed: "), ("caveats", "")):
            remarks = _at(evaluation, kind).get(name)
            lines += [f"{heading}{line}" for line in remarks] if isinstance(remarks, list) else []
        measured = _at(evaluation, "measurements", name)
        for metric in measured:
            reason = _at(measured, metric).get("reason")
            if reason and not any(str(reason) in line for line in lines):
                lines.append(f"{metric} of {name}: undefined: {reason}")
    return dict.fromkeys(lines)


def _figure(value: Any) -> str:
    """A number in four digits; other text as it stands; a dash for what is no single value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "\N{EN DASH}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _notes(experiments: Sequence[Experiment], ids: Sequence[int], total: int, limits: Limits) -> list[str]:
    """What the reader must know about this file: what was cut, and what is not there."""
    notes = []
    if len(ids) < total:
        notes.append(f"This file shows the {len(ids):,} images with the lowest ids of {total:,} (--max-images).")
    filmed = [any(id in e.images and e.images[id].frames for e in experiments) for id in ids]
    shown = sum(filmed[: limits.strips])
    if shown < sum(filmed):
        notes.append(
            f"Film strips are embedded for the first {limits.strips:,} images only: {shown:,} of the {sum(filmed):,} "
            "that have saved steps (--film-strips)."
        )
    plain = [e.tree.exp_name for e in experiments if not any("orig_conf" in i.info for i in e.images.values())]
    if plain:
        notes.append(f"No probabilities are recorded in {', '.join(plain)}: only the published figures are shown.")
    return notes
