"""Speed on the device: steps, predictions with many networks, the Laplace approximation, and scaling."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_cases import make_vit
from gpu_report import Row
from gpu_runner import Context
from gpu_step_checks import capture_step
from gpu_timing import Work, measure_alternately, measure_median, measure_seconds
from step import Setting, make_gradients, make_mlp, make_peer_step, make_preresnet, pytorch_optimizer
from torch import nn
from torch.nn import functional as F

from flatbayes import ASAM, MSAM, SAM, ConvNet, Laplace, LookSAM, Plain, PreResNet
from prediction import fitted as make_fitted
from prediction import plain as make_forward_passes

MODES = ("eager", "graph", "compiled")
OTHERS = {"ASAM": ASAM(), "MSAM": MSAM(), "LookSAM": LookSAM(period=5)}
Make = Callable[[], tuple[nn.Module, torch.Tensor]]


def measure_steps(context: Context) -> Iterator[Row]:
    """Steps in plain steps of the same mode: the limit of two gradients, SAM, peers, and other methods."""
    cases: dict[str, Make] = {"MLP 64-256-256-10, batch 64": make_mlp}
    if not context.is_cpu:
        cases |= {
            "PreResNet-20, batch 128": partial(make_preresnet, 20, 128),
            "ViT 4 x 64, batch 128": partial(make_vit, 128),
        }
    results: dict[str, Row] = {}
    for mode in MODES[: 1 if context.is_cpu else None]:
        for case, make in cases.items():
            if context.remaining() < (25 if mode == "compiled" else 4):
                results[f"{case}, {mode}"] = {"skipped": "out of time"}
                continue
            try:
                works = make_works(make, context.device, mode)
                rounds = 5 if context.is_cpu else 15
                results[f"{case}, {mode}"] = measure_alternately(works, context.device, rounds)
            except Exception as error:  # a mode that one network does not support says nothing about the others
                results[f"{case}, {mode}"] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            yield {"ratios": results}
    ratios = [f"{case}: {works['SAM']['ratio']:.2f}" for case, works in results.items() if "SAM" in works]
    missing = "" if pytorch_optimizer else "; pytorch_optimizer is not installed"
    yield {"ratios": results, "summary": f"SAM in plain steps: {', '.join(ratios)}{missing}"}


def make_works(make: Make, device: str, mode: str) -> dict[str, Work]:
    """Steps by name, the baseline first; with graphs, only those that the captured graph repeats exactly."""
    compiled = mode == "compiled"
    if compiled:
        torch.compiler.reset()
    flats = {"plain": Plain(), "SAM": SAM()} | (OTHERS if mode == "eager" else {})
    steps = {name: Setting(make, device, compiled=compiled).make_step(flat) for name, flat in flats.items()}
    if mode == "graph":
        return {name: capture_step(step, device) for name, step in steps.items()}
    works: dict[str, Work] = dict(steps)
    works["two gradients"] = make_gradients(Setting(make, device, compiled=compiled), 2)
    if pytorch_optimizer is not None:
        works["pytorch_optimizer"] = make_peer_step(Setting(make, device, compiled=compiled))
    return works


def measure_draws(context: Context) -> Iterator[Row]:
    """Predictions with 30 networks in units of as many forward passes: many examples, and one."""
    large = not context.is_cpu
    make = partial(PreResNet, (3, 32, 32), 10, depth=20) if large else partial(ConvNet, (1, 8, 8), 10)
    shape, count, draws = ((3, 32, 32), 10_000, 30) if large else ((1, 8, 8), 256, 3)
    posterior = make_fitted(make, shape).to(context.device)
    inputs = torch.randn(count, *shape, device=context.device)
    batches, rows = inputs.split(1000), {}
    forward = make_forward_passes(posterior, batches, draws)
    first = measure_seconds(lambda: posterior.predict(inputs, draws, batch_size=1000), context.device)
    works = {"forward": forward, "predict": lambda: posterior.predict(inputs, draws, batch_size=1000)}
    rows[f"{count} examples"] = measure_alternately(works, context.device, 3)
    yield {"draws": draws, "first_call_ms": 1e3 * first, "ratios": rows}
    single = inputs[:1]
    works = {
        "forward": make_forward_passes(posterior, [single], draws),
        "in turn": lambda: posterior.predict(single, draws, vectorized=False),
        "one call": lambda: posterior.predict(single, draws, vectorized=True),
    }
    rows["1 example"] = measure_alternately(works, context.device, 5)
    yield {"ratios": rows, "summary": f"{rows[f'{count} examples']['predict']['ratio']:.2f} forward passes"}


def measure_laplace(context: Context) -> Iterator[Row]:
    """Time of the curvature after training, in units of the gradients of one pass over the same data."""
    large = not context.is_cpu
    shape, count = ((3, 32, 32), 5000) if large else ((1, 8, 8), 60)
    model = (PreResNet(shape, 10, depth=20) if large else ConvNet(shape, 10)).to(context.device).eval()
    inputs, targets = (
        torch.randn(count, *shape, device=context.device),
        torch.arange(count, device=context.device) % 10,
    )
    examples = list(zip(inputs.split(500), targets.split(500), strict=True))

    def take_gradients() -> None:
        for x, y in examples:
            torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    gradients = measure_median(take_gradients, context.device, 3)
    rows: Row = {}
    for structure in ("last_layer", "kron", "diag"):
        if context.remaining() < (0 if context.is_cpu else 5):
            rows[structure] = {"skipped": "out of time"}
            continue
        posterior = Laplace(structure, "sampled", prior_precision=1.0)
        state = posterior.init(model, partial(torch.optim.SGD, lr=0.1), count)
        seconds = measure_seconds(
            lambda p=posterior, s=state: p.finalize(s, examples, F.cross_entropy), context.device
        )
        rows[structure] = {"seconds": seconds, "ratio": seconds / gradients}
        yield {"gradients_s": gradients, "structures": rows}
    ratios = [f"{name} {row['ratio']:.1f}" for name, row in rows.items() if "ratio" in row]
    yield {"structures": rows, "summary": f"{', '.join(ratios)} passes of gradients over {count} images"}


def measure_scaling(context: Context) -> Iterator[Row]:
    """Milliseconds of a plain and of a SAM step by number of weights, and by batch size."""
    largest = 8 if context.device == "cuda" else 5
    points = [("weights", 10**k, 8) for k in range(4, largest + 1)]
    points += [("examples", 10 ** (largest - 2), batch) for batch in (32, 128, 512, 2048, 8192)[: largest - 3]]
    curves: dict[str, list[Row]] = {"weights": [], "examples": []}
    for axis, num_weights, batch in points:
        if context.remaining() < 3:
            yield {"incomplete": "out of time"}
            return

        def make(num_weights=num_weights, batch=batch) -> tuple[nn.Module, torch.Tensor]:
            width = round((num_weights / 4) ** 0.5)
            network = nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))
            return network, torch.randn(batch, width)

        works = {
            name: Setting(make, context.device).make_step(flat)
            for name, flat in {"plain": Plain(), "SAM": SAM()}.items()
        }
        times = measure_alternately(works, context.device, 5)
        curves[axis].append({"weights": num_weights, "batch": batch, **{n: t["ms"] for n, t in times.items()}})
        yield {"curves": curves}
