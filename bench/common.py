"""What the benchmarks share: the explainer of a command, the machine in words, the page of results."""

from __future__ import annotations

import os
import platform
import re
from argparse import Namespace
from pathlib import Path

import torch

from dime.core.arithmetic import prepare_unet
from dime.core.checkpoints import load_classifier, load_perceptual, load_unet, output_column
from dime.core.compiled import compile_unet
from dime.core.explain import Explainer
from dime.core.files import write_atomically
from dime.core.guidance import BinaryAttribute, Guidance
from dime.core.methods import METHODS, Settings
from dime.core.noise import NOISE_SOURCES
from guided_diffusion.script_util import args_to_dict, create_diffusion, model_and_diffusion_defaults

RESULTS = Path(__file__).with_name("RESULTS.md")
"""The page of results."""
HEAD = "# Measured\n\nEvery section says where, when and by which command; bench/README.md explains the columns.\n"

PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
}
"""Part of a GPU's name -> its dense half-precision operations per second with float32 sums (NVIDIA's data sheets)."""


def explainer_of(flags: Namespace, device: torch.device) -> Explainer:
    """What main.py with these flags explains its images with, a batch after the other."""
    classifier = load_classifier(flags.classifier_path, device)
    column = output_column(classifier, flags.query_label, flags.classifier_path)
    model = load_unet(flags.model_path, args_to_dict(flags, model_and_diffusion_defaults().keys()), device)
    published = flags.noise == "stream" or flags.method == "gmd"
    model = prepare_unet(model, flags.precision or "fp32", device, published=published)
    if flags.compile:
        model = compile_unet(model, torch.Size((flags.batch_size, 3, flags.image_size, flags.image_size)))
    perceptual = load_perceptual(flags.l_perc_layer, device, flags.perceptual_path) if flags.l_perc else None
    decision = BinaryAttribute(column, flags.use_logits)
    return Explainer(
        model=model,
        diffusion=create_diffusion(vars(flags)),
        guidance=Guidance(classifier, decision, perceptual, flags.l1_loss, flags.l2_loss, flags.l_perc),
        method=METHODS[flags.method](Settings.of({**vars(flags), "clip_per_image": flags.noise == "per_image"})),
        noise=NOISE_SOURCES[flags.noise](flags.seed, device),
        scales=flags.classifier_scales,
    )


def share_of_peak(flops_per_second: float, precision: str, device: torch.device) -> float | None:
    """The share of the chip's half-precision peak; None where that is unknown or the arithmetic another."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops_per_second / peak for chip, peak in PEAK.items() if chip in name), None)


def described(device: torch.device) -> str:
    """The machine: processor, how much of it is used, how busy it was, versions."""
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = named[1] if named else platform.processor() or platform.machine()
    processor = f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {load}"
    if device.type == "cuda":
        processor = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; {processor}"
    return f"{processor}; torch {torch.__version__}, Python {platform.python_version()}"


def write_section(path: Path, title: str, text: str) -> None:
    """Put text below the heading `## title` of a Markdown page, in place of what stood there; the rest stays."""
    page = path.read_text() if path.exists() else HEAD
    section = f"## {title}\n\n{text.strip()}\n\n"
    old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
    page, replaced = old.subn(lambda _: section, page, count=1)
    write_atomically(path, (page if replaced else f"{page.rstrip()}\n\n{section}").rstrip() + "\n")
