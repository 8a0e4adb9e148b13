"""Checks of random fits: each either trains and can be used, or is refused.

Used means: predicted with, saved, loaded, and predicted with again in equal numbers. Refused means: by a `raise` of
flatbayes, before the first step.
"""

import linecache
import traceback
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from flatbayes import posteriors
from flatbayes.likelihoods import Categorical, Custom, Gaussian, Likelihood
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Callback, fit
from random_fits import FitSpec
from random_models import NUM_CLASSES, RandomNetwork, make_inputs

DIVERGENCE_MESSAGES = (
    "The loss is",
    "Some weights are not",
    "The predictions of networks drawn after training are not finite",
    "The curvature of the loss is not finite",
)
SOURCE = str(Path(posteriors.__file__).parents[1])


class StepCounter(Callback):
    """Counts optimizer steps."""

    num_steps = 0

    def on_step_end(self, step: int, loss: Any, lr: float) -> None:
        """Count one."""
        self.num_steps += 1


def check_fit(spec: FitSpec, folder: Path, reasons: list[str] | None = None) -> str:
    """Fit, predict, save, load and predict.

    Args:
        spec: The fit.
        folder: Folder for the artefact.
        reasons: List to which the message of a refusal is appended.

    Returns:
        "works" or "refused".

    Raises:
        AssertionError: Numbers differ, something of the caller's changed, or a refusal is late or in other words.
    """
    counter = StepCounter()
    make_network = lambda: RandomNetwork(spec.model)  # noqa: E731
    torch.manual_seed(5)
    model: Any = make_network() if spec.is_instance else make_network
    before = describe_network(model) if spec.is_instance else None
    dtype = torch.bfloat16 if spec.model.dtype == "mixed" else getattr(torch, spec.model.dtype)
    dtype = dtype if spec.data_dtype == "match" else getattr(torch, spec.data_dtype)
    inputs, likelihood = make_inputs(spec.model, spec.num_examples, dtype), make_likelihood(spec.likelihood)
    targets = make_targets(spec)
    examples = [(take(inputs, k), targets[k]) for k in range(spec.num_examples)]
    loader = DataLoader(examples, batch_size=spec.batch_size, generator=torch.Generator())
    torch.manual_seed(5)
    options: Any = {"likelihood": likelihood, "callback": counter, "seed": 3, "output": spec.output}
    try:
        fitted = fit(model, loader, spec.posterior, spec.flatness, spec.config, **options)
    except Exception as error:
        check_refusal(error, counter.num_steps)
        if reasons is not None:
            reasons.append(str(error))
        outcome = "refused"
    else:
        check_random_state("fit")
        check_use(spec, fitted, inputs, make_network, likelihood, folder)
        outcome = "works"
    check_random_state("refused fit")
    if before is not None:
        check_equal(describe_network(model), before, "the caller's network has changed")
    return outcome


def check_use(
    spec: FitSpec, fitted: FittedPosterior, inputs: Any, make_network: Any, likelihood: Likelihood, folder: Path
) -> None:
    """Predict twice, save, load, and predict; frozen weights keep their values, and drawing changes no weight."""
    with_weights = [describe_network(state.model) for state in fitted.states]
    first = describe_prediction(fitted.predict(inputs, 3))
    check_random_state("predict")
    for name, values in first.items():
        assert values.isfinite().all(), f"{name} of the prediction is not finite"
    check_equal(describe_prediction(fitted.predict(inputs, 3)), first, "the second prediction differs")
    for state, weights in zip(fitted.states, with_weights, strict=True):
        check_equal(describe_network(state.model), weights, "a prediction has changed the network")
    fitted.save(folder)
    check_random_state("save")
    custom = {"likelihood": likelihood} if isinstance(likelihood, Custom) else {}
    loaded = FittedPosterior.load(folder, make_network, output=spec.output, **custom)
    check_random_state("load")
    check_equal(describe_prediction(loaded.predict(inputs, 3)), first, "the loaded posterior predicts other numbers")


def check_random_state(action: str) -> None:
    """The caller's random state is that of a seed, which was set before."""
    state = torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(5).get_state()), f"{action} has changed the caller's random state"


def check_refusal(error: Exception, num_steps: int) -> None:
    """A refusal is a `raise` of flatbayes, before the first step; only a divergence is not known before."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    is_ours = frame.filename.startswith(SOURCE) and line.startswith("raise")
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    assert is_ours, f"refused in words that are not ours: {type(error).__name__}: {str(error)[:200]} ({where})"
    has_diverged = isinstance(error, RuntimeError) and str(error).startswith(DIVERGENCE_MESSAGES)
    assert num_steps == 0 or has_diverged, (
        f"refused after {num_steps} steps: {type(error).__name__}: {str(error)[:200]} ({where})"
    )


def make_likelihood(kind: str) -> Likelihood:
    """The likelihood of a kind of targets."""
    match kind:
        case "number":
            return Gaussian(1, (0.0,), (1.0,))
        case "two_numbers":
            return Gaussian(2, (0.0, 1.0), (1.0, 2.0))
        case "weighted_classes":
            return Custom(weighted_loss, Categorical(NUM_CLASSES))
    return Categorical(NUM_CLASSES)


def weighted_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with a weight per class."""
    return F.cross_entropy(outputs, targets, torch.tensor([1.0, 2.0, 3.0], dtype=outputs.dtype))


def make_targets(spec: FitSpec) -> torch.Tensor:
    """Targets of the examples."""
    values = torch.randn(spec.num_examples, 2, generator=torch.Generator().manual_seed(1))
    if spec.likelihood in ("number", "two_numbers"):
        return values[:, 0] if spec.likelihood == "number" else values
    return torch.arange(spec.num_examples) % NUM_CLASSES


def take(inputs: Any, index: int) -> Any:
    """An example of inputs in any structure."""
    if isinstance(inputs, dict):
        return {name: values[index] for name, values in inputs.items()}
    return tuple(values[index] for values in inputs) if isinstance(inputs, tuple) else inputs[index]


def describe_network(network: nn.Module) -> dict[str, Any]:
    """Weights, buffers, modes and requirement of gradients."""
    modes = {f"mode of {name}": module.training for name, module in network.named_modules()}
    trained = {f"requires_grad of {name}": param.requires_grad for name, param in network.named_parameters()}
    lazy = nn.parameter.UninitializedTensorMixin
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    values = {name: None if isinstance(tensor, lazy) else tensor.detach().clone() for name, tensor in tensors.items()}
    return modes | trained | values


def describe_prediction(predictive: Any) -> dict[str, torch.Tensor]:
    """The tensors of a predictive distribution by name."""
    assert is_dataclass(predictive)
    values = {field.name: getattr(predictive, field.name) for field in fields(predictive)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def check_equal(found: dict[str, Any], expected: dict[str, Any], message: str) -> None:
    """Equal bit for bit; NaN equals NaN."""
    assert found.keys() == expected.keys(), f"{message}: {found.keys() ^ expected.keys()}"
    for name, value in expected.items():
        other = found[name]
        if isinstance(value, torch.Tensor):
            same = other.dtype == value.dtype and other.shape == value.shape
            same = same and bool(torch.isclose(other, value, rtol=0, atol=0, equal_nan=True).all())
        else:
            same = other == value
        assert same, f"{message}: {name}"
