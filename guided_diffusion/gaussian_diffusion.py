"""Gaussian diffusion: the reverse process of a network, sampling, and the losses of training.

Notation of Ho et al. 2020 (DDPM): x_0 = x_start is the clean image, x_t the noisy one, ᾱ_t = alphas_cumprod[t]. Images
are (N, C, H, W) in [-1, 1]; t is (N,), integer indices of this process. A network is called as model(x, timesteps, **model_kwargs).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from guided_diffusion.forward_process import ForwardProcess, betas_for_alpha_bar, get_named_beta_schedule
from guided_diffusion.losses import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion.nn import mean_flat

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]

Model = Callable[..., torch.Tensor]
Kwargs = Mapping[str, Any]
Denoise = Callable[[torch.Tensor], torch.Tensor]


class ModelMeanType(enum.Enum):
    """What the network predicts."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()


class ModelVarType(enum.Enum):
    """Where the variance of a reverse step comes from; LEARNED_RANGE interpolates between the two fixed ones."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()


class LossType(enum.Enum):
    """What training minimises; the bound (KL) is in bits per dimension."""

    MSE = enum.auto()
    RESCALED_MSE = enum.auto()
    KL = enum.auto()
    RESCALED_KL = enum.auto()

    def is_vb(self) -> bool:
        """Whether the loss is the variational bound alone."""
        return self in (LossType.KL, LossType.RESCALED_KL)


class GaussianDiffusion(ForwardProcess):
    """A diffusion process and what a network's output means in it.

    Args:
        betas: β, (num_timesteps,).
        model_mean_type: what the network predicts.
        model_var_type: the variance of a reverse step; when learned, the network's output has 2C channels.
        loss_type: what training_losses returns.
        rescale_timesteps: show the network timesteps as if there were 1000 of them.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
    ) -> None:
        super().__init__(betas)
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps

    def _network_timesteps(self, t: torch.Tensor) -> torch.Tensor:
        """The timesteps (N,) that a network and cond_fn see at indices t."""
        return self._rescaled(t, self.num_timesteps)

    def _rescaled(self, timesteps: torch.Tensor, num_steps: int) -> torch.Tensor:
        return timesteps.float() * (1000.0 / num_steps) if self.rescale_timesteps else timesteps

    # One reverse step

    def model_output(
        self, model: Model, x: torch.Tensor, t: torch.Tensor, model_kwargs: Kwargs | None = None
    ) -> torch.Tensor:
        """The network's raw output at indices t, (N, C or 2C, H, W). Draws no random number."""
        return model(x, self._network_timesteps(t), **(model_kwargs or {}))

    def interpret_output(
        self,
        model_output: torch.Tensor,
        x: torch.Tensor,
        t: torch.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
    ) -> dict[str, torch.Tensor]:
        """The distribution p(x_{t-1} | x_t) that a raw output means. Evaluates no network, draws no random number.

        Args:
            model_output: (N, C, H, W), or (N, 2C, H, W) when the variance is learned.
            clip_denoised: clip pred_xstart to [-1, 1].
            denoised_fn: applied to pred_xstart before it is clipped.

        Returns mean, variance, log_variance and pred_xstart, each shaped like x. Raises ValueError when the number of output
        channels does not fit.
        """
        learned = self.model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
        channels = x.shape[1] * (2 if learned else 1)
        if model_output.shape != (x.shape[0], channels, *x.shape[2:]):
            raise ValueError(
                f"the network's output is {tuple(model_output.shape)} where {channels} channels were expected for an "
                f"input {tuple(x.shape)}: is learn_sigma {learned} what it was trained with?"
            )
        prediction, variance_values = (
            model_output.split(x.shape[1], dim=1) if learned else (model_output, None)
        )
        variance, log_variance = self._variance(variance_values, x, t)

        if self.model_mean_type is ModelMeanType.EPSILON:
            pred_xstart = self._xstart_from_eps(x, t, prediction)
        elif self.model_mean_type is ModelMeanType.PREVIOUS_X:
            pred_xstart = self._xstart_from_previous(x, t, prediction)
        else:
            pred_xstart = prediction
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)

        direct = self.model_mean_type is ModelMeanType.PREVIOUS_X
        mean = prediction if direct else self._posterior_mean(pred_xstart, x, t)
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred_xstart}

    def _variance(
        self, values: torch.Tensor | None, x: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Variance and log variance of the reverse step, shaped like x, from the network's values where it has any."""
        if self.model_var_type is ModelVarType.FIXED_LARGE:
            variance = self.at("fixed_large_variance", t, x)
            return variance.expand_as(x), self.at("fixed_large_log_variance", t, x).expand_as(x)
        smallest = self.at("posterior_log_variance_clipped", t, x)
        if self.model_var_type is ModelVarType.FIXED_SMALL:
            return self.at("posterior_variance", t, x).expand_as(x), smallest.expand_as(x)
        if self.model_var_type is ModelVarType.LEARNED:
            return values.exp(), values
        fraction = (values + 1) / 2
        log_variance = fraction * self.at("log_betas", t, x) + (1 - fraction) * smallest
        return log_variance.exp(), log_variance

    def p_mean_variance(
        self,
        model: Model,
        x: torch.Tensor,
        t: torch.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: Kwargs | None = None,
    ) -> dict[str, torch.Tensor]:
        """p(x_{t-1} | x_t) of the network: model_output, then interpret_output."""
        output = self.model_output(model, x, t, model_kwargs)
        return self.interpret_output(output, x, t, clip_denoised, denoised_fn)

    def condition_mean(
        self,
        cond_fn: Callable[..., torch.Tensor],
        p_mean_var: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        t: torch.Tensor,
        model_kwargs: Kwargs | None = None,
    ) -> torch.Tensor:
        """The mean shifted by variance · cond_fn, the gradient of log p(y | x_t) (Dhariwal and Nichol 2021, algorithm 1)."""
        gradient = cond_fn(x, self._network_timesteps(t), **(model_kwargs or {}))
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self,
        cond_fn: Callable[..., torch.Tensor],
        p_mean_var: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        t: torch.Tensor,
        model_kwargs: Kwargs | None = None,
    ) -> dict[str, torch.Tensor]:
        """p_mean_var with the score shifted by cond_fn, for DDIM (Dhariwal and Nichol 2021, algorithm 2)."""
        gradient = cond_fn(x, self._network_timesteps(t), **(model_kwargs or {}))
        eps = self._eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        eps = eps - self.at("sqrt_one_minus_alphas_cumprod", t, x) * gradient
        pred_xstart = self._xstart_from_eps(x, t, eps)
        return {**p_mean_var, "pred_xstart": pred_xstart, "mean": self._posterior_mean(pred_xstart, x, t)}

    def p_sample(
        self,
        model: Model,
        x: torch.Tensor,
        t: torch.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        cond_fn: Callable[..., torch.Tensor] | None = None,
        model_kwargs: Kwargs | None = None,
    ) -> dict[str, torch.Tensor]:
        """A draw of x_{t-1}: sample and pred_xstart. At index 0 the mean; its noise is drawn and not used."""
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = torch.randn_like(x)
        mean = out["mean"]
        if cond_fn is not None:
            mean = self.condition_mean(cond_fn, out, x, t, model_kwargs)
        sample = mean + _above_zero(t, x) * torch.exp(0.5 * out["log_variance"]) * noise
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: torch.Tensor,
        t: torch.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        cond_fn: Callable[..., torch.Tensor] | None = None,
        model_kwargs: Kwargs | None = None,
        eta: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """x_{t-1} by DDIM: sample and pred_xstart (Song et al. 2021, equation 12). Noise is drawn even where unused.

        eta: the share of noise, from 0 (none) to 1 (as much as DDPM).
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs)
        pred_xstart = out["pred_xstart"]
        eps = self._eps_from_xstart(x, t, pred_xstart)
        alpha_bar, alpha_bar_prev = self.at("alphas_cumprod", t, x), self.at("alphas_cumprod_prev", t, x)
        sigma = eta * torch.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev))
        mean = (
            pred_xstart * alpha_bar_prev.sqrt()
            + torch.sqrt((1 - alpha_bar_prev - sigma**2).clamp(min=0)) * eps
        )
        sample = mean + _above_zero(t, x) * sigma * torch.randn_like(x)
        return {"sample": sample, "pred_xstart": pred_xstart}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: torch.Tensor,
        t: torch.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: Kwargs | None = None,
        eta: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """x_{t+1} by DDIM's ordinary differential equation, towards noise: sample and pred_xstart.

        Raises ValueError for an eta other than 0: only the deterministic path has a reverse.
        """
        if eta != 0.0:
            raise ValueError(
                f"ddim_reverse_sample: eta is {eta}, but only the deterministic path (0) has a reverse"
            )
        pred_xstart = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)[
            "pred_xstart"
        ]
        eps = self._eps_from_xstart(x, t, pred_xstart)
        alpha_bar_next = self.at("alphas_cumprod_next", t, x)
        sample = pred_xstart * alpha_bar_next.sqrt() + torch.sqrt(1 - alpha_bar_next) * eps
        return {"sample": sample, "pred_xstart": pred_xstart}

    # Sampling loops

    def p_sample_loop(self, model: Model, shape: tuple[int, ...], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Samples of this shape from noise; the arguments are those of p_sample_loop_progressive."""
        return _last(self.p_sample_loop_progressive(model, shape, *args, **kwargs))["sample"]

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: tuple[int, ...],
        noise: torch.Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        cond_fn: Callable[..., torch.Tensor] | None = None,
        model_kwargs: Kwargs | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what p_sample returns, from the highest index down to 0.

        Args:
            shape: of the samples, (N, C, H, W).
            noise: the start, of that shape; None: drawn.
            device: where to sample; None: where the model's parameters are.
            progress: show a bar (needs tqdm).
        """
        settings = (clip_denoised, denoised_fn, cond_fn, model_kwargs)
        x, device = _start(model, shape, noise, device)
        for t in self._descending(shape[0], device, progress):
            with torch.no_grad():
                out = self.p_sample(model, x, t, *settings)
            yield out
            x = out["sample"]

    def ddim_sample_loop(
        self, model: Model, shape: tuple[int, ...], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Samples of this shape from noise; the arguments are those of ddim_sample_loop_progressive."""
        return _last(self.ddim_sample_loop_progressive(model, shape, *args, **kwargs))["sample"]

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: tuple[int, ...],
        noise: torch.Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        cond_fn: Callable[..., torch.Tensor] | None = None,
        model_kwargs: Kwargs | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Yield what ddim_sample returns, from the highest index down to 0; arguments as in p_sample_loop_progressive."""
        settings = (clip_denoised, denoised_fn, cond_fn, model_kwargs, eta)
        x, device = _start(model, shape, noise, device)
        for t in self._descending(shape[0], device, progress):
            with torch.no_grad():
                out = self.ddim_sample(model, x, t, *settings)
            yield out
            x = out["sample"]

    def _descending(
        self, batch: int, device: torch.device | str, progress: bool = False
    ) -> Iterator[torch.Tensor]:
        """Index tensors (batch,) from num_timesteps - 1 down to 0."""
        indices = reversed(range(self.num_timesteps))
        if progress:
            from tqdm.auto import tqdm

            indices = tqdm(indices, total=self.num_timesteps)
        for i in indices:
            yield torch.full((batch,), i, device=device)

    # Losses

    def training_losses(
        self,
        model: Model,
        x_start: torch.Tensor,
        t: torch.Tensor,
        model_kwargs: Kwargs | None = None,
        noise: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch at indices t: `loss`, and `mse` and `vb` where they are parts of it, each (N,).

        The bound trains the variance alone: its mean comes from a detached output (Nichol and Dhariwal 2021, section 3.1).
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        output = self.model_output(model, x_t, t, model_kwargs)
        if self.loss_type.is_vb():
            bound, _ = self._vb_terms(output, x_start, x_t, t, clip_denoised=False)
            return {"loss": bound * self.num_timesteps if self.loss_type is LossType.RESCALED_KL else bound}

        losses = {}
        if self.model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE):
            prediction, variance_values = output.split(x_t.shape[1], dim=1)
            frozen = torch.cat([prediction.detach(), variance_values], dim=1)
            losses["vb"], _ = self._vb_terms(frozen, x_start, x_t, t, clip_denoised=False)
            if self.loss_type is LossType.RESCALED_MSE:
                losses["vb"] = losses["vb"] * (self.num_timesteps / 1000)
        else:
            prediction = output
        losses["mse"] = mean_flat((self._target(x_start, x_t, t, noise) - prediction) ** 2)
        losses["loss"] = losses["mse"] + losses["vb"] if "vb" in losses else losses["mse"]
        return losses

    def _target(
        self, x_start: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """What the network should have predicted."""
        if self.model_mean_type is ModelMeanType.EPSILON:
            return noise
        if self.model_mean_type is ModelMeanType.START_X:
            return x_start
        return self._posterior_mean(x_start, x_t, t)

    def _vb_terms(
        self,
        model_output: torch.Tensor,
        x_start: torch.Tensor,
        x_t: torch.Tensor,
        t: torch.Tensor,
        clip_denoised: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A term of the variational bound in bits per dimension, (N,), and pred_xstart.

        At t > 0 the KL divergence of posterior and reverse step, at t = 0 the negative log-likelihood of the 8-bit image.
        """
        out = self.interpret_output(model_output, x_t, t, clip_denoised)
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        kl = normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])
        nll = -discretized_gaussian_log_likelihood(
            x_start, means=out["mean"], log_scales=0.5 * out["log_variance"]
        )
        nats = torch.where(t == 0, mean_flat(nll), mean_flat(kl))
        return nats / math.log(2.0), out["pred_xstart"]

    def _prior_bpd(self, x_start: torch.Tensor) -> torch.Tensor:
        """KL(q(x_T | x_0) || N(0, 1)) in bits per dimension, (N,)."""
        t = torch.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2.0)

    def calc_bpd_loop(
        self,
        model: Model,
        x_start: torch.Tensor,
        clip_denoised: bool = True,
        model_kwargs: Kwargs | None = None,
    ) -> dict[str, torch.Tensor]:
        """The variational bound of images, in bits per dimension, with fresh noise for each term.

        Returns total_bpd and prior_bpd, (N,); vb, xstart_mse and mse (of ε), (N, num_timesteps), from the highest index down.
        """
        terms: dict[str, list[torch.Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for t in self._descending(x_start.shape[0], x_start.device):
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise)
            with torch.no_grad():
                output = self.model_output(model, x_t, t, model_kwargs)
                bound, pred_xstart = self._vb_terms(output, x_start, x_t, t, clip_denoised)
            terms["vb"].append(bound)
            terms["xstart_mse"].append(mean_flat((pred_xstart - x_start) ** 2))
            terms["mse"].append(mean_flat((self._eps_from_xstart(x_t, t, pred_xstart) - noise) ** 2))
        columns = {name: torch.stack(values, dim=1) for name, values in terms.items()}
        prior_bpd = self._prior_bpd(x_start)
        return {"total_bpd": columns["vb"].sum(dim=1) + prior_bpd, "prior_bpd": prior_bpd, **columns}


def _above_zero(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """1[t > 0], shaped to broadcast against x."""
    return (t > 0).to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def _start(
    model: Model, shape: tuple[int, ...], noise: torch.Tensor | None, device: torch.device | str | None
) -> tuple[torch.Tensor, torch.device | str]:
    """The noise that sampling starts from, and its device."""
    if device is None:
        device = next(model.parameters()).device
    if noise is None:
        noise = torch.randn(*shape, device=device)
    elif noise.shape != tuple(shape):
        raise ValueError(f"noise is {tuple(noise.shape)} where {tuple(shape)} was asked for")
    return noise, device


def _last(steps: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    for step in steps:  # noqa: B007 (only the last one matters)
        pass
    return step
