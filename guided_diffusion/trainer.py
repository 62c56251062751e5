"""What every training shares: precision, the optimizer's step, its checks, the log, signals, what a restart needs.

Two trainings stand on it, `train_util.TrainLoop` and the project's classifiers. They say what the gradients of an
update are, and what is saved and when.
"""

import math
import random
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guided_diffusion import checkpoint_util, dist_util, logger
from guided_diffusion.nn import PRECISIONS


class TrainObserver:
    """Told what happens in a training, for progress bars and pictures; every method may be left out."""

    def on_update(self, trainer: "Trainer") -> None:
        """After each update, in every process."""

    def on_log(self, trainer: "Trainer", values: dict[str, float]) -> None:
        """After each line of the log, in every process."""

    def on_save(self, trainer: "Trainer", number: int) -> None:
        """After set `number` has been written, on rank 0; draws nothing from the global generators."""


class Meter:
    """Means of named numbers, and images per second. Adding waits for no GPU."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, dict[str, torch.Tensor], torch.Tensor | None]] = []
        self._numbers: dict[str, list[float]] = defaultdict(list)
        self.images, self._since = 0, time.monotonic()

    def add(self, step: int, values: dict[str, torch.Tensor], quartile: torch.Tensor | None = None) -> None:
        """Note numbers (n,) of each name; `quartile` (n,), 0 to 3: they go into means `name_q0` … `_q3` as well."""
        self._kept.append((step, {name: value.detach() for name, value in values.items()}, quartile))
        if len(self._kept) >= 1000:  # else they fill the device
            self.check()

    def check(self) -> None:
        """Raise FloatingPointError, which names the step, if a number of this process was not finite."""
        for step, values, quartile in self._kept:
            quartiles = [] if quartile is None else quartile.tolist()
            for name, value in values.items():
                numbers = value.tolist()
                if not all(map(math.isfinite, numbers)):
                    what = "the loss" if quartiles or name == "loss" else name
                    raise FloatingPointError(f"step {step}: {what} is not a finite number")
                self._numbers[name] += numbers
                for part, number in zip(quartiles, numbers, strict=False):
                    self._numbers[f"{name}_q{part}"].append(number)
        self._kept.clear()

    def read(self) -> dict[str, float]:
        """The means over all processes. Every process calls it. Raises as `check`."""
        self.check()
        everyone = defaultdict(list)
        for own in dist_util.gather(self._numbers):
            for name, numbers in own.items():
                everyone[name] += numbers
        means = {name: sum(numbers) / len(numbers) for name, numbers in everyone.items()}
        return means | {"images_per_second": self.images / max(time.monotonic() - self._since, 1e-9)}


class Trainer(ABC):
    """Trains `model` by AdamW on endless batches until it is finished, or until SIGTERM, SIGUSR1 or Ctrl-C.

    Args:
        model: the network, any precision; trained with float32 weights.
        data: endless batches (images (N, C, H, W), dictionary of tensors (N, …)).
        batch_size: images of one update in each process.
        log_interval, save_interval: updates between two lines of the log and two checkpoints.
        precision: fp32, fp16 or bf16 (torch.autocast); ValueError for others.
        log_loss_scale, scale_growth: fp16's loss is scaled by 2^s; the first s, and its growth with each update.
        grad_clip: largest norm of the gradient; 0: any.
        last_update: how many updates, over resumes, end the training; None: it goes on until it is stopped.

    Attributes: updates, that the weights have had, over resumes; saved_updates, that those on the disk have had.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]],
        *,
        batch_size: int,
        lr: float,
        weight_decay: float,
        log_interval: int,
        save_interval: int,
        precision: str,
        log_loss_scale: float,
        last_update: int | None,
        scale_growth: float = 1e-3,
        grad_clip: float = 0.0,
        observer: TrainObserver | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.device = dist_util.dev()
        self.dtype = PRECISIONS[precision]
        self.model = self.ddp_model = model.float().to(self.device).train()
        self.params = list(model.parameters())
        self.data = iter(data)
        self.batch_size, self.images_per_update = batch_size, batch_size * dist_util.world_size()
        self.lr, self.weight_decay, self.grad_clip = lr, weight_decay, grad_clip
        self.log_interval, self.save_interval = log_interval, save_interval
        self.opt = torch.optim.AdamW(self.params, lr, weight_decay=weight_decay, fused=self.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=2.0**log_loss_scale,
            growth_factor=max(2.0**scale_growth, 1 + 1e-12),  # torch wants it above 1; float32 does not know this one
            growth_interval=1,
            enabled=self.dtype is torch.float16,
        )
        self.updates = self.saved_updates = 0
        self.last_update = last_update
        self.observer = observer or TrainObserver()
        self.meter = Meter()
        self.signals: list[str] = []

    @abstractmethod
    def forward_backward(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> None:
        """Add the gradients of a batch to those of the parameters, averaged over the processes."""

    @abstractmethod
    def after_update(self) -> None:
        """Log and save, where it is time. Every process calls it, after each update."""

    @abstractmethod
    def save(self, number: int) -> None:
        """Save all updates so far, under this number. Every process calls it, at the end and after a signal too."""

    @property
    def finished(self) -> bool:
        """Whether the last update has been made."""
        return self.last_update is not None and self.updates >= self.last_update

    @property
    def stopping(self) -> bool:
        """Whether a signal to this process has asked for the end."""
        return bool(self.signals)

    def run_loop(self) -> None:
        """Train; when it returns, a checkpoint with every update is on the disk.

        Raises FloatingPointError at a loss that is no number, and OSError for a checkpoint that cannot be written; the
        last one is whole then. Where another process dies, this one ends as `dist_util.watched` says.
        """
        self.signals.clear()
        with dist_util.watched(), dist_util.signals_noted(self.signals):
            while not self.finished:
                if dist_util.any_rank(self.stopping):
                    logger.log(f"{[*self.signals, 'a signal to another process'][0]}: saving and stopping")
                    break
                self.run_step(*next(self.data))
                self.updates += 1
                self.after_update()
                self.observer.on_update(self)
            if self.saved_updates != self.updates:
                self.save(self.updates)

    def run_step(self, batch: torch.Tensor, cond: dict[str, torch.Tensor]) -> bool:
        """One update of the weights; False where gradients overflowed half precision: it only halves the loss scale."""
        self.opt.zero_grad(set_to_none=True)
        self.forward_backward(batch, cond)
        self.meter.images += self.images_per_update
        self.scaler.unscale_(self.opt)
        grads = [p.grad for p in self.params if p.grad is not None]
        norms = {"grad_norm": nn.utils.get_total_norm(grads), "param_norm": nn.utils.get_total_norm(self.params)}
        if self.grad_clip:
            nn.utils.clip_grads_with_norm_(self.params, self.grad_clip, norms["grad_norm"])
        scale = self.scaler.get_scale()
        self.scaler.step(self.opt)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            if scale < 2.0**-10:  # the gradients are not too large for half precision: they are no numbers at all
                raise FloatingPointError(f"step {self.updates}: the gradients are not finite numbers")
            logger.log(f"step {self.updates}: gradients overflowed, no update; the loss scale is halved")
            return False
        if self.scaler.is_enabled():
            norms["lg_loss_scale"] = torch.tensor(math.log2(scale))
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
        self.meter = Meter()
        logger.logkvs(values)
        logger.dumpkvs()
        self.observer.on_log(self, values)

    def require_finite(self) -> None:
        """Raise FloatingPointError, naming the step, if a loss since the last line of the log or a weight is none."""
        self.meter.check()
        if not nn.utils.get_total_norm(self.params).isfinite():
            raise FloatingPointError(f"step {self.updates - 1}: the weights are not finite numbers")

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs beside network and optimizer, plain values. Every process calls it."""
        here = {"random": random_state(self.device)}
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
            set_random_state(here["random"], self.device)
        elif ranks:
            logger.log(f"saved by {len(ranks)} processes: data order and random numbers start anew")

    def write_file(self, path: Path, **more: Any) -> None:
        """Write all that a restart needs into one file, and what the training adds. Every process calls it."""
        self.require_finite()
        content = {**self.state_dict(), **more}
        if dist_util.rank() == 0:
            content |= {"network": self.model.state_dict(), "optimizer": self.opt.state_dict()}
            checkpoint_util.save(path, checkpoint_util.plain(content))
        self.saved_updates = self.updates

    def take_up(self, state: dict[str, Any], path: Path) -> None:
        """Go on from what `write_file` wrote, with the given learning rate; use it inside `damage_named`."""
        checkpoint_util.load_weights(self.model, state["network"], path)
        self.load_state_dict(state, optimizer=state["optimizer"])
        self.set_lr(self.lr)
        self.updates = self.saved_updates = int(state["updates"])

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


def random_state(device: torch.device) -> dict[str, Any]:
    """Python's, numpy's and torch's generators, the one of `device` among them, as plain values."""
    numpy = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    state = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` gave; a GPU's generator only where there is one."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
