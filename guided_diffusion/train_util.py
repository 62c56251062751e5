"""Training a diffusion model: the loop, one update, and what is saved and resumed.

One update (k counts from 0, over resumes): gradients *summed* over the microbatches of a batch and averaged over the
processes; AdamW; exponential moving averages; then the learning rate of the next update, lr (1 - k / lr_anneal_steps),
times (k + 2) / lr_warmup_steps until that is 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.checkpoint_set import OPTIMIZER, CheckpointFolder
from guided_diffusion.gaussian_diffusion import GaussianDiffusion
from guided_diffusion.resample import LossAwareSampler, ScheduleSampler, UniformSampler
from guided_diffusion.stop_signal import StopSignal
from guided_diffusion.train_log import LossMeter, Speed, norm
from guided_diffusion.train_state import TrainState, find_start

INITIAL_LOSS_SCALE = 2.0**20
SMALLEST_LOSS_SCALE = 2.0**-10
"""Below this the gradients are not too large for half precision: they are no numbers at all."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TrainObserver:
    """Told what happens in a training, for progress bars and pictures; every method may be left out."""

    def on_resume(self, path: str, config: dict[str, Any] | None) -> None:
        """Before a network's file is loaded, with the configuration stored in it; may refuse it by a ValueError."""

    def on_update(self, loop: TrainLoop) -> None:
        """After each update, in every process."""

    def on_log(self, loop: TrainLoop, values: dict[str, float]) -> None:
        """After a line of the log, in every process."""

    def on_save(self, loop: TrainLoop, number: int) -> None:
        """After set `number` has been written, on rank 0; draws nothing from the global generators."""


