"""Checks of fits on the device: random state, resuming, precision, layout, artefacts, compilation, processes."""

import tempfile
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from gpu_cases import POSTERIORS, choose_flatness, make_config, make_network, make_splits
from gpu_report import Row
from gpu_runner import Context, Skip
from torch import Tensor, nn

from flatbayes import MAP, MLP, SWAG, Categorical, FittedPosterior, PreResNet, evaluate, fit
from flatbayes.training import Callback, Checkpoints
from flatbayes.training.distributed.gradient_averaging import all_reduce_gradients

TOLERANCE = 1e-6
"""Largest relative difference of fits in float64 that differ in the order of operations."""
SAME_DEVICE_ERROR, OTHER_DEVICE_ERROR = 1e-4, 2e-2
"""Largest difference of probabilities after loading; convolutions on a GPU may use TF32."""
DOUBLE = {"mode": "64-true"}


def find_difference(first: FittedPosterior, second: FittedPosterior, ignored: Collection[str] = ()) -> float:
    """Largest difference of weights, buffers and statistics, relative to the largest value of each tensor.

    Args:
        first: A fit.
        second: Another one of the same method and network.
        ignored: Names of tensors that are not compared.
    """
    largest = 0.0
    for state, other in zip(first.states, second.states, strict=True):
        tensors = {**state.model.state_dict(), **state.statistics}
        others = {**other.model.state_dict(), **other.statistics}
        for name, tensor in ((name, tensor) for name, tensor in tensors.items() if name not in ignored):
            expected, value = tensor.detach().double().cpu(), others[name].detach().double().cpu()
            scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-12)
            largest = max(largest, float((value - expected).abs().max()) / scale if expected.numel() else 0.0)
    return largest


def run_fit(
    context: Context, posterior=None, model=make_network, data=None, callback=None, checkpoints=None, **options
):
    """A short fit, with SAM where it suits the posterior, on the device of the context."""
    data = make_splits() if data is None else data
    config = make_config(context.device, **options)
    posterior = SWAG(rank=3) if posterior is None else posterior
    flat = choose_flatness(posterior)
    return fit(model, data, posterior, flat, config, show_progress=False, callback=callback, checkpoints=checkpoints)


def check_random_state(context: Context) -> Iterator[Row]:
    """Fits and predictions leave the caller's generators alone, and the same seed gives the same numbers."""
    accelerators = [torch.cuda.get_rng_state] if context.device == "cuda" else []
    torch.rand(3, device=context.device)
    before = [get() for get in (torch.get_rng_state, *accelerators)]
    data, differences = make_splits(), {}
    for name in ("SWAG", "MCDropout", "SGLD", "SGVB"):
        options = {"precision": DOUBLE} if name == "SWAG" else {"precision": DOUBLE, "optimizer": None}
        fits = [run_fit(context, POSTERIORS[name], data=data, **options) for _ in range(2)]
        inputs = data.test.inputs
        predictions = [fitted.predict(inputs, 3).mean.cpu() for fitted in fits]
        differences[name] = find_difference(*fits), float((predictions[0] - predictions[1]).abs().max())
        yield {"difference_of_two_fits": differences}
    after = [get() for get in (torch.get_rng_state, *accelerators)]
    if not all(torch.equal(state, other) for state, other in zip(before, after, strict=True)):
        raise AssertionError("A fit or a prediction changed the caller's random state.")
    if max(map(max, differences.values())) > TOLERANCE:
        raise AssertionError(f"Two fits with the same seed differ: {differences}.")
    yield {"summary": "the caller's states are unchanged"}


class StopAfter(Callback):
    """Raises an error after a number of steps, as if the process had been killed."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Stop."""
        if step == self._steps:
            raise ConnectionError("stopped by the check")


def check_resume(context: Context) -> Iterator[Row]:
    """A fit that continues from a checkpoint ends like one that was not interrupted."""
    differences = {}
    for name in ("SWAG", "SGLD"):
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), every_n_steps=1, min_interval_seconds=0)
            options = {"precision": DOUBLE} if name == "SWAG" else {"precision": DOUBLE, "optimizer": None}
            complete = run_fit(context, POSTERIORS[name], **options)
            try:
                run_fit(context, POSTERIORS[name], callback=StopAfter(7), checkpoints=checkpoints, **options)
                raise AssertionError("The fit was not stopped.")
            except ConnectionError:
                resumed = run_fit(context, POSTERIORS[name], checkpoints=checkpoints, **options)
        differences[name] = find_difference(complete, resumed)
        yield {"difference": differences}
    if max(differences.values()) > TOLERANCE:
        raise AssertionError(f"A resumed fit differs from one that was not interrupted: {differences}.")
    yield {"summary": f"largest relative difference {max(differences.values()):.1e}"}


def check_mixed_precision(context: Context) -> Iterator[Row]:
    """Fits in mixed precision learn as well as one in full precision."""
    data, accuracies = make_splits(), {}
    for mode in ("32-true", "bf16-mixed", "16-mixed"):
        if mode == "16-mixed" and context.is_cpu:
            continue
        fitted = run_fit(context, data=data, epochs=6, precision={"mode": mode})
        accuracies[mode] = evaluate(fitted, data.test.inputs, data.test.targets, 5).metrics["accuracy"]
        yield {"accuracy": accuracies}
    if min(accuracies.values()) < accuracies["32-true"] - 0.1:
        raise AssertionError(f"A fit in mixed precision is worse: accuracies {accuracies}.")
    yield {"summary": ", ".join(f"{mode} {accuracy:.2f}" for mode, accuracy in accuracies.items())}


