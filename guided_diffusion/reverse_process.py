"""The denoising half of a diffusion process: what a network's output says about one step back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from guided_diffusion.forward_process import ForwardProcess

Model = Callable[..., Tensor]
"""A network, called as model(x, timesteps, **model_kwargs)."""

CondFn = Callable[..., Tensor]
"""A cond_fn, called as cond_fn(x, timesteps, **model_kwargs): the gradient of log p(y | x_t), shaped like x."""

Kwargs = Mapping[str, Any]
Tensors = dict[str, Tensor]
DenoisedFn = Callable[[Tensor], Tensor]


class ModelMeanType(enum.Enum):
    """What the network predicts; V is sqrt(ᾱ) ε - sqrt(1 - ᾱ) x_0 (Salimans and Ho 2022, appendix D)."""

    PREVIOUS_X = enum.auto()
    START_X = enum.auto()
    EPSILON = enum.auto()
    V = enum.auto()


class ModelVarType(enum.Enum):
    """Where the variance of a step back comes from; LEARNED_RANGE lies between the two fixed ones."""

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()
    FIXED_LARGE = enum.auto()
    LEARNED_RANGE = enum.auto()


class ReverseProcess(ForwardProcess):
    """p(x_{t-1} | x_t) of a network, and its guidance by gradients.

    Args:
        betas: β, (num_timesteps,).
        model_mean_type: what the network predicts.
        model_var_type: the variance of a step back.
        rescale_timesteps: show the network timesteps as if there were 1000 of them.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        rescale_timesteps: bool = False,
    ) -> None:
        super().__init__(betas)
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.rescale_timesteps = rescale_timesteps

    def network_timesteps(self, t: Tensor) -> Tensor:
        """The timesteps (N,) that networks and cond_fn are given at indices t."""
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    def model_output(self, model: Model, x: Tensor, t: Tensor, model_kwargs: Kwargs | None = None) -> Tensor:
        """The network's raw output at indices t, (N, C or 2C, H, W). Draws no random number."""
        return model(x, self.network_timesteps(t), **(model_kwargs or {}))

    def interpret_output(
        self,
        model_output: Tensor,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
    ) -> Tensors:
        """p(x_{t-1} | x_t) from a raw output. Evaluates no network, draws no random number.

        Args:
            model_output: (N, C, H, W), or (N, 2C, H, W) when the variance is learned.
            clip_denoised: clip pred_xstart to [-1, 1].
            denoised_fn: applied to pred_xstart before it is clipped.

        Returns mean, variance, log_variance and pred_xstart, each shaped like x. Raises ValueError when the
        number of output channels does not fit.
        """
        prediction, variance_values = self.split_output(model_output, x)
        if self.model_var_type is ModelVarType.LEARNED_RANGE:
            fraction = (variance_values + 1) / 2  # Nichol and Dhariwal 2021, equation 15
            smallest, largest = self.at("posterior_log_variance_clipped", t, x), self.at("log_betas", t, x)
            log_variance = fraction * largest + (1 - fraction) * smallest
            variance = log_variance.exp()
        elif self.model_var_type is ModelVarType.LEARNED:
            variance, log_variance = variance_values.exp(), variance_values
        else:
            small = self.model_var_type is ModelVarType.FIXED_SMALL
            variance = self.at("posterior_variance" if small else "fixed_large_variance", t, x).expand_as(x)
            log_variance = "posterior_log_variance_clipped" if small else "fixed_large_log_variance"
            log_variance = self.at(log_variance, t, x).expand_as(x)

        if self.model_mean_type is ModelMeanType.EPSILON:
            pred_xstart = self.xstart_from_eps(x, t, prediction)
        elif self.model_mean_type is ModelMeanType.V:
            noise_share = self.at("sqrt_one_minus_alphas_cumprod", t, x)
            pred_xstart = self.at("sqrt_alphas_cumprod", t, x) * x - noise_share * prediction
        elif self.model_mean_type is ModelMeanType.PREVIOUS_X:  # the x_0 whose posterior mean it is
            of_x_t, of_x_start = self.at("posterior_mean_coef2", t, x), self.at("posterior_mean_coef1", t, x)
            pred_xstart = (prediction - of_x_t * x) / of_x_start
        else:
            pred_xstart = prediction
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)

        direct = self.model_mean_type is ModelMeanType.PREVIOUS_X
        mean = prediction if direct else self.posterior_mean(pred_xstart, x, t)
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred_xstart}

    def split_output(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """A raw output's prediction and its values for the variance (None when it is fixed)."""
        learned = self.model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
        expected = (x.shape[0], x.shape[1] * (2 if learned else 1), *x.shape[2:])
        if output.shape != expected:
            raise ValueError(
                f"the network's output is {tuple(output.shape)} where {expected} was expected: "
                f"was it trained with learn_sigma {learned}?"
            )
        return output.split(x.shape[1], dim=1) if learned else (output, None)

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: DenoisedFn | None = None,
        model_kwargs: Kwargs | None = None,
    ) -> Tensors:
        """p(x_{t-1} | x_t) of the network: model_output, then interpret_output."""
        output = self.model_output(model, x, t, model_kwargs)
        return self.interpret_output(output, x, t, clip_denoised, denoised_fn)

    def condition_mean(
        self, cond_fn: CondFn, p_mean_var: Tensors, x: Tensor, t: Tensor, model_kwargs: Kwargs | None = None
    ) -> Tensor:
        """The mean plus variance · cond_fn (Dhariwal and Nichol 2021, algorithm 1)."""
        gradient = cond_fn(x, self.network_timesteps(t), **(model_kwargs or {}))
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self, cond_fn: CondFn, p_mean_var: Tensors, x: Tensor, t: Tensor, model_kwargs: Kwargs | None = None
    ) -> Tensors:
        """p_mean_var with its score shifted by cond_fn, for DDIM (Dhariwal and Nichol 2021, algorithm 2)."""
        gradient = cond_fn(x, self.network_timesteps(t), **(model_kwargs or {}))
        eps = self.eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        eps = eps - self.at("sqrt_one_minus_alphas_cumprod", t, x) * gradient
        pred_xstart = self.xstart_from_eps(x, t, eps)
        return {**p_mean_var, "pred_xstart": pred_xstart, "mean": self.posterior_mean(pred_xstart, x, t)}
