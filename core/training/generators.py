"""Training a DDPM, a GAN or a VAE on the same images, for as many seconds and with as many parameters each."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dime.core.cli import say
from dime.core.images import from_image, to_uint8
from dime.core.training.script import Progress
from dime.models.generators import GAN, VAE
from guided_diffusion import checkpoint_util
from guided_diffusion.script_util import create_gaussian_diffusion, create_model
from guided_diffusion.trainer import Trainer
from guided_diffusion.unet import Dialect

MOMENTS = (1 / 16, 1 / 4, 1 / 2, 1)
"""The parts of the training after which samples are drawn for the picture of samples over time."""
EMA_RATE = 0.999
QUICK_STEPS = 50
"""Of DDIM, for samples that are drawn on the way."""


class DDPM(nn.Module):
    """Ho et al. 2020: T = 1000 steps of the linear schedule, a U-Net that predicts ε, the simple loss.

    The U-Net sees squares of 2x2 pixels as channels, four times as fast; that only reorders the numbers of an image.
    image_size, channels: of the images. width: of its largest feature maps, a multiple of 8.
    """

    adam = {"lr": 1e-3, "betas": (0.9, 0.999)}

    def __init__(self, image_size: int, channels: int, width: int = 32) -> None:
        super().__init__()
        self.shape = (channels, image_size, image_size)
        self.unet = create_model(
            image_size // 2,
            num_channels=width,
            num_res_blocks=1,
            channel_mult="1,2,2",
            attention_resolutions=str(max(image_size // 4, 1)),
            image_channels=4 * channels,
            num_heads=1,
            use_scale_shift_norm=True,
            dialect=Dialect(norm_groups=8),
        )
        self.process = create_gaussian_diffusion(steps=1000, noise_schedule="linear")

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The noise ε (N, C, H, W) in x at timesteps (N,), always in float32."""
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(x, 2), timesteps), 2).float()

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        """The simple loss (N,) of images x at random timesteps (equation 14)."""
        t = torch.randint(self.process.num_timesteps, (len(x),), device=x.device)
        return self.process.training_losses(self, x, t)

    def noise(self, count: int) -> Tensor:
        """What `count` samples grow from: x_T, (count, C, H, W), on the CPU."""
        return torch.randn(count, *self.shape)

    def draw(self, noise: Tensor, steps: int = 0) -> Tensor:
        """Samples (N, C, H, W) by all the steps back, or by so many of DDIM, which needs few and adds no noise."""
        if not steps:
            return self.process.p_sample_loop(self, noise.shape, noise=noise)
        total = self.process.num_timesteps
        few = self.process.subset(total * i // steps for i in range(steps))
        return few.ddim_sample_loop(self, noise.shape, noise=noise)


GENERATORS: dict[str, type[nn.Module]] = {"DDPM": DDPM, "GAN": GAN, "VAE": VAE}


def parameters(network: nn.Module) -> int:
    """How many weights it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def build(name: str, image_size: int, channels: int, width: int) -> nn.Module:
    """A generator of GENERATORS with as many parameters, within a tenth, as the DDPM of this width.

    Raises ValueError where that is impossible, and for an image_size that does not fit.
    """

    def size_of(kind: str, width: int) -> int:
        with torch.device("meta"):
            return parameters(GENERATORS[kind](image_size, channels, width))

    if image_size % 8 or width % 8:
        raise ValueError(f"images of {image_size}x{image_size} and a width of {width}: both must be multiples of 8")
    goal = size_of("DDPM", width)
    if name != "DDPM":
        width = min(range(2, 16 * width, 2), key=lambda candidate: abs(size_of(name, candidate) - goal))
    network = GENERATORS[name](image_size, channels, width).to(memory_format=torch.channels_last)
    if abs(parameters(network) - goal) > goal / 10:
        raise ValueError(f"{name}: {parameters(network)} parameters at best, where the DDPM has {goal}")
    return network


class Clock(Progress):
    """Progress in seconds of computing; the log's lines as Progress writes them."""

    def on_update(self, trainer: GeneratorTraining) -> None:
        """Move the bar."""
        if self.bar is None:
            self.bar = tqdm(total=round(trainer.seconds), unit="s", disable=None, bar_format="{l_bar}{bar}| {postfix}")
        self.bar.update(min(trainer.spent, trainer.seconds) - self.bar.n)
        if trainer.finished:
            self.bar.close()


class GeneratorTraining(Trainer):
    """Trains one of GENERATORS until its seconds are spent; the same command goes on from folder/training.pt.

    Args:
        network: it, with `losses`, `noise` and `draw`.
        images: those to learn, uint8 (N, H, W, C).
        folder: of training.pt, which holds what a restart needs, and what `load` wants.
        seconds: of computing; on a CPU those of this process, of all its threads: others that are busy do not count.
        samples: images of a picture on the way.
        settings: those of Trainer.

    Attributes: spent: seconds so far, over resumes, without saving and pictures. pictures: (uint8 (samples, C, H, W))
    at each of MOMENTS that is past.

    Raises ValueError for a training.pt of another network, OSError for a folder that cannot be written.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, folder: Path, *, seconds: float, samples: int = 64, **settings: Any
    ) -> None:
        data = random_batches(images, settings["batch_size"])
        lr, betas = network.adam["lr"], network.adam["betas"]
        super().__init__(network, data, lr=lr, weight_decay=0.0, log_loss_scale=16.0, observer=Clock(), **settings)
        self.file, self.seconds, self.samples = folder / "training.pt", seconds, samples
        self.spent, self.pictures = 0.0, []
        self.average = copy.deepcopy(network).eval()
        for group in self.opt.param_groups:
            group["betas"] = betas
        if self.file.exists():
            self._resume()

    @property
    def done(self) -> float:
        """The part of the training that is over, 0 to 1."""
        return max(self.spent / self.seconds, self.updates / (self.last_update or float("inf")))

    @property
    def finished(self) -> bool:
        """Whether the seconds are spent, or the last update made."""
        return self.done >= 1

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> bool:
        """An update of the weights and of their running average."""
        began = clock(self.device)
        done = super().run_step(batch, cond)
        weight = max(1 - EMA_RATE, 9 / (10 + self.updates))  # the first weights are soon forgotten
        with torch.no_grad():
            states = self.average.state_dict().values(), self.model.state_dict().values()
            for average, value in zip(*states, strict=True):
                average.lerp_(value, weight) if average.is_floating_point() else average.copy_(value)
        self.spent += clock(self.device) - began
        return done

    def forward_backward(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """The gradients of images (N, C, H, W)."""
        with self.autocast():
            losses = self.model.losses(batch.to(self.device))
        self.scaler.scale(losses["loss"].mean()).backward()
        self.meter.add(self.updates, losses)

    def after_update(self) -> None:
        """Log, draw and save, where it is time."""
        if self.updates % self.log_interval == 0:
            self.log(self.updates, seconds=self.spent)
        while len(self.pictures) < len(MOMENTS) and self.done >= MOMENTS[len(self.pictures)]:
            self.pictures.append(self.picture())
        if self.updates % self.save_interval == 0:
            self.save(self.updates)

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Samples of the averaged weights, uint8 (samples, C, H, W), from the same noise every time."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.autocast():
            torch.manual_seed(0)
            quick = {"steps": QUICK_STEPS} if isinstance(self.average, DDPM) else {}
            noise = self.average.noise(self.samples).to(self.device)
            return to_uint8(self.average.draw(noise, **quick).float()).cpu()

    def save(self, number: int) -> None:
        """Write training.pt."""
        self.require_finite()
        content = {**self.state_dict(), "network": self.model.state_dict(), "average": self.average.state_dict()}
        content |= {"optimizer": self.opt.state_dict(), "spent": self.spent, "pictures": self.pictures}
        checkpoint_util.save(self.file, checkpoint_util.plain(content))
        self.saved_updates = self.updates

    def _resume(self) -> None:
        state = load(self.file, self.average)
        with checkpoint_util.damage_named(self.file):
            self.model.load_state_dict(state["network"])
            self.load_state_dict(state, optimizer=state["optimizer"])
            self.updates = self.saved_updates = int(state["updates"])
            self.spent, self.pictures = float(state["spent"]), list(state["pictures"])
        say(f"{self.file}: goes on after {self.spent:.0f} of {self.seconds:g} seconds")


def load(path: Path, network: nn.Module) -> dict[str, Any]:
    """Give the network the averaged weights in a training.pt; returns all that is in it. Raises ValueError."""
    state = checkpoint_util.load(path)
    if not isinstance(state, dict) or not isinstance(state.get("average"), dict):
        raise ValueError(f"{path}: holds no training of a generator; remove it, or use another --output_path")
    checkpoint_util.require_same_names(network, state["average"], path)
    network.load_state_dict(state["average"])
    return state


def random_batches(images: Tensor, batch_size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless batches of images, uint8 (N, H, W, C), drawn with torch's generator: a restart goes on with it."""
    while True:
        yield from_image(images[torch.randint(len(images), (batch_size,))]), {}


def clock(device: torch.device) -> float:
    """Seconds of computing so far: on a CPU those of this process alone, elsewhere those on the wall."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.monotonic()
