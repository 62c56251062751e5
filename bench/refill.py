"""What refill saves: three scales, of which two thirds of the images need one and a third needs two.

usage: python bench/refill.py [--num_images 48] [--batch_size 8] [--repeats 3] [--gpu 0] [U-Net flags]

The networks are real and untrained; which image flips at which scale is settled beforehand. Both ways run alternately
on the same images; printed are the medians, their ratio, and the calls of the U-Net. Padded batches are measured too:
there a remnant costs as much as a full batch, as it nearly does on a GPU that small batches leave idle.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from dime.core.arithmetic import prepare_unet
from dime.core.cli import Parser, integer, run, select_device
from dime.core.explain import Batch, Explainer, Explanations
from dime.core.guidance import BinaryAttribute, Guidance
from dime.core.job.flags import PRECISIONS
from dime.core.job.work_queue import WorkQueue
from dime.core.methods import METHODS, Settings
from dime.core.noise import PerImageNoise
from dime.models.small_cnn import SmallCNN
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

SMALL = {
    **model_and_diffusion_defaults(),
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_heads": 2,
    "learn_sigma": True,
    "diffusion_steps": 500,
    "timestep_respacing": "100",
}
"""The U-Net of the demo, if no flags say otherwise."""


@dataclass(frozen=True)
class Planned(Explainer):
    """Every third image flips at the second scale, the others at the first."""

    def _attempt(self, trials, padded, progress) -> Explanations:
        result = super()._attempt(trials, padded, progress)
        flips = torch.tensor([trial.attempt >= (trial.id % 3 == 0) for trial in trials], device=result.target.device)
        return replace(
            result, cf_pred=torch.where(flips, result.target, 1 - result.target), finite=torch.ones_like(flips)
        )


def main() -> None:
    """Measure and print."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_images", type=integer(1), default=48, help="images in all")
    parser.add_argument("--batch_size", type=integer(1), default=8, help="images at once")
    parser.add_argument("--start_step", type=integer(1), default=10, help="noise level tau")
    parser.add_argument("--method", choices=tuple(METHODS), default="fastdimenomask", help="as of main.py")
    parser.add_argument("--repeats", type=integer(1), default=3, help="how often each way is timed")
    parser.add_argument("--gpu", default="0", help="index of the CUDA GPU, or cpu")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of the U-Net's convolutions")
    add_dict_to_argparser(parser.add_argument_group("U-Net"), SMALL)
    args = parser.parse_args()
    device = select_device(args.gpu)
    torch.manual_seed(0)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, SMALL.keys()))
    prepare_unet(model.to(device).eval().requires_grad_(False), args.precision, device)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    explainer = Planned(
        model=model,
        diffusion=diffusion,
        guidance=Guidance(SmallCNN().to(device).eval().requires_grad_(False), BinaryAttribute(0)),
        method=METHODS[args.method](Settings(args.start_step)),
        noise=PerImageNoise(0, device),
        scales=[8.0, 10.0, 15.0],
    )
    images = torch.rand(args.num_images, 3, args.image_size, args.image_size, device=device) * 2 - 1
    print("| batches | refill | seconds | U-Net calls | images in them | times faster |\n|---|---|---|---|---|---|")
    for kind, pad_to in (("as they are", None), ("padded", args.batch_size)):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        counts = {}
        explain_all(
            replace(explainer, pad_to=pad_to), images[: args.batch_size], args.batch_size, refill=False
        )  # warm up
        for _ in range(args.repeats):
            for refill in seconds:
                calls.clear()
                start = time.perf_counter()
                explain_all(replace(explainer, pad_to=pad_to), images, args.batch_size, refill)
                seconds[refill].append(time.perf_counter() - start)
                counts[refill] = f"{len(calls)} | {sum(calls)}"
        medians = {refill: statistics.median(times) for refill, times in seconds.items()}
        for refill, median in medians.items():
            print(f"| {kind} | {refill} | {median:.2f} | {counts[refill]} | {medians[False] / median:.2f} |")


def explain_all(explainer: Explainer, images: torch.Tensor, size: int, refill: bool) -> None:
    """Every image, as the main job does it, without files."""
    queue, trials = WorkQueue(range(len(images)), size, refill), []
    for group in queue:
        if group.new:
            label = torch.zeros(len(group.new), dtype=torch.long, device=images.device)
            trials = trials + explainer.begin(Batch(group.new, images[group.new], label))
        finished, trials = explainer.attempt(trials)
        finished.cf.sum().item()  # wait for the device
        queue.again = [trial.id for trial in trials]


if __name__ == "__main__":
    run(main)
