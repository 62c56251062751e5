"""A diffusion process step by step: noising, which the schedule alone fixes, and what a network says of a step back."""

import enum
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

Model = Callable[..., Tensor]
"""A network, called as model(x, timesteps, **model_kwargs)."""

CondFn = Callable[..., Tensor] | None
"""A cond_fn, called as cond_fn(x, timesteps, **model_kwargs): the gradient of log p(y | x_t), shaped like x."""

Kwargs = Mapping[str, Any] | None
Tensors = dict[str, Tensor]
DenoisedFn = Callable[[Tensor], Tensor] | None


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


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """β of a named schedule, (num_diffusion_timesteps,) in float64.

    "linear" is that of Ho et al. 2020, its limits scaled to the number of steps; "cosine" is Nichol and Dhariwal
    2021, equation 17. Raises ValueError for another name and for too few steps.
    """
    if num_diffusion_timesteps < 1:
        raise ValueError(f"--diffusion_steps {num_diffusion_timesteps}: expected at least 1")
    if schedule_name == "linear":
        scale = 1000 / num_diffusion_timesteps
        if scale * 0.02 >= 1:
            raise ValueError(f"--diffusion_steps {num_diffusion_timesteps}: the linear schedule needs at least 21")
        return np.linspace(scale * 1e-4, scale * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(num_diffusion_timesteps, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise ValueError(f"--noise_schedule {schedule_name!r} is unknown: expected linear or cosine")


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """β whose cumulated product of 1 - β follows alpha_bar, a function of time from 0 to 1.

    max_beta keeps the last steps from being singular. Returns (num_diffusion_timesteps,) in float64.
    """
    times = [i / num_diffusion_timesteps for i in range(num_diffusion_timesteps + 1)]
    betas = [1 - alpha_bar(end) / alpha_bar(start) for start, end in pairwise(times)]
    return np.minimum(betas, max_beta)


class Process:
    """q(x_t | x_0) of a schedule and its posterior (Ho et al. 2020, section 2); p(x_{t-1} | x_t) of a network, guided.

    Images are float tensors (N, C, ...); t is (N,), integer indices 0 … num_timesteps - 1, on the same device. The
    schedule's arrays are public: float64, of length num_timesteps.
    betas: β, (num_timesteps,), in (0, 1]. rescale_timesteps: show the network timesteps as if there were 1000 of them.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        rescale_timesteps: bool = False,
    ) -> None:
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.rescale_timesteps = rescale_timesteps
        self.betas = betas = np.array(betas, dtype=np.float64)
        if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("betas: expected a list of numbers above 0 and up to 1")
        self.num_timesteps = self.original_num_steps = len(betas)
        self.timestep_map = list(range(self.num_timesteps))
        alphas = 1.0 - betas
        self.alphas_cumprod = np.cumprod(alphas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        self.one_minus_alphas_cumprod = 1.0 - self.alphas_cumprod
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(self.one_minus_alphas_cumprod)
        self.log_one_minus_alphas_cumprod = np.log(self.one_minus_alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1)

        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / self.one_minus_alphas_cumprod
        self.posterior_mean_coef2 = (1.0 - self.alphas_cumprod_prev) * np.sqrt(alphas) / self.one_minus_alphas_cumprod
        # The first posterior variance is 0, which has no logarithm: the second stands in (β where it is alone).
        first = self.posterior_variance[1] if self.num_timesteps > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(first, self.posterior_variance[1:]))
        self.log_betas = np.log(betas)
        self.fixed_large_variance = np.append(first, betas[1:])
        self.fixed_large_log_variance = np.log(self.fixed_large_variance)
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Entries t of the schedule array `name` in float32, (N, 1, ...), to broadcast against `like`."""
        return self._entries(name, t, torch.float32).view(-1, *[1] * (like.dim() - 1))

    def _entries(self, name: str, t: Tensor, dtype: torch.dtype) -> Tensor:
        key = (name, t.device)
        if key not in self._tables:  # once per device: sampling loops copy nothing between host and device
            self._tables[key] = torch.as_tensor(getattr(self, name), dtype=dtype).to(t.device)
        return self._tables[key][t]

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_0), each shaped like x_start."""
        return (
            self.at("sqrt_alphas_cumprod", t, x_start) * x_start,
            self.at("one_minus_alphas_cumprod", t, x_start).expand_as(x_start),
            self.at("log_one_minus_alphas_cumprod", t, x_start).expand_as(x_start),
        )

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw from q(x_t | x_0): sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε, with ε = noise or fresh."""
        noise = torch.randn_like(x_start) if noise is None else noise
        scaled = self.at("sqrt_alphas_cumprod", t, x_start) * x_start
        return scaled + self.at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0), each shaped like x_t (equation 6)."""
        return (
            self.posterior_mean(x_start, x_t, t),
            self.at("posterior_variance", t, x_t).expand_as(x_t),
            self.at("posterior_log_variance_clipped", t, x_t).expand_as(x_t),
        )

    def posterior_mean(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (equation 7)."""
        return self.at("posterior_mean_coef1", t, x_t) * x_start + self.at("posterior_mean_coef2", t, x_t) * x_t

    def xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The x_0 that noise ε turned into x_t."""
        return self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, x_t) * eps

    def eps_from_xstart(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise ε that turned x_0 into x_t."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t
        return (scaled - x_start) / self.at("sqrt_recipm1_alphas_cumprod", t, x_t)

    def network_timesteps(self, t: Tensor) -> Tensor:
        """The timesteps (N,) that networks and cond_fn are given at indices t."""
        timesteps = self._entries("timestep_map", t, torch.int64)
        return timesteps.float() * (1000.0 / self.original_num_steps) if self.rescale_timesteps else timesteps

    def model_output(self, model: Model, x: Tensor, t: Tensor, model_kwargs: Kwargs = None) -> Tensor:
        """The network's raw output at indices t, (N, C or 2C, H, W). Draws no random number."""
        return model(x, self.network_timesteps(t), **(model_kwargs or {}))

    def interpret_output(
        self, model_output: Tensor, x: Tensor, t: Tensor, clip_denoised: bool = True, denoised_fn: DenoisedFn = None
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
            names = "fixed_large_variance", "fixed_large_log_variance"
            if self.model_var_type is ModelVarType.FIXED_SMALL:
                names = "posterior_variance", "posterior_log_variance_clipped"
            variance, log_variance = (self.at(name, t, x).expand_as(x) for name in names)

        if self.model_mean_type is ModelMeanType.EPSILON:
            pred_xstart = self.xstart_from_eps(x, t, prediction)
        elif self.model_mean_type is ModelMeanType.V:
            pred_xstart = self.q_sample(x, t, noise=-prediction)  # sqrt(ᾱ) x_t - sqrt(1 - ᾱ) v
        elif self.model_mean_type is ModelMeanType.PREVIOUS_X:  # the x_0 whose posterior mean it is
            of_x_t, of_x_start = self.at("posterior_mean_coef2", t, x), self.at("posterior_mean_coef1", t, x)
            pred_xstart = (prediction - of_x_t * x) / of_x_start
        else:
            pred_xstart = prediction
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)

        mean = self.posterior_mean(pred_xstart, x, t)
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            mean = prediction
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
        denoised_fn: DenoisedFn = None,
        model_kwargs: Kwargs = None,
    ) -> Tensors:
        """p(x_{t-1} | x_t) of the network: model_output, then interpret_output."""
        output = self.model_output(model, x, t, model_kwargs)
        return self.interpret_output(output, x, t, clip_denoised, denoised_fn)

    def condition_mean(
        self, cond_fn: CondFn, p_mean_var: Tensors, x: Tensor, t: Tensor, model_kwargs: Kwargs = None
    ) -> Tensor:
        """The mean plus variance · cond_fn (Dhariwal and Nichol 2021, algorithm 1)."""
        gradient = cond_fn(x, self.network_timesteps(t), **(model_kwargs or {}))
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self, cond_fn: CondFn, p_mean_var: Tensors, x: Tensor, t: Tensor, model_kwargs: Kwargs = None
    ) -> Tensors:
        """p_mean_var with its score shifted by cond_fn, for DDIM (Dhariwal and Nichol 2021, algorithm 2)."""
        gradient = cond_fn(x, self.network_timesteps(t), **(model_kwargs or {}))
        eps = self.eps_from_xstart(x, t, p_mean_var["pred_xstart"])
        eps = eps - self.at("sqrt_one_minus_alphas_cumprod", t, x) * gradient
        pred_xstart = self.xstart_from_eps(x, t, eps)
        return {**p_mean_var, "pred_xstart": pred_xstart, "mean": self.posterior_mean(pred_xstart, x, t)}
