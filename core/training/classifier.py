"""Training an attribute classifier: binary cross-entropy on clean images, the best by validation AUC kept.

One file, training.pt, holds all that a restart needs; the same command run again goes on from it, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dime.core.cli import say
from dime.core.files import write_atomically
from dime.core.metrics.attribute_scores import AttributeScores
from dime.core.training.classifier_files import Architecture, logits_of, to_file
from dime.core.training.data import LabelledImages
from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.batches import EndlessBatches
from guided_diffusion.trainer import Trainer, TrainObserver

STATE_FILE = "training.pt"
LOG_LOSS_SCALE = 16.0
"""Of fp16 at first: with 2^20, the published start of the diffusion model, the first gradients overflow."""


class ClassifierTraining(Trainer):
    """Trains a network on batches of (images, {'y': labels (N, C)}) and keeps the best in its published format.

    Args:
        network, architecture: what is trained; all weights, from wherever they start.
        attributes: names of the C outputs.
        batches: training data of this process.
        validation: this process's share of the validation images.
        pos_weight: (C,) weight of positive labels in the loss, or None.
        folder: where the best network, training.pt and validation.csv go.
        last_update: updates, over resumes, after which it ends.
        eval_interval, save_interval, log_interval: in updates.
        lr, weight_decay, precision, grad_clip, observer: see Trainer.

    Raises ValueError for a training.pt of another network, OSError for a folder that cannot be written.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: Architecture,
        attributes: Sequence[str],
        batches: EndlessBatches,
        validation: LabelledImages,
        pos_weight: torch.Tensor | None,
        folder: Path,
        *,
        last_update: int,
        eval_interval: int,
        save_interval: int,
        log_interval: int,
        lr: float,
        weight_decay: float,
        precision: str = "fp32",
        grad_clip: float = 0.0,
        observer: TrainObserver | None = None,
    ) -> None:
        super().__init__(
            network,
            batches,
            lr=lr,
            weight_decay=weight_decay,
            precision=precision,
            log_loss_scale=LOG_LOSS_SCALE,
            scale_growth=1e-3,
            grad_clip=grad_clip,
            last_update=last_update,
            images_per_update=batches.batch_size * dist_util.world_size(),
            observer=observer,
        )
        self.architecture = architecture
        self.attributes = list(attributes)
        self.validation = EndlessBatches(
            validation, batches.batch_size, shuffle=False, num_workers=batches.num_workers, drop_last=False
        )
        self.folder = folder
        self.eval_interval, self.save_interval, self.log_interval = eval_interval, save_interval, log_interval
        self.loss = nn.BCEWithLogitsLoss(pos_weight=None if pos_weight is None else pos_weight.to(self.device))
        self.best = float("-inf")
        if dist_util.on_rank_0((folder / STATE_FILE).exists):
            self._resume(folder / STATE_FILE)
        self.parallelise()

    def forward_backward(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """The gradients of images (N, C, H, W) and their labels y (N, outputs), 0 or 1."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (batch, cond["y"]))
        with self.autocast():
            logits = logits_of(self.ddp_model(images))
        loss = self.loss(logits.float(), labels)
        self.scaler.scale(loss).backward()
        self.meter.add(self.updates, {"loss": loss[None]})

    def after_update(self) -> None:
        """Log, validate and save as the intervals say."""
        if self.updates % self.log_interval == 0:
            self.log(self.updates)
        validates = self.updates % self.eval_interval == 0 or self.finished
        if validates:
            self.evaluate()
        if validates or self.updates % self.save_interval == 0:
            self.save()

    @torch.no_grad()
    def evaluate(self) -> None:
        """Scores on the validation images of all processes; the best network so far is written."""
        dist_util.sync_params(self.model.buffers())  # the running means of the norms are each process's own
        self.model.eval()
        parts = []
        for images, cond in islice(self.validation, self.validation.batches_per_pass):
            with self.autocast():
                parts.append((logits_of(self.model(images.to(self.device))).float().cpu(), cond["y"]))
        self.model.train()
        self.validation.close()
        gathered = [part for parts in dist_util.gather(parts) for part in parts]
        logits, labels = (torch.cat(tensors).numpy() for tensors in zip(*gathered, strict=True))
        scores = AttributeScores.of(self.attributes, logits, labels)
        logger.logkvs({"step": self.updates, "accuracy": scores.mean_accuracy, "auc": scores.mean_auc})
        logger.dumpkvs()
        is_best, self.best = scores.criterion > self.best, max(scores.criterion, self.best)
        if dist_util.rank() == 0:
            say(f"update {self.updates}: accuracy {scores.mean_accuracy:.4f}, AUC {scores.mean_auc:.4f}")
            if is_best:
                self.require_finite()
                checkpoint_util.save(self.folder / self.architecture.file_name, to_file(self.model, self.attributes))
                write_atomically(self.folder / "validation.csv", scores.csv())

    def save(self) -> None:
        """Write training.pt. Every process calls it."""
        self.require_finite()
        content = {**self.state_dict(), "best": self.best, "attributes": self.attributes}
        if dist_util.rank() == 0:
            content |= {"network": self.model.state_dict(), "optimizer": self.opt.state_dict()}
            checkpoint_util.save(self.folder / STATE_FILE, checkpoint_util.plain(content))
        self.saved_updates = self.updates

    save_last = save

    def _resume(self, path: Path) -> None:
        state = checkpoint_util.load(path)
        if not isinstance(state, dict) or not isinstance(state.get("network"), dict):
            raise ValueError(f"{path}: holds no training of a classifier; remove it, or use another --output_path")
        if state.get("attributes") != self.attributes:
            raise ValueError(f"{path}: trained on other attributes; use the same --attributes or another --output_path")
        checkpoint_util.require_same_names(self.model, state["network"], path)
        checkpoint_util.require_finite(state["network"], path)
        self.model.load_state_dict(state["network"])
        with checkpoint_util.damage_named(path):
            self.load_state_dict(state, optimizer=state["optimizer"])
            self.set_lr(self.lr)
            self.updates = self.saved_updates = int(state["updates"])
            self.best = float(state["best"])


def positive_weights(labels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Negatives over positives of each attribute, (C,), from labels (N, C): both kinds then weigh alike."""
    labels = torch.as_tensor(labels)
    positives = labels.sum(0)
    return ((len(labels) - positives) / positives.clamp(min=1)).float()
