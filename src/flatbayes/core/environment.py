"""What a result was computed with."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, as plain data."""
    return {
        "flatbayes": version("flatbayes"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "processor": _read_processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _read_processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
