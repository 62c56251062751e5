"""How fast the methods are, beside the plain loop of the paper, in one run on one machine.

usage: python bench/speed.py [--network small|paper] [--device cpu|0] [--batch_size N] [--repeats N] [--run_steps N]

Networks have random weights, which cost what trained ones do. The rows take turns, so that a disturbance of the machine
hits all of them alike; the table has medians, with minimum and maximum. bench/README.md explains it.
"""

import datetime
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.plain_loop import plain_loop
from dime.core.arithmetic import compile_unet, keep_freed_memory, prepare_unet
from dime.core.cli import Parser, boolean, integer, run, say, select_device
from dime.core.config import preset
from dime.core.errors import InputError
from dime.core.files import write_atomically
from dime.core.guidance import Binary, Guidance
from dime.core.masks import shrunk
from dime.core.methods import METHODS
from dime.core.noise import PerImageNoise
from dime.core.sampler import Denoiser
from dime.core.settings import Settings
from dime.core.table import markdown_table
from dime.core.truth.rows import evaluations
from dime.models.classifiers import DenseNetClassifier, SmallCNN
from dime.models.perceptual import PerceptualFeatures
from guided_diffusion.script_util import create_diffusion, create_model_and_diffusion, model_and_diffusion_defaults

PAGE = Path(__file__).with_name("RESULTS.md")
HEAD = "# Measured\n\nEvery section says where, when and by which command; bench/README.md explains the columns.\n"

