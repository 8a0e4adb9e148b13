"""Serialisation of a fitted posterior: tensors in safetensors, metadata in JSON, no pickled code.

`posterior.json` holds class paths of flatbayes with their arguments, the names and checksums of the files with
tensors, and a checksum of itself. A file with tensors has a name of its own and is never changed, so renaming the new
`posterior.json` switches from the earlier artefact to the new one at once, also with several writers. Loading
unpickles nothing, imports no class outside flatbayes, and builds no object that is larger than a multiple of the
stored tensors.
"""

import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.accelerators import describe_device
from flatbayes.core.files import atomic_write, remove_files
from flatbayes.core.input_trees import ModelInputs, flatten_tree, unflatten_tree
from flatbayes.core.network_interface import NetworkInterface, OutputSelector, adapt_network, get_interface
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.data import Standardize
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction.limits import AllocationLimit, check_max_integer
from flatbayes.prediction.metadata import (
    NORM_STEM,
    SCHEMA_VERSION,
    TENSORS_STEM,
    PosteriorMetadata,
    compute_file_checksum,
    list_tensor_files,
    read_metadata,
    resolve_artefact_file,
    write_metadata,
)
from flatbayes.prediction.network_tensors import (
    MAX_INTEGER,
    check_numbers,
    collect_network_tensors,
    find_tied_tensors,
    freeze_parameters,
    list_buffer_names,
    make_model_builder,
    prepare_network,
    select_required_numbers,
)
from flatbayes.prediction.sampling import DRAW_RULE, NetworkSampler, SampleId

MAX_DEVICE_NAME_CHARS = 200
MAX_READ_ATTEMPTS = 10
"""Attempts to read an artefact that other processes replace meanwhile."""


def save_posterior(sampler: NetworkSampler, folder: Path, *, with_training_inputs: bool = True) -> Path:
    """Write the artefact, and remove the one that it replaces.

    Args:
        sampler: The posterior.
        folder: Folder of the artefact; created if necessary.
        with_training_inputs: Whether the batches of training inputs are stored, on which the running statistics of
            further draws are estimated.

    Raises:
        TypeError: The transform or the posterior cannot be described by plain data.
        OSError: It cannot be written; an earlier artefact in the folder stays as it was.
    """
    if sampler.transform is not None and not isinstance(sampler.transform, Standardize):
        raise TypeError(
            f"Only a Standardize transform can be saved, got {type(sampler.transform).__name__}. Put other "
            "preparation of inputs into the model, or set transform=None and prepare them before predict."
        )
    statistics_inputs = sampler.statistics_inputs if with_training_inputs else ()
    metadata: PosteriorMetadata = {
        "schema": SCHEMA_VERSION,
        "draw_rule": sampler.draw_rule,
        "posterior": to_spec(sampler.posterior),
        "likelihood": _describe_likelihood(sampler.likelihood),
        "num_data": [state.num_data for state in sampler.states],
        "num_statistics_batches": len(statistics_inputs),
        "frozen": [name for name, p in sampler.states[0].model.named_parameters() if not p.requires_grad],
        "buffers": list_buffer_names(sampler.states[0].model),
        "updated_buffers": [
            None if state.updated_buffers is None else sorted(state.updated_buffers) for state in sampler.states
        ],
        "info": sampler.info,
    }
    interface = get_interface(sampler.states[0].model)
    if interface != NetworkInterface():
        metadata["interface"] = interface.describe()
    tensors, norm_tensors = _collect_tensors(sampler, statistics_inputs), _collect_norm_statistics(sampler)
    replaced_files = _list_current_files(folder)
    metadata["tensors_file"], metadata["sha256"] = _write_tensors(folder, TENSORS_STEM, tensors)
    if norm_tensors:
        metadata["norm_file"], metadata["norm_sha256"] = _write_tensors(folder, NORM_STEM, norm_tensors)
        device_kind = describe_device(sampler.device)
        if device_kind != "cpu":
            metadata["norm_device"] = device_kind
    write_metadata(folder, metadata)
    remove_files([folder / name for name in replaced_files if name not in list_tensor_files(metadata)])
    return folder


