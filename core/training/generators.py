"""Training a DDPM, a GAN or a VAE on the same images, for as many seconds and with as many parameters each."""

import bisect
import copy
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dime.core.images import from_image, to_uint8
from dime.core.training.script import Progress
from dime.models.generators import GAN, VAE
from guided_diffusion import checkpoint_util
from guided_diffusion.script_util import create_gaussian_diffusion, create_model
from guided_diffusion.trainer import Trainer
from guided_diffusion.unet import Dialect

MOMENTS = (1 / 16, 1 / 4, 1 / 2, 1)
"""The parts of a training after which samples are drawn for the picture."""
EMA_RATE = 0.999


class DDPM(nn.Module):
    """Ho et al. 2020: T = 1000 steps of the linear schedule, a U-Net that predicts ε, the simple loss.

    The U-Net sees squares of 2x2 pixels as channels, four times as fast; that only reorders the numbers of an image.
    image_size, channels: of the images. width: of the largest feature maps. All but channels: multiples of 8, or
    ValueError.
    """

    adam = (1e-3, (0.9, 0.999))
    quick: ClassVar[dict[str, int]] = {"steps": 50}

    def __init__(self, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        if image_size % 8 or width % 8:
            raise ValueError(f"images of {image_size}x{image_size}, width {width}: a DDPM needs multiples of 8")
        self.shape = (channels, image_size, image_size)
        self.unet = create_model(
            image_size // 2,
            num_channels=width,
            num_res_blocks=1,
            channel_mult="1,2,2",
            attention_resolutions=str(image_size // 4),
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

    def sample(self, count: int, steps: int = 0) -> Tensor:
        """Images (count, C, H, W) by all steps back (algorithm 2), or by so many of DDIM."""
        if not steps:
            return self.process.p_sample_loop(self, (count, *self.shape))
        few = self.process.subset(self.process.num_timesteps * i // steps for i in range(steps))
        return few.ddim_sample_loop(self, (count, *self.shape))


GENERATORS: dict[str, type[nn.Module]] = {"DDPM": DDPM, "GAN": GAN, "VAE": VAE}


def parameters(network: nn.Module) -> int:
    """How many weights it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def build(name: str, image_size: int, channels: int, width: int) -> nn.Module:
    """A generator with as many parameters, within a tenth, as the DDPM of this width; ValueError where it cannot be."""

    def size(kind: str, width: int) -> int:
        with torch.device("meta"):
            return parameters(GENERATORS[kind](image_size, channels, width))

    goal = size("DDPM", width)
    if name != "DDPM":
        above = bisect.bisect_left(range(8 * width), goal, lo=1, key=partial(size, name))
        width = min(above - 1, above, key=lambda w: abs(size(name, w) - goal))
    network = GENERATORS[name](image_size, channels, width).to(memory_format=torch.channels_last)
    if abs(parameters(network) - goal) > goal / 10:
        raise ValueError(f"{name}: {parameters(network)} parameters at best, where the DDPM has {goal}")
    return network


class GeneratorTraining(Trainer):
    """Trains one of GENERATORS until its seconds are spent; the same command goes on from folder/training.pt.

    Args:
        network: what has `losses` and `sample`; `adam`: learning rate and betas; `quick`: arguments of a quick sample.
        images: those to learn, uint8 (N, H, W, C).
        seconds: of computing, see `clock`; saving and pictures do not count.
        settings: those of Trainer.

    Attributes: average: the network with the running average of the weights, to draw from. spent: seconds so far, over
    resumes. pictures: at each of MOMENTS that is past, the seconds spent and 64 samples, uint8 (64, C, H, W).

    Raises ValueError for a training.pt of another network, OSError for a folder that cannot be written.
    """

    def __init__(
        self, network: nn.Module, images: np.ndarray, folder: Path, *, seconds: float, **settings: Any
    ) -> None:
        data, (lr, betas) = random_batches(images, settings["batch_size"]), network.adam
        super().__init__(network, data, lr=lr, weight_decay=0.0, log_loss_scale=16.0, observer=Progress(), **settings)
        self.opt.param_groups[0]["betas"] = betas
        self.file, self.seconds, self.spent, self.pictures = folder / "training.pt", seconds, 0.0, []
        self.average = copy.deepcopy(self.model).eval()
        if self.file.exists():
            state = checkpoint_util.load(self.file)
            with checkpoint_util.damage_named(self.file):
                self.take_up(state, self.file)
                self.average.load_state_dict(state["average"])
                self.spent, self.pictures = float(state["spent"]), list(state["pictures"])

    @property
    def done(self) -> float:
        """The part of the training that is over, 0 to 1."""
        return max(self.spent / self.seconds, self.updates / (self.last_update or float("inf")))

    @property
    def finished(self) -> bool:
        """Whether the seconds are spent, or the last update made."""
        return self.done >= 1

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> bool:
        """An update of the weights and of their running average, in which the first ones are soon forgotten."""
        began = clock(self.device)
        done = super().run_step(batch, cond)
        weight = max(1 - EMA_RATE, 9 / (10 + self.updates))
        with torch.no_grad():
            for average, value in zip(*(m.state_dict().values() for m in (self.average, self.model)), strict=True):
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
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(0)  # from the same noise every time
                self.pictures.append((self.spent, self.draw(64, **self.model.quick)))
        if self.updates % self.save_interval == 0:
            self.save(self.updates)

    @torch.no_grad()
    def draw(self, count: int, **way: Any) -> Tensor:
        """Samples of the averaged weights, uint8 (count, C, H, W), on the CPU; way: more arguments of `sample`."""
        with self.autocast():
            return to_uint8(self.average.sample(count, **way).float()).cpu()

    def save(self, number: int) -> None:
        """Write training.pt."""
        self.write_file(self.file, average=self.average.state_dict(), spent=self.spent, pictures=self.pictures)


def random_batches(images: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless batches of images, uint8 (N, H, W, C), drawn with torch's generator: a restart goes on with it."""
    while True:
        yield from_image(images[torch.randint(len(images), (batch_size,)).numpy()]), {}


def clock(device: torch.device) -> float:
    """Seconds so far: on a CPU of this process's computing, which no other process slows down, else on the wall."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.monotonic()
