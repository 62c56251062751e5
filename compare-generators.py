"""Compare a DDPM, a GAN and a VAE on the same images, with equal seconds of training and numbers of parameters.

Writes OUTPUT_PATH/comparison.md and .csv (the figures), samples.png (64 samples of each over training time), and
DDPM/terms.png (the terms of its variational bound). Run again, it goes on where it was stopped; with other --features
it measures the same samples anew.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid
from tqdm import tqdm

from dime.core.cli import Parser, boolean, integer, number, run, say
from dime.core.datasets import DATASETS, Source
from dime.core.images import input_to_uint8, to_hwc, to_uint8
from dime.core.metrics.features import Machine
from dime.core.metrics.scripts import DEFAULT_WORKERS, png, write_file
from dime.core.samples import FeatureNetwork, Images, figures, named, open_images, table
from dime.core.training.generators import GENERATORS, MOMENTS, QUICK_STEPS, GeneratorTraining, build, clock, parameters
from dime.core.training.sampling import write_samples
from dime.core.training.script import GPUS, open_part, train
from guided_diffusion.trainer import PRECISIONS


def main() -> None:
    """Train, sample, measure, and write the table and the pictures."""
    args = parse_args()
    root, columns, trainings = Path(args.output_path), {}, {}
    for name in args.generators:
        own = argparse.Namespace(**{**vars(args), "output_path": str(root / name)})
        train(own, partial(build_training, name=name, built=trainings))
        if not trainings[name].finished:
            return
    write_file(root / "samples.png", png(over_time(trainings)))
    test = open_part(args.dataset, args.data_dir, "val", args.image_size, args.image_channels)
    for name, training in trainings.items():
        columns |= measured(name, training, test, args)
    device = next(iter(trainings.values())).device
    text = table(columns := scored(columns, test, device, args))
    write_file(root / "comparison.md", text)
    write_file(root / "comparison.csv", pd.DataFrame(columns).to_csv(index_label="figure"))
    print(text, end="")


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--dataset", choices=tuple(DATASETS), default="mnist", help="layout of data_dir, as for main.py")
    add("--data_dir", default=".", help="folder of the images")
    add("--download", type=boolean, default=False, help="fetch the data set into data_dir first (mnist)")
    add("--image_size", type=integer(16), default=32, help="side of the images; a power of two")
    add("--image_channels", type=int, choices=(1, 3), default=1, help="3: colour, 1: grey")
    add("--generators", nargs="+", choices=tuple(GENERATORS), default=list(GENERATORS), help="which of them")
    add("--output_path", default="generators", help="folder of all that is written")
    add("--seconds", type=number(0), default=720.0, help="of training, each: on a CPU of this process's time")
    add("--max_steps", type=integer(0), default=0, help="updates that end a training before that; 0: no limit")
    add("--width", type=integer(8), default=32, help="of the DDPM; the others get as many parameters, within a tenth")
    add("--batch_size", type=integer(2), default=64, help="images of one update")
    add("--precision", choices=PRECISIONS, default="fp32", help="in which networks are trained and drawn from")
    add("--num_samples", type=integer(4), default=2000, help="samples to measure, and real images to compare with")
    add("--num_bounds", type=integer(2), default=256, help="real images whose bits per dimension are measured")
    add("--features", default="inception", help="inception, or a classifier, as for evaluate-samples.py")
    add("--inception_weights", type=Path, help="pytorch-fid's; unset: models/, the torch hub cache, or a download")
    add("--gpus", default="", help=GPUS)
    add("--seed", type=integer(0), default=0, help="start of every random generator")
    return parser.parse_args()


def build_training(args: argparse.Namespace, name: str, built: dict[str, GeneratorTraining]) -> GeneratorTraining:
    """The training of one generator, with all the images in memory."""
    source = open_part(args.dataset, args.data_dir, "train", args.image_size, args.image_channels)
    images = torch.stack([input_to_uint8(source.load(i)) for i in tqdm(range(len(source)), disable=None)])
    network = build(name, args.image_size, args.image_channels, args.width)
    built[name] = GeneratorTraining(
        network,
        images.movedim(1, -1),
        Path(args.output_path),
        seconds=args.seconds,
        batch_size=args.batch_size,
        precision=args.precision,
        last_update=args.max_steps or None,
        log_interval=100,
        save_interval=500,
    )
    return built[name]


@torch.no_grad()
def measured(name: str, training: GeneratorTraining, test: Source, args: argparse.Namespace) -> dict[str, Any]:
    """The columns of a generator, without what rests on features; samples go to NAME/samples_*.npz.

    A DDPM has two columns, of all its steps and of few. What was measured before is read from figures.json.
    """
    folder, network = training.file.parent, training.average
    if (folder / "figures.json").exists():
        return json.loads((folder / "figures.json").read_text())
    torch.manual_seed(args.seed)
    common = {"parameters": parameters(network), "seconds to train": training.spent, "updates": training.updates}
    x = torch.stack([test.load(i) for i in range(min(args.num_bounds, len(test)))]).to(training.device)
    if name == "DDPM":
        out = network.process.calc_bpd_loop(network, x)
        write_file(folder / "terms.png", png(terms(out["vb"].mean(0).flip(0).cpu().numpy(), out["prior_bpd"].mean())))
        common["bits per dimension"] = float(out["total_bpd"].mean())
    elif name == "VAE":
        common["bits per dimension"] = float(network.losses(x)["loss"].mean())
        common["active units"] = f"{network.active_units(x)} of {network.latent}"
    columns, ways = {}, {name: {}}
    if name == "DDPM":
        ways[f"DDPM, {QUICK_STEPS} steps of DDIM"] = {"steps": QUICK_STEPS}
    for label, options in ways.items():
        say(f"{label}: drawing {args.num_samples} samples")
        began, parts = clock(training.device), []
        for start in tqdm(range(0, args.num_samples, 250), unit="batch", disable=None):
            noise = network.noise(min(250, args.num_samples - start)).to(training.device)
            with training.autocast():
                parts.append(to_uint8(network.draw(noise, **options).float()).cpu())
        seconds = clock(training.device) - began
        place = write_samples(folder.parent / label, to_hwc(torch.cat(parts)), None)
        speed = {"seconds per 1000 samples": seconds * 1000 / args.num_samples}
        columns[label] = {**common, **speed, "samples": str(place)}
    write_file(folder / "figures.json", json.dumps(columns, indent=2) + "\n")
    return columns


def scored(
    columns: dict[str, dict[str, Any]], test: Source, device: torch.device, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The columns with the figures of their samples in front, and one of training images, which nothing should beat."""
    network = FeatureNetwork(args.features, Machine(device, 250, DEFAULT_WORKERS), args.inception_weights)
    shape = (args.image_channels, args.image_size, args.image_size)
    known = open_part(args.dataset, args.data_dir, "train", args.image_size, args.image_channels)
    sets = {label: open_images(column.pop("samples")) for label, column in columns.items()}
    sets["training images"] = Images("training images", len(known), shape, known.load)
    reference = network(Images("test images", len(test), shape, test.load), args.num_samples)
    settings = {"splits": min(10, args.num_samples), "k": 3, "subsets": 100, "seed": 2020}
    scores = {}
    for label, images in sets.items():
        features = network(images, args.num_samples)
        size = min(1000, len(features.pooled), len(reference.pooled))
        found = figures(features, reference, **settings, subset_size=size)
        scores[label] = named(found, network) | columns.get(label, {})
    return scores


