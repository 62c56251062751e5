"""How a counterfactual is made: the flags of all methods, under their published names and defaults."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dime.core.cli import integer, number, number_list
from dime.core.estimates import chain_lengths


def flag(
    default: Any,
    help: str,
    type: Callable[[str], Any] | None = None,
    choices: Sequence | Callable[[], Sequence] | None = None,
) -> Any:
    """A field that is a flag too: its default, its line in --help, and what its text must be.

    type: text -> value, raising argparse.ArgumentTypeError; the field's own type when not given. choices: the values
    allowed, or what gives them when a parser is built.
    """
    return dataclasses.field(default=default, metadata={"help": help, "type": type, "choices": choices})


def _inner_steps(text: str) -> str:
    try:
        chain_lengths(text, 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _odd(text: str) -> int:
    value = integer(1)(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is not an odd number")
    return value


def _methods() -> Sequence[str]:
    from dime.core.methods import METHODS  # which are made from settings

    return tuple(METHODS)


_MASKS = "fastdime, gmd and the methods of two passes: "
_LARGEST = "maskdime, maskdime2: "


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The method, its random numbers, and the weights of what pulls. Each method reads its own part."""

    method: str = flag("dime", "how the counterfactual is made", choices=_methods)
    seed: int = flag(4, "seed of all noise", integer(0, 2**63 - 1))
    noise: str = flag(
        "per_image",
        "per_image: depends on (seed, id, scale, step) alone; stream: one generator, as published",
        choices=("per_image", "stream"),
    )
    start_step: int = flag(60, "noise level tau, in respaced timesteps")
    outer_steps: int = flag(
        0, "denoise over so many of the indices below tau, evenly spread; 0 is all of them", integer(0)
    )
    classifier_scales: Sequence[float] = flag(
        (8.0, 10.0, 15.0), "weights of the classifier, tried in this order until the decision flips", number_list(0)
    )
    confidence: float = flag(
        0.0,
        "the target's probability from which the classifier pulls less, and which a counterfactual must reach to end "
        "the trying of scales; 0: the decision alone",
        number(0, 0.999999),
    )
    shrink: bool = flag(False, "undo those changes that neither the decision nor --confidence needs")
    use_logits: bool = flag(False, "pull on the logit instead of the log-probability")
    l1_loss: float = flag(0.0, "weight of the L1 distance of noisy image and input", number(0))
    l2_loss: float = flag(0.0, "weight of the L2 distance of noisy image and input", number(0))
    l_perc: float = flag(0.0, "weight of the perceptual distance to the input", number(0))
    l_perc_layer: int = flag(
        1, "the perceptual distance uses VGG19's features[:layer], or so many levels of --perceptual_path", integer(1)
    )
    use_sampling_on_x_t: bool = flag(True, "sample the chains behind x_t; else means")
    sampling_scale: float = flag(1.0, "multiplies the noise of the reverse steps", number(0))
    guided_iterations: int = flag(9_999_999, "steps with gradients, counted from the first", integer(0))
    clip_denoised: bool = flag(True, "clip predictions of x to [-1, 1]")
    inner_steps: str = flag(
        "0",
        "dime, maskdime2: evaluations K of the chain behind x_t, over evenly spread indices; or a schedule such as "
        "8:20,1 (8 in the first 20 steps, then 1); 1 costs nothing beyond the step's own; 0 is all indices",
        _inner_steps,
    )
    inner_sampler: str = flag("ddpm", "the steps of that chain; ddim is deterministic", choices=("ddpm", "ddim"))
    fresh_noise: float = flag(
        0.0, "inverted: share of fresh noise among the input's own; 1 is ordinary denoising", number(0, 1)
    )
    repaint: float = flag(
        0.0, "inverted: share of pixels, those that serve the target most, that a second pass repaints", number(0, 1)
    )
    # FastDiME, GMD, maskdime2
    scale_grads: bool = flag(False, "fastdime and its relatives: divide gradients by sqrt(alpha_bar), as dime does")
    warmup_step: int = flag(30, "fastdime, fastdime2+, gmd: outer step from which the mask is used", integer(0))
    dilation: int = flag(5, _MASKS + "side of the squares that widen the mask, odd", _odd)
    masking_threshold: float = flag(0.15, _MASKS + "relative change that counts as changed", number(0, 1))
    # MaskDiME
    grad_scale: float = flag(1.5, _LARGEST + "factor on all gradients", number(0))
    topk_ratio: float = flag(0.4, _LARGEST + "share of pixels that change", number(0, 1))
    x_t_rate: float = flag(0.05, _LARGEST + "share of those in the estimate", number(0, 1))
    blur_kernel: int = flag(7, "maskdime, maskdime2, inverted: side of the squares, odd", _odd)
    per_channel: bool = flag(True, _LARGEST + "a mask for each colour channel")
    grads_clip: bool = flag(True, _LARGEST + "clamp the class gradient to its usual range")
    clip_sigma: float = flag(3.0, _LARGEST + "that range, in standard deviations around the mean", number(0))

    @classmethod
    def of(cls, flags: Mapping[str, Any], **overrides: Any) -> "Settings":
        """Those among flags, of which others may be of something else, with some replaced."""
        known = {entry.name: flags[entry.name] for entry in dataclasses.fields(cls) if entry.name in flags}
        return cls(**known | overrides)

    @property
    def steps(self) -> int:
        """How many outer steps there are."""
        return min(self.outer_steps or self.start_step, self.start_step)
