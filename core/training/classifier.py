"""Training a classifier on clean images; the best by validation AUC (of classes: accuracy) is what the project loads.

One file, training.pt, holds all that a restart needs; the same command run again goes on from it, to the same bytes.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from dime.core.cli import say
from dime.core.files import write_atomically
from dime.core.metrics.attribute_scores import attribute_scores, criterion
from dime.models.classifiers import DenseNetClassifier, SmallCNN
from dime.models.resnet import Oracle, oracle_layers
from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.image_datasets import EndlessBatches
from guided_diffusion.trainer import Trainer

ARCHITECTURES = {"densenet": DenseNetClassifier, "oracle": Oracle, "small": SmallCNN}
"""The networks that can be trained, each built for a number of outputs."""
LOG_LOSS_SCALE = 16.0
"""Of fp16 at first: with 2^20, the published start of the diffusion model, the first gradients overflow."""


class ClassifierTraining(Trainer):
    """Trains a network on batches of (images, {'y': labels}) and keeps the best in its published format.

    Args:
        network: one of ARCHITECTURES; all its weights are trained. names: of its K outputs.
        exclusive: labels are classes (N,), learnt by cross-entropy; else attributes (N, K), 0 or 1, each by its own.
        batches, validation: training data and validation images of this process.
        folder: where the best network, training.pt and validation.csv go.
        eval_interval: updates between two validations.
        pos_weight: (K,) weight of positive labels in the loss of attributes.
        settings: those of Trainer.

    Raises ValueError for a training.pt of another network, OSError for a folder that cannot be written.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        exclusive: bool,
        batches: EndlessBatches,
        validation: Dataset,
        folder: Path,
        *,
        eval_interval: int,
        pos_weight: torch.Tensor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(network, batches, batch_size=batches.batch_size, log_loss_scale=LOG_LOSS_SCALE, **settings)
        self.names, self.exclusive, self.folder = list(names), exclusive, folder
        self.eval_interval = eval_interval
        self.validation = EndlessBatches(
            validation, batches.batch_size, shuffle=False, num_workers=batches.num_workers, drop_last=False
        )
        self.loss = nn.CrossEntropyLoss() if exclusive else nn.BCEWithLogitsLoss(pos_weight=pos_weight)
        self.loss.to(self.device)
        self.best = float("-inf")
        self.state_file = folder / "training.pt"
        if dist_util.on_rank_0(self.state_file.exists):
            state = checkpoint_util.load(self.state_file)
            if not isinstance(state, dict) or state.get("attributes") != self.names:
                advice = "use the same --attributes or another --output_path"
                raise ValueError(f"{self.state_file}: trained on other attributes; {advice}")
            with checkpoint_util.damage_named(self.state_file):
                self.take_up(state, self.state_file)
                self.best = float(state["best"])
        self.parallelise()

    def forward_backward(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """The gradients of images (N, C, H, W) and their labels y."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (batch, cond["y"]))
        loss = self.loss(self._logits(self.ddp_model, images), labels)
        self.scaler.scale(loss).backward()
        self.meter.add(self.updates, {"loss": loss[None]})

    def _logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            output = network(images)
        return (output[1] if isinstance(output, tuple) else output).float()  # the oracle gives its features too

    def after_update(self) -> None:
        """Log, validate and save as the intervals say."""
        if self.updates % self.log_interval == 0:
            self.log(self.updates)
        validates = self.updates % self.eval_interval == 0 or self.finished
        if validates:
            self.evaluate()
        if validates or self.updates % self.save_interval == 0:
            self.save(self.updates)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Scores on the validation images of all processes; the best network so far is written."""
        dist_util.sync_params(self.model.buffers())  # the running means of the norms are each process's own
        self.model.eval()
        share = islice(self.validation, self.validation.batches_per_pass)
        parts = [(self._logits(self.model, images.to(self.device)).cpu(), cond["y"]) for images, cond in share]
        self.model.train()
        self.validation.close()
        gathered = [part for parts in dist_util.gather(parts) for part in parts]
        logits, labels = (torch.cat(tensors) for tensors in zip(*gathered, strict=True))
        decided = logits.argmax(1) == labels if self.exclusive else (logits > 0) == (labels > 0.5)
        if self.exclusive:  # each class against the others, by its margin before the best of them
            first, second = logits.topk(2, 1).values.split(1, 1)
            logits -= torch.where(logits == first, second, first)
            labels = F.one_hot(labels, len(self.names))
        scores = attribute_scores(self.names, logits.numpy(), labels.numpy())
        accuracy, auc = float(decided.double().mean()), float(scores["auc"].mean())  # of those that have one
        logger.logkvs({"step": self.updates, "accuracy": accuracy, "auc": auc})
        logger.dumpkvs()
        score = accuracy if self.exclusive else criterion(scores)
        is_best, self.best = score > self.best, max(score, self.best)
        if dist_util.rank() == 0:
            say(f"update {self.updates}: accuracy {accuracy:.4f}, AUC {auc:.4f}")
            if is_best:
                self.require_finite()
                name = "oracle.pth" if isinstance(self.model, Oracle) else "classifier.pth"
                checkpoint_util.save(self.folder / name, to_file(self.model, self.names))
                table = scores.to_csv(index=False, na_rep="nan", lineterminator="\r\n")
                write_atomically(self.folder / "validation.csv", table)

    def save(self, number: int) -> None:
        """Write training.pt. Every process calls it."""
        self.write_file(self.state_file, best=self.best, attributes=self.names)


def positive_weights(labels: np.ndarray) -> torch.Tensor:
    """Negatives over positives of each attribute, (K,), from labels (N, K): both kinds then weigh alike."""
    positives = labels.sum(0)
    return torch.from_numpy((len(labels) - positives) / positives.clip(min=1)).float()


def to_file(network: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """The content of a checkpoint: tables `feat_extract` and `classifier`, and the names of the outputs."""
    if isinstance(network, Oracle):
        published = {own: layer for layer, own in oracle_layers().items()}
        own = {tuple(name.rsplit(".", 1)): tensor for name, tensor in network.state_dict().items()}
        trunk = {f"{published[layer]}.{entry}": own[layer, entry] for layer, entry in own if layer in published}
    else:
        trunk = network.feat_extract.state_dict()
    tables = {"feat_extract": trunk, "classifier": network.classifier.state_dict()}
    return {**{part: checkpoint_util.portable(table) for part, table in tables.items()}, "attributes": list(names)}
