"""What every training shares: precision, the optimizer's step, its checks, the log, signals, what a restart needs.

Two trainings stand on it, `train_util.TrainLoop` and the project's classifiers. They say what the gradients of an
update are, and what is saved and when.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.dist_util import StopSignal
from guided_diffusion.train_log import Meter, norm

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

SMALLEST_LOSS_SCALE = 2.0**-10
"""Below this the gradients are not too large for half precision: they are no numbers at all."""


class TrainObserver:
    """Told what happens in a training, for progress bars and pictures; every method may be left out."""

    def on_resume(self, path: str, config: dict[str, Any] | None) -> None:
        """Before a network's file is loaded, with the configuration stored in it; may refuse it by a ValueError."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first update, in every process."""

    def on_update(self, trainer: Trainer) -> None:
        """After each update, in every process."""

    def on_log(self, trainer: Trainer, values: dict[str, float]) -> None:
        """After a line of the log, in every process."""

    def on_save(self, trainer: Trainer, number: int) -> None:
        """After set `number` has been written, on rank 0; draws nothing from the global generators."""


class Trainer(ABC):
    """Trains `model` on endless batches until it is finished, or until SIGTERM, SIGUSR1 or Ctrl-C.

    Args:
        model: the network, any precision; trained with float32 weights, by AdamW.
        data: endless batches (images (N, C, H, W), dictionary of tensors (N, …)).
        lr, weight_decay: of AdamW.
        precision: fp32, fp16 or bf16 (torch.autocast).
        log_loss_scale, scale_growth: fp16's loss is scaled by 2^s; the first s, and its growth with each update.
        grad_clip: largest norm of the gradient; 0: any.
        observer: told what happens.

    Attributes:
        updates: that the weights have had, over resumes.
        saved_updates: that those on the disk have had.
        last_update: how many end the training; None: it goes on until it is stopped.
        images_per_update: of all processes.

    Raises ValueError for an unknown precision.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]],
        *,
        lr: float,
        weight_decay: float,
        precision: str,
        log_loss_scale: float,
        scale_growth: float,
        grad_clip: float,
        last_update: int | None,
        images_per_update: int,
        observer: TrainObserver | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.device = dist_util.dev()
        self.dtype = PRECISIONS[precision]
        self.model = self.ddp_model = model.float().to(self.device).train()
        self.params = list(model.parameters())
        self.data = iter(data)
        self.lr, self.weight_decay, self.grad_clip = lr, weight_decay, grad_clip
        self.opt = torch.optim.AdamW(self.params, lr, weight_decay=weight_decay, fused=self.device.type == "cuda")
        self.scaler = _loss_scaler(self.device, self.dtype, log_loss_scale, scale_growth)
        self.updates = self.saved_updates = 0
        self.last_update = last_update
        self.images_per_update = images_per_update
        self.observer = observer or TrainObserver()
        self.meter = Meter()
        self.stop = StopSignal()
        self._random: dict[str, Any] | None = None  # where a resumed training's generators stand

    @abstractmethod
    def forward_backward(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """Add the gradients of a batch to those of the parameters, averaged over the processes."""

    @abstractmethod
    def after_update(self) -> None:
        """Log and save, where it is time. Every process calls it, after each update."""

    @abstractmethod
    def save_last(self) -> None:
        """Save what the last updates gave. Every process calls it, at the end and after a signal."""

    @property
    def finished(self) -> bool:
        """Whether the last update has been made."""
        return self.last_update is not None and self.updates >= self.last_update

    @property
    def stopping(self) -> bool:
        """Whether a signal to this process has asked for the end."""
        return self.stop.received is not None

    def run_loop(self) -> None:
        """Train; when it returns, a checkpoint with every update is on the disk.

        Raises FloatingPointError at a loss that is no number, and OSError for a checkpoint that cannot be written; the
        last one is whole then. Raises PeerLostError when another process dies.
        """
        if self._random:
            set_random_state(self._random, self.device)  # the last thing before the first draw
        self.observer.on_start(self)
        with dist_util.watched(), StopSignal() as self.stop:
            while not self.finished:
                if dist_util.any_rank(self.stopping):
                    logger.log(f"{self.stop.received or 'a signal to another process'}: saving and stopping")
                    break
                self.run_step(*next(self.data))
                self.updates += 1
                self.after_update()
                self.observer.on_update(self)
            if self.saved_updates != self.updates:
                self.save_last()

    def run_step(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> bool:
        """One update of the weights; False where their gradients overflowed half precision and were left out."""
        self.opt.zero_grad(set_to_none=True)
        self.forward_backward(batch, cond)
        done = self.optimize()
        self.meter.add_images(self.images_per_update)
        return done

    def optimize(self) -> bool:
        """Step the optimizer; False if gradients overflowed half precision: then only the loss scale is halved."""
        self.scaler.unscale_(self.opt)
        norms = {
            "grad_norm": norm([p.grad for p in self.params if p.grad is not None]),
            "param_norm": norm(self.params),
        }
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(self.params, self.grad_clip, norms["grad_norm"])
        scale = self.scaler.get_scale()
        self.scaler.step(self.opt)
        self.scaler.update()
        if self.scaler.is_enabled():
            norms["lg_loss_scale"] = torch.tensor(math.log2(scale))
        if self.scaler.get_scale() < scale:
            if scale < SMALLEST_LOSS_SCALE:
                raise FloatingPointError(f"step {self.updates}: the gradients are not finite numbers")
            logger.log(f"step {self.updates}: gradients overflowed, no update; the loss scale is halved")
            return False
        self.meter.add(self.updates, {name: value[None] for name, value in norms.items()})
        return True

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.opt.param_groups:
            group["lr"] = lr

    def autocast(self) -> torch.autocast:
        """The context in which the network runs in the chosen precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def log(self, step: int, **more: float) -> None:
        """Write a line of the log: means since the last one, over all processes. Every process calls it."""
        values = {"step": step, **more, **self.meter.read(), "lr": self.opt.param_groups[0]["lr"]}
        logger.logkvs(values)
        logger.dumpkvs()
        self.observer.on_log(self, values)

    def require_finite(self) -> None:
        """Raise FloatingPointError, naming the step, if a loss since the last line of the log or a weight is none."""
        self.meter.check()
        if not norm(self.params).isfinite():
            raise FloatingPointError(f"step {self.updates - 1}: the weights are not finite numbers")

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside network and optimizer, plain values. Every process calls it."""
        here = {"random": get_random_state(self.device)}
        if hasattr(self.data, "state_dict"):
            here["data"] = self.data.state_dict()
        return {"updates": self.updates, "scaler": self.scaler.state_dict(), "ranks": dist_util.gather(here)}

    def load_state_dict(self, state: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Take up the optimizer's state and what `state_dict` gave, but its `updates`; the weight decay is the given.

        Another number of processes starts the data's order and the random numbers anew.
        """
        checkpoint_util.load_optimizer(self.opt, optimizer)
        for group in self.opt.param_groups:
            group["weight_decay"] = self.weight_decay
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        ranks = state.get("ranks", [])
        if len(ranks) == dist_util.world_size():
            here = ranks[dist_util.rank()]
            if "data" in here and hasattr(self.data, "load_state_dict"):
                self.data.load_state_dict(here["data"])
            self._random = here["random"]
            set_random_state(self._random, self.device)  # that they are damaged shows here, beside the name of the file
        elif ranks:
            logger.log(f"saved by {len(ranks)} processes: data order and random numbers start anew")

    def parallelise(self, *more: torch.Tensor) -> None:
        """Give every process rank 0's weights and buffers (and `more`), and average the gradients from now on."""
        dist_util.sync_params([*self.params, *self.model.buffers(), *more])
        if dist_util.world_size() > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.ddp_model = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)


def usable_precision(precision: str, device: torch.device) -> str:
    """The precision, or fp32 for fp16 on a CPU, where it takes forty times as long; that is said."""
    if precision != "fp16" or device.type != "cpu":
        return precision
    if dist_util.rank() == 0:
        print("fp16 is far slower than fp32 on a CPU: the network computes in fp32.", flush=True)
    return "fp32"


def _loss_scaler(device: torch.device, dtype: torch.dtype, log_scale: float, log_growth: float) -> torch.amp.GradScaler:
    """Scales the loss of half precision; without effect in the others."""
    factor, interval = 2.0**log_growth, 1
    if factor == 1.0:  # a scale that only overflows change; torch wants a factor, so it is never applied
        factor, interval = 2.0, 2**31 - 1
    scaling = {"init_scale": 2.0**log_scale, "growth_factor": factor, "growth_interval": interval}
    return torch.amp.GradScaler(device.type, enabled=dtype is torch.float16, **scaling)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Python's, numpy's and torch's generators, the one of `device` among them, as plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `get_random_state` gave; a GPU's generator only where there is one."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
