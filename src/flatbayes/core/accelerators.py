"""Accelerators of a machine: which there are, their memory and precision, and the selection of one.

The functions that look for accelerators initialize none: that would take hundreds of megabytes of their memory, and
rule out forked worker processes.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch

from flatbayes.core.devices import has_float64

ACCELERATOR_VARIABLE = "FLATBAYES_ACCELERATOR"
"""Environment variable with the device that `accelerator="auto"` and the commands use."""


def find_accelerator() -> str | None:
    """Type of the accelerator of this machine, such as cuda or mps; None if there is none."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None and torch.accelerator.is_available() else None


def list_initialized_accelerators() -> list[torch.device]:
    """The accelerators that this process may have used already; reading their random state costs no memory there."""
    accelerator = find_accelerator()
    if accelerator is None:
        return []
    module: Any = torch.get_device_module(accelerator)
    if hasattr(module, "is_initialized") and not module.is_initialized():
        return []
    return [torch.device(accelerator, index) for index in range(torch.accelerator.device_count())]


def resolve_accelerator(name: str = "auto") -> str:
    """The accelerator of a configuration: auto is that of the environment variable, if that is set."""
    return os.environ.get(ACCELERATOR_VARIABLE, "auto") if name == "auto" else name


def select_device(name: str = "auto", dtypes: Iterable[torch.dtype] = ()) -> torch.device:
    """The first device of an accelerator, such as for computations outside of training.

    auto is the accelerator of this machine, or the CPU if it has none; a network of float64 stays on the CPU where
    the accelerator has none.

    Raises:
        ValueError: The environment variable names an accelerator that is not there.
    """
    requested, available = resolve_accelerator(name), find_accelerator()
    if requested == "cpu" or (requested == "auto" and available is None):
        return torch.device("cpu")
    if available is None or requested not in ("auto", "gpu", available):
        usable = "cpu" if available is None else f"cpu or {available}"
        raise ValueError(
            f"The accelerator {requested} is not available: use {usable}, in distribution.accelerator or in the "
            f"environment variable {ACCELERATOR_VARIABLE}."
        )
    is_supported = has_float64(torch.device(available)) or torch.float64 not in set(dtypes)
    return torch.device(available if is_supported else "cpu")


def count_accelerators(name: str = "auto") -> int:
    """Number of accelerators that trainings of a configuration can use; 0 if they use the CPU."""
    available = find_accelerator()
    return 0 if resolve_accelerator(name) == "cpu" or available is None else torch.accelerator.device_count()


def describe_device(device: torch.device) -> str:
    """Type and, if it is known, model of a device, such as `cuda NVIDIA H100 80GB HBM3`; seeds depend on both."""
    get_name = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return device.type if get_name is None else f"{device.type} {get_name(device)}"


def get_free_memory(device: torch.device) -> float:
    """Bytes that new tensors on a device can take; infinity on the CPU, where the data are already."""
    if device.type == "cpu":
        return math.inf
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    module: Any = getattr(torch, device.type, None)
    return float(module.mem_get_info(device)[0]) if hasattr(module, "mem_get_info") else 0.0


def get_float32_precision() -> dict[str, Any]:
    """Precision in which CUDA multiplies float32 numbers: whether matrix products and convolutions may use TF32."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch refuses to read the older flags once these are set
        return {"matmul": matmul.fp32_precision, "convolutions": cudnn.conv.fp32_precision}
    return {"matmul": "tf32" if matmul.allow_tf32 else "ieee", "convolutions": "tf32" if cudnn.allow_tf32 else "ieee"}
