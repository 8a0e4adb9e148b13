"""Restoration of a fitted posterior from the metadata and tensors of an artefact, which nothing is trusted in.

Class paths lead to exported classes of flatbayes only, arguments are bounded before a class is called, and building a
network allocates at most a multiple of the stored tensors.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.adapters import share_frozen_parameters
from flatbayes.core.input_trees import ModelInputs, flatten_tree, unflatten_tree
from flatbayes.core.names import format_count
from flatbayes.core.network_interface import NetworkInterface, OutputSelector, adapt_network
from flatbayes.core.networks import choose_memory_format
from flatbayes.core.spec import instantiate
from flatbayes.data import Standardize
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction.layer_settings import check_layers
from flatbayes.prediction.limits import AllocationLimit, check_max_integer
from flatbayes.prediction.metadata import REFERENCE_SCHEMA, PosteriorMetadata
from flatbayes.prediction.network_tensors import (
    MAX_INTEGER,
    check_numbers,
    fill_in_frozen,
    find_tied_tensors,
    freeze_parameters,
    make_model_builder,
    prepare_network,
    select_required_numbers,
)
from flatbayes.prediction.sampling import DRAW_RULE, NetworkSampler, SampleId
from flatbayes.prediction.training_inputs import TrainingInputs

MAX_DEVICE_NAME_CHARS, MAX_ERROR_CHARS = 200, 500
TRAINING_INPUTS_PREFIX = "training_inputs"
WRAPPERS = {
    "_orig_mod.": ("compiled by torch.compile", "torch.compile(network)"),
    "module.": ("inside another module, as by torch.nn.DataParallel", "torch.nn.DataParallel(network)"),
}
"""By the first part of the names of all weights, what was done to a network, and how it is done again."""


def restore_sampler(
    folder: Path,
    metadata: PosteriorMetadata,
    tensors: dict[str, Tensor],
    norm_tensors: dict[str, Tensor],
    model: nn.Module | Callable[..., nn.Module] | None,
    likelihood: Likelihood | None,
    output: OutputSelector | None,
) -> NetworkSampler:
    """Rebuild a posterior on the CPU; `tensors` is emptied.

    Raises:
        ValueError: The artefact is damaged, or does not fit the model.
    """
    with explain_damage(folder):
        posterior = _restore_posterior(metadata["posterior"])
        draw_rule = _check_draw_rule(metadata)
        num_data = _check_num_data(metadata["num_data"], posterior)
        statistics_inputs = [_pop_tree(tensors, f"inputs.{k}") for k in range(metadata["num_statistics_batches"])]
        interface = NetworkInterface.parse(metadata.get("interface"), output)
        transform = _restore_transform(pop_prefix(tensors, "standardize"))
        statistics_tensors = pop_prefix(tensors, TRAINING_INPUTS_PREFIX)
        training_inputs = TrainingInputs.from_tensors(statistics_tensors) if statistics_tensors else None
        norm_tensors |= pop_prefix(tensors, "draw")  # schemas 1 to 3 keep them with the weights
        likelihood = likelihood or _restore_likelihood(metadata["likelihood"], tensors)
    build_model = make_model_builder(model, metadata["info"], likelihood.num_outputs)
    states, first_weights = list[State](), dict[str, Tensor]()
    for member, count in enumerate(num_data):
        member_tensors = pop_prefix(tensors, f"run.{member}")
        network = build_model(member_tensors)
        if not isinstance(network, nn.Module):
            raise ValueError(f"`model` must be a network or build one, got {type(network).__name__}.")
        if interface != NetworkInterface():
            adapt_network(network, interface.output, inputs=interface.inputs)
        with explain_damage(folder):
            if metadata["schema"] >= REFERENCE_SCHEMA:
                member_tensors |= _find_omitted(metadata, member_tensors, network, first_weights)
                first_weights = first_weights or _select_prefix(member_tensors, "model")
            states.append(_restore_state(posterior, network, count, member_tensors, metadata, folder))
            states[-1].updated_buffers = _parse_updated_buffers(metadata, member)
    share_frozen_parameters([state.model for state in states])
    if tensors:
        raise ValueError(f"{folder} is damaged: it holds tensors that belong to nothing, such as {min(tensors)!r}.")
    sampler = NetworkSampler(
        posterior,
        states,
        likelihood,
        transform,
        statistics_inputs,
        metadata["info"],
        draw_rule=draw_rule,
        training_inputs=training_inputs,
    )
    if metadata["schema"] > 1:
        with explain_damage(folder):
            statistics = _parse_norm_statistics(norm_tensors, states)
            sampler.add_norm_statistics(statistics, metadata.get("norm_device", "cpu")[:MAX_DEVICE_NAME_CHARS])
    return sampler


@contextmanager
def explain_damage(folder: Path) -> Iterator[None]:
    """Turn errors of damaged or hostile content into a ValueError that names the folder."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__} {str(error)[:MAX_ERROR_CHARS]}.") from error
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder} cannot be used: {str(error)[:MAX_ERROR_CHARS]}") from error


def _restore_posterior(spec: dict[str, Any]) -> Posterior:
    check_max_integer(spec, MAX_INTEGER)
    posterior = instantiate(spec, package="flatbayes.posteriors", base_class=Posterior)
    if not isinstance(posterior, Posterior):
        raise TypeError("it names no posterior")
    return posterior


