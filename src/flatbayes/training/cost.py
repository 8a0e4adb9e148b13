"""Peak memory of a training."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class CostMeter:
    """Measures peak memory from its creation on."""

    device: torch.device

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            PROC_CLEAR_REFS.write_text("5")  # resets the peak on Linux
        except OSError:
            return  # on other systems the peak is that of the process so far

    def peak_memory_mb(self) -> float:
        """Peak memory in MiB: of the tensors on a CUDA device, otherwise of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return _read_process_peak_mb()


def get_peak_memory_mb() -> float:
    """Peak memory so far in MiB: of the tensors on CUDA if it is in use, otherwise of the process."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else _read_process_peak_mb()


def _read_process_peak_mb() -> float:
    try:
        line = next(x for x in PROC_STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
