"""What pulls the denoising: the classifier at the clean estimate, and the distance to the input.

The gradients of section 3 of the paper, with the losses summed over the batch, so that each image's gradient is its
own:

    g_class = ∇_{x_t} [ s · L_class(C(x_t), y) ] / sqrt(ᾱ_t)
    g_dist  = ∇_{z_t} [ λ1 Σ ‖z_t - x‖₁ + λ2 Σ ‖z_t - x‖₂ ]      (norms over the channels of a pixel)
            + ∇_{x_t} [ λp · mean (F(x_t) - F(x))² ] / sqrt(ᾱ_t)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Classifier = Callable[[torch.Tensor], torch.Tensor]
"""Any differentiable function of images (N, C, H, W) in [-1, 1] that returns logits (N, K)."""

FeatureNetwork = Callable[[torch.Tensor], torch.Tensor]
"""Any differentiable function of images (N, C, H, W) in [-1, 1] that returns features (N, ...)."""


@dataclass(frozen=True)
class Binary:
    """One output of a classifier: yes (1) where its logit is positive. The opposite of yes is no.

    use_logits: the loss is minus the logit of the target instead of minus its log-probability.
    """

    output: int = 0
    use_logits: bool = False

    def predict(self, logits: torch.Tensor) -> torch.Tensor:
        """The predicted labels (N,), int64, from logits (N, K)."""
        return (logits[:, self.output] > 0).long()

    def probability(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The probability (N,) of the labels y (N,)."""
        return self._towards(logits, y).sigmoid()

    def loss(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss (N,) whose descent leads to y."""
        selected = self._towards(logits, y)
        return -selected if self.use_logits else -F.logsigmoid(selected)

    def opposite(self, logits: torch.Tensor) -> torch.Tensor:
        """The target (N,) where none is asked for."""
        return 1 - self.predict(logits)

    def _towards(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logit = logits[:, self.output]
        return torch.where(y == 1, logit, -logit)


@dataclass(frozen=True)
class MultiClass:
    """Mutually exclusive classes, with Binary's methods: the largest logit is predicted, its opposite the runner-up."""

    use_logits: bool = False

    def predict(self, logits: torch.Tensor) -> torch.Tensor:
        """As Binary.predict."""
        return logits.argmax(dim=1)

    def probability(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """As Binary.probability."""
        return logits.softmax(dim=1).gather(1, y[:, None])[:, 0]

    def loss(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """As Binary.loss."""
        scores = logits if self.use_logits else logits.log_softmax(dim=1)
        return -scores.gather(1, y[:, None])[:, 0]

    def opposite(self, logits: torch.Tensor) -> torch.Tensor:
        """As Binary.opposite."""
        return logits.topk(2, dim=1).indices[:, 1]


Decision = Binary | MultiClass
"""How logits (N, K) become a prediction, and what makes a target likely."""


@dataclass(frozen=True)
class Guidance:
    """The classifier and the distances, with their weights.

    l1, l2, l_perc: the weights λ1, λ2, λp; perceptual is needed where λp is not 0. confidence: the target's probability
    from which the class gradient eases off, to nothing at 1; 0: never.
    """

    classifier: Classifier
    decision: Decision
    perceptual: FeatureNetwork | None = None
    l1: float = 0.0
    l2: float = 0.0
    l_perc: float = 0.0
    confidence: float = 0.0

    def input_features(self, x: torch.Tensor) -> torch.Tensor | None:
        """The perceptual features of the input, which every step compares with; None where λp is 0."""
        return self.perceptual(x) if self.l_perc else None

    def towards(self, x: torch.Tensor, features: torch.Tensor | None, y: torch.Tensor, scale: float) -> "Pull":
        """The gradients of one attempt: x the inputs, features those of x, y the targets (N,), scale the weight s."""
        return Pull(self, x, features, y, scale)


@dataclass(frozen=True)
class Pull:
    """The gradients of one attempt, before any division by sqrt(ᾱ_t); images are (N, C, H, W)."""

    guidance: Guidance
    x: torch.Tensor
    features: torch.Tensor | None
    y: torch.Tensor
    scale: float

    def class_gradient(self, x_t: torch.Tensor, wrt: torch.Tensor | None = None) -> torch.Tensor:
        """∇ s · L_class at the clean estimate, with respect to it or to `wrt`, from which it was computed."""

        def loss(u: torch.Tensor) -> torch.Tensor:
            decision, logits = self.guidance.decision, self.guidance.classifier(u)
            weight = self.scale
            if self.guidance.confidence:
                doubt = 1 - decision.probability(logits.detach(), self.y)
                # never quite 0, so that pixels can still be ranked by it
                weight = weight * (doubt / (1 - self.guidance.confidence)).clamp(1e-9, 1)
            return (weight * decision.loss(logits, self.y)).sum()

        if wrt is None:
            return _gradient(loss, x_t)
        with torch.enable_grad():
            return torch.autograd.grad(loss(x_t), wrt)[0]

    def reached(self, image: torch.Tensor) -> torch.Tensor:
        """(N,) whether the classifier decides for the targets, with the confidence that is asked for."""
        decision, logits = self.guidance.decision, self.guidance.classifier(image)
        likely = decision.probability(logits, self.y) >= self.guidance.confidence
        return (decision.predict(logits) == self.y) & likely

    def perceptual_gradient(self, x_t: torch.Tensor) -> torch.Tensor | float:
        """∇ λp · (each image's mean squared difference to the input's features) at the clean estimate."""
        if self.features is None or x_t is self.x:  # it is exactly zero at the input itself
            return 0.0

        def loss(u: torch.Tensor) -> torch.Tensor:
            difference = self.guidance.perceptual(u) - self.features
            return self.guidance.l_perc * difference.square().flatten(1).mean(1).sum()

        return _gradient(loss, x_t)

    def distance_gradient(self, z_t: torch.Tensor) -> torch.Tensor | float:
        """∇ (λ1 ℓ1 + λ2 ℓ2) at the noisy image, in closed form: sign and unit vector, 0 where z_t equals x."""
        gradient = 0.0
        difference = z_t.detach() - self.x
        if self.guidance.l1:
            gradient = gradient + self.guidance.l1 * difference.sign()
        if self.guidance.l2:
            tiny = torch.finfo(difference.dtype).tiny
            gradient = gradient + self.guidance.l2 * F.normalize(difference, dim=1, eps=tiny)
        return gradient


def _gradient(loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        u = at.detach().requires_grad_()
        return torch.autograd.grad(loss(u), u)[0]
