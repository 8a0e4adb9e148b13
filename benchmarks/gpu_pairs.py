"""Every pair of posterior and flatness on the device against the CPU, in float64; and the tests that need a GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from gpu_cases import FLATNESSES, POSTERIORS, make_config, make_network
from gpu_fit_checks import find_difference
from gpu_noise import CommonNoise
from gpu_report import Row
from gpu_runner import Context, Skip

from flatbayes import Categorical, FittedPosterior, fit
from flatbayes.core.devices import treat_cpu_as_accelerator

NUM_STEPS = 10
MAX_DIFFERENCE = 1e-7
"""Of weights, buffers and statistics after 10 steps in float64, relative to the largest value of each tensor."""
MAX_PREDICTION_DIFFERENCE = 1e-5
UNDETERMINED = ("eigenvectors",)
"""Statistics determined up to a sign, or a rotation for equal eigenvalues: draws with the same noise then differ."""
TEST_PACKAGES = ("pytest", "hypothesis", "beartype")
"""What the tests import beside the dependencies of the library."""
ROOT = Path(__file__).parents[1]


def check_pairs(context: Context) -> Iterator[Row]:
    """Ten steps on the CPU and on the device, with common noise, end in the same numbers or are refused alike.

    A dry run takes the code paths of an accelerator on the CPU.
    """
    differences, predictions, refused, errors = {}, {}, [], {}
    for posterior, flat in order_pairs():
        if context.remaining() < (0.5 if context.is_cpu else 3):
            break
        pair = f"{posterior} x {flat}"
        outcomes = [run_pair(posterior, flat, "cpu")]
        with treat_cpu_as_accelerator() if context.is_cpu else nullcontext():
            outcomes.append(run_pair(posterior, flat, context.device))
        messages = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if messages:
            if len(set(map(str, outcomes))) == 1 and "does not go with" in messages[0]:
                refused.append(pair)
            else:
                errors[pair] = " | ".join(o if isinstance(o, str) else "fitted" for o in outcomes)[:500]
            continue
        (reference, expected), (fitted, values) = outcomes
        differences[pair] = find_difference(reference, fitted, UNDETERMINED)
        is_determined = not any(name in state.statistics for state in fitted.states for name in UNDETERMINED)
        predictions[pair] = float((values - expected).abs().max()) if is_determined else 0.0
        if differences[pair] > MAX_DIFFERENCE or predictions[pair] > MAX_PREDICTION_DIFFERENCE:
            errors[pair] = f"weights differ by {differences[pair]:.1e}, predictions by {predictions[pair]:.1e}"
        yield {"difference": differences, "prediction_difference": predictions, "refused": refused, "errors": errors}
    tried, total = len(differences) + len(refused) + len(errors), len(POSTERIORS) * len(FLATNESSES)
    largest = max(differences.values(), default=0.0)
    summary = f"{tried} of {total} pairs, {len(refused)} refused on both; largest difference {largest:.1e}"
    yield {"summary": summary, "tried": tried, "total": total}
    if errors:
        raise AssertionError(f"{len(errors)} pairs differ: {errors}")


def order_pairs() -> list[tuple[str, str]]:
    """All pairs; those with MAP and those with SAM come first, in case that the time does not suffice for all."""
    return sorted(product(POSTERIORS, FLATNESSES), key=lambda pair: pair[0] != "MAP" and pair[1] != "SAM")


def run_pair(posterior: str, flat: str, device: str) -> tuple[FittedPosterior, torch.Tensor] | str:
    """Fit ten steps and predict; the message if the pair is refused or fails."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 1, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.arange(40) % 3
    batches = [(x, y) for x, y in zip(inputs.split(8), targets.split(8), strict=True)]
    config = make_config(device, optimizer=None, num_validations=0, precision={"mode": "64-true"})
    config = config.with_options(epochs=NUM_STEPS // len(batches))
    arguments = {"likelihood": Categorical(3), "num_data": len(inputs), "show_progress": False}
    try:
        with CommonNoise():
            fitted = fit(make_network, batches, POSTERIORS[posterior], FLATNESSES[flat], config, **arguments)
            return fitted, fitted.predict(inputs[:8], 2).mean.double().cpu()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def run_gpu_tests(context: Context) -> Iterator[Row]:
    """The tests with the mark `gpu`, in a process of their own."""
    missing = [name for name in TEST_PACKAGES if find_spec(name) is None]
    if missing:
        raise Skip(f"{' and '.join(missing)} must be installed for the tests")
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )
    yield {"files": files}
    options = [
        "-m",
        "gpu",
        "-q",
        "-rA",
        "-p",
        "no:jaxtyping",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "default",
    ]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", *options, *files]
    if context.is_cpu:
        command.append("--collect-only")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    seconds = max(1.0, context.remaining())
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=seconds, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Skip(f"out of time: the tests were stopped after {seconds:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    outcomes = [line for line in lines if line.startswith(("PASSED", "FAILED", "ERROR", "SKIPPED"))]
    yield {"outcomes": outcomes, "summary": lines[-1] if lines else ""}
    if done.returncode:
        raise AssertionError(f"pytest ended with {done.returncode}: {' '.join(lines[-15:])} {done.stderr[-500:]}")
    context.require_cuda("The tests were collected; running them")