def over_time(trainings: dict[str, GeneratorTraining]) -> Figure:
    """Samples from the same noise: a row for each generator, a column for each of MOMENTS."""
    figure = Figure(figsize=(3 * len(MOMENTS), 3.2 * len(trainings)), layout="constrained")
    rows = figure.subplots(len(trainings), len(MOMENTS), squeeze=False)
    for row, (name, training) in zip(rows, trainings.items(), strict=True):
        for axes, moment, picture in zip(row, MOMENTS, training.pictures, strict=True):
            axes.imshow(to_hwc(make_grid(picture, nrow=8, padding=1)))
            axes.set_title(f"{name} after {training.spent * moment:.0f} s")
            axes.axis("off")
    return figure


def terms(bits: np.ndarray, prior: float) -> Figure:
    """The terms of the bound in bits per dimension over t: L_0, then L_{t-1}; L_T, which needs no network, in words."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(2, len(bits) + 1), bits[1:], label=f"L_t-1, t = 2 … {len(bits)}: {bits[1:].sum():.3f} together")
    axes.plot(1, bits[0], "o", label=f"L_0: {bits[0]:.3f}")
    axes.axhline(prior, ls=":", c="grey", label=f"L_T: {prior:.2g}")
    axes.set(xlabel="t", ylabel="bits per dimension", xscale="log", yscale="log")
    axes.set_title(f"variational bound: {bits.sum() + prior:.3f} bits per dimension")
    axes.legend()
    return figure


if __name__ == "__main__":
    run(main)
