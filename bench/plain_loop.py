"""The method as it is written down, every evaluation made: what the sampler is tested against and timed against."""

import torch
from torch import nn

from dime.core.guidance import Pull
from guided_diffusion.respace import SpacedDiffusion


@torch.no_grad()
def plain_loop(
    model: nn.Module,
    diffusion: SpacedDiffusion,
    x: torch.Tensor,
    tau: int,
    pull: Pull,
    seed: int,
    clip: bool = True,
    stochastic: bool = True,
    guided_iterations: int = 9_999_999,
) -> torch.Tensor:
    """The counterfactual of x (N, 3, H, W) by Algorithm 1 of the paper, on torch's global generator.

    With τ = 60 it makes 1830 evaluations of the network: 60 of outer steps, 59 · 60 / 2 of the chains behind x_t.
    """

    def at(i: int) -> torch.Tensor:
        return torch.full((len(x),), i, device=x.device)

    torch.manual_seed(seed)
    z, x_t = diffusion.q_sample(x, at(tau), noise=torch.randn_like(x)), x
    for step, i in enumerate(reversed(range(tau))):
        p = diffusion.p_mean_variance(model, z, at(i), clip_denoised=clip)
        mean, eps = p["mean"], torch.randn_like(z)
        if step < guided_iterations:
            root = float(diffusion.sqrt_alphas_cumprod[i])
            g_dist = pull.distance_gradient(z) + pull.perceptual_gradient(x_t) / root
            mean = mean - p["variance"] * (pull.class_gradient(x_t) / root + g_dist)
        z = mean + (0.5 * p["log_variance"]).exp() * eps if i > 0 else mean
        if i > 0 and step < guided_iterations:
            x_t = z
            for j in reversed(range(i)):
                if stochastic:
                    x_t = diffusion.p_sample(model, x_t, at(j))["sample"]
                else:
                    x_t = diffusion.p_mean_variance(model, x_t, at(j))["mean"]
    return z
