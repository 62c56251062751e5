"""A share of three updates on batches of 8 whose timesteps and noise are the images'; usage: FOLDER [SIGNAL]"""

import itertools
import os
import signal
import sys
from pathlib import Path

import torch

from guided_diffusion import dist_util, logger
from guided_diffusion.train_util import TrainLoop, TrainObserver
from tests.helpers import rnd
from tests.training.small import network_and_diffusion, settings

GLOBAL_BATCH, MICROBATCHES, UPDATES = 8, 2, 3


def share(tensor: torch.Tensor, part: int) -> torch.Tensor:
    """What this process has of microbatch `part` of a whole batch."""
    return tensor.chunk(MICROBATCHES)[part][dist_util.rank() :: dist_util.world_size()]


class Scripted:
    """A process in which each image has its own timestep and its own noise."""

    def __init__(self, diffusion) -> None:
        self.diffusion, self.calls = diffusion, 0
        self.num_timesteps = diffusion.num_timesteps

    def training_losses(self, model, x_start, t, model_kwargs=None):
        update, part = divmod(self.calls, MICROBATCHES)
        self.calls += 1
        t = torch.randint(0, self.num_timesteps, (GLOBAL_BATCH,), generator=torch.Generator().manual_seed(update))
        noise = share(rnd(100 + update, GLOBAL_BATCH, 3, 8, 8), part)
        return self.diffusion.training_losses(model, x_start, share(t, part), model_kwargs, noise=noise)


def batches():
    for update in itertools.count():
        whole = rnd(200 + update, GLOBAL_BATCH, 3, 8, 8).clamp(-1, 1)
        yield torch.cat([share(whole, part) for part in range(MICROBATCHES)]), {}


class Signal(TrainObserver):
    """With a signal the training has no end, but rank 1 sends it to itself after the third update."""

    def on_update(self, loop):
        if len(sys.argv) > 2 and dist_util.rank() == 1 and loop.updates == UPDATES:
            os.kill(os.getpid(), signal.Signals[sys.argv[2]])


if __name__ == "__main__":
    dist_util.setup_dist()
    logger.configure(dir=sys.argv[1], format_strs=[])
    model, diffusion = network_and_diffusion()
    local = GLOBAL_BATCH // dist_util.world_size()
    sizes = settings(batch_size=local, microbatch=local // MICROBATCHES, max_steps=0 if len(sys.argv) > 2 else UPDATES)
    TrainLoop(model=model, diffusion=Scripted(diffusion), data=batches(), observer=Signal(), **sizes).run_loop()
    if dist_util.rank() == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, Path(sys.argv[1]) / "grads.pt")
    dist_util.close()
