"""Gaussian diffusion: sampling, and the losses of training.

Notation of Ho et al. 2020 (DDPM): x_0 = x_start is the clean image, x_t the noisy one, ᾱ_t = alphas_cumprod[t].
Images are (N, C, H, W) in [-1, 1]; t is (N,), integer indices of this process. Single steps are in process.py.
"""

import enum
import math
from collections import deque
from collections.abc import Iterator
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from guided_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion.nn import mean_flat
from guided_diffusion.process import (  # noqa: F401 (some are published as names of this module)
    CondFn,
    DenoisedFn,
    Kwargs,
    Model,
    ModelMeanType,
    ModelVarType,
    Process,
    Tensors,
    betas_for_alpha_bar,
    get_named_beta_schedule,
)


class LossType(enum.Enum):
    """What training minimises; KL is the variational bound in bits per dimension, alone."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self) -> bool:
        """Whether the loss is the variational bound alone."""
        return self in (LossType.KL, LossType.RESCALED_KL)


class GaussianDiffusion(Process):
    """A diffusion process with its sampling loops and training losses; settings: those of Process."""

    def __init__(self, *, loss_type: LossType, **settings: Any) -> None:
        super().__init__(**settings)
        self.loss_type = loss_type

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn = None,
        cond_fn: CondFn = None,
        model_kwargs: Kwargs = None,
    ) -> Tensors:
        """A draw of x_{t-1}: sample and pred_xstart. At index 0 it is the mean; noise is drawn even there."""
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = torch.randn_like(x)
        mean = out["mean"] if cond_fn is None else self.condition_mean(cond_fn, out, x, t, model_kwargs)
        sample = mean + _above_zero(t, x) * torch.exp(0.5 * out["log_variance"]) * noise
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn = None,
        cond_fn: CondFn = None,
        model_kwargs: Kwargs = None,
        eta: float = 0.0,
    ) -> Tensors:
        """x_{t-1} by DDIM: sample and pred_xstart (Song et al. 2021, equation 12).

        eta: the share of noise, from 0 (none, though it is drawn) to 1 (as much as DDPM).
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs)
        pred_xstart = out["pred_xstart"]
        eps = self.eps_from_xstart(x, t, pred_xstart)
        alpha_bar, alpha_bar_prev = self.at("alphas_cumprod", t, x), self.at("alphas_cumprod_prev", t, x)
        sigma = eta * torch.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        mean = pred_xstart * alpha_bar_prev.sqrt() + torch.sqrt((1 - alpha_bar_prev - sigma**2).clamp(min=0)) * eps
        sample = mean + _above_zero(t, x) * sigma * torch.randn_like(x)
        return {"sample": sample, "pred_xstart": pred_xstart}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn = None,
        model_kwargs: Kwargs = None,
        eta: float = 0.0,
    ) -> Tensors:
        """x_{t+1} by DDIM, towards noise: sample and pred_xstart.

        Raises ValueError for an eta other than 0: only the deterministic path has a reverse.
        """
        if eta != 0.0:
            raise ValueError(f"ddim_reverse_sample: eta is {eta}, but only the path of eta 0 has a reverse")
        pred_xstart = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)["pred_xstart"]
        eps = self.eps_from_xstart(x, t, pred_xstart)
        alpha_bar_next = self.at("alphas_cumprod_next", t, x)
        sample = pred_xstart * alpha_bar_next.sqrt() + torch.sqrt(1 - alpha_bar_next) * eps
        return {"sample": sample, "pred_xstart": pred_xstart}

    def sample_progressively(
        self,
        step: str,
        model: Model,
        shape: tuple[int, ...],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn = None,
        cond_fn: CondFn = None,
        model_kwargs: Kwargs = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Iterator[Tensors]:
        """Yield what a step returns, from the highest index down to 0.

        Args:
            step: p_sample or ddim_sample.
            shape: of the samples, (N, C, H, W).
            noise: the start, of that shape; None: drawn on `device` (None: where the model's parameters are).
            progress: show a bar.
            settings: what the step takes beside the others.
        """
        x = noise
        if x is None:
            x = torch.randn(*shape, device=device or next(model.parameters()).device)
        elif x.shape != tuple(shape):
            raise ValueError(f"noise is {tuple(x.shape)} where {tuple(shape)} was asked for")
        for t in self._descending(shape[0], x.device, progress):
            with torch.no_grad():
                out = getattr(self, step)(model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, **settings)
            yield out
            x = out["sample"]

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """The last sample, of index 0, that sample_progressively yields."""
        return deque(self.sample_progressively(*args, **kwargs), maxlen=1)[0]["sample"]

    p_sample_loop = partialmethod(sample, "p_sample")
    p_sample_loop_progressive = partialmethod(sample_progressively, "p_sample")
    ddim_sample_loop = partialmethod(sample, "ddim_sample")
    ddim_sample_loop_progressive = partialmethod(sample_progressively, "ddim_sample")

    def _descending(self, batch: int, device: torch.device, progress: bool = False) -> Iterator[Tensor]:
        """Index tensors (batch,) from num_timesteps - 1 down to 0."""
        for i in tqdm(reversed(range(self.num_timesteps)), total=self.num_timesteps, disable=not progress):
            yield torch.full((batch,), i, device=device)

    # Losses

    def training_losses(
        self, model: Model, x_start: Tensor, t: Tensor, model_kwargs: Kwargs = None, noise: Tensor | None = None
    ) -> Tensors:
        """Losses of a batch at indices t: `loss`, and `mse` and `vb` where they are parts of it, each (N,).

        The bound trains the variance alone (Nichol and Dhariwal 2021, section 3.1): its mean is detached.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        output = self.model_output(model, x_t, t, model_kwargs)
        if self.loss_type.is_vb():
            bound, _ = self._vb_terms(output, x_start, x_t, t, clip_denoised=False)
            return {"loss": bound * self.num_timesteps if self.loss_type is LossType.RESCALED_KL else bound}

        losses = {}
        prediction, variance_values = self.split_output(output, x_t)
        if variance_values is not None:
            frozen = torch.cat([prediction.detach(), variance_values], dim=1)
            losses["vb"], _ = self._vb_terms(frozen, x_start, x_t, t, clip_denoised=False)
            if self.loss_type is LossType.RESCALED_MSE:
                losses["vb"] = losses["vb"] * (self.num_timesteps / 1000)
        if self.model_mean_type is ModelMeanType.EPSILON:
            target = noise
        elif self.model_mean_type is ModelMeanType.START_X:
            target = x_start
        elif self.model_mean_type is ModelMeanType.V:
            target = self.q_sample(noise, t, noise=-x_start)  # sqrt(ᾱ) ε - sqrt(1 - ᾱ) x_0
        else:
            target = self.posterior_mean(x_start, x_t, t)
        losses["mse"] = mean_flat((target - prediction) ** 2)
        losses["loss"] = losses["mse"] + losses["vb"] if "vb" in losses else losses["mse"]
        return losses

    def _vb_terms(
        self, model_output: Tensor, x_start: Tensor, x_t: Tensor, t: Tensor, clip_denoised: bool
    ) -> tuple[Tensor, Tensor]:
        """A term of the variational bound in bits per dimension, (N,), and pred_xstart.

        At t > 0 it is the KL divergence between posterior and step back, at t = 0 the negative log-likelihood
        of the 8-bit image.
        """
        out = self.interpret_output(model_output, x_t, t, clip_denoised)
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        kl = normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])
        nll = -discretized_gaussian_log_likelihood(x_start, means=out["mean"], log_scales=0.5 * out["log_variance"])
        nats = torch.where(t == 0, mean_flat(nll), mean_flat(kl))
        return nats / math.log(2.0), out["pred_xstart"]

    def calc_bpd_loop(
        self, model: Model, x_start: Tensor, clip_denoised: bool = True, model_kwargs: Kwargs = None
    ) -> Tensors:
        """The variational bound of images, in bits per dimension, with fresh noise for each term.

        Returns total_bpd and prior_bpd, (N,); vb, xstart_mse and mse (of ε), (N, num_timesteps), their columns
        from the highest index down to 0.
        """
        terms: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for t in self._descending(x_start.shape[0], x_start.device):
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise)
            with torch.no_grad():
                output = self.model_output(model, x_t, t, model_kwargs)
                bound, pred_xstart = self._vb_terms(output, x_start, x_t, t, clip_denoised)
            terms["vb"].append(bound)
            terms["xstart_mse"].append(mean_flat((pred_xstart - x_start) ** 2))
            terms["mse"].append(mean_flat((self.eps_from_xstart(x_t, t, pred_xstart) - noise) ** 2))
        columns = {name: torch.stack(values, dim=1) for name, values in terms.items()}
        last = torch.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, last)  # of x_T, compared with N(0, 1)
        prior_bpd = mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2.0)
        return {"total_bpd": columns["vb"].sum(dim=1) + prior_bpd, "prior_bpd": prior_bpd, **columns}


def _above_zero(t: Tensor, x: Tensor) -> Tensor:
    """1[t > 0], shaped to broadcast against x."""
    return (t > 0).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
