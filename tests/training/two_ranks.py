"""Three updates on batches of 8, with timesteps and noise that belong to the images: share of this process of them.

usage: two_ranks.py FOLDER MICROBATCHES. Writes the checkpoint set, and grads.pt with the gradients of the last update.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from guided_diffusion import dist_util, logger
from guided_diffusion.resample import ScheduleSampler
from guided_diffusion.train_util import TrainLoop
from tests.helpers import rnd
from tests.training.small import network_and_diffusion, settings

GLOBAL_BATCH = 8
UPDATES = 3


def share(tensor: torch.Tensor, part: int, parts: int) -> torch.Tensor:
    """What this process has of microbatch `part` of a whole batch."""
    micro = tensor.chunk(parts)[part]
    return micro[dist_util.rank() :: dist_util.world_size()]


class ScriptedSampler(ScheduleSampler):
    """Each image has its own timestep."""

    def __init__(self, diffusion, parts: int) -> None:
        super().__init__(diffusion)
        self.parts, self.calls = parts, 0

    def weights(self):
        raise NotImplementedError

    def sample(self, batch_size, device):
        update, part = divmod(self.calls, self.parts)
        t = torch.randint(0, self.num_timesteps, (GLOBAL_BATCH,), generator=torch.Generator().manual_seed(update))
        self.calls += 1
        return share(t, part, self.parts), torch.ones(batch_size)


class ScriptedNoise:
    """Each image has its own noise."""

    def __init__(self, diffusion, parts: int) -> None:
        self.diffusion, self.parts, self.calls = diffusion, parts, 0
        self.num_timesteps = diffusion.num_timesteps

    def training_losses(self, model, x_start, t, model_kwargs=None):
        update, part = divmod(self.calls, self.parts)
        noise = share(rnd(100 + update, GLOBAL_BATCH, 3, 8, 8), part, self.parts)
        self.calls += 1
        return self.diffusion.training_losses(model, x_start, t, model_kwargs, noise=noise)


def main(folder: str, parts: int) -> None:
    dist_util.setup_dist()
    logger.configure(dir=folder, format_strs=[])
    model, diffusion = network_and_diffusion()

    def batches():
        for update in range(UPDATES):
            whole = rnd(200 + update, GLOBAL_BATCH, 3, 8, 8).clamp(-1, 1)
            yield torch.cat([share(whole, part, parts) for part in range(parts)]), {}

    local_batch = GLOBAL_BATCH // dist_util.world_size()
    loop = TrainLoop(
        model=model,
        diffusion=ScriptedNoise(diffusion, parts),
        data=batches(),
        schedule_sampler=ScriptedSampler(diffusion, parts),
        **settings(batch_size=local_batch, microbatch=local_batch // parts, max_steps=UPDATES),
    )
    loop.run_loop()
    if dist_util.rank() == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, Path(folder) / "grads.pt")
    dist_util.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