def check_wrapper(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a network that was compiled or wrapped where that of the artefact was not, or the other way round.

    Raises:
        ValueError: All names of one of the two begin with the prefix of a wrapper, and those of the other do not.
    """
    for prefix, (change, advice) in WRAPPERS.items():
        are_saved, are_own = (
            bool(names) and all(name.startswith(prefix) for name in names) for names in (weights, model.state_dict())
        )
        if are_saved and not are_own:
            raise ValueError(f"The posterior in {folder} was fitted to a network {change}: pass model={advice}.")
        if are_own and not are_saved:
            raise ValueError(
                f"The given model is a network {change}, and that of the posterior in {folder} was not: pass the "
                "network itself."
            )


def _restore_state(
    posterior: Posterior,
    model: nn.Module,
    num_data: int,
    tensors: Mapping[str, Tensor],
    metadata: PosteriorMetadata,
    folder: Path,
) -> State:
    weights, statistics = _select_prefix(tensors, "model"), _select_prefix(tensors, "statistics")
    check_wrapper(model, weights, folder)
    if len(weights) + len(statistics) < len(tensors):
        raise ValueError(f"{folder} is damaged: a run holds neither weights nor statistics in some of its tensors.")
    buffer_names = set(metadata.get("buffers", ()))
    with AllocationLimit(tensors):
        prepare_network(model, weights, buffer_names)
        freeze_parameters(model, metadata.get("frozen"))
        entries = model.state_dict()
        weights |= {
            name: weights[first]
            for name, first in find_tied_tensors(entries).items()
            if name not in weights and first in weights
        }
        check_numbers(select_required_numbers(model, weights))
        check_layers(metadata.get("layers", {}), posterior, model, f"The posterior in {folder} was fitted to")
        state = posterior.init(model, None, num_data)
    statistics = posterior.convert_statistics(state, statistics)
    weights = {name: tensor for name, tensor in weights.items() if name in entries or name not in buffer_names}
    try:
        state.load_state_dict({"model": weights, "optimizer": None, "statistics": statistics})
    except RuntimeError as error:
        raise ValueError(
            f"The posterior in {folder} was fitted to another architecture than {type(model).__name__}: "
            f"{str(error)[:MAX_ERROR_CHARS]}"
        ) from error
    state.model.eval()
    choose_memory_format(state.model, metadata["info"].get("channels_last"))
    return state


def _find_omitted(
    metadata: PosteriorMetadata,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    first_weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The frozen weights that the artefact does not store for a run, by their names in the artefact."""
    weights, checksum = _select_prefix(tensors, "model"), metadata.get("frozen_sha256")
    filled = fill_in_frozen(weights, model, first_weights, metadata.get("frozen", []), checksum)
    return {f"model.{name}": tensor for name, tensor in filled.items() if name not in weights}


def _parse_updated_buffers(metadata: PosteriorMetadata, member: int) -> frozenset[str] | None:
    names = (metadata.get("updated_buffers") or {member: None})[member]  # unknown before version 0.2
    return None if names is None else frozenset(names)


def _parse_norm_statistics(tensors: Mapping[str, Tensor], states: list[State]) -> dict[SampleId, dict[str, Tensor]]:
    norm_statistics: dict[SampleId, dict[str, Tensor]] = {}
    shapes = [{name: buffer.shape for name, buffer in state.model.named_buffers()} for state in states]
    for name, tensor in tensors.items():
        seed, member, draw, buffer_name = name.split(".", 3)
        shape = shapes[int(member)][buffer_name]
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}.")
        norm_statistics.setdefault((int(seed), int(member), int(draw)), {})[buffer_name] = tensor
    return norm_statistics


def _check_draw_rule(metadata: PosteriorMetadata) -> int:
    draw_rule = metadata.get("draw_rule", 1)
    if type(draw_rule) is not int or not 1 <= draw_rule <= DRAW_RULE:
        raise ValueError(f"its rule of draws is {str(draw_rule)[:20]}, and this version knows 1 to {DRAW_RULE}.")
    return draw_rule


def _check_num_data(num_data: list[Any], posterior: Posterior) -> list[int]:
    valid = all(type(count) is int and 0 < count < MAX_INTEGER for count in num_data)
    if not 1 <= len(num_data) <= posterior.num_members or not valid:
        raise ValueError(
            f"its numbers of training examples are {str(num_data)[:80]}, for "
            f"{format_count(posterior.num_members, 'run')}."
        )
    return num_data


def _restore_transform(tensors: Mapping[str, Tensor]) -> Standardize | None:
    if not tensors:
        return None
    mean, std = tensors["mean"], tensors["std"]
    if len(tensors) > 2 or mean.shape != std.shape or mean.ndim not in (1, 2, 3) or not (std > 0).all():
        raise ValueError("its standardisation of inputs is no mean and standard deviation.")
    return Standardize(mean=mean, std=std)


def _restore_likelihood(spec: dict[str, Any] | None, tensors: Mapping[str, Tensor]) -> Likelihood:
    if spec is None:
        raise ValueError("This artefact's likelihood contains user code, which is not saved: pass `likelihood`.")
    check_max_integer(spec, sum(tensor.numel() for tensor in tensors.values()))  # every output has a bias
    try:
        likelihood = instantiate(spec, package="flatbayes.likelihoods", base_class=Likelihood)
    except ValueError as error:
        raise ValueError(f"{error} If this artefact's likelihood contains user code, pass `likelihood`.") from error
    if not isinstance(likelihood, Likelihood):
        raise TypeError("it names no likelihood")
    return likelihood


def _select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose name starts with a prefix and a dot, by the rest of their names."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def pop_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`_select_prefix`, and remove the tensors from the dictionary."""
    selected = _select_prefix(tensors, prefix)
    for name in selected:
        del tensors[f"{prefix}.{name}"]
    return selected


def _pop_tree(tensors: dict[str, Tensor], name: str) -> ModelInputs:
    """Inputs of one batch, which are removed from the dictionary."""
    tree = unflatten_tree(tensors, name)
    for path in flatten_tree(tree, name):
        del tensors[path]
    return tree