class TrainLoop:
    """Trains `model` until lr_anneal_steps or max_steps updates, or until SIGTERM or SIGUSR1.

    Args:
        model: the network, any precision; trained with float32 weights.
        diffusion: gives `training_losses`.
        data: endless batches (images (N, 3, H, W) in [-1, 1], keyword arguments of the network).
        batch_size: images of one update in each process.
        microbatch: images of one forward and backward pass; -1: the whole batch.
        lr, weight_decay: of AdamW.
        ema_rate: one rate or several, as a number or separated by commas.
        log_interval, save_interval: updates between two lines of the log and two checkpoint sets.
        resume_checkpoint: …/model000123.pt; the first update is then number 123. Its siblings are loaded too.
        use_fp16: as precision='fp16'.
        fp16_scale_growth: growth of log2(loss scale) with each update.
        schedule_sampler: which timesteps to train on; uniform by default.
        lr_anneal_steps: updates until the learning rate would be 0, where training ends; 0: never.
        lr_warmup_steps: first updates, over which the learning rate grows linearly; 0: none.
        output_path: folder of the checkpoints; training goes on from the newest complete set there. '' is the
            logger's folder, where nothing is resumed.
        max_steps: updates, over resumes, after which training ends; 0: no limit.
        precision: fp32, fp16 or bf16 (torch.autocast).
        grad_clip: largest norm of the gradient; 0: any.
        offset_noise: standard deviation of a shift of the noise, drawn for each image and channel; 0: none.
        keep_checkpoints: how many of the sets that it wrote stay; 0: all.
        observer: told what happens.

    Raises ValueError for arguments and checkpoints that do not fit, OSError when the folder cannot be written.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        data: Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]],
        batch_size: int,
        microbatch: int,
        lr: float,
        ema_rate: float | str,
        log_interval: int,
        save_interval: int,
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
        grad_clip: float = 0.0,
        offset_noise: float = 0.0,
        keep_checkpoints: int = 0,
        observer: TrainObserver | None = None,
    ) -> None:
        self.device = dist_util.dev()
        self.diffusion = diffusion
        self.batch_size = batch_size
        self.microbatch = microbatch if microbatch > 0 else batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.log_interval = log_interval
        self.save_interval = save_interval
        self.resume_checkpoint = resume_checkpoint
        self.lr_anneal_steps = lr_anneal_steps
        self.lr_warmup_steps = lr_warmup_steps
        self.max_steps = max_steps
        self.grad_clip = grad_clip
        self.offset_noise = offset_noise
        self.dtype = _dtype(precision or ("fp16" if use_fp16 else "fp32"))
        self.observer = observer or TrainObserver()
        self.meter = LossMeter(diffusion.num_timesteps)
        self.speed = Speed()

        model = model.float().to(self.device).train()
        on_gpu = self.device.type == "cuda"
        self.opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=on_gpu)
        self.scaler = _loss_scaler(self.device, self.dtype, fp16_scale_growth)
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.data = iter(data)
        self.state = TrainState(model, _rates(ema_rate), self.opt, self.scaler, self.schedule_sampler, self.data)
        self.folder = CheckpointFolder(output_path or logger.get_dir(), self.state.file_names, keep_checkpoints)
        self.step = 0  # updates of this training, over restarts of the same command
        self.resume_step = 0  # updates before it: the number of resume_checkpoint
        self._saved_updates = 0  # updates in the newest set
        self._set_lr(lr * self._warmup(0))
        self._resume(continue_folder=bool(output_path))
        dist_util.sync_params([*model.parameters(), *(p for params in self.state.ema.values() for p in params)])
        self.ddp_model = parallel(model, self.device)

    @property
    def updates(self) -> int:
        """Updates that the weights have had, over resumes."""
        return self.step + self.resume_step

    @property
    def last_update(self) -> int | None:
        """How many updates end the training; None: it goes on until it is stopped."""
        return min((limit for limit in (self.lr_anneal_steps, self.max_steps) if limit), default=None)

    def run_loop(self) -> None:
        """Train; when it returns, a checkpoint set with every update is on the disk.

        Raises FloatingPointError at a loss that is no number, and OSError for a set that cannot be written; the last
        set is whole then. Raises PeerLostError when another process dies.
        """
        one_save_only = bool(os.environ.get("DIFFUSION_TRAINING_TEST"))
        self.state.processes.restore_random_generators()
        with dist_util.watched(), StopSignal() as stop:
            while self.last_update is None or self.updates < self.last_update:
                self.run_step(*next(self.data))
                if self.step % self.log_interval == 0:
                    self.log()
                if self.step % self.save_interval == 0:
                    self.save(updates=self.updates + 1)
                    if one_save_only and self.step > 0:
                        return
                self.step += 1
                self.observer.on_update(self)
                if dist_util.any_rank(stop.received is not None):
                    logger.log(f"{stop.received or 'a signal to another process'}: saving and stopping")
                    break
            if self._saved_updates != self.updates:
                self.save(updates=self.updates)

    def run_step(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """One update from a batch (N, 3, H, W) and the network's keyword arguments (N, …)."""
        self.opt.zero_grad(set_to_none=True)
        self.forward_backward(batch, cond)
        if self.optimize():
            self.state.update_ema()
        self._schedule_lr()
        self.speed.add(len(batch) * dist_util.world_size())

    def forward_backward(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """Add up the gradients of the microbatches; the last backward pass averages them over the processes."""
        for start in range(0, len(batch), self.microbatch):
            part = slice(start, start + self.microbatch)
            micro = batch[part].to(self.device, non_blocking=True)
            micro_cond = {key: value[part].to(self.device, non_blocking=True) for key, value in cond.items()}
            t, weights = self.schedule_sampler.sample(len(micro), self.device)
            with self._averaging(is_last=part.stop >= len(batch)):
                noise = {"noise": self._shifted_noise(micro)} if self.offset_noise else {}
                losses = self.diffusion.training_losses(self._network, micro, t, model_kwargs=micro_cond, **noise)
                if isinstance(self.schedule_sampler, LossAwareSampler):
                    self.schedule_sampler.update_with_local_losses(t, losses["loss"].detach())
                weighted = {name: loss * weights for name, loss in losses.items()}
                self.scaler.scale(weighted["loss"].mean()).backward()
            self.meter.add(self.updates, t, weighted)

    def _shifted_noise(self, batch: torch.Tensor) -> torch.Tensor:
        """Noise whose mean over an image is no longer nearly nothing (Guttenberg 2023, Diffusion with Offset Noise)."""
        shift = torch.randn(*batch.shape[:2], 1, 1, device=batch.device)  # (N, 3, 1, 1)
        return torch.randn_like(batch) + self.offset_noise * shift

    def optimize(self) -> bool:
        """Step the optimizer; False if gradients overflowed half precision: then only the loss scale is halved."""
        self.scaler.unscale_(self.opt)
        grad_norm = norm([p.grad for p in self.state.params if p.grad is not None])
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(self.state.params, self.grad_clip, grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.opt)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            if scale < SMALLEST_LOSS_SCALE:
                raise FloatingPointError(f"step {self.updates}: the gradients are not finite numbers")
            return False
        self.meter.add_grad_norm(grad_norm)
        return True

    def log(self) -> None:
        """Write a line of the log: means since the last one, over all processes."""
        values = {
            "step": self.updates,
            "samples": (self.updates + 1) * self.batch_size * dist_util.world_size(),
            **self.meter.read(),
            "param_norm": float(norm(self.state.params)),
            "lr": self.opt.param_groups[0]["lr"],
            "images_per_second": self.speed.read(),
        }
        if self.scaler.is_enabled():
            values["log2_loss_scale"] = math.log2(self.scaler.get_scale())
        logger.logkvs(values)
        logger.dumpkvs()
        self.observer.on_log(self, values)

    def save(self, updates: int) -> None:
        """Write the set that holds this many updates, under the number of the step. Every process calls it."""
        self.meter.check()
        if not norm(self.state.params).isfinite():
            raise FloatingPointError(f"step {self.updates}: the weights are not finite numbers")
        notes = {"updates": updates, "resume_step": self.resume_step, "resume_checkpoint": self.resume_checkpoint}
        ranks = self.state.processes.gather()
        if dist_util.rank() == 0:
            self.folder.write(self.updates, self.state.contents(notes, ranks))
            self.observer.on_save(self, self.updates)
        self._saved_updates = updates

    def autocast(self) -> torch.autocast:
        """The context in which the network runs in the chosen precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _resume(self, continue_folder: bool) -> None:
        """Load the set to start from, if there is one."""
        start = dist_util.on_rank_0(lambda: find_start(self.folder, self.resume_checkpoint, continue_folder))
        if start is None:
            return
        notes = self.state.load(start, check=self.observer.on_resume)
        for group in self.opt.param_groups:
            group["weight_decay"] = self.weight_decay
        self.resume_step = start.number
        if start.is_own and notes:  # the same training: it counts on, and saves when it would have without the break
            with checkpoint_util.damage_named(start.siblings[OPTIMIZER]):
                self.resume_step = notes["resume_step"]
                self.step = notes["updates"] - self.resume_step
        self._saved_updates = self.updates
        if not self.lr_anneal_steps:  # while annealing, the saved rate is the one that comes next
            self._set_lr(self.lr * self._warmup(self.updates))
        logger.log(f"resuming from {start.model_path}; the next update is number {self.updates}")

    def _network(self, x: torch.Tensor, t: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The network in the chosen precision; the loss around it stays float32."""
        with self.autocast():
            return self.ddp_model(x, t, **kwargs)

    def _averaging(self, is_last: bool) -> AbstractContextManager:
        """Whether this backward pass averages the gradients over the processes: only a batch's last one needs to."""
        alone = self.ddp_model is self.state.model
        return nullcontext() if alone or is_last else self.ddp_model.no_sync()

    def _schedule_lr(self) -> None:
        """Set the learning rate of the update after this one."""
        annealed = 1 - self.updates / self.lr_anneal_steps if self.lr_anneal_steps else 1.0
        if self.lr_anneal_steps or self.lr_warmup_steps:
            self._set_lr(self.lr * annealed * self._warmup(self.updates + 1))

    def _warmup(self, update: int) -> float:
        """The part of the learning rate that update number `update` may use while the training warms up."""
        return min(1.0, (update + 1) / self.lr_warmup_steps) if self.lr_warmup_steps else 1.0

    def _set_lr(self, lr: float) -> None:
        for group in self.opt.param_groups:
            group["lr"] = lr


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The network as one of several copies whose gradients are averaged; itself where there is one process."""
    if dist_util.world_size() == 1:
        return model
    on_gpu = device.type == "cuda"
    return DistributedDataParallel(model, device_ids=[device] if on_gpu else None, gradient_as_bucket_view=True)


def _loss_scaler(device: torch.device, dtype: torch.dtype, log2_growth: float) -> torch.amp.GradScaler:
    """Scales the loss of half precision; without effect in the others."""
    factor, interval = 2.0**log2_growth, 1
    if factor == 1.0:  # a scale that only overflows change; torch wants a factor, so it is never applied
        factor, interval = 2.0, 2**31 - 1
    return torch.amp.GradScaler(
        device.type,
        init_scale=INITIAL_LOSS_SCALE,
        growth_factor=factor,
        growth_interval=interval,
        enabled=dtype is torch.float16,
    )


def _rates(ema_rate: float | str) -> list[float]:
    try:
        rates = [float(rate) for rate in str(ema_rate).split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"ema_rate {ema_rate!r}: expected numbers from 0 to 1, separated by commas")
    return rates


def _dtype(precision: str) -> torch.dtype:
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]
