"""What the device can do: versions and flags, and the rates of copies, launches, matrix products and convolutions."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_report import Row
from gpu_runner import Context
from gpu_timing import measure_median
from torch.nn import functional as F

PACKAGES = ("numpy", "lightning", "pytorch-lightning", "lightning-fabric", "triton", "pytorch_optimizer",
            "jsonargparse", "beartype", "optuna", "jaxtyping", "scikit-learn", "pyarrow", "pillow")  # fmt: skip
PRODUCTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def describe_machine(context: Context) -> Iterator[Row]:
    """Card, driver, versions and flags.

    Raises:
        RuntimeError: There is no such device.
    """
    if context.device == "cuda" and not torch.cuda.is_available():
        build = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise RuntimeError(f"This torch ({torch.__version__}) {build}. A dry run without: --device cpu --seconds 60")
    from flatbayes.core.optional import get_version

    yield {
        "device": torch.cuda.get_device_name() if context.device == "cuda" else read_processor_name(),
        "flatbayes": get_version(),
        "commit": run_quietly("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "packages": {name: find_version(name) for name in PACKAGES},
        "flags": {
            "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    }
    if context.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield {
            "driver": run_quietly("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
            "capability": list(torch.cuda.get_device_capability()),
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": properties.total_memory / 1e9,
        }


def measure_copy(context: Context) -> Iterator[Row]:
    """Bytes read and written per second by a copy within the device, and by copies from and to the host."""
    size = 2**30 if context.device == "cuda" else 2**25
    source = torch.empty(size, dtype=torch.uint8, device=context.device).fill_(1)
    target = torch.empty_like(source)
    rate = 2 * size / measure_median(lambda: target.copy_(source), context.device) / 1e9
    yield {"device_gb_s": rate, "summary": f"{rate:.0f} GB/s"}
    if context.device == "cuda":
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        part = target[: len(host)]
        upload = measure_median(lambda: part.copy_(host, non_blocking=True), context.device)
        download = measure_median(lambda: host.copy_(part, non_blocking=True), context.device)
        yield {"host_to_device_gb_s": len(host) / upload / 1e9, "device_to_host_gb_s": len(host) / download / 1e9}


def measure_launch(context: Context) -> Iterator[Row]:
    """Time of one small operation, of one list operation on 100 tensors, and of a host wait."""
    small = torch.zeros(16, device=context.device)
    tensors = [torch.zeros(16, device=context.device) for _ in range(100)]
    single = measure_median(lambda: small.add_(1.0), context.device)
    grouped = measure_median(lambda: torch._foreach_add_(tensors, 1.0), context.device)
    waiting = measure_median(small.sum().item, context.device)
    yield {"operation_us": 1e6 * single, "list_of_100_us": 1e6 * grouped, "host_wait_us": 1e6 * waiting}
    yield {"summary": f"{1e6 * single:.1f} us an operation, {1e6 * grouped:.1f} us for a list of 100"}


def measure_matmul(context: Context) -> Iterator[Row]:
    """Floating-point operations per second of a square matrix product, by precision."""
    size = 8192 if context.device == "cuda" else 512
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    names = [*PRODUCTS, "tf32"] if context.device == "cuda" else ["bf16", "fp32", "fp64"]
    rates = {}
    for name in names:
        n = size // 2 if name in ("fp32", "fp64") else size
        dtype = PRODUCTS.get(name, torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        left, right = (torch.randn(n, n, device=context.device).to(dtype) for _ in range(2))
        try:
            rates[name] = 2 * n**3 / measure_median(lambda a=left, b=right: a @ b, context.device) / 1e12
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        yield {"tflop_s": rates}
    yield {"summary": ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()) + " TFLOP/s"}


def measure_convolution(context: Context) -> Iterator[Row]:
    """Rate of a 3x3 convolution, forward and backward, in the shapes of a WideResNet-28-10 in bfloat16."""
    shapes = ((160, 32), (320, 16), (640, 8)) if context.device == "cuda" else ((16, 16),)
    batch = 512 if context.device == "cuda" else 8
    rates = {}
    for channels, pixels in shapes:
        inputs = torch.randn(batch, channels, pixels, pixels, device=context.device, dtype=torch.bfloat16)
        inputs = inputs.to(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, channels, 3, 3, device=context.device, dtype=torch.bfloat16)
        weight = weight.to(memory_format=torch.channels_last).requires_grad_()
        direction = torch.randn_like(F.conv2d(inputs, weight, padding=1))

        def work(x=inputs, w=weight, g=direction):
            return torch.autograd.grad(F.conv2d(x, w, padding=1), (x, w), g)

        flops = 3 * 2 * batch * (channels * pixels * 3) ** 2
        rates[f"{channels} channels, {pixels} x {pixels}"] = flops / measure_median(work, context.device) / 1e12
        yield {"tflop_s": rates}
    yield {"summary": ", ".join(f"{rate:.3g}" for rate in rates.values()) + " TFLOP/s in bfloat16"}


def read_processor_name() -> str:
    """Name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_version(package: str) -> str | None:
    """Version of an installed package; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "without metadata" if find_spec(package.replace("-", "_")) else None


def run_quietly(*command: str) -> str | None:
    """Output of a command; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        return None
    return done.stdout.strip()
