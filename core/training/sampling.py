"""What a trained diffusion model is asked for: images, as 8-bit arrays, and how likely images are."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from dime.core.files import write_atomically
from dime.core.images import from_image, grid_png, to_uint8
from dime.core.networks.diffusion import DiffusionModel
from dime.core.training.script import open_part
from guided_diffusion import dist_util

TERMS = ("prior_bpd", "vb", "mse", "xstart_mse")


def draw_samples(
    sample_loop: Callable[..., torch.Tensor], shape: tuple[int, ...], count: int, labels: torch.Tensor | None
) -> np.ndarray:
    """`count` images, uint8 (count, H, W, C), in every process; batches go round among the processes.

    sample_loop: draws images of `shape`, (batch size, C, H, W), in [-1, 1]; it is given model_kwargs.
    labels: (count, …) for a conditional network. Image n does not depend on the batches that come after its own.
    """
    batch_size, world_size = shape[0], dist_util.world_size()
    images: list[torch.Tensor] = []
    starts = range(0, count, batch_size * world_size)
    for start in tqdm(starts, unit="batch", disable=None if dist_util.rank() == 0 else True):
        first = start + dist_util.rank() * batch_size
        rows = [row % count for row in range(first, first + batch_size)]  # what lies beyond count is cut off below
        model_kwargs = {} if labels is None else {"y": labels[rows].to(dist_util.dev())}
        own = to_uint8(sample_loop(shape=shape, model_kwargs=model_kwargs)).movedim(1, -1).contiguous()
        parts = [torch.empty_like(own) for _ in range(world_size)]
        dist.all_gather(parts, own)
        images += [part.cpu() for part in parts]
    return torch.cat(images)[:count].numpy()


def labels_to_draw(
    model: DiffusionModel, count: int, attributes: Sequence[int] | None, data_dir: str, seed: int
) -> torch.Tensor:
    """What the images of a conditional model are to show.

    Of attributes (count, K): those named and no others, or as random images of CelebA's train partition have them.
    Classes (count,): all alike likely. Raises InputError for a damaged folder.
    """
    rng, num_labels = np.random.default_rng(seed), model.network.num_classes
    if not model.network.multiclass:
        return torch.from_numpy(rng.integers(num_labels, size=count))
    if attributes is not None:
        labels = torch.zeros(count, num_labels)
        labels[:, list(attributes)] = 1
        return labels
    table = open_part("CelebA", data_dir, "train", 1).table
    return torch.from_numpy(table.iloc[rng.integers(len(table), size=count), 1:].to_numpy(np.float32))


def write_samples(folder: Path, images: np.ndarray, labels: torch.Tensor | None) -> Path:
    """Write samples_COUNTxHxWxC.npz (arr_0: images, arr_1: labels, if any) and a PNG of the first; returns the npz."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [images] if labels is None else [images, labels.numpy()]
    path = folder / f"samples_{'x'.join(map(str, images.shape))}.npz"
    write_atomically(path, lambda file: np.savez(file, *arrays))
    write_atomically(path.with_suffix(".png"), grid_png(from_image(images[:64]), columns=8))
    return path


def measure_likelihood(
    model: DiffusionModel,
    data: Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]],
    count: int,
    clip_denoised: bool = True,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """How many images of all processes were seen, and the means over them of TERMS, after each batch, until `count`.

    In bits per dimension the prior's term L_T (prior_bpd) and vb, (T,), by timestep, the highest first: the L_t and at
    last L_0; their sum is the variational bound. mse and xstart_mse, (T,), are squared errors.

    data: batches of one size (images (N, C, H, W) in [-1, 1], keyword arguments of the network) of this process.
    """
    seen, batches, device = 0, 0, dist_util.dev()
    sums: dict[str, np.ndarray] = dict.fromkeys(TERMS, 0)
    while seen < count:
        x, cond = next(data)
        cond = {key: value.to(device) for key, value in cond.items()}
        out = model.process.calc_bpd_loop(model.network, x.to(device), clip_denoised=clip_denoised, model_kwargs=cond)
        for name in TERMS:
            mean = dist_util.sum_over_ranks(out[name].mean(0)) / dist_util.world_size()
            sums[name] = sums[name] + mean.cpu().double().numpy()
        seen, batches = seen + len(x) * dist_util.world_size(), batches + 1
        yield seen, {name: total / batches for name, total in sums.items()}
