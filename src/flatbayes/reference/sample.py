"""Sample a reference posterior of a small network: several full-batch chains, and their predictions."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from flatbayes.core.buffers import norm_layers
from flatbayes.core.console import PlainConsole
from flatbayes.core.files import JsonValue
from flatbayes.core.names import format_count
from flatbayes.core.networks import fingerprint_weights
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.core.spec import to_spec
from flatbayes.core.tensor_lists import widen
from flatbayes.core.weights import promoted_dtype
from flatbayes.data import DataSplits, Split, make_source
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.data.readers import set_task
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from flatbayes.posteriors import MAP
from flatbayes.prediction.labelled import read_as_task
from flatbayes.reference.chain import Chain, count_steps, run_chain
from flatbayes.reference.config import ReferenceConfig
from flatbayes.reference.diagnostics import ReferenceDiagnostics, measure_mixing
from flatbayes.reference.potential import NetworkPotential
from flatbayes.reference.result import Reference
from flatbayes.training import TrainingConfig
from flatbayes.training.arguments import resolve_model
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.run_factory import RunFactory

MAX_WEIGHTS = 10**6
"""Largest number of weights: a full-batch chain of a larger network takes too long to mix."""
PREDICTION_BATCH_SIZE = 4096


def sample_reference(
    model: nn.Module | Callable[..., nn.Module],
    data: Any,
    config: ReferenceConfig = ReferenceConfig(),
    *,
    likelihood: Likelihood | str | None = None,
    split: str = "test",
    seed: int = 0,
    show_progress: bool | None = None,
) -> Reference:
    """Sample the exact posterior of a small network, plain or sharpness-aware, and predict a split with the draws.

    Every gradient is that of all training examples, on one thread of the CPU. The networks are in eval mode, without
    dropout.

    Args:
        model: A class or function that builds the network, as for `fit`; or a network, whose weights all chains start
            from.
        data: Splits, or a source, such as `Digits()`, of which those of the seed are loaded; or what `make_source`
            takes.
        config: The density and the sampler.
        likelihood: Distribution of the targets, by default that of `fit`.
        split: Split that is predicted: test, val or train.
        seed: Seed of the split of a source, of initial weights and of the chains.
        show_progress: Show a progress bar; by default if standard error is a terminal.

    Returns:
        The reference, with `summary()` for its diagnostics.

    Raises:
        ValueError: The network has BatchNorm or too many weights, or the options do not go together.
        RuntimeError: A chain does not move.

    Examples:
        >>> reference = sample_reference(MLP, data, reference_config, seed=1)
        >>> reference.diagnostics.num_divergent
        0
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be test, val or train, got {split!r}.")
    splits = data
    if not isinstance(splits, DataSplits):
        splits = read_as_task(lambda task: set_task(make_source(data), task).load(seed), likelihood)
    model = resolve_model(model)
    start_time, num_threads = time.perf_counter(), torch.get_num_threads()
    factory, _ = prepare_runs(model, splits, MAP(), Plain(), TrainingConfig(), likelihood=likelihood, seed=seed)
    torch.set_num_threads(1)
    try:
        chains, outputs, potentials = list[Chain](), list[Tensor](), list[NetworkPotential]()
        is_shown = sys.stderr.isatty() if show_progress is None else show_progress
        with _progress_bar(config, is_shown=is_shown) as report:
            for index in range(config.num_chains):
                potential = make_potential(factory, splits.train, index, config)
                generator = make_generator(Stream.REFERENCE_CHAIN, seed, index)
                chain = run_chain(potential, potential.position, config, generator, partial(report, index))
                outputs.append(_predict_draws(potential, chain, factory, getattr(splits, split)))
                chains.append(chain)
                potentials.append(potential)
    finally:
        torch.set_num_threads(num_threads)
    stacked = torch.stack(outputs)
    predictions = _select_predictions(factory.likelihood, stacked)
    return Reference(
        outputs=stacked,
        likelihood=factory.likelihood,
        config=config,
        model=describe_network(model),
        fingerprint=compute_fingerprint(splits, tuple(dict.fromkeys(("train", split)))),
        split=split,
        seed=seed,
        num_weights=chains[0].positions.shape[1],
        num_data=potentials[0].num_data,
        diagnostics=_diagnose(config, chains, potentials, predictions, start_time),
    )


