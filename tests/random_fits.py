"""Random fits: a random network with a random posterior and flatness either trains and can be used, or is refused.

Used means: predicted with, saved, loaded, and predicted with again in equal numbers. Refused means: by a `raise` of
flatbayes, before the first step.
"""

import linecache
import random
import traceback
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from flatbayes import flatness, posteriors
from flatbayes.likelihoods import Categorical, Custom, Gaussian, Likelihood
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Callback, CollectionConfig, Cyclical, OptimizationConfig, TrainingConfig, fit
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.config import PrecisionConfig
from random_models import NUM_CLASSES, ModelSpec, Pick, RandomNetwork, make_inputs, pick_model

SELECTIONS = ["weights", "no_biases", "biases", "norms", "last_layer", "all", ["head.*"], ["*weight"]]
SOURCE = str(Path(posteriors.__file__).parents[1])


@dataclass(frozen=True)
class FitSpec:
    """A fit in plain data."""

    model: ModelSpec
    is_instance: bool
    posterior: Any
    flatness: Any
    likelihood: str
    num_examples: int
    batch_size: int
    data_dtype: str
    config: TrainingConfig

    def __str__(self) -> str:
        config = ", ".join(
            f"{f.name}={getattr(self.config, f.name)}"
            for f in fields(self.config)
            if getattr(self.config, f.name) != getattr(TrainingConfig(), f.name) and f.name != "optimizer"
        )
        return (
            f"{'network' if self.is_instance else 'function'} [{self.model}], {self.posterior}, {self.flatness}, "
            f"{self.likelihood}, {self.num_examples} examples of {self.data_dtype} by {self.batch_size}; {config}"
        )


def pick_posterior(pick: Pick, *, may_nest: bool = True) -> Any:
    """A posterior with random valid options."""
    kinds = ["MAP", "SWAG", "SGLD", "SGHMC", "SGVB", "LRT", "Laplace", "MCDropout"]
    match pick([*kinds, "Ensemble"] if may_nest else kinds):
        case "MAP":
            return posteriors.MAP(pick([None, 2.0]))
        case "SWAG":
            options = {
                "storage": pick(["device", "cpu"]),
                "bfloat16": pick([False, True]),
                "params": pick(SELECTIONS),
            }
            return posteriors.SWAG(pick([0, 2, 20]), pick([0.5, 0.0]), pick([None, 1.0]), **options)
        case "SGLD":
            return posteriors.SGLD(pick([None, 2.0]), pick([1.0, 0.1]), pick([30, 2]), pick(["device", "cpu"]))
        case "SGHMC":
            return posteriors.SGHMC(pick([0.1, 1.0]), pick([None, 2.0]), pick([1.0, 0.1]), pick([30, 2]))
        case "SGVB":
            prior = pick([1.0, "initial", {"*bias": 2.0, "*": 0.5}])
            options = {"params": pick(SELECTIONS), "prior_mean": pick(["zero", "initial"])}
            return posteriors.SGVB(prior, pick([1.0, 0.1]), num_samples=pick([1, 2]), **options)
        case "LRT":
            return posteriors.LRT(pick([1.0, "initial"]), estimator=pick(["local", "flipout"]))
        case "Laplace":
            tune = pick(["none", "evidence"])
            precision = None if tune == "evidence" else pick([None, 2.0])
            predictive = pick(["linearised", "sampled"])
            return posteriors.Laplace(pick(["last_layer", "diag", "kron"]), predictive, precision, tune)
        case "MCDropout":
            return posteriors.MCDropout(pick([None, 0.2]), pick([None, 1.0]))
    return posteriors.Ensemble(pick_posterior(pick, may_nest=False), 2)


