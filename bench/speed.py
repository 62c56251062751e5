"""How fast the methods are, beside the plain loop of the paper, in one run on one machine.

usage: python bench/speed.py [--network small|paper] [--device cpu|0] [--batch_size N] [--repeats N] [--run_steps N]

Networks have random weights, which cost what trained ones do. The rows take turns, so that a disturbance of the machine
hits all of them alike; the table has medians, with minimum and maximum. bench/README.md explains it.
"""

from __future__ import annotations

import datetime
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.common import RESULTS, described, share_of_peak, write_section
from bench.plain_loop import plain_loop
from dime.core.arithmetic import compile_unet, keep_freed_memory, prepare_unet
from dime.core.cli import Parser, boolean, integer, run, say, select_device
from dime.core.errors import InputError
from dime.core.guidance import Binary, Guidance, Pull
from dime.core.methods import METHODS
from dime.core.noise import PerImageNoise
from dime.core.sampler import Denoiser
from dime.core.settings import Settings
from dime.core.truth.cost import evaluations
from dime.models.classifiers import DenseNetClassifier
from dime.models.perceptual import PerceptualFeatures
from dime.models.small_cnn import SmallCNN
from guided_diffusion.script_util import create_diffusion, create_model_and_diffusion, model_and_diffusion_defaults
from guided_diffusion.unet import UNetModel

TAU = 60
PROCESS = {**model_and_diffusion_defaults(), "diffusion_steps": 500, "timestep_respacing": "200", "learn_sigma": True}
"""The published noise level and process."""
HALF = {"cpu": "bf16", "cuda": "fp16"}
"""The half precision that a kind of device is timed in."""


def unet(size: int, channels: int, blocks: int, heads: int, attention: str, **others: object) -> dict[str, object]:
    """Flags of a U-Net."""
    shape = {"image_size": size, "num_channels": channels, "num_res_blocks": blocks, "num_heads": heads}
    return {**PROCESS, **shape, "attention_resolutions": attention, **others}


Networks = tuple[dict[str, object], Callable[[], nn.Module], int | None]
"""Flags of a U-Net; the classifier that pulls it; the layer of VGG19 that does so too (None: no such distance)."""

NETWORKS: dict[str, Networks] = {
    "small": (unet(64, 32, 1, 2, "16,8", channel_mult="1,2,3,4"), SmallCNN, None),
    "paper": (unet(128, 128, 2, 4, "32,16,8", resblock_updown=True), DenseNetClassifier, 18),
    "tiny": (unet(16, 32, 1, 1, "8", channel_mult="1,1"), SmallCNN, None),
}
"""Small ones (4.0 and 1.2 M parameters); the paper's with the losses of its commands; toys, to try the program."""


@dataclass(frozen=True)
class Row:
    """One line of the table: the plain loop where method is None, else a method with its settings."""

    name: str
    precision: str
    method: str | None = None
    inner_steps: str = "0"

    @property
    def evaluations(self) -> int:
        """How many evaluations of the U-Net a whole chain makes."""
        if self.method is None:
            return TAU * (TAU + 1) // 2
        return evaluations({**PROCESS, "method": self.method, "start_step": TAU, "inner_steps": self.inner_steps})


def rows(half: str) -> list[Row]:
    """All rows; the plain loop is the first."""
    dime = (("dime (exact)", "dime"), ("dime --inner_steps 1", "dime", "1"))
    methods = (*dime, ("fastdime", "fastdime"), ("maskdime", "maskdime"))
    made = [Row(name, precision, *method) for name, *method in methods for precision in ("fp32", half)]
    return [Row("plain loop", "fp32"), *made]