def _write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write a file with a new name; returns the name and the checksum."""
    name = f"{stem}-{secrets.token_hex(8)}.safetensors"
    # safetensors refuses tensors that share memory; copies do not.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(folder / name) as temporary:
        save_file(copies, temporary)
        return name, compute_file_checksum(temporary)


def _list_current_files(folder: Path) -> list[str]:
    try:
        return list_tensor_files(read_metadata(folder))
    except (OSError, ValueError):
        return []  # no artefact, or a damaged one, whose files are not touched


def load_posterior(
    folder: Path,
    model: nn.Module | Callable[[], nn.Module] | None,
    likelihood: Likelihood | None,
    output: OutputSelector | None = None,
) -> NetworkSampler:
    """Read both files and rebuild the posterior on the CPU.

    Args:
        folder: Folder of the artefact.
        model: The architecture, or a function that builds it; None for models of flatbayes.
        likelihood: The likelihood of the fit; None to rebuild it from the metadata.
        output: Selector of the network's output; None for that of the metadata.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The artefact is damaged, from a newer version, or does not fit the model.
    """
    metadata, tensors, norm_tensors = _read_files(folder)
    with _wrap_artefact_errors(folder):
        posterior = _restore_posterior(metadata["posterior"])
        draw_rule = _check_draw_rule(metadata)
        num_data = _check_num_data(metadata["num_data"], posterior)
        statistics_inputs = [_pop_tree(tensors, f"inputs.{k}") for k in range(metadata["num_statistics_batches"])]
        interface = NetworkInterface.parse(metadata.get("interface"), output)
        transform = _restore_transform(_pop_prefix(tensors, "standardize"))
        norm_tensors |= _pop_prefix(tensors, "draw")  # schemas 1 to 3 keep them with the weights
        likelihood = likelihood or _restore_likelihood(metadata["likelihood"], tensors)
    build_model = make_model_builder(model, metadata["info"])
    states = []
    for member, count in enumerate(num_data):
        member_tensors = _pop_prefix(tensors, f"run.{member}")
        network = build_model(member_tensors)
        if not isinstance(network, nn.Module):
            raise ValueError(f"`model` must be a network or build one, got {type(network).__name__}.")
        if interface != NetworkInterface():
            adapt_network(network, interface.output, inputs=interface.inputs)
        with _wrap_artefact_errors(folder):
            states.append(_restore_state(posterior, network, count, member_tensors, metadata, folder))
            states[-1].updated_buffers = _parse_updated_buffers(metadata, member)
    if tensors:
        raise ValueError(f"{folder} is damaged: it holds tensors that belong to nothing, such as {min(tensors)!r}.")
    sampler = NetworkSampler(
        posterior, states, likelihood, transform, statistics_inputs, metadata["info"], draw_rule=draw_rule
    )
    if metadata["schema"] > 1:
        with _wrap_artefact_errors(folder):
            statistics = _parse_norm_statistics(norm_tensors, states)
            sampler.add_norm_statistics(statistics, str(metadata.get("norm_device", "cpu"))[:MAX_DEVICE_NAME_CHARS])
    return sampler


@contextmanager
def _wrap_artefact_errors(folder: Path) -> Iterator[None]:
    """Turn errors of damaged or hostile content into a ValueError that names the folder."""
    try:
        yield
    except (SafetensorError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__} {str(error)[:500]}.") from error
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder} cannot be used: {str(error)[:500]}") from error


def _collect_tensors(sampler: NetworkSampler, statistics_inputs: Sequence[ModelInputs]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for k, state in enumerate(sampler.states):
        weights = collect_network_tensors(state.model)
        check_numbers(select_required_numbers(state.model, weights) | state.statistics)
        tensors |= {f"run.{k}.model.{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"run.{k}.statistics.{name}": tensor for name, tensor in state.statistics.items()}
    for k, batch in enumerate(statistics_inputs):
        tensors |= flatten_tree(batch, f"inputs.{k}")
    if isinstance(sampler.transform, Standardize):
        tensors |= {"standardize.mean": sampler.transform.mean, "standardize.std": sampler.transform.std}
    return tensors


def _collect_norm_statistics(sampler: NetworkSampler) -> dict[str, Tensor]:
    """Running statistics of the draws on the device where the networks are."""
    return {
        f"draw.{seed}.{member}.{draw}.{name}": tensor
        for (seed, member, draw), buffers in sampler.norm_statistics.items()
        for name, tensor in buffers.items()
    }


def _read_files(folder: Path) -> tuple[PosteriorMetadata, dict[str, Tensor], dict[str, Tensor]]:
    """The metadata, the tensors, and the running statistics of draws; none of these if their file is lost."""
    for _ in range(MAX_READ_ATTEMPTS):
        metadata = read_metadata(folder)
        try:
            tensors = _read_tensors(folder, list_tensor_files(metadata)[0], metadata["sha256"])
            break
        except FileNotFoundError as error:  # another process has replaced the artefact, unless the file is lost
            missing = error
    else:
        raise missing
    norm_tensors: dict[str, Tensor] = {}
    if "norm_file" in metadata:
        try:
            norm_tensors = _pop_prefix(_read_tensors(folder, metadata["norm_file"], metadata["norm_sha256"]), "draw")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError) as error:
            warnings.warn(f"Running statistics of draws are estimated again: {error}", stacklevel=4)
    return metadata, tensors, norm_tensors


def _read_tensors(folder: Path, name: str, checksum: str) -> dict[str, Tensor]:
    path = resolve_artefact_file(folder, name)
    missing = FileNotFoundError(f"There is no fitted posterior in {folder}: {name} is missing.")
    if not path.is_file():
        raise missing
    if compute_file_checksum(path) != checksum:
        raise ValueError(f"{path} is damaged: its checksum is not the one it was saved with.")
    with _wrap_artefact_errors(folder):
        try:
            tensors = load_file(path)
        except Exception as error:
            if path.is_file():
                raise
            raise missing from error  # another process has replaced the artefact meanwhile
        check_numbers({key: tensor for key, tensor in tensors.items() if ".model." not in key})
    return tensors


def _restore_posterior(spec: dict[str, Any]) -> Posterior:
    check_max_integer(spec, MAX_INTEGER)
    posterior = instantiate(spec, package="flatbayes.posteriors", base_class=Posterior)
    if not isinstance(posterior, Posterior):
        raise TypeError("it names no posterior")
    return posterior


def _restore_state(
    posterior: Posterior,
    model: nn.Module,
    num_data: int,
    tensors: Mapping[str, Tensor],
    metadata: PosteriorMetadata,
    folder: Path,
) -> State:
    weights, statistics = _select_prefix(tensors, "model"), _select_prefix(tensors, "statistics")
    if len(weights) + len(statistics) < len(tensors):
        raise ValueError(f"{folder} is damaged: a run holds neither weights nor statistics in some of its tensors.")
    buffer_names = {name for name in metadata.get("buffers") or () if isinstance(name, str)}
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
        state = posterior.init(model, None, num_data)
    weights = {name: tensor for name, tensor in weights.items() if name in entries or name not in buffer_names}
    try:
        state.load_state_dict({"model": weights, "optimizer": None, "statistics": statistics})
    except RuntimeError as error:
        raise ValueError(
            f"The posterior in {folder} was fitted to another architecture than {type(model).__name__}: {error}"
        ) from error
    state.model.eval()
    return state


def _parse_updated_buffers(metadata: PosteriorMetadata, member: int) -> frozenset[str] | None:
    names = (metadata.get("updated_buffers") or {member: None})[member]  # unknown before version 0.2
    return None if names is None else frozenset(map(str, names))


def _parse_norm_statistics(tensors: Mapping[str, Tensor], states: list[State]) -> dict[SampleId, dict[str, Tensor]]:
    norm_statistics: dict[SampleId, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        seed, member, draw, buffer_name = name.split(".", 3)
        shape = dict(states[int(member)].model.named_buffers())[buffer_name].shape
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
            f"its numbers of training examples are {str(num_data)[:80]}, for {posterior.num_members} runs."
        )
    return num_data


def _restore_transform(tensors: Mapping[str, Tensor]) -> Standardize | None:
    if not tensors:
        return None
    mean, std = tensors["mean"], tensors["std"]
    if len(tensors) > 2 or mean.shape != std.shape or mean.ndim not in (1, 3) or not (std > 0).all():
        raise ValueError("its standardisation of inputs is no mean and standard deviation.")
    return Standardize(mean=mean, std=std)


def _describe_likelihood(likelihood: Likelihood) -> dict[str, Any] | None:
    try:
        spec: dict[str, Any] = to_spec(likelihood)
    except TypeError:  # it contains user code or tensors; load requires it as an argument
        return None
    return spec


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


def _pop_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
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
