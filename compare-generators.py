"""Compare a DDPM, a GAN and a VAE on the same images, with equal seconds of training and numbers of parameters.

Writes OUTPUT_PATH/comparison.md and .csv (the figures), samples.png (64 samples of each over training time), and
DDPM/terms.png (the terms of its variational bound). Run again, it goes on where it was stopped; with other --features
it measures the same samples anew.
"""

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
from dime.core.datasets import DATASETS, Source, download
from dime.core.images import input_to_uint8, to_hwc
from dime.core.metrics.features import Machine
from dime.core.metrics.scripts import DEFAULT_WORKERS, png, write_file
from dime.core.samples import FeatureNetwork, open_images, table
from dime.core.training.generators import DDPM, GENERATORS, MOMENTS, GeneratorTraining, build, clock, parameters
from dime.core.training.script import GPUS, open_part, train, write_samples
from dime.models.generators import LATENT, VAE
from guided_diffusion import dist_util
from guided_diffusion.trainer import PRECISIONS


def main() -> None:
    """Train, sample, measure, and write the table and the pictures."""
    args = parse_args()
    root, trainings, columns = Path(args.output_path), {}, {}
    network = FeatureNetwork(args.features, Machine(dist_util.dev(), 250, DEFAULT_WORKERS))
    if args.download:
        download(args.dataset, args.data_dir)
    shape = args.image_size, args.image_channels
    learnt, test = (open_part(args.dataset, args.data_dir, part, *shape) for part in ("train", "val"))
    pixels = to_hwc(torch.stack([input_to_uint8(learnt.load(i)) for i in tqdm(range(len(learnt)), disable=None)]))

    def start(own: argparse.Namespace, name: str) -> GeneratorTraining:
        settings = {key: getattr(args, key) for key in ("seconds", "batch_size", "precision")}
        settings |= {"last_update": args.max_steps or None, "log_interval": 100, "save_interval": 500}
        generator = build(name, *shape, args.width)
        trainings[name] = GeneratorTraining(generator, pixels, Path(own.output_path), **settings)
        return trainings[name]

    for name in args.generators:
        train(argparse.Namespace(**{**vars(args), "output_path": str(root / name)}), partial(start, name=name))
        if not trainings[name].finished:
            return
    write_file(root / "samples.png", png(over_time(trainings)))
    for name, training in trainings.items():
        columns |= measured(name, training, test, args)
    text = table(columns := scored(columns, network, learnt, test, args.num_samples))
    write_file(root / "comparison.md", text)
    write_file(root / "comparison.csv", pd.DataFrame(columns).to_csv(index_label="figure"))
    print(text, end="")


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--dataset", choices=tuple(DATASETS), default="mnist", help="layout of data_dir, as for main.py")
    add("--data_dir", default="", help="folder of the images")
    add("--download", type=boolean, default=False, help="fetch the data set into data_dir first (mnist)")
    add("--image_size", type=integer(16), default=32, help="side of the images; a power of two")
    add("--image_channels", type=int, choices=(1, 3), default=1, help="3: colour, 1: grey")
    add("--generators", nargs="+", choices=tuple(GENERATORS), default=list(GENERATORS), help="which of them")
    add("--output_path", default="generators", help="folder of all that is written")
    add("--seconds", type=number(1), default=720.0, help="of training, each: on a CPU of this process's time")
    add("--max_steps", type=integer(0), default=0, help="updates that end a training before that; 0: no limit")
    add("--width", type=integer(8), default=32, help="of the DDPM; the others get as many parameters, within a tenth")
    add("--batch_size", type=integer(2), default=64, help="images of one update")
    add("--precision", choices=PRECISIONS, default="fp32", help="in which networks are trained and drawn from")
    add("--num_samples", type=integer(16), default=2000, help="samples to measure, and real images to compare with")
    add("--features", default="inception", help="inception, or a classifier, as for evaluate-samples.py")
    add("--gpus", default="", help=GPUS)
    add("--seed", type=integer(0), default=0, help="start of every random generator")
    return parser.parse_args()