def pick_flatness(pick: Pick, *, may_wrap: bool = True) -> Any:
    """A flatness with random valid options."""
    kinds = ["Plain", "SAM", "ASAM", "FisherSAM", "LESAM", "LookSAM", "MSAM", "RandomPerturbation"]
    kinds += ["GaussianSmoothing", "PosteriorSAM"]
    name = pick([*kinds, "Delayed", "Periodic"] if may_wrap else kinds)
    if name in ("SAM", "ASAM"):
        part = {"ascent_batch_fraction": pick([1.0, 0.5]), "params": pick(["all", *SELECTIONS[:-3], ["head.*"]])}
        steps = {"ascent_steps": pick([1, 2]), "resample_noise": pick([False, True])}
        return getattr(flatness, name)(pick([0.05, 0.0, 1.0]), **steps, **part)
    if name == "Delayed":
        inner, before = (pick_flatness(pick, may_wrap=False) for _ in range(2))
        return flatness.Delayed(inner, pick([0.5, 0.0]), before)
    if name == "Periodic":
        return flatness.Periodic(pick_flatness(pick, may_wrap=False), pick([2, 1]))
    options = {"LookSAM": {"period": pick([2, 1, 5])}, "PosteriorSAM": {"geometry": pick(["std", "mean_over_std"])}}
    return getattr(flatness, name)(**options.get(name, {}))


def make_compatible(flat: Any, posterior: Any) -> Any:
    """The flatness, or SAM with its first options where the posterior refuses it."""
    collection = TrainingConfig(collection=CollectionConfig(start_fraction=0.0))
    try:
        check_compatibility(posterior, flat, collection)
    except ValueError:
        return flatness.SAM()
    return flat


def pick_fit(pick: Pick) -> FitSpec:
    """A random fit of two to eight steps."""
    likelihood = pick(["classes", "classes", "number", "two_numbers", "weighted_classes"])
    num_outputs = {"number": 2, "two_numbers": 4}.get(likelihood, NUM_CLASSES)
    model = pick_model(pick, num_outputs)
    posterior, flat = pick_posterior(pick), pick_flatness(pick)
    if isinstance(posterior, posteriors.MCDropout) and model.dropout in ("none", "functional"):
        model = replace(model, dropout="dropout")
    if pick([True, True, True, True, False]):  # most pairs are compatible
        flat = make_compatible(flat, posterior)
    rare = pick([0, 0, 0, 1, 2, 3, 4, 5])
    config = TrainingConfig(
        epochs=2,
        batch_size=4,
        optimizer=pick([make_sgd, make_sgd, None, make_adam, make_decayed_sgd]),
        schedule=Cyclical(2) if rare == 1 else TrainingConfig().schedule,
        collection=CollectionConfig(start_fraction=pick([0.0, 0.5])),
        precision=PrecisionConfig(
            mode=["32-true", "64-true", "bf16-mixed"][(0, 1, 2)[rare - 2] if rare in (3, 4) else 0]
        ),
        optimization=OptimizationConfig(
            clip_norm=1.0 if rare == 2 else None,
            accumulation_steps=2 if rare == 5 and not model.norm.startswith("batch") else 1,
        ),
    )
    return FitSpec(
        model=model,
        is_instance=pick([False, True]) and (posterior.num_members == 1 or pick([False, False, True])),
        posterior=posterior,
        flatness=flat,
        likelihood=likelihood,
        num_examples=pick([8, 7, 6] if model.norm.startswith("batch") else [8, 9, 7, 6]),
        batch_size=4,
        data_dtype=pick(["match", "match", "match", "match", "match", "match", "match", "float32", "float64"]),
        config=config,
    )


def make_sgd(params: Any) -> torch.optim.Optimizer:
    """SGD without momentum, which samplers take too."""
    return torch.optim.SGD(params, lr=0.01)


def make_adam(params: Any) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(params, lr=0.01)


def make_decayed_sgd(params: Any) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, which is a prior."""
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.1)


@st.composite
def fit_specs(draw: st.DrawFn) -> FitSpec:
    """Strategy of random fits."""
    return pick_fit(lambda options: draw(st.sampled_from(list(options))))


def spec_from_seed(seed: int) -> FitSpec:
    """The random fit of a seed."""
    return pick_fit(random.Random(seed).choice)


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
    try:
        fitted = fit(
            model, loader, spec.posterior, spec.flatness, spec.config, likelihood=likelihood, callback=counter, seed=3
        )
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
    loaded = FittedPosterior.load(folder, make_network, **custom)
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
    has_diverged = isinstance(error, RuntimeError) and str(error).startswith(("The loss is", "Some weights are not"))
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
