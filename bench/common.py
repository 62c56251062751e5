"""What the benchmarks share: the machine in words, the page of results."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from dime.core.files import write_atomically

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
