"""Device: what this machine computes on, and whether bfloat16 pays there."""

import os
import platform
from importlib.metadata import version

import torch

from oodlib import __version__


def default_device() -> torch.device:
    """Return the GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16 itself; emulated products are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # which ATEN_CPU_CAPABILITY may lower
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Return what a table says about the machine it was measured on: device, processor, threads and versions."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "device": gpu or device.type,
        "processor": _processor_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "bfloat16": has_fast_bfloat16(device),
        "python": platform.python_version(),
        "oodlib": __version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": version("numpy"),
        "scikit-learn": version("scikit-learn"),
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
