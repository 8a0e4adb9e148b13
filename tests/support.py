"""Instances of every exported posterior and flatness, small networks and batches, and a short training loop."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes import flatness, posteriors
from flatbayes.core import TrainingProgress, subset_batch
from flatbayes.core.buffers import eval_mode
from flatbayes.core.context import get_distribution
from flatbayes.core.gaussians import weight_distribution
from flatbayes.core.spec import short_name
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import DataSplits, Split
from flatbayes.posteriors import (
    BSAM,
    IVON,
    LRT,
    MAP,
    SGHMC,
    SGLD,
    SGVB,
    SVGD,
    SWAG,
    Ensemble,
    EntropyMCMC,
    Laplace,
    MCDropout,
)
from flatbayes.posteriors.ggn import iter_ggn_vectors

FLATNESSES = [getattr(flatness, name)() for name in flatness.__all__ if name != "Flatness"] + [
    flatness.SAM(rho=0.1, ascent_steps=3),
    flatness.ASAM(rho=0.3, ascent_steps=2),
    flatness.PosteriorSAM(rho=0.003, geometry="mean_over_std", ascent_steps=2),
    flatness.SAM(rho=0.1, ascent_batch_fraction=0.5),
    flatness.SAM(rho=0.1, params=["*weight"]),
    flatness.ASAM(rho=0.3, ascent_batch_fraction=0.5, params=["*weight"], ascent_steps=2),
    flatness.LESAM(loss_budget=0.02, anneal=1.0),
    flatness.Periodic(flatness.ASAM(ascent_batch_fraction=0.5), period=2),
    flatness.Delayed(flatness.GaussianSmoothing(), start=0.5),
    flatness.MSharpness(flatness.ASAM(ascent_batch_fraction=0.5), num_sub_batches=2),
]
WITH_RADIUS = [f for f in FLATNESSES if any(field.name == "rho" for field in fields(f))]
AHEAD = [f for f in FLATNESSES if isinstance(f, flatness.MSAM)]  # aimed at what earlier steps have seen
BALLS = [f for f in WITH_RADIUS if f not in AHEAD]  # aimed at the gradient that is there
FLAT = [f for f in FLATNESSES if not isinstance(f, flatness.Plain)]

LIGHTNING_WARNINGS = [
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]
"""Marks that ignore warnings of Lightning about data loaders without workers and about an old function."""

CONFIGURED = [
    MAP(),
    MAP(prior_precision=2.0),
    MCDropout(),
    MCDropout(rate=0.4),
    SWAG(rank=0),
    SWAG(rank=3),
    SWAG(rank=3, storage="cpu", bfloat16=True),
    SWAG(rank=3, params=["9.*", "*.bias"]),
    Ensemble(size=2),
    Ensemble(SWAG(rank=2), size=2),
    SGLD(),
    SGLD(prior_precision=2.0, temperature=0.5, max_snapshots=2, storage="cpu"),
    SGLD(noise="lattice"),
    SVGD(num_particles=2),
    SVGD(num_particles=2, rho=0.1, initial_std=0.01),
    Ensemble(SVGD(num_particles=2), size=2),
    SGHMC(),
    SGHMC(friction=0.3, prior_precision=2.0, max_snapshots=3),
    Ensemble(SGHMC(), size=2),
    SGVB(),
    SGVB(temperature=0.1, params="all", prior_mean="initial"),
    SGVB(params="no_biases", num_samples=2),
    SGVB(params="last_layer"),
    SGVB(params=["9.*", "*.bias"], prior_precision={"*.bias": 2.0, "*": 0.5}),
    IVON(),
    IVON(prior_precision=2.0, beta2=0.9, num_samples=2, params="no_biases", clip_radius=0.5),
    LRT(),
    LRT(estimator="flipout", initial_std=0.1),
    LRT(prior_precision="initial"),
    Ensemble(SGVB(prior_precision="initial"), size=2),
    Laplace(tune="evidence"),
    Laplace("diag", "sampled", prior_precision=2.0),
    Laplace("kron", prior_precision=2.0, temperature=0.5),
    Laplace("kron", "sampled", tune="evidence"),
    Ensemble(Laplace("last_layer", "sampled", tune="evidence"), size=2),
]
OWN_DYNAMICS = (SGLD, SGHMC, IVON, BSAM, EntropyMCMC)
DEFAULTS_OF_OTHERS = [
    getattr(posteriors, name)()
    for name in posteriors.__all__
    if name != "Posterior" and name not in {type(p).__name__ for p in CONFIGURED}
]
POSTERIORS = CONFIGURED + DEFAULTS_OF_OTHERS


def get_weight_distribution(param):
    """Means and standard deviations of the weights of this very tensor; None if there are none."""
    distribution = get_distribution()
    return None if distribution is None else distribution.get_marginal(param)


def named(things):
    return [short_name(thing) for thing in things]


def classes_of(configured):
    """Class of an object and of what it contains: members of an ensemble, the flatness of a schedule."""
    inner = getattr(configured, "member", getattr(configured, "flatness", None))
    return (type(configured), type(inner))


REPRESENTATIVES = (
    MAP,
    SWAG,
    flatness.Plain,
    flatness.SAM,
    flatness.PosteriorSAM,
)  # it needs the posterior's geometry
"""Classes whose pairs with every class are in the fast tests."""


def pair_params(posterior_configs, flatness_configs):
    """Parameters for a test over all pairs; at most one pair of each pair of classes is not marked slow.

    The configurations of a class take turns, so that over many pairs each of them is in one that is not slow. A
    posterior meets a flatness only through the closure, and what a class does to closures shows with a few others:
    pairs of classes without a representative are slow except on every third diagonal.
    """
    groups = {}
    for posterior in posterior_configs:
        for flat in flatness_configs:
            groups.setdefault((classes_of(posterior), classes_of(flat)), []).append((posterior, flat))
    rows = list(dict.fromkeys(row for row, _ in groups))
    columns = list(dict.fromkeys(column for _, column in groups))
    turns, params = {}, []
    for (posterior_classes, flatness_classes), pairs in groups.items():
        is_fast = (rows.index(posterior_classes) + columns.index(flatness_classes)) % 3 == 0 or bool(
            {posterior_classes, flatness_classes}
            & {(representative, type(None)) for representative in REPRESENTATIVES}
        )
        turn = max(turns.get(posterior_classes, 0), turns.get(flatness_classes, 0))
        if is_fast:
            turns[posterior_classes] = turns[flatness_classes] = turn + 1
        for k, (posterior, flat) in enumerate(pairs):
            marks = [] if is_fast and k == turn % len(pairs) else [pytest.mark.slow]
            params.append(
                pytest.param(posterior, flat, id=f"{short_name(posterior)}-{short_name(flat)}", marks=marks)
            )
    return params


def alternating_params(rows, columns, every=2):
    """Parameters for a test over all pairs; all but those on every so many diagonals are marked slow."""
    return [
        pytest.param(row, column, marks=[pytest.mark.slow] if (i + j) % every else [])
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]


def network(dtype=torch.float32) -> nn.Module:
    """BatchNorm and dropout of two kinds, on 1 x 8 x 8 images in 3 classes."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Linear(144, 16),
        nn.BatchNorm1d(16, momentum=None),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 3),
    ).to(dtype)


