"""Training a diffusion model: one update, the averaged weights, and the sets of files that are saved and resumed.

One update (k counts from 0, over resumes): gradients *summed* over the microbatches of a batch and averaged over the
processes; AdamW; exponential moving averages; then the learning rate of the next update, lr (1 - k / lr_anneal_steps),
times (k + 2) / lr_warmup_steps until that is 1.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import blobfile as bf
import torch
from torch import nn

from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.checkpoint_util import CheckpointFolder, parse_resume_step_from_filename
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.nn import update_ema
from guided_diffusion.resample import LossAwareSampler, ScheduleSampler, UniformSampler
from guided_diffusion.script_util import differing_flags
from guided_diffusion.trainer import Trainer, TrainObserver, usable_precision

__all__ = ["INITIAL_LOG_LOSS_SCALE", "TrainLoop", "TrainObserver", "parse_resume_step_from_filename"]

INITIAL_LOG_LOSS_SCALE = 20.0


class TrainLoop(Trainer):
    """Trains `model` until lr_anneal_steps or max_steps updates, or until SIGTERM, SIGUSR1 or Ctrl-C.

    Args:
        diffusion: gives `training_losses`.
        data: endless batches (images (N, C, H, W) in [-1, 1], keyword arguments of the network).
        microbatch: images of one forward and backward pass; -1: the whole batch.
        ema_rate: one rate or several, as a number or separated by commas.
        resume_checkpoint: …/model000123.pt; the first update is then number 123. Its siblings are loaded too.
        use_fp16: fp16, but on a CPU fp32, which is said.
        schedule_sampler: which timesteps to train on; uniform by default.
        lr_anneal_steps: updates until the learning rate would be 0, where training ends; 0: never.
        lr_warmup_steps: first updates, over which the learning rate grows linearly; 0: none.
        output_path: folder of the checkpoints; training goes on from the newest complete set there. '' is the
            logger's folder, where nothing is resumed.
        max_steps: updates, over resumes, after which training ends; 0: no limit.
        precision: fp32, fp16 or bf16, on any device; '': what use_fp16 says.
        offset_noise: standard deviation of a shift of the noise, drawn for each image and channel; 0: none.
        keep_checkpoints: how many of the sets that it wrote stay; 0: all.
        others: model, batch_size, lr, log_interval, save_interval, grad_clip, observer: see Trainer.

    Attributes: ema: rate -> the network with the averaged parameters, in eval mode. resume_step: updates before this
    training's own, the number of resume_checkpoint.

    Raises ValueError for arguments and checkpoints that do not fit, OSError when the folder cannot be written.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        data: Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]],
        microbatch: int,
        ema_rate: float | str,
        resume_checkpoint: str,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler: ScheduleSampler | None = None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
        lr_warmup_steps: int = 0,
        output_path: str = "",
        max_steps: int = 0,
        precision: str = "",
        offset_noise: float = 0.0,
        keep_checkpoints: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(
            model,
            data,
            weight_decay=weight_decay,
            precision=precision or usable_precision("fp16" if use_fp16 else "fp32", dist_util.dev()),
            log_loss_scale=INITIAL_LOG_LOSS_SCALE,
            scale_growth=fp16_scale_growth,
            last_update=min((limit for limit in (lr_anneal_steps, max_steps) if limit), default=None),
            **others,
        )
        self.diffusion = diffusion
        self.microbatch = microbatch if microbatch > 0 else self.batch_size
        self.lr_anneal_steps, self.lr_warmup_steps = lr_anneal_steps, lr_warmup_steps
        self.offset_noise = offset_noise
        self.resume_checkpoint = resume_checkpoint
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.ema = {rate: copy.deepcopy(self.model).eval().requires_grad_(False) for rate in _rates(ema_rate)}
        file_names = [checkpoint_util.MODEL, *map(checkpoint_util.ema_name, self.ema), checkpoint_util.OPTIMIZER]
        self.folder = CheckpointFolder(output_path or logger.get_dir(), file_names, keep_checkpoints)
        self.resume_step = 0
        self.set_lr(self.lr * self._warmup(0))
        start = dist_util.on_rank_0(lambda: self.folder.find_start(resume_checkpoint, bool(output_path)))
        if start is not None:
            self._resume(*start)
        self.parallelise(*(p for network in self.ema.values() for p in network.parameters()))

    @property
    def step(self) -> int:
        """Updates of this training alone, over restarts of the same command."""
        return self.updates - self.resume_step

    def run_step(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> bool:
        """One update from a batch (N, C, H, W) and the network's keyword arguments (N, …)."""
        done = super().run_step(batch, cond)
        if done:
            for rate, network in self.ema.items():
                update_ema(network.parameters(), self.params, rate)
        if self.lr_anneal_steps or self.lr_warmup_steps:
            annealed = 1 - self.updates / self.lr_anneal_steps if self.lr_anneal_steps else 1.0
            self.set_lr(self.lr * annealed * self._warmup(self.updates + 1))
        return done

    def _warmup(self, update: int) -> float:
        """The part of the learning rate that update number `update` may use while the training warms up."""
        return min(1.0, (update + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0

    def forward_backward(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """Add up the gradients of the microbatches; the last backward pass averages them over the processes."""
        for start in range(0, len(batch), self.microbatch):
            part = slice(start, start + self.microbatch)
            micro = batch[part].to(self.device, non_blocking=True)
            micro_cond = {key: value[part].to(self.device, non_blocking=True) for key, value in cond.items()}
            t, weights = self.schedule_sampler.sample(len(micro), self.device)
            alone, is_last = self.ddp_model is self.model, part.stop >= len(batch)
            with nullcontext() if alone or is_last else self.ddp_model.no_sync():
                noise = {}
                if self.offset_noise:  # its mean over an image is no longer nearly nothing (Guttenberg 2023)
                    shift = torch.randn(*micro.shape[:2], 1, 1, device=self.device)  # (N, C, 1, 1)
                    noise["noise"] = torch.randn_like(micro) + self.offset_noise * shift
                losses = self.diffusion.training_losses(self._network, micro, t, model_kwargs=micro_cond, **noise)
                if isinstance(self.schedule_sampler, LossAwareSampler):
                    self.schedule_sampler.update_with_local_losses(t, losses["loss"].detach())
                weighted = {name: loss * weights for name, loss in losses.items()}
                self.scaler.scale(weighted["loss"].mean()).backward()
            self.meter.add(self.updates, weighted, quartile=4 * t // self.diffusion.num_timesteps)

    def _network(self, x: torch.Tensor, t: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The network in the chosen precision; the loss around it stays float32."""
        with self.autocast():
            return self.ddp_model(x, t, **kwargs)

    def after_update(self) -> None:
        """Log and save as the intervals say; both count the updates of this training from 0."""
        step, number = self.step - 1, self.updates - 1
        if step % self.log_interval == 0:
            self.log(number, samples=self.updates * self.images_per_update)
        if step % self.save_interval == 0:
            self.save(number)
            if step > 0 and os.environ.get("DIFFUSION_TRAINING_TEST"):
                self.last_update = self.updates

    def save(self, number: int) -> None:
        """Write all updates so far as the set of this number. Every process calls it."""
        self.require_finite()
        notes = {**self.state_dict(), "resume_step": self.resume_step, "resume_checkpoint": self.resume_checkpoint}
        if isinstance(self.schedule_sampler, LossAwareSampler):
            notes["sampler"] = self.schedule_sampler.state_dict()
        if dist_util.rank() == 0:
            self.folder.write(number, self._contents(notes))
            self.observer.on_save(self, number)
        self.saved_updates = self.updates

    def _contents(self, notes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """The files of a set, (name, content) one after another."""
        config = getattr(self.model, "config", None)
        yield checkpoint_util.MODEL, checkpoint_util.portable(self.model.state_dict(), config)
        for rate, network in self.ema.items():
            yield checkpoint_util.ema_name(rate), checkpoint_util.portable(network.state_dict(), config)
        yield checkpoint_util.OPTIMIZER, checkpoint_util.plain({**self.opt.state_dict(), checkpoint_util.NOTES: notes})

    def _resume(self, model_path: str, number: int, siblings: dict[str, str]) -> None:
        """Load a set: averaged weights that are not there start from the network, the optimizer anew."""
        self._load_network(self.model, model_path)
        for rate, network in self.ema.items():
            path = siblings[checkpoint_util.ema_name(rate)]
            self._load_network(network, path if bf.exists(path) else model_path)
        self.updates = self.resume_step = number
        path, reason = siblings[checkpoint_util.OPTIMIZER], "not there"
        if bf.exists(path):
            saved = checkpoint_util.load(path)
            with checkpoint_util.damage_named(path):
                reason = self._load_optimizer(saved, is_own=model_path != self.resume_checkpoint)
        if reason:
            logger.log(f"{path}: {reason}, so the optimizer starts anew")
        self.saved_updates = self.updates
        if not self.lr_anneal_steps:  # while annealing, the saved rate is the one that comes next
            self.set_lr(self.lr * self._warmup(self.updates))
        logger.log(f"resuming from {model_path}; the next update is number {self.updates}")

    def _load_network(self, network: nn.Module, path: str) -> None:
        weights = checkpoint_util.load_state_dict(path)
        config, own = checkpoint_util.stored_config(weights) or {}, getattr(network, "config", None) or {}
        flags = {key: value for key, value in own.items() if key not in ("num_classes", "multiclass")}  # weights differ
        for key in differing_flags(flags, config):
            raise ValueError(f"{path}: trained with --{key} {config[key]}, not {flags[key]}")
        checkpoint_util.load_weights(network, weights, path)

    def _load_optimizer(self, saved: dict[str, Any], is_own: bool) -> str:
        """Take up opt*.pt, or say why not. `is_own`: training saves when it would have without the break."""
        notes = saved.get(checkpoint_util.NOTES, {})
        try:
            self.load_state_dict(notes, optimizer=saved)
        except (ValueError, KeyError, TypeError):
            if notes:
                raise
            return "another optimizer's state"
        if isinstance(self.schedule_sampler, LossAwareSampler) and "sampler" in notes:
            self.schedule_sampler.load_state_dict(notes["sampler"])
        if is_own and notes:
            self.updates, self.resume_step = notes["updates"], notes["resume_step"]
        return ""


def _rates(ema_rate: float | str) -> list[float]:
    try:
        rates = [float(rate) for rate in str(ema_rate).split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"ema_rate {ema_rate!r}: expected numbers from 0 to 1, separated by commas")
    return rates