PEAK = {
    **{"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12},
    **{"A40": 150e12, "V100": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "T4": 65e12},
}
"""Part of a GPU's name -> its dense half-precision operations per second with float32 sums (NVIDIA's data sheets)."""

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
    """One line of the table: a method's settings, the plain loop where there are none."""

    name: str
    precision: str
    settings: Settings | None = None

    def at(self, tau: int) -> Settings:
        """The settings of a chain of so many outer steps; one that has few anyway stays whole."""
        return self.settings if self.settings.outer_steps else replace(self.settings, start_step=tau)

    def evaluations(self, tau: int = TAU) -> int:
        """How many evaluations of the U-Net a chain of so many outer steps makes."""
        return evaluations({**PROCESS, **vars(self.at(tau))}) if self.settings else tau * (tau + 1) // 2


def rows(half: str) -> list[Row]:
    """All rows; the plain loop is the first."""
    dime = Settings(start_step=TAU, l1_loss=0.05, l_perc=30, use_logits=True)
    methods = {
        "dime (exact)": dime,
        "dime --inner_steps 1": replace(dime, inner_steps="1"),
        "fastdime": replace(dime, method="fastdime"),
        "maskdime": replace(dime, method="maskdime"),
        "--preset turbo": preset("turbo", start_step=40, use_logits=True),
    }
    made = [Row(name, precision, settings) for name, settings in methods.items() for precision in ("fp32", half)]
    return [Row("plain loop", "fp32"), *made]


class SpeedBench:
    """The networks on their device, and the rows run on them.

    networks: see NETWORKS. batch_size: images explained together. run_steps: outer steps really run, up to τ.
    compile: see main.py.
    """

    def __init__(
        self, networks: Networks, device: torch.device, batch_size: int, run_steps: int, half: str, compile: bool
    ) -> None:
        self.device, self.run_steps, self.diffusion = device, run_steps, create_diffusion(PROCESS)
        flags, classifier, layer = networks
        shape = (batch_size, 3, flags["image_size"], flags["image_size"])
        self.x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(device)
        made = [random_weights(create_model_and_diffusion(**flags)[0]).to(device) for _ in range(3)]
        self.networks = {None: made[0]}  # that of the plain loop, then by precision
        for precision, network in zip(("fp32", half), made[1:], strict=True):
            prepared = prepare_unet(network, precision, device)
            self.networks[precision] = compile_unet(prepared, self.x.shape) if compile else prepared
        perceptual = random_weights(PerceptualFeatures(layer)).to(device) if layer else None
        self.guidance = Guidance(random_weights(classifier()).to(device), Binary(31, use_logits=True), perceptual)

    def run(self, row: Row) -> tuple[float, float]:
        """Seconds of a whole chain of the row, and of one of its evaluations, which is timed by itself.

        Of a chain of fewer steps than τ, the evaluations' time is multiplied up to the number that τ steps need, and
        what is left (gradients, random numbers) by the steps. Raises InputError if the result is not finite.
        """
        network, t = self.networks[row.precision if row.settings else None], torch.zeros(1, device=self.device)
        seconds, cf = self._timed(lambda: self.chain(row, self.run_steps))
        if not cf.isfinite().all():
            raise InputError(f"{row.name} in {row.precision}: the result is not finite, so that its time means nothing")
        evaluation = self._timed(lambda: [network(self.x, t) for _ in range(self.run_steps)])[0] / self.run_steps
        left_out = row.evaluations() - (count := row.evaluations(self.run_steps))
        rest = (seconds - count * evaluation) * (TAU / self.run_steps - 1) if left_out else 0
        return seconds + left_out * evaluation + rest, evaluation

    @torch.no_grad()
    def _timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        start, result = time.perf_counter(), work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start, result

    @torch.no_grad()
    def chain(self, row: Row, tau: int) -> torch.Tensor:
        """The counterfactuals (N, 3, H, W) of a row's method from tau outer steps, or from its own few."""
        settings = row.at(tau) if row.settings else rows("fp32")[1].settings
        l_perc = settings.l_perc if self.guidance.perceptual else 0
        guidance = replace(self.guidance, l1=settings.l1_loss, l_perc=l_perc, confidence=settings.confidence)
        target = torch.ones(len(self.x), device=self.device).long()
        pull = guidance.towards(self.x, guidance.input_features(self.x), target, scale=8.0)
        if not row.settings:
            return plain_loop(self.networks[None], self.diffusion, self.x, tau, pull, seed=4)
        method = METHODS[settings.method](settings)
        denoiser, ids = Denoiser(self.networks[row.precision], self.diffusion), range(len(self.x))
        noise = PerImageNoise(4, self.device)
        noisy = denoiser.noised(self.x, settings.start_step, noise.noising(ids)(self.x.shape))
        cf = method(denoiser, self.x, noisy, pull, lambda i: noise.step(ids, 0, i))
        return shrunk(cf, pull) if settings.shrink else cf

    def share_of_peak(self, seconds: float, precision: str) -> float | None:
        """The share of the chip's half-precision peak that evaluations of so many seconds reach; None where that is
        unknown or the arithmetic another.
        """
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" and precision != "fp32" else ""
        if peak := next((peak for chip, peak in PEAK.items() if chip in name), None):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.networks[None](self.x[:1], torch.zeros(1, device=self.device))
            return counter.get_total_flops() * len(self.x) / seconds / peak
        return None


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
    add("--output", type=Path, default=PAGE, help="the page whose section is replaced")
    args = parser.parse_args()
    device = select_device(args.device)
    keep_freed_memory()
    half = HALF[device.type]
    bench = SpeedBench(NETWORKS[args.network], device, args.batch_size, args.run_steps, half, args.compile)
    text = table(bench, rows(half), args.repeats) + "\n"
    if args.run_steps < TAU:
        text += f"Only {args.run_steps} of the {TAU} outer steps were run; "
        text += "the times of evaluations and steps are scaled up to all. "
    compiled = ", compiled" if args.compile else ""
    title = f"Speed: {args.network} network, {device.type.upper()}, batch {args.batch_size}{compiled}"
    write_section(args.output, title, f"{text}{args.repeats} repeats. ", device, "speed.py")


def table(bench: SpeedBench, rows: list[Row], repeats: int) -> str:
    """Markdown: a line for each row, which take turns after a short chain each."""
    for row in rows:
        bench.chain(row, tau=1)
    measured, lines, n = {row: [] for row in rows}, [], len(bench.x)
    for repeat in range(repeats):
        for row in rows:
            measured[row].append(bench.run(row))
            say(f"{repeat + 1}/{repeats} {row.name}, {row.precision}: {measured[row][-1][0]:.2f} s")
    plain = statistics.median(seconds for seconds, _ in measured[rows[0]])
    for row, times in measured.items():
        chains, evaluations = zip(*times, strict=True)
        chain, evaluation = statistics.median(chains), statistics.median(evaluations)
        share = bench.share_of_peak(evaluation, row.precision)
        seconds = f"{chain / n:.3g} ({min(chains) / n:.3g} … {max(chains) / n:.3g})"
        figures = (seconds, f"{plain / chain:.2f}", f"{1e3 * evaluation:.3g}", share and f"{share:.0%}")
        lines.append((row.name, row.precision, row.evaluations(), *figures))
    head = "U-Net in, evaluations, s per image: median (min … max), times faster, ms per evaluation, of peak"
    return markdown_table(["", *head.split(", ")], lines)


def write_section(path: Path, title: str, text: str, device: torch.device, program: str) -> None:
    """Print a result and put it below the heading `## title` of a Markdown page, in place of what stood there; the rest
    stays. The machine (and how busy it was), the versions, the day and the command of `program` are added.
    """
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    machine = (
        f"{named[1] if named else platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    )
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; {machine}"
    text += f"{machine}, {load}; torch {torch.__version__}, Python {platform.python_version()}. "
    text += f"{datetime.date.today()}, `python bench/{program} {shlex.join(sys.argv[1:])}`"
    print(text)
    page, section = path.read_text() if path.exists() else HEAD, f"## {title}\n\n{text}\n\n"
    old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
    page, replaced = old.subn(lambda _: section, page, count=1)
    write_atomically(path, (page if replaced else f"{page.rstrip()}\n\n{section}").rstrip() + "\n")


if __name__ == "__main__":
    run(main)
