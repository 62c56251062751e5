"""What a diffusion model's ε gets wrong at each timestep, over all pixels and in the mean of each channel.

    python tools/noise_errors.py --model_path MODEL.pt --data_dir FACES --steps 450,300,150,50 MODEL_FLAGS

A network that does not see the mean colour of a noisy image may have a small error at large timesteps all the same, but
it follows nothing of the noise's mean (docs/training.md, "Timesteps, and small networks").
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from dime.core import cli
from dime.core.datasets import DATASETS
from dime.core.errors import InputError
from dime.core.networks.diffusion import load_diffusion
from dime.core.training.script import open_part, parse_model_args
from guided_diffusion.gaussian_diffusion import GaussianDiffusion


@torch.no_grad()
def noise_error(
    network: nn.Module, diffusion: GaussianDiffusion, x: torch.Tensor, t: int, seed: int = 0
) -> tuple[float, float, float]:
    """Noise images x (N, C, H, W) in [-1, 1] to timestep t and compare the ε that went in with the network's.

    The mean squared error of ε; the root mean square error of its mean over a channel; how far that mean follows the
    noise's, by regression over images and channels: 0 not at all, 1 wholly.
    """
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.full((len(x),), t)
    found = network(diffusion.q_sample(x, timesteps, noise=eps), timesteps)[:, : x.shape[1]]
    mean, found_mean = (values.mean((2, 3)) for values in (eps, found))
    centred = mean - mean.mean(0)
    followed = (centred * (found_mean - found_mean.mean(0))).sum() / centred.square().sum()
    errors = (found - eps).square().mean(), (found_mean - mean).square().mean().sqrt()
    return *map(float, errors), float(followed)


def main() -> None:
    """Load, measure, print a table."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", required=True, help="folder whose validation images are noised")
    add("--dataset", choices=tuple(DATASETS), default="CelebA", help="its layout, as for main.py")
    add("--num_images", type=cli.integer(2), default=64, help="the first so many of them")
    add("--steps", type=cli.number_list(0), default="450,300,150,50", help="timesteps, separated by commas")
    args = parse_model_args(parser)
    model = load_diffusion(args.model_path, args.diffusion, torch.device("cpu"))
    steps, count = [int(step) for step in args.steps], model.process.num_timesteps
    if max(steps) >= count:
        raise InputError(f"--steps {max(steps)}: the process has {count} timesteps, counted from 0")
    images = open_part(args.dataset, args.data_dir, "val", model.image_size, model.channels)
    x = torch.stack([images.load(i) for i in range(min(args.num_images, len(images)))])
    print("| timestep | mean squared error | error of a channel's mean | noise's mean followed |")
    print("|---|---|---|---|")
    for t in steps:
        found = noise_error(model.network, model.process, x, t, args.seed)
        print("| {} | {:.5f} | {:.4f} | {:.2f} |".format(t, *found))


if __name__ == "__main__":
    cli.run(main)
