"""What a method's settings are worth, and what they cost, on drawn faces whose truth is known.

usage: python bench/quality.py --output quality.json [--num_images 200] [--settings NAME … NAME=FLAGS …] -- MAIN_FLAGS

Every setting is a few flags of main.py beside MAIN_FLAGS, which all of them share (networks, data, scales, losses).
Each one explains the same images; the figures go into the JSON file and, as a table, to the terminal; settings that the
file has are not run again. A plot of quality against cost is written beside it.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from PIL import Image
from torch import nn

import main as main_script
from dime.core.cli import Parser, integer, run, say, select_device
from dime.core.datasets import ATTRIBUTES, CelebA, image_transform
from dime.core.drawn_faces import counterfactual, draw, region
from dime.core.drawn_faces.folder import load_faces
from dime.core.errors import InputError
from dime.core.evaluation.plots import png
from dime.core.explain import Batch, Explanations
from dime.core.files import write_atomically
from dime.core.job.flags import parse_flags
from dime.core.networks.classifiers import load_classifier, output_column
from dime.core.networks.features import load_oracle
from dime.core.presets import PRESETS
from dime.core.training.classifier_files import logits_of


def spelled(preset: str, *without: str) -> str:
    """The flags of a preset, as on the command line."""
    return " ".join(f"--{flag} {value}" for flag, value in PRESETS[preset].items() if flag not in without)


SETTINGS = {
    **{name: spelled(name) for name in ("exact", "fast", "local")},
    **{f"K={k}": f"--inner_steps {k}" for k in (10, 5, 3, 2)},
    **{f"K={k} ddim": f"--inner_steps {k} --inner_sampler ddim" for k in (5, 3)},
    "K=5:10,1": "--inner_steps 5:10,1",
    "direct": "--method direct",
    "naive": "--method naive",
    "fastdime": "--method fastdime --warmup_step 15",  # half of the steps, as with the published 60
    "fastdimenomask": "--method fastdimenomask",
    "fastdime2": "--method fastdime2",
    "fastdime2+": "--method fastdime2+ --warmup_step 15",
    "gmd": "--method gmd --warmup_step 15",
    "maskdime": f"--method maskdime {spelled('local', 'method', 'inner_steps')}",  # as published for CelebA
}
"""Name -> flags of main.py."""

COLUMNS = {
    "flipped": "share whose prediction flips",
    "oracle": "share that flips for an independent network too",
    "change": "mean |change| of a pixel, on the scale [0, 1]",
    "outside": "the same outside the attribute's true region",
    "truth": "mean distance to the true counterfactual",
    "FS": "mean cosine of the features of input and counterfactual",
    "evaluations": "of the U-Net per image, all scales together",
    "seconds": "per image",
}
Figures = dict[str, float]


def main() -> None:
    """Run what is missing, print all of it, plot it."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("quality.json"), help="the figures; continued if it exists")
    parser.add_argument("--num_images", type=integer(1), default=200, help="the first so many of the chosen partition")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="names, or NAME=FLAGS for another one")
    parser.add_argument("--feature_path", default="", help="a network of this project's whose features give FS")
    parser.add_argument("main_flags", nargs="*", help="flags of main.py for all settings, after --")
    args = parser.parse_args()
    results = stored(args.output, {"images": args.num_images, "flags": args.main_flags})
    bench = None
    for name, flags in (chosen(text) for text in args.settings):
        if name in results["settings"] and results["settings"][name]["flags"] == flags:
            continue
        bench = bench or Bench(args.main_flags, args.num_images, args.feature_path)
        say(f"{name} ...")
        results["settings"][name] = {"flags": flags, **bench.measure(shlex.split(flags))}
        results["input to truth"] = bench.input_to_truth
        write_atomically(args.output, json.dumps(results, indent=1) + "\n")
    print(table(results["settings"]))
    write_atomically(args.output.with_suffix(".png"), plot(results))


def chosen(text: str) -> tuple[str, str]:
    """Name and flags of an item of --settings."""
    name, equals, flags = text.partition("=--")
    if equals:
        return name, f"--{flags}"
    if text not in SETTINGS:
        raise InputError(f"--settings {text}: unknown; known are {', '.join(SETTINGS)}, or give NAME=FLAGS")
    return text, SETTINGS[text]


def stored(path: Path, conditions: dict) -> dict:
    """What the file holds. Raises InputError if it was measured under other conditions."""
    if not path.exists():
        return {**conditions, "settings": {}}
    results = json.loads(path.read_text())
    for name, value in conditions.items():
        if results.get(name) != value:
            raise InputError(f"{path}: measured with {name} {results.get(name)}, not {value}; give another --output")
    return results


