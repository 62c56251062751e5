"""The variational bound on the likelihood of images, in bits per dimension, and the terms it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from guided_diffusion import dist_util
from guided_diffusion.gaussian_diffusion import GaussianDiffusion

TERMS = ("vb", "mse", "xstart_mse")


@dataclass
class Likelihood:
    """Means over images so far; `terms` in bits per dimension (vb) and squared error, by timestep, the highest first.

    L_T is the prior's term, L_0 the last column of vb, and the L_t are those before it.
    """

    count: int = 0
    prior: float = 0.0
    terms: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The variational bound, in bits per dimension."""
        return self.prior + float(self.terms["vb"].sum())

    def __str__(self) -> str:
        vb = self.terms["vb"]
        parts = f"L_T {self.prior:.4g} + L_t {vb[:-1].sum():.4g} + L_0 {vb[-1]:.4g}"
        return f"{self.total:.4f} bits per dimension = {parts} ({self.count} images)"

    def add(self, images: int, prior: float, terms: dict[str, np.ndarray]) -> None:
        """Take in the means over `images` more."""
        self.count += images
        share = images / self.count
        self.prior += share * (prior - self.prior)
        self.terms = {name: (1 - share) * self.terms.get(name, 0) + share * values for name, values in terms.items()}


def measure_likelihood(
    network: nn.Module,
    diffusion: GaussianDiffusion,
    data: Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]],
    count: int,
    clip_denoised: bool = True,
) -> Iterator[Likelihood]:
    """The likelihood after each batch, until `count` images of all processes have been seen (whole batches).

    data: batches (images (N, C, H, W) in [-1, 1], keyword arguments of the network) of this process.
    """
    device = dist_util.dev()
    result = Likelihood()
    while result.count < count:
        x, cond = next(data)
        x, cond = x.to(device), {key: value.to(device) for key, value in cond.items()}
        out = diffusion.calc_bpd_loop(network, x, clip_denoised=clip_denoised, model_kwargs=cond)
        terms = {name: _mean(out[name]) for name in TERMS}
        result.add(len(x) * dist_util.world_size(), float(_mean(out["prior_bpd"])), terms)
        yield result


def _mean(values: torch.Tensor) -> np.ndarray:
    """Over the batch, (N, …) -> (…), and over the processes, whose batches are alike."""
    return (dist_util.sum_over_ranks(values.mean(0)) / dist_util.world_size()).cpu().numpy()