def make_potential(factory: RunFactory, train: Split, member: int, config: ReferenceConfig) -> NetworkPotential:
    """The potential of a network with the initial weights of a member, one for each chain.

    Raises:
        ValueError: The network has BatchNorm, or too few or too many weights.
    """
    network = factory.init_network(member).cpu().eval()
    network = network.to(widen(promoted_dtype(network.parameters())))  # half precision is not exact
    if norm_layers(network):
        raise ValueError(
            f"{type(network).__name__} has normalisation layers with running statistics, which are no function of "
            "the weights. Use GroupNorm or LayerNorm, or no normalisation, for a reference."
        )
    num_weights = sum(param.numel() for param in network.parameters() if param.requires_grad)
    if not 2 <= num_weights <= MAX_WEIGHTS:
        raise ValueError(
            f"{type(network).__name__} has {format_count(num_weights, 'trainable weight')}, and a reference is for "
            f"networks of 2 to {MAX_WEIGHTS}."
        )
    likelihood, inputs = factory.likelihood, _transform_inputs(factory, train).to(next(network.parameters()).dtype)
    targets = likelihood.prepare_targets(train.targets)
    is_labelled = likelihood.find_labelled(targets)
    if is_labelled is not None:
        inputs, targets = inputs[is_labelled], targets[is_labelled]
    return NetworkPotential(network, likelihood.loss, inputs, targets, config)


def describe_network(model: nn.Module | Callable[..., nn.Module]) -> JsonValue:
    """Plain data that tell networks apart; a network that is given as an instance by its weights.

    Args:
        model: A network, or what builds one.

    Examples:
        >>> describe_network(MLP)
        {'class_path': 'flatbayes.models.MLP', 'init_args': {}}
    """
    description: JsonValue = to_spec(model, allow_instances=True)
    if isinstance(model, nn.Module):
        return [description, fingerprint_weights(model)]
    return description


def _predict_draws(potential: NetworkPotential, chain: Chain, factory: RunFactory, split: Split) -> Tensor:
    """Outputs of the networks of a chain, shape (draws, examples, outputs)."""
    inputs, outputs = _transform_inputs(factory, split), list[Tensor]()
    with torch.no_grad():
        for position in chain.positions:
            with potential.install(position) as network:
                batches = inputs.to(position.dtype).split(PREDICTION_BATCH_SIZE)
                outputs.append(torch.cat([network(batch) for batch in batches]).reshape(len(inputs), -1).float())
    return torch.stack(outputs)


def _transform_inputs(factory: RunFactory, split: Split) -> Tensor:
    transform = factory.training_data.transform
    return split.input_tensor if transform is None else transform(split.input_tensor)


def _select_predictions(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Predicted quantities of each draw: probabilities, means of numbers, or else the outputs."""
    match likelihood:
        case Categorical():
            probs = likelihood.to_logits(outputs.flatten(0, 2)).softmax(-1)
            return probs.reshape(*outputs.shape[:2], -1)
        case Bernoulli():
            return outputs.sigmoid().flatten(2)
        case Gaussian():
            return outputs[..., : likelihood.num_targets].flatten(2)
        case _:
            return outputs.flatten(2)


def _diagnose(
    config: ReferenceConfig,
    chains: list[Chain],
    potentials: list[NetworkPotential],
    predictions: Tensor,
    start_time: float,
) -> ReferenceDiagnostics:
    num_calls = sum(potential.num_calls for potential in potentials)
    residual = sum(potential.residual_sum for potential in potentials) / max(1, num_calls)
    return ReferenceDiagnostics(
        **measure_mixing(predictions),
        step_sizes=tuple(chain.step_size for chain in chains),
        decoherence_lengths=tuple(_none_if_nan(chain.decoherence_length) for chain in chains),
        energy_variances=tuple(_none_if_nan(chain.energy_variance) for chain in chains),
        acceptances=tuple(chain.acceptance for chain in chains),
        mean_potentials=tuple(sum(chain.potentials) / len(chain.potentials) for chain in chains),
        num_divergent=sum(chain.num_divergent for chain in chains),
        ascent_residual=residual if config.rho > 0 else None,
        num_gradients=sum(potential.num_gradients for potential in potentials),
        seconds=time.perf_counter() - start_time,
    )


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


@contextmanager
def _progress_bar(config: ReferenceConfig, *, is_shown: bool) -> Iterator[Callable[[int], object]]:
    """A function that counts a step of the chain with this number."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=PlainConsole(stderr=True), disable=not is_shown) as bar:
        task = bar.add_task("", total=config.num_chains * count_steps(config))

        def report(chain: int) -> None:
            bar.update(task, advance=1, description=f"chain {chain + 1} of {config.num_chains}")

        yield report if is_shown else lambda _: None
