"""What `import flatbayes` brings along, and how long it takes."""

import subprocess
import sys

import pytest

LAZY = ["matplotlib", "sklearn", "scipy", "joblib", "lightning_fabric", "lightning", "transformers", "accelerate",
        "ray", "optuna", "onnx", "onnxruntime", "pyarrow", "pandas", "PIL", "tensorboard", "wandb",
        "torchmetrics"]  # fmt: skip


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_nothing_heavy_is_imported_before_it_is_needed():
    assert python(f"import sys, flatbayes; print([name for name in {LAZY} if name in sys.modules])").strip() == "[]"


@pytest.mark.slow
def test_importing_takes_less_than_two_and_a_half_times_as_long_as_torch_alone():
    timed = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    seconds = {name: min(float(python(timed.format(name))) for _ in range(5)) for name in ("torch", "flatbayes")}
    assert seconds["flatbayes"] < 2.5 * seconds["torch"], seconds
