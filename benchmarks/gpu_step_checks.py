"""Checks of a training step on the device: no host waits, memory in copies of the weights, capture as a graph."""

import contextlib
import gc
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_cases import FLATNESSES, POSTERIORS, choose_flatness, make_config, make_network, make_splits
from gpu_report import Row
from gpu_runner import Context, Skip
from memory import CASES, measure_peak, take_steps
from step import Setting, make_mlp, make_preresnet
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes import SAM, Plain, fit
from flatbayes.core import Closure, subset_batch
from flatbayes.training import Callback
from flatbayes.training.graph_capture import NUM_WARM_UP_PASSES, record_cuda_graph

PRECISIONS = ("32-true", "bf16-mixed")
MAX_EXTRA_COPIES = 0.1
NUM_STEPS = 5
"""Steps of a loop by hand, in the last of which methods for the end of a training are active."""
GRAPH_STEPS, GRAPH_RATE = 5, 0.02


@contextlib.contextmanager
def forbid_host_waits(device: str) -> Iterator[None]:
    """Context in which an operation that waits for the device is an error; nothing on the CPU."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


class ForbidWaits(Callback):
    """Forbids host waits between two steps of a fit, which are in the same epoch."""

    def __init__(self, device: str, first: int, last: int) -> None:
        self._device, self._first, self._last = device, first, last
        self._stack = contextlib.ExitStack()

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Begin after the first step, end after the last one."""
        if step == self._first:
            self._stack.enter_context(forbid_host_waits(self._device))
        elif step == self._last:
            self._stack.close()

    def close(self) -> None:
        """Allow host waits again, also after an error."""
        self._stack.close()


class SubsetSetting(Setting):
    """A setting whose closure takes the examples that a flatness asks for."""

    def closure(self) -> torch.Tensor:
        """The gradient of these examples."""
        self.optimizer.zero_grad()
        inputs, targets = subset_batch(self.inputs, self.targets)
        loss = F.cross_entropy(self.network(inputs), targets)
        loss.backward()
        return loss.detach()


def check_host_waits(context: Context) -> Iterator[Row]:
    """Steps of every flatness with MAP and of every posterior with SAM, in loops by hand and in `fit`."""
    waits: dict[str, str] = {}
    for name, flat in FLATNESSES.items():
        if not flat.needs_weight_distribution:
            step = SubsetSetting(partial(make_preresnet, 20, 8), context.device).make_step(flat, NUM_STEPS)
            step()
            with note_waits(waits, f"step, {name}"), forbid_host_waits(context.device):
                for _ in range(NUM_STEPS - 1):
                    step()
    yield {"waits": waits}
    for name, posterior in POSTERIORS.items():
        flat = choose_flatness(posterior)
        for precision in PRECISIONS[: 1 if context.is_cpu else None]:
            config = make_config(context.device, precision={"mode": precision}, num_validations=0, epochs=1)
            config = config.with_options(batch_size=20, optimizer=None)
            forbid = ForbidWaits(context.device, 3, 9)
            with note_waits(waits, f"fit, {name}, {precision}"):
                try:
                    fit(make_network, make_splits(), posterior, flat, config, callback=forbid, show_progress=False)
                finally:
                    forbid.close()
        yield {"waits": waits}
    yield {"summary": f"{len(waits)} of the cases wait" if waits else "no host waits"}
    if waits:
        raise AssertionError(f"Host waits in {len(waits)} cases: {waits}")
    context.require_cuda("The steps ran; a host wait")


@contextlib.contextmanager
def note_waits(waits: dict[str, str], case: str) -> Iterator[None]:
    """Record the place of an operation that waits for the device; other errors go on."""
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "flatbayes" in frame.filename]
        last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        waits[case] = f"{Path(last.filename).name}:{last.lineno}: {last.line}"


def check_memory(context: Context) -> Iterator[Row]:
    """Peak memory of steps in copies of the weights, against the number of tensors that each method needs."""
    copies, excess = {}, {}
    for name, (posterior, flat, expected, target) in CASES.items():
        width, layers = (6144, 4) if context.device == "cuda" else (300, 4)
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        if context.device == "cuda":
            copies[name] = measure_cuda_peak(posterior, flat, model.cuda(), torch.randn(2, width, device="cuda"))
        else:
            copies[name] = measure_peak(posterior, flat, model, torch.randn(2, width))
        if target is not None and copies[name] > expected + MAX_EXTRA_COPIES:
            excess[name] = f"{copies[name]:.2f} instead of {expected:g}"
        yield {"copies": copies}
    yield {
        "summary": f"SAM {copies['SAM']:.2f} copies beyond the weights",
        "expected": {k: v[2] for k, v in CASES.items()},
    }
    if excess:
        raise AssertionError(f"More memory than documented, in copies of the weights: {excess}")


def measure_cuda_peak(posterior, flat, model: nn.Module, inputs: Tensor) -> float:
    """Largest allocated memory beyond the weights over a few steps, in copies of the weights."""
    targets = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    F.cross_entropy(model(inputs), targets).backward()  # allocates the workspace of the matrix library
    model.zero_grad()
    gc.collect()  # tensors of the case before
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    copy = sum(param.numel() * param.element_size() for param in model.parameters())
    take_steps(posterior, flat, model, inputs, targets)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / copy


def check_graph_capture(context: Context) -> Iterator[Row]:
    """A whole step of a manual loop, captured as a CUDA graph, gives the weights of eager steps.

    The tests marked `gpu` check `fit` with `precision.cuda_graph`, which does not capture the update of the weights.
    """
    differences = {}
    for name, flat in {"Plain": Plain(), "SAM": SAM()}.items():
        eager, captured = (Setting(make_mlp, context.device, rate=GRAPH_RATE) for _ in range(2))
        step = eager.make_step(flat)
        for _ in range(NUM_WARM_UP_PASSES + GRAPH_STEPS):
            step()
        replay = capture_step(captured.make_step(flat), context.device)
        for _ in range(GRAPH_STEPS):
            replay()
        pairs = zip(eager.params, captured.params, strict=True)
        differences[name] = max(float((a - b).detach().abs().max()) for a, b in pairs)
        yield {"largest_difference": differences}
        if differences[name] > 1e-6:
            raise AssertionError(f"Weights after {GRAPH_STEPS} captured steps differ by {differences}.")
    if context.is_cpu:
        raise Skip("The eager steps ran; graph capture needs a CUDA device")


def capture_step(step: Closure, device: str) -> Closure:
    """A function that replays a step, after `NUM_WARM_UP_PASSES` eager steps; on the CPU the step itself.

    Raises:
        RuntimeError: An operation of the step cannot be captured.
    """
    if device == "cuda":
        return record_cuda_graph(step)
    for _ in range(NUM_WARM_UP_PASSES):
        step()
    return step
