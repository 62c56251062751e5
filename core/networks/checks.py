"""Can this classifier be explained? Asked once, before anything is computed, of networks from files and from Python."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from dime.core.cli import say
from dime.core.errors import InputError

LogitsOf = Callable[[torch.Tensor], torch.Tensor]

SAME = 0.01
"""Of the largest logit: other kernels, TF32 and half precision stay far below it, batch norms in training do not."""


def check_classifier(classifier: LogitsOf, x: torch.Tensor, decision: Any, name: str = "the classifier") -> None:
    """Raise InputError, in one line, unless gradients of this classifier's logits can explain images like these.

    Args:
        classifier: images (N, C, H, W) in [-1, 1] -> logits (N, K). A module comes out as it went in (`frozen`).
        x: some of the images, one is enough.
        decision: a binary one, whose `output` is a column of the logits; classes, without that; or K itself.
        name: what the messages call it.
    """
    if mode_matters(classifier):
        say(f"{name}: is in training mode; it is used in eval mode, with batch norms and dropouts at rest")
    ends = []  # layers, inner ones first, where a gradient goes in and none comes out

    def note_end(layer: str, _: nn.Module, inputs: tuple, output: Any) -> None:
        came = any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
        if came and layer and isinstance(output, torch.Tensor) and not output.requires_grad:
            ends.append(layer)

    with frozen(classifier), torch.enable_grad(), contextlib.ExitStack() as hooks:
        x = x.detach().clone().requires_grad_()
        for layer, module in classifier.named_modules() if isinstance(classifier, nn.Module) else ():
            with contextlib.suppress(RuntimeError):  # a TorchScript module takes no hook
                hooks.callback(module.register_forward_hook(partial(note_end, layer)).remove)
        logits = logits_of(classifier, x, name)
        if not logits.isfinite().all():
            raise InputError(f"{name}: its logits are not finite on these images")
        count, output = logits.shape[1], getattr(decision, "output", None)
        if isinstance(decision, int) and count != decision:
            raise InputError(f"{name}: gives {count} logits, expected {decision}, one per class")
        if isinstance(output, int) and output >= count:
            raise InputError(f"{name}: has {count} outputs, counted from 0, and the decision asks for output {output}")
        if output is None and count < 2:
            raise InputError(f"{name}: has one output, which is no choice between classes: use a binary decision")

        uneven = logits @ torch.linspace(1, 2, count, device=x.device)  # probabilities sum to 1 whatever x is
        gradient = torch.autograd.grad(uneven.sum(), x, allow_unused=True)[0] if logits.requires_grad else None
        if gradient is None:
            at = f"; it ends at its layer {ends[0]}" if ends else ""
            raise InputError(f"{name}: is not differentiable: no gradient of its logits reaches the image{at}")
        if not gradient.isfinite().all():
            raise InputError(f"{name}: its gradient is not finite on these images")
        if not gradient.any():
            reason = "it rounds, or gives saturated probabilities instead of logits"
            raise InputError(f"{name}: its gradient is zero: {reason}")
        company = torch.cat([x[:1], x[:1].flip(-1), -x[:1]])
        alone, among = (logits_of(classifier, images, name)[0] for images in (company[:1], company))
        if not (alone - among).abs().max() <= SAME * (1e-3 + alone.abs().max()):  # nor NaN
            raise InputError(
                f"{name}: an image's logits change with the rest of its batch, or by chance: its batch norms and "
                "dropouts must be in eval mode"
            )


@contextlib.contextmanager
def frozen(classifier: LogitsOf) -> Iterator[None]:
    """Within it a module is in eval mode and its parameters ask for no gradient; afterwards it is as it was."""
    module = classifier if isinstance(classifier, nn.Module) else nn.Module()
    before = [(part, "training", part.training) for part in module.modules()]
    before += [(parameter, "requires_grad", parameter.requires_grad) for parameter in module.parameters()]
    try:
        for owner, attribute, _ in before:
            setattr(owner, attribute, False)
        yield
    finally:
        for state in before:
            setattr(*state)


def mode_matters(classifier: LogitsOf) -> bool:
    """Whether a module has batch norms or dropouts in training mode."""
    modules = classifier.modules() if isinstance(classifier, nn.Module) else ()
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(module, kinds) and module.training for module in modules)


def logits_of(classifier: LogitsOf, x: torch.Tensor, name: str) -> torch.Tensor:
    """A network's logits (N, K) of images x. Raises InputError for images that it cannot take, and other outputs."""
    try:
        output = classifier(x)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:  # images that do not fit
        found = f"cannot take images {tuple(x.shape)} ({first_line(error)})"
        raise InputError(f"{name}: {found}; describe its input: --classifier_size, _mean, _std") from error
    if not isinstance(output, torch.Tensor):
        raise InputError(f"{name}: gives a {type(output).__name__}, expected a tensor of logits (N, K)")
    if output.ndim != 2 or len(output) != len(x) or not output.shape[1]:
        raise InputError(f"{name}: gives {tuple(output.shape)} for {len(x)} image(s), expected logits (N, K)")
    if not output.is_floating_point():
        raise InputError(f"{name}: gives {output.dtype}, decisions instead of the logits that they rest on")
    return output


def first_line(error: BaseException) -> str:
    """An error of a library, which may be a page long, in one line."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1 if "TorchScript" in lines[0] else 0]  # which puts its traceback first