class Bench:
    """The images, what is true of them, and the networks that judge.

    Args:
        main_flags: what all settings share.
        num_images: how many images.
        feature_path: see main.
    """

    def __init__(self, main_flags: Sequence[str], num_images: int, feature_path: str) -> None:
        self.main_flags = main_flags
        args = parse_flags("", main_flags)
        self.attribute = args.query_label
        self.device = select_device(args.gpu)
        args.num_batches = -(-num_images // args.batch_size)
        dataset, selection = main_script.select_images(args)
        samples = [dataset[id] for id in selection[:num_images]]
        if len(samples) < num_images:
            raise InputError(f"--num_images {num_images}: only {len(samples)} images are there")
        self.batches = [
            Batch(
                [sample.id for sample in part],
                torch.stack([sample.image for sample in part]).to(self.device),
                torch.stack([sample.labels[self.attribute] for sample in part]).long().to(self.device),
            )
            for part in (samples[start : start + args.batch_size] for start in range(0, num_images, args.batch_size))
        ]
        self.truth = dict(true_counterfactuals(dataset, selection[:num_images], self.attribute, args.image_size))
        self.oracle = any_classifier(args.oracle_path, self.device)
        self.column = output_column(self.oracle, self.attribute, args.oracle_path)
        self.features = any_classifier(feature_path, self.device) if feature_path else None
        distances = [
            distance(truth.image, x.cpu())
            for batch in self.batches
            for x, truth in zip(batch.x, self._truth_of(batch), strict=True)
        ]
        self.input_to_truth = float(np.mean(distances))

    def measure(self, flags: Sequence[str]) -> Figures:
        """The figures of one setting."""
        args = parse_flags("", [*self.main_flags, *flags])
        args.precision = main_script.usable_precision(args, self.device)
        explain = main_script.build_explainer(args, main_script.build_diffusion(args), self.device, lambda: None)
        evaluations: list[int] = []
        explain.explainer.model.register_forward_pre_hook(lambda _, inputs: evaluations.append(len(inputs[0])))
        rows, seconds = [], 0.0
        for batch in self.batches:
            start = time.perf_counter()
            result = explain(batch)
            self._synchronise()
            seconds += time.perf_counter() - start
            rows += self._judge(result)
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return {**means, "evaluations": sum(evaluations) / len(rows), "seconds": seconds / len(rows)}

    @torch.no_grad()
    def _judge(self, result: Explanations) -> Iterator[Figures]:
        reached = (logits_of(self.oracle(result.cf))[:, self.column] > 0).long() == result.target
        similar = torch.full((len(result.batch),), torch.nan)
        if self.features is not None:
            similar = F.cosine_similarity(self._features(result.batch.x), self._features(result.cf))
        for row, truth in enumerate(self._truth_of(result.batch)):
            x, cf = result.batch.x[row].cpu(), result.cf[row].clamp(-1, 1).cpu()
            yield {
                "flipped": float(result.flipped[row]),
                "oracle": float(result.flipped[row] & reached[row]),
                "change": distance(x, cf),
                "outside": distance(x, cf, ~truth.region),
                "truth": distance(truth.image, cf),
                "FS": float(similar[row]),
            }

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        found = self.features(x)
        return found[0] if isinstance(found, tuple) else self.features.feat_extract(x)

    def _truth_of(self, batch: Batch) -> list[Truth]:
        return [self.truth[id] for id in batch.ids]

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Truth:
    """The true counterfactual (3, H, W) in [-1, 1], and where the attribute shows: booleans (1, H, W)."""

    image: torch.Tensor
    region: torch.Tensor


def true_counterfactuals(dataset: CelebA, ids: Sequence[int], attribute: int, size: int) -> Iterator[tuple[int, Truth]]:
    """What the images with these ids should become, as the network would see it."""
    faces = load_faces(dataset.data_dir)
    prepare, name = image_transform(size), ATTRIBUTES[attribute]
    for id in ids:
        face = faces[int(Path(dataset.path(id)).stem) - 1]
        shows = Image.fromarray(region(face, name)).convert("RGB")
        yield id, Truth(prepare(draw(counterfactual(face, name))), (prepare(shows) > -1).any(dim=0, keepdim=True))


def distance(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Mean |a - b| of two images (3, H, W) in [-1, 1], on the scale [0, 1]; `where` it counts (1, H, W)."""
    difference = (a - b).abs() / 2
    return float(difference.mean() if where is None else difference[where.expand_as(difference)].mean())


def any_classifier(path: str, device: torch.device) -> nn.Module:
    """A classifier or an oracle of this project's."""
    try:
        return load_classifier(path, device)
    except InputError:
        return load_oracle(path, device)


def table(settings: dict[str, Figures]) -> str:
    """Markdown: a row per setting."""
    lines = ["| setting | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, figures in settings.items():
        cells = [f"{figures[column]:.4g}" if figures[column] == figures[column] else "" for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict) -> bytes:
    """Quality against cost as a PNG file: what the oracle confirms, and how far from the truth it is."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, column, label in zip(
        panels, ("oracle", "truth"), ("flipped, oracle agrees", COLUMNS["truth"]), strict=True
    ):
        for name, figures in results["settings"].items():
            point = (figures["evaluations"], figures[column])
            axes.plot(*point, "o", color="C0")
            axes.annotate(name, point, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel="U-Net evaluations per image", ylabel=label)
        axes.xaxis.set_major_locator(LogLocator(base=2))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
        axes.margins(x=0.15)
    panels[1].axhline(results["input to truth"], color="black", linewidth=0.5, label="the input itself")
    panels[1].legend()
    return png(figure)


if __name__ == "__main__":
    run(main)