@torch.no_grad()
def measured(name: str, training: GeneratorTraining, test: Source, args: argparse.Namespace) -> dict[str, Any]:
    """A generator's columns without what rests on features; one more for its quickest way to draw, if there is one.

    Samples go to files, columns to NAME/figures.json; what is there, of as many updates and samples, is not measured
    again. Bounds rest on an eighth as many real images as samples.
    """
    folder, network, ways = training.file.parent, training.average, {name: {}}
    same = {"parameters": parameters(network), "updates": training.updates, "seconds to train": training.spent}
    same["samples drawn"] = args.num_samples
    if network.quick:
        ways[f"{name}, {network.quick['steps']} steps of DDIM"] = network.quick
    file = folder / "figures.json"
    columns = json.loads(file.read_text()) if file.exists() else {}
    columns = {label: column for label, column in columns.items() if same.items() <= column.items()}
    torch.manual_seed(args.seed)
    for label in [label for label in ways if label not in columns]:
        say(f"{label}: drawing {args.num_samples} samples")
        began, sizes = clock(training.device), [250] * (args.num_samples // 250) + [args.num_samples % 250]
        images = torch.cat([training.draw(size, **ways[label]) for size in tqdm(sizes, disable=None) if size])
        seconds = (clock(training.device) - began) * 1000 / args.num_samples
        place = write_samples(folder / "quick" if ways[label] else folder, to_hwc(images), None)
        columns[label] = {**same, "seconds per 1000 samples": seconds, "samples": str(place)}
        write_file(file, json.dumps(columns, indent=2) + "\n")
    if "bits per dimension" not in columns[name]:
        x = torch.stack([test.load(i) for i in range(min(args.num_samples // 8, len(test)))]).to(training.device)
        columns[name] |= bounds(network, x, folder / "terms.png")
        write_file(file, json.dumps(columns, indent=2) + "\n")
    return columns


def bounds(network: torch.nn.Module, x: torch.Tensor, plot: Path) -> dict[str, Any]:
    """The bound of real images in bits per dimension; of a DDPM its terms as a plot, of a VAE what is not collapsed."""
    if isinstance(network, DDPM):
        out = network.process.calc_bpd_loop(network, x)
        write_file(plot, png(terms(out["vb"].mean(0).flip(0).cpu().numpy(), float(out["prior_bpd"].mean()))))
        return {"bits per dimension": float(out["total_bpd"].mean())}
    if isinstance(network, VAE):
        bits = float(network.losses(x)["loss"].mean())
        return {"bits per dimension": bits, "active units": f"{network.active_units(x)} of {LATENT}"}
    return {"bits per dimension": "none"}


def scored(
    columns: dict[str, dict[str, Any]], network: FeatureNetwork, learnt: Source, test: Source, count: int
) -> dict[str, dict[str, Any]]:
    """The columns with the figures of their samples in front, and one of training images, which nothing should beat."""
    sets = {label: open_images(column.pop("samples")) for label, column in columns.items()}
    reference, smaller, scores = network(test, count), min(count, len(test), len(learnt)), {}
    for label, images in {**sets, "training images": learnt}.items():
        figures = network.figures(
            network(images, count), reference, min(10, smaller), subset_size=min(1000, smaller // 2)
        )
        scores[label] = figures | columns.get(label, {})
    return scores


def over_time(trainings: dict[str, GeneratorTraining]) -> Figure:
    """Samples from the same noise: a row for each generator, a column for each of MOMENTS."""
    figure = Figure(figsize=(3 * len(MOMENTS), 3.2 * len(trainings)), layout="constrained")
    rows = figure.subplots(len(trainings), len(MOMENTS), squeeze=False)
    for row, (name, training) in zip(rows, trainings.items(), strict=True):
        for axes, (seconds, picture) in zip(row, training.pictures, strict=True):
            axes.imshow(to_hwc(make_grid(picture, padding=1)))
            axes.set(title=f"{name} after {seconds:.0f} s", xticks=[], yticks=[])
    return figure


def terms(bits: np.ndarray, prior: float) -> Figure:
    """The terms of the bound (T,), L_0 first, in bits per dimension over t, and L_T, for which no network is needed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(2, len(bits) + 1), bits[1:], label=f"L_t-1, t = 2 … {len(bits)}: {bits[1:].sum():.3f} together")
    axes.plot(1, bits[0], "o", label=f"L_0: {bits[0]:.3f}")
    axes.axhline(prior, ls=":", c="grey", label=f"L_T: {prior:.2g}")
    axes.set(xlabel="t", ylabel="bits per dimension", xscale="log", yscale="log")
    axes.set_title(f"variational bound: {bits.sum() + prior:.3f} bits per dimension")
    axes.legend()
    return figure


if __name__ == "__main__":
    run(main)
