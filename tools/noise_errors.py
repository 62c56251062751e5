"""What a diffusion model's ε gets wrong at each timestep, over all pixels and in the mean of each channel.

    python tools/noise_errors.py --model_path MODEL.pt --data_dir FACES --steps 450,300,150,50 MODEL_FLAGS

A network that does not see the mean colour of a noisy image may have a small error at large timesteps all the same, but
it follows nothing of the noise's mean (docs/training.md, "Timesteps, and small networks").
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from dime.core import cli
from dime.core.datasets import CelebA
from dime.core.errors import InputError
from dime.core.networks.diffusion import load_diffusion
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.script_util import add_dict_to_argparser, model_and_diffusion_defaults


class NoiseError(NamedTuple):
    """Of one timestep.

    mse: mean squared error of ε. mean_rms: root mean square error of the mean of ε over a channel. followed: how far
    the predicted mean follows that of the noise, by regression over images and channels; 0 not at all, 1 wholly.
    """

    mse: float
    mean_rms: float
    followed: float


@torch.no_grad()
def noise_error(network: nn.Module, diffusion: GaussianDiffusion, x: torch.Tensor, t: int, seed: int = 0) -> NoiseError:
    """Noise images (N, 3, H, W) in [-1, 1] to timestep t and compare the ε that went in with the network's."""
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.full((len(x),), t)
    found = network(diffusion.q_sample(x, timesteps, noise=eps), timesteps)[:, : x.shape[1]]
    error = found - eps
    mean, found_mean = (values.mean((2, 3)) for values in (eps, found))
    mean, found_mean = mean - mean.mean(0), found_mean - found_mean.mean(0)
    return NoiseError(
        float(error.square().mean()),
        float(error.mean((2, 3)).square().mean().sqrt()),
        float((mean * found_mean).sum() / mean.square().sum()),
    )


def main() -> None:
    """Load, measure, print a table."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of the diffusion model")
    add("--data_dir", required=True, help="folder in CelebA's layout, whose validation images are noised")
    add("--num_images", type=cli.integer(2), default=64, help="the first so many of them")
    add("--steps", type=cli.number_list(0), default="450,300,150,50", help="timesteps, separated by commas")
    add_dict_to_argparser(parser.add_argument_group("diffusion model"), model_and_diffusion_defaults())
    args = parser.parse_args()
    model = load_diffusion(args.model_path, parser.model_flags(), torch.device("cpu"))
    network, diffusion = model.network, model.process
    steps = [int(step) for step in args.steps]
    if max(steps) >= diffusion.num_timesteps:
        raise InputError(f"--steps {max(steps)}: the process has {diffusion.num_timesteps} timesteps, counted from 0")
    images = CelebA(args.data_dir, "val", model.image_size)
    x = torch.stack([images[i].image for i in range(min(args.num_images, len(images)))])
    print("| timestep | mean squared error | error of a channel's mean | noise's mean followed |")
    print("|---|---|---|---|")
    for t in steps:
        print("| {} | {:.5f} | {:.4f} | {:.2f} |".format(t, *noise_error(network, diffusion, x, t)))


if __name__ == "__main__":
    cli.run(main)
