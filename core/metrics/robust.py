"""Composition, and robust flips: what does asking cost, and do decisions that flipped stay so? (--robust)

A counterfactual that deceives the classifier instead of changing the picture is adversarial: it does not survive what
leaves a picture as it is. And a method that alters an image of which nothing is asked has costs of its own
(composition, Monteiro et al. 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from dime.core.datasets import read_image
from dime.core.errors import InputError
from dime.core.explain import Batch, Explainer
from dime.core.guidance import Decision
from dime.core.images import from_image, reopened
from dime.core.metrics.features import Machine, shared
from dime.core.metrics.mad import target_of
from dime.core.metrics.metric import Context, Measurement, Metric, mean
from dime.core.networks.diffusion import load_diffusion
from dime.core.results import Pair, ResultTree
from dime.core.settings import Settings
from guided_diffusion.script_util import model_and_diffusion_defaults

JPEG_QUALITY = 75
NOISE_SHARE = 5
"""Noised to a fifth of τ: fine patterns go, what a person sees stays."""
NO_PULL = {
    **{"guided_iterations": 0, "classifier_scales": (0.0,), "confidence": 0.0, "shrink": False, "noise": "per_image"},
    **{"l1_loss": 0.0, "l2_loss": 0.0, "l_perc": 0.0},
}


def survivors(
    pairs: Sequence[Pair],
    classifier: nn.Module,
    decision: Decision,
    machine: Machine,
    read: Callable[[Pair], torch.Tensor],
    alter: Callable[[list[int], torch.Tensor], torch.Tensor] = lambda ids, x: x,
) -> np.ndarray:
    """Which flips (N,) are still there: 1 where a counterfactual, read and altered, is what was asked for, else 0.

    read: pair -> (C, H, W) in [-1, 1]. alter: ids, counterfactuals (n, C, H, W) -> what becomes of them.
    """

    def compute(group: list[tuple[Pair, torch.Tensor]]) -> torch.Tensor:
        asked = torch.tensor([target_of(pair) for pair, _ in group])
        images = torch.stack([image for _, image in group]).to(machine.device)
        logits = classifier(alter([pair.id for pair, _ in group], images))
        return decision.predict(logits).cpu() == asked

    return torch.cat(shared(pairs, lambda pair: (pair, read(pair)), compute, machine)).double().numpy()


def changes_unasked(pairs: Sequence[Pair], explainer: Explainer, machine: Machine) -> np.ndarray:
    """What a method makes of inputs when nothing pulls, (N,): mean |difference| in grey levels, 0 to 255."""

    def read(pair: Pair) -> tuple[int, torch.Tensor]:
        return pair.id, from_image(read_image(str(pair.original)))

    def compute(group: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
        x = torch.stack([image for _, image in group])[:, : explainer.diffusion.channels].to(machine.device)
        changed = explainer.explain(Batch([id for id, _ in group], x)).cf - x
        return changed.abs().flatten(1).mean(dim=1).cpu() * 127.5

    return torch.cat(shared(pairs, read, compute, machine)).double().numpy()


def without_pull(context: Context, tree: ResultTree, **settings: object) -> Explainer:
    """The experiment's own explainer, with nothing that pulls. Raises InputError where its parts are not there."""
    config = next(iter(tree.configurations()), None)
    if not config or "model_path" not in config:
        raise InputError("the run's config.yaml, which names its diffusion model, is not there")
    flags = {name: config[name] for name in model_and_diffusion_defaults() if name in config}
    model = context.once(load_recorded_model, str(config["model_path"]), tuple(flags.items()), context.machine.device)
    if model.class_cond:
        raise InputError("its diffusion model wants labels, which the result tree does not hold")
    classifier, decision = context.explained(tree)
    return Explainer(classifier, model, decision, Settings.of(config, **{**NO_PULL, **settings}))


def load_recorded_model(path: str, flags: tuple, device: torch.device):
    """The diffusion model that a run recorded."""
    return load_diffusion(path, dict(flags), device)


def as_saved(pair: Pair) -> torch.Tensor:
    """A counterfactual (C, H, W) in [-1, 1]."""
    return from_image(read_image(str(pair.counterfactual)))


def as_jpeg(pair: Pair) -> torch.Tensor:
    """The same, stored once more as a JPEG file."""
    return from_image(reopened(read_image(str(pair.counterfactual)), ".jpg", quality=JPEG_QUALITY))


def _noise(context: Context, tree: ResultTree) -> tuple:
    tau = next((config.get("start_step", 0) for config in tree.configurations()), 0)
    explainer = without_pull(context, tree, method="naive", start_step=max(1, tau // NOISE_SHARE), outer_steps=0)

    def denoised(ids: list[int], x: torch.Tensor) -> torch.Tensor:
        images = explainer.explain(Batch(ids, x[:, : explainer.diffusion.channels])).cf
        return images.clamp(-1, 1).expand_as(x)

    return *context.explained(tree), context.machine, as_saved, denoised


def _metric(row: str, values: Callable[..., np.ndarray], needs: Callable[..., tuple], *flags: str, **kind) -> Metric:
    def measure(pairs: Sequence[Pair], *needed: object) -> list[Measurement]:
        per_image = values(pairs, *needed)
        return [replace(mean(row, per_image), detail=per_image)]

    flags = ("--classifier-path", "--trust-classifier", "--query-label", *flags)
    return Metric(rows=(row,), measure=measure, needs=needs, flags=flags, robust=True, **kind)


ROBUST = (
    _metric(
        "composition",
        changes_unasked,
        lambda context, tree: (without_pull(context, tree), context.machine),
        flipped_only=False,
    ),
    _metric(
        "flips robust to JPEG", survivors, lambda context, tree: (*context.explained(tree), context.machine, as_jpeg)
    ),
    _metric("flips robust to noise", survivors, _noise),
    _metric(
        "flips of a second classifier",
        survivors,
        lambda context, tree: (*context.explained(tree, second=True), context.machine, as_saved),
        "--second-classifier-path",
    ),
)
"""Of those that reached their target (composition: of all images)."""