def batch(k: int = 0, size: int = 12, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + k)
    targets = torch.randint(0, 3, (size,), generator=generator)
    inputs = torch.randn(size, 1, 8, 8, generator=generator) + targets.view(-1, 1, 1, 1)
    return inputs.to(dtype), targets


@dataclass
class Counted:
    """A closure on one batch that counts its calls, and may fail at one of them."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    calls: int = 0
    fail_at: int | None = None
    seen: list | None = None

    def __call__(self) -> Tensor:
        self.calls += 1
        subset_batch(torch.zeros(1))  # to MSharpness a batch of one example, which has one sub-batch
        self.model.zero_grad()
        loss = F.cross_entropy(self.model(self.inputs), self.targets)
        if self.seen is not None:
            self.seen.append([p.detach().clone() for p in self.model.parameters()])
        if self.calls == self.fail_at:
            self.model.eval()
            raise ArithmeticError("on purpose")
        loss.backward()
        return loss.detach()


def snapshot(model: nn.Module) -> dict:
    """Weights, buffers, training flags, dropout rates and random state of a model."""
    return {
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "buffers": {n: b.detach().clone() for n, b in model.named_buffers()},
        "mode": [m.training for m in model.modules()],
        "rates": [m.p for m in model.modules() if hasattr(m, "p")],
        "rng": torch.get_rng_state(),
    }


def assert_same(one: dict, other: dict) -> None:
    assert one["mode"] == other["mode"]
    assert one["rates"] == other["rates"]
    for kind in ("weights", "buffers"):
        assert one[kind].keys() == other[kind].keys()
        for name in one[kind]:
            assert torch.equal(one[kind][name], other[kind][name]), f"{kind} {name}"
    assert torch.equal(one["rng"], other["rng"])


def descent(posterior):
    """SGD, with momentum unless the posterior has dynamics of its own."""
    momentum = 0.0 if isinstance(getattr(posterior, "member", posterior), OWN_DYNAMICS) else 0.9
    return lambda params: torch.optim.SGD(params, lr=0.05, momentum=momentum)


def train(posterior, flat, steps: int = 6, model: nn.Module | None = None, dtype=torch.float32):
    """A few steps of SGD with momentum, collecting after each of the last ones."""
    model = network(dtype) if model is None else model
    torch.manual_seed(7)
    state = posterior.init(model, descent(posterior), 36)
    losses = advance(posterior, flat, state, range(steps), dtype)
    return state, losses


def advance(
    posterior, flat, state, steps, dtype=torch.float32, progress: TrainingProgress | None = None
) -> list[Tensor]:
    losses, seen = [], [batch(k, dtype=dtype) for k in range(3)]
    progress = TrainingProgress(total_steps=6) if progress is None else progress
    for k in steps:
        closure = Counted(state.model, *batch(k % 3, dtype=dtype))
        losses.append(posterior.step(state, flat(closure, state.model, progress)))
        progress.advance()
        if k >= 1:
            posterior.collect(state)
    with eval_mode(state.model):
        posterior.finalize(state, seen, F.cross_entropy)
    return losses


def with_radius(flat, rho: float):
    return replace(flat, rho=rho)


def set_zero_radius(flat):
    """Return the flatness with a perturbation of length 0."""
    names = {field.name for field in fields(flat)}
    for name in ("rho", "std", "loss_budget"):
        if name in names:
            return replace(flat, **{name: 0.0})
    return replace(flat, flatness=set_zero_radius(flat.flatness))


def make_active_progress(flat, model: nn.Module) -> TrainingProgress:
    """Progress at a step at which the flatness perturbs the weights of this model."""
    progress = TrainingProgress(step=10, total_steps=12)
    if isinstance(flat, flatness.MSAM):
        generator = torch.Generator().manual_seed(5)
        params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        noise = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in params.items()}
        progress.store_state("msam", noise)
    return progress


def innermost(flat):
    """The flatness that a schedule runs; any other flatness itself."""
    return innermost(flat.flatness) if any(field.name == "flatness" for field in fields(flat)) else flat


def starts_at_the_weights(flat) -> bool:
    """Whether the first pass is at the unperturbed weights."""
    return not isinstance(innermost(flat), flatness.MSAM | flatness.GaussianSmoothing)


@contextmanager
def distribute_all_weights(model: nn.Module) -> Iterator[None]:
    """Set a random mean and standard deviation for every trainable parameter inside the context."""
    params, generator = trainable_parameters(model), torch.Generator().manual_seed(11)
    stds = [(0.1 * torch.randn(p.shape, generator=generator).exp()).to(p.dtype) for p in params]
    noise = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
    means = [p.detach() + std * z for p, std, z in zip(params, stds, noise, strict=True)]
    with weight_distribution(params, means, stds):
        yield


def needs_weight_distribution(flat) -> bool:
    """Whether the flatness takes its geometry from the posterior."""
    return any(field.name == "geometry" for field in fields(innermost(flat)))


def sets_weight_distribution(posterior) -> bool:
    """Whether the posterior offers a distribution of the weights while it calls the closure."""
    state = posterior.init(network(), descent(posterior), 36)
    closure, has_distribution = Counted(state.model, *batch()), []

    def inspect_distributions() -> Tensor:
        has_distribution.append(get_distribution() is not None)
        return closure()

    posterior.step(state, inspect_distributions)
    return any(has_distribution)


def explain_refusal(posterior, flat, config) -> str | None:
    """Return the expected error message of a pair that is refused; None for all others."""
    if needs_weight_distribution(flat) and not sets_weight_distribution(posterior):
        return "this posterior has none"
    if posterior.perturbs_weights and not isinstance(flat, flatness.Plain):
        return "second gradient at perturbed weights itself"
    start = config.collection.start_fraction if posterior.requires_stationary_loss == "while_collecting" else 1.0
    if posterior.requires_stationary_loss != "never" and flat.stationary_after > start:
        return f"does not go with {type(flat).__name__}.*one loss"
    return None


def peak_bytes(recorded, path) -> int:
    """Return the peak of the allocated memory in bytes, without what was allocated before.

    Args:
        recorded: A profile with memory.
        path: File for its trace.
    """
    recorded.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate((change for _, change in changes), initial=0))


def find_tensors_file(folder: Path) -> Path:
    """The file with the tensors of an artefact."""
    return folder / json.loads((folder / "posterior.json").read_text())["tensors_file"]


def make_multi_label_splits(num_examples=(150, 120, 60), num_labels=4, missing=0.2):
    """Training, validation and test examples with several labels, of which some are not known."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(num_examples), 8, generator=generator)
    logits = 2 * inputs @ torch.randn(8, num_labels, generator=generator)
    labels = (logits.sigmoid() > torch.rand(logits.shape, generator=generator)).long()
    is_missing = torch.rand(labels.shape, generator=generator) < missing
    is_missing[:, 0] = False  # one label of each example is known
    labels[is_missing] = -100
    parts = zip(inputs.split(num_examples), labels.split(num_examples), strict=True)
    train, val, test = (Split(inputs=x, targets=y) for x, y in parts)
    names = tuple(f"label {k}" for k in range(num_labels))
    return DataSplits(
        train=train, val=val, test=test, class_names=(), target_names=names, feature_names=(), augment=None
    )


def compute_ggn(vjps, inputs, targets, loss_fn):
    """The exact GGN of the summed loss of a batch, by the vectors Jᵀ s."""
    return sum(vectors.T @ vectors for vectors in iter_ggn_vectors(vjps, inputs, targets, loss_fn))