class Meter(nn.Module):
    """A network that counts its evaluations and measures the seconds that they take."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.device, self.spans = network, device, []

    def forward(self, *inputs: torch.Tensor, **labels: torch.Tensor) -> torch.Tensor:
        """As the network's."""
        start = self._now()
        output = self.network(*inputs, **labels)
        self.spans.append((start, self._now()))
        return output

    def take(self) -> tuple[int, float]:
        """Evaluations and their seconds since the last call; waits for the device."""
        spans, self.spans = self.spans, []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return len(spans), sum(start.elapsed_time(end) for start, end in spans) / 1e3
        return len(spans), sum(end - start for start, end in spans)

    def _now(self) -> float | torch.cuda.Event:
        """A moment: on a GPU an event in its queue, which holds nothing up."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class SpeedBench:
    """The networks on their device, and the rows run on them.

    networks: see NETWORKS. batch_size: images explained together. run_steps: outer steps really run, up to τ.
    compile: see main.py.
    """

    def __init__(
        self, networks: Networks, device: torch.device, batch_size: int, run_steps: int, half: str, compile: bool
    ) -> None:
        self.device, self.run_steps = device, run_steps
        self.diffusion = create_diffusion(PROCESS)
        flags, classifier, layer = networks
        shape = (batch_size, 3, flags["image_size"], flags["image_size"])
        self.x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(device)
        self.plain_unet, self.pull = self._unet(flags), self._pull(classifier(), layer)
        self.meters = {"plain": Meter(self.plain_unet, device)}
        for precision in ("fp32", half):
            unet = prepare_unet(self._unet(flags), precision, device)
            self.meters[precision] = Meter(compile_unet(unet, self.x.shape) if compile else unet, device)

    @property
    def flops(self) -> int:
        """Floating-point operations of one evaluation for the batch."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.plain_unet(self.x[:1], torch.zeros(1, device=self.device))
        return counter.get_total_flops() * len(self.x)

    def run(self, row: Row) -> tuple[float, float]:
        """Seconds of a whole chain of the row, and of one of its evaluations.

        Of a chain of fewer steps than τ, the evaluations' time is multiplied up to the number that τ steps need, and
        what is left (gradients, random numbers) by the steps. Raises InputError if the result is not finite.
        """
        meter = self.meters[row.precision if row.method else "plain"]
        meter.take()
        start = time.perf_counter()
        cf = self.chain(row, self.run_steps)
        count, evaluating = meter.take()
        seconds = time.perf_counter() - start
        if not cf.isfinite().all():
            raise InputError(f"{row.name} in {row.precision}: the result is not finite, so that its time means nothing")
        rest = seconds - evaluating
        whole = row.evaluations * evaluating / count + rest * TAU / self.run_steps
        return (seconds if self.run_steps == TAU else whole), evaluating / count

    def chain(self, row: Row, tau: int) -> torch.Tensor:
        """The counterfactuals (N, 3, H, W) of a row's method from tau outer steps."""
        if row.method is None:
            return plain_loop(self.meters["plain"], self.diffusion, self.x, tau, self.pull, seed=4)
        method = METHODS[row.method](Settings(start_step=tau, inner_steps=row.inner_steps))
        denoiser, ids = Denoiser(self.meters[row.precision], self.diffusion), range(len(self.x))
        noise = PerImageNoise(4, self.device)
        noisy = denoiser.noised(self.x, tau, noise.noising(ids)(self.x.shape))
        return method(denoiser, self.x, noisy, self.pull, lambda i: noise.step(ids, 0, i))

    def _unet(self, flags: dict[str, object]) -> UNetModel:
        return random_weights(create_model_and_diffusion(**flags)[0]).to(self.device)

    def _pull(self, classifier: nn.Module, layer: int | None) -> Pull:
        classifier = random_weights(classifier).to(self.device)
        perceptual = random_weights(PerceptualFeatures(layer)).to(self.device) if layer else None
        decision, l_perc = Binary(31, use_logits=True), 30.0 if perceptual else 0.0
        guidance = Guidance(classifier, decision, perceptual, l1=0.05, l_perc=l_perc)
        with torch.no_grad():
            features = guidance.input_features(self.x)
        y = torch.ones(len(self.x), dtype=torch.long, device=self.device)
        return guidance.towards(self.x, features, y, scale=8.0)


@torch.no_grad()
def random_weights(network: nn.Module) -> nn.Module:
    """The network with weights that keep the size of what passes through it: no zeros, nothing that overflows."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        elif value.is_floating_point():  # norms as they begin, biases 0
            value.fill_(float(name.endswith(("weight", "running_var"))))
    return network.eval().requires_grad_(False)


def main() -> None:
    """Measure, print the table, and put it into the results' page."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--network", choices=tuple(NETWORKS), default="small", help="small networks, the paper's, or toys")
    add("--device", default="cpu", help="index of the CUDA GPU, or cpu")
    add("--batch_size", type=integer(1), default=8, help="images explained together")
    add("--repeats", type=integer(1), default=3, help="how often every row has its turn")
    scaled = f"outer steps really run; below {TAU}, times are scaled up"
    add("--run_steps", type=integer(1, TAU), default=TAU, help=scaled)
    add("--compile", type=boolean, default=False, help="compile the U-Net of all rows but the plain loop")
    add("--output", type=Path, default=RESULTS, help="the page whose section is replaced")
    args = parser.parse_args()
    device = select_device(args.device)
    keep_freed_memory()
    half = HALF[device.type]
    bench = SpeedBench(NETWORKS[args.network], device, args.batch_size, args.run_steps, half, args.compile)
    measured = measure(bench, rows(half), args.repeats)
    text = table(measured, bench) + "\n"
    if args.run_steps < TAU:
        text += f"Only {args.run_steps} of the {TAU} outer steps were run; "
        text += "the times of evaluations and steps are scaled up to all. "
    text += f"{args.repeats} repeats. {described(device)}. {datetime.date.today()}, "
    text += f"`python bench/speed.py {shlex.join(sys.argv[1:])}`\n"
    print(text)
    title = f"Speed: {args.network} network, {device.type.upper()}, batch {args.batch_size}"
    write_section(args.output, title + (", compiled" if args.compile else ""), text)


def measure(bench: SpeedBench, rows: list[Row], repeats: int) -> dict[Row, list[tuple[float, float]]]:
    """Row -> (seconds of a chain, of an evaluation) of each repeat; the rows take turns, after a short chain each."""
    for row in rows:
        bench.chain(row, tau=1)
    measured = {row: [] for row in rows}
    for repeat in range(repeats):
        for row in rows:
            measured[row].append(bench.run(row))
            say(f"{repeat + 1}/{repeats} {row.name}, {row.precision}: {measured[row][-1][0]:.2f} s")
    return measured


def table(measured: dict[Row, list[tuple[float, float]]], bench: SpeedBench) -> str:
    """Markdown: a row per method and precision."""
    medians = {row: statistics.median(seconds for seconds, _ in times) for row, times in measured.items()}
    plain = next(iter(medians.values()))
    lines = [
        "| | U-Net in | evaluations | s per image: median (min … max) | times faster | ms per evaluation | of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, times in measured.items():
        chains = [seconds / len(bench.x) for seconds, _ in times]
        evaluation = statistics.median(seconds for _, seconds in times)
        share = share_of_peak(bench.flops / evaluation, row.precision, bench.device)
        lines.append(
            f"| {row.name} | {row.precision} | {row.evaluations} "
            f"| {statistics.median(chains):.3g} ({min(chains):.3g} … {max(chains):.3g}) | {plain / medians[row]:.2f} "
            f"| {1e3 * evaluation:.3g} | {'' if share is None else f'{share:.0%}'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
