"""What a measurement was made on, in words, and what its chip could do at best."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

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
    processor = f"{_cpu_name()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {load}"
    if device.type == "cuda":
        processor = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; {processor}"
    return f"{processor}; torch {torch.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