class LargeOutputs(nn.Module):
    """A network whose gradients overflow float16 at the first loss scale, 65,536."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.network = MLP(input_shape, num_classes, hidden=(32,))

    def forward(self, inputs: Tensor) -> Tensor:
        """The logits. The gradient between the two factors is 1000 times that of the logits."""
        return 1000 * (self.network(inputs) / 1000)


class LossRecorder(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Keep the loss."""
        self.losses.append(float(loss))


def check_overflow(context: Context) -> Iterator[Row]:
    """Steps whose gradient overflows in float16 are left out; the fit goes on, with finite weights, and learns."""
    context.require_cuda("Training with a loss scale (16-mixed)")
    for name, posterior in {"MAP": MAP(), "SWAG": SWAG(rank=3)}.items():
        recorder = LossRecorder()
        fitted = run_fit(
            context, posterior, LargeOutputs, callback=recorder, epochs=8, precision={"mode": "16-mixed"}
        )
        weights = torch.cat([p.detach().flatten() for p in fitted.states[0].model.parameters()])
        yield {name: {"first_loss": recorder.losses[0], "last_loss": recorder.losses[-1]}}
        if not weights.isfinite().all():
            raise AssertionError(f"{name}: weights are not finite after steps that overflowed.")
        if not recorder.losses[-1] < recorder.losses[0]:
            raise AssertionError(f"{name}: the loss went from {recorder.losses[0]:.3f} to {recorder.losses[-1]:.3f}.")
    yield {"summary": "weights are finite, and the loss falls"}


def check_channels_last(context: Context) -> Iterator[Row]:
    """Convolutions with channels innermost give the same training up to rounding."""
    model = partial(PreResNet, depth=8)
    data = make_splits((3, 16, 16))
    fits, seconds = {}, {}
    for channels_last in (False, True):
        start = time.perf_counter()
        options = {"epochs": 1, "precision": {**DOUBLE, "channels_last": channels_last}}
        fits[channels_last] = run_fit(context, MAP(), model, data, **options)
        seconds[f"channels_last={channels_last}"] = time.perf_counter() - start
    difference = find_difference(fits[False], fits[True])
    yield {"difference": difference, "seconds": seconds, "summary": f"relative difference {difference:.1e}"}
    if difference > TOLERANCE:
        raise AssertionError(f"Weights differ by {difference:.1e} of the largest, more than {TOLERANCE:g}.")


def check_save_and_load(context: Context) -> Iterator[Row]:
    """Artefacts of the device load on both devices, with the same weights, and predict."""
    data, differences = make_splits(), {}
    for name, posterior in {**POSTERIORS, "MAP": MAP()}.items():
        fitted = run_fit(context, posterior, data=data, optimizer=None)
        predictions = fitted.predict(data.test.inputs, 3).mean.cpu()
        with tempfile.TemporaryDirectory() as folder:
            fitted.save(folder)
            for device in ("cpu", context.device):
                loaded = FittedPosterior.load(folder, make_network, device=device)
                differences[f"{name}, {device}"] = find_difference(fitted, loaded)
                error = float((loaded.predict(data.test.inputs, 3).mean.cpu() - predictions).abs().max())
                tolerance = SAME_DEVICE_ERROR if device == context.device else OTHER_DEVICE_ERROR
                if error > tolerance and (device == context.device or not posterior.stochastic):
                    raise AssertionError(f"{name}: predictions after loading on {device} differ by {error:.1e}.")
        yield {"difference": differences}
    if max(differences.values()) > 0:
        raise AssertionError(f"Weights changed by saving and loading: {differences}.")
    yield {"summary": f"{len(differences)} artefacts have the same weights"}


def check_process_group(context: Context) -> Iterator[Row]:
    """A process group of one rank: sums of tensors, and the averages of gradients of data-parallel training."""
    backend = "nccl" if context.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = make_network().to(context.device)
        inputs, targets = torch.randn(8, 1, 8, 8, device=context.device), torch.zeros(8, dtype=torch.int64)
        loss = Categorical(3).loss(model(inputs), targets.to(context.device))
        loss.backward()
        expected = [param.grad.clone() for param in model.parameters()]
        mean = all_reduce_gradients(loss.detach(), list(model.parameters()), len(inputs))
        grads = [param.grad for param in model.parameters()]
        error = max(float((grad - value).abs().max()) for grad, value in zip(grads, expected, strict=True))
        yield {"backend": backend, "gradient_error": error, "loss_error": abs(float(mean - loss))}
        if error > 1e-6:
            raise AssertionError(f"Gradients averaged over one process changed by {error:.1e}.")
    finally:
        dist.destroy_process_group()


def check_compilation(context: Context) -> Iterator[Row]:
    """A compiled network trains like the network itself."""
    if context.is_cpu and context.remaining() < 60:
        raise Skip("compiling on a CPU takes about a minute, and the dry run has less")
    model, data = partial(PreResNet, depth=8), make_splits((3, 16, 16))
    fits, seconds = {}, {}
    for compiled in (False, True):
        start = time.perf_counter()
        fits[compiled] = run_fit(context, MAP(), model, data, epochs=1, precision={**DOUBLE, "compile": compiled})
        seconds[f"compile={compiled}"] = time.perf_counter() - start
    difference = find_difference(fits[False], fits[True])
    yield {"difference": difference, "seconds": seconds, "summary": f"relative difference {difference:.1e}"}
    if difference > TOLERANCE:
        raise AssertionError(f"Weights differ by {difference:.1e} of the largest, more than {TOLERANCE:g}.")
