"""Training an attribute classifier: binary cross-entropy on clean images, the best by validation AUC kept.

One file, training.pt, holds all that a restart needs; the same command run again goes on from it, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dime.core.cli import say
from dime.core.files import write_atomically
from dime.core.metrics.attribute_scores import AttributeScores
from dime.core.training.classifier_files import Architecture, logits_of, to_file
from dime.core.training.data import LabelledImages
from dime.core.training.script import Progress
from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.batches import EndlessBatches, ignore_foreign_signals
from guided_diffusion.process_state import ProcessState
from guided_diffusion.stop_signal import StopSignal
from guided_diffusion.train_log import Speed
from guided_diffusion.train_util import PRECISIONS, parallel

STATE_FILE = "training.pt"


@dataclass(frozen=True)
class Settings:
    """The numbers of a training.

    last_update: updates, over resumes, after which it ends. eval_interval, save_interval, log_interval: in updates.
    precision: a key of PRECISIONS. grad_clip: largest norm of the gradient, 0: any.
    """

    lr: float
    weight_decay: float
    last_update: int
    eval_interval: int
    save_interval: int
    log_interval: int
    precision: str
    grad_clip: float


class ClassifierTraining:
    """Trains a network on batches of (images, {'y': labels (N, C)}) and keeps the best in its published format.

    Args:
        network, architecture: what is trained; all weights, from wherever they start.
        attributes: names of the C outputs.
        batches: training data of this process.
        validation: this process's share of the validation images.
        pos_weight: (C,) weight of positive labels in the loss, or None.
        folder: where the best network, training.pt and validation.csv go.

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
        settings: Settings,
        folder: Path,
    ) -> None:
        self.device = dist_util.dev()
        self.network = network.to(self.device)
        self.architecture = architecture
        self.attributes = list(attributes)
        self.batches = batches
        self.validation = validation
        self.settings = settings
        self.folder = folder
        self.loss = nn.BCEWithLogitsLoss(pos_weight=None if pos_weight is None else pos_weight.to(self.device))
        self.dtype = PRECISIONS[settings.precision]
        self.opt = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.processes = ProcessState(batches)
        self.updates = 0
        self.best = float("-inf")
        self._losses: list[torch.Tensor] = []
        self._saved_at = 0
        self._resume()
        dist_util.sync_params([*network.parameters(), *network.buffers()])
        self.parallel = parallel(network, self.device)

    def run(self) -> bool:
        """Train to the last update, or until SIGTERM or SIGUSR1; whether the end was reached.

        Raises FloatingPointError at a loss that is no number; training.pt and the best network are whole then.
        """
        settings, speed = self.settings, Speed()
        progress = Progress(settings.last_update, self.updates)
        images_per_update = self.batches.batch_size * dist_util.world_size()
        self.processes.restore_random_generators()
        with dist_util.watched(), StopSignal() as stop:
            while self.updates < settings.last_update and not dist_util.any_rank(stop.received is not None):
                images, cond = next(self.batches)
                self.update(images, cond["y"])
                progress.advance()
                speed.add(images_per_update)
                if self.updates % settings.log_interval == 0:
                    values = {"step": self.updates, "loss": self._mean_loss(), "images_per_second": speed.read()}
                    _log(values)
                    progress.report(self.updates, values, images_per_update)
                if self.updates % settings.eval_interval == 0 or self.updates == settings.last_update:
                    self.evaluate()
                    self.save()
                elif self.updates % settings.save_interval == 0:
                    self.save()
            if self._saved_at != self.updates:
                self.save()
        progress.close()
        return self.updates >= settings.last_update

    def update(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """One step of AdamW on images (N, 3, H, W) and labels (N, C), 0 or 1."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
        self.parallel.train()
        self.opt.zero_grad(set_to_none=True)
        with self._autocast():
            logits = logits_of(self.parallel(images))
        loss = self.loss(logits.float(), labels)
        self.scaler.scale(loss).backward()
        if self.settings.grad_clip:
            self.scaler.unscale_(self.opt)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.grad_clip)
        self.scaler.step(self.opt)
        self.scaler.update()
        self._losses.append(loss.detach())
        self.updates += 1

    def evaluate(self) -> AttributeScores:
        """Scores on the validation images of all processes; the best network so far is written."""
        loader = DataLoader(
            self.validation,
            batch_size=self.batches.batch_size,
            num_workers=self.batches.num_workers,
            worker_init_fn=ignore_foreign_signals,
            generator=torch.Generator(),  # else it would draw from the global one
        )
        dist_util.sync_params(self.network.buffers())  # the running means of the norms are each process's own
        self.network.eval()
        with torch.no_grad(), self._autocast():
            parts = [(logits_of(self.network(images.to(self.device))).float().cpu(), c["y"]) for images, c in loader]
        gathered = [part for parts in dist_util.gather(parts) for part in parts]
        logits, labels = (torch.cat(tensors).numpy() for tensors in zip(*gathered, strict=True))
        scores = AttributeScores.of(self.attributes, logits, labels)
        _log({"step": self.updates, "accuracy": scores.mean_accuracy, "auc": scores.mean_auc})
        if dist_util.rank() == 0:
            say(f"update {self.updates}: accuracy {scores.mean_accuracy:.4f}, AUC {scores.mean_auc:.4f}")
        if scores.criterion > self.best:
            self.best = scores.criterion
            if dist_util.rank() == 0:
                self._require_finite_weights()
                content = to_file(self.network, self.attributes)
                checkpoint_util.save(self.folder / self.architecture.file_name, content)
                write_atomically(self.folder / "validation.csv", scores.csv())
        return scores

    def save(self) -> None:
        """Write training.pt. Every process calls it."""
        self._check_losses()
        self._require_finite_weights()
        ranks = self.processes.gather()
        if dist_util.rank() == 0:
            content = {
                "network": self.network.state_dict(),
                "attributes": self.attributes,
                "optimizer": self.opt.state_dict(),
                "scaler": self.scaler.state_dict(),
                "updates": self.updates,
                "best": self.best,
                "ranks": ranks,
            }
            checkpoint_util.save(self.folder / STATE_FILE, checkpoint_util.plain(content))
        self._saved_at = self.updates

    def _resume(self) -> None:
        path = self.folder / STATE_FILE
        if not dist_util.on_rank_0(path.exists):
            return
        state = checkpoint_util.load(path)
        if not isinstance(state, dict) or not isinstance(state.get("network"), dict):
            raise ValueError(f"{path}: holds no training of a classifier; remove it, or use another --output_path")
        if state.get("attributes") != self.attributes:
            raise ValueError(f"{path}: trained on other attributes; use the same --attributes or another --output_path")
        checkpoint_util.require_same_names(self.network, state["network"], path)
        checkpoint_util.require_finite(state["network"], path)
        self.network.load_state_dict(state["network"])
        with checkpoint_util.damage_named(path):
            self._resume_progress(state)

    def _resume_progress(self, state: dict[str, Any]) -> None:
        checkpoint_util.load_optimizer(self.opt, state["optimizer"])
        self.opt.param_groups[0].update(lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.updates = self._saved_at = int(state["updates"])
        self.best = float(state["best"])
        self.processes.load(state["ranks"])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _check_losses(self) -> None:
        """Raise FloatingPointError, naming the update, if a loss since the last line of the log was no number."""
        finite = [bool(ok) for ok in torch.stack(self._losses).isfinite()] if self._losses else []
        if not all(finite):
            step = self.updates - len(finite) + finite.index(False)
            raise FloatingPointError(f"step {step}: the loss is not a finite number")

    def _mean_loss(self) -> float:
        self._check_losses()
        mean = dist_util.sum_over_ranks(torch.stack(self._losses).mean()) / dist_util.world_size()
        self._losses = []
        return float(mean)

    def _require_finite_weights(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.network.parameters()):
            raise FloatingPointError(f"step {self.updates}: the weights are not finite numbers")


def positive_weights(labels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Negatives over positives of each attribute, (C,), from labels (N, C): both kinds then weigh alike."""
    labels = torch.as_tensor(labels)
    positives = labels.sum(0)
    return ((len(labels) - positives) / positives.clamp(min=1)).float()


def _log(values: dict[str, float]) -> None:
    logger.logkvs(values)
    logger.dumpkvs()
