"""Files of a fitted posterior: tensors in safetensors, metadata in JSON, no pickled code.

`posterior.json` holds class paths of flatbayes with their arguments, the names and checksums of the files with
tensors, and a checksum of itself. A file with tensors has a name of its own and is never changed, so renaming the new
`posterior.json` switches from the earlier artefact to the new one at once, also with several writers. Loading
unpickles nothing, imports no class outside flatbayes, and builds no object that is larger than a multiple of the
stored tensors (`restore.py`).
"""

import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flatbayes.core.accelerators import describe_device
from flatbayes.core.adapters import check_unmerged
from flatbayes.core.files import atomic_write, remove_files
from flatbayes.core.input_trees import ModelInputs, flatten_tree
from flatbayes.core.network_interface import NetworkInterface, OutputSelector, get_interface
from flatbayes.core.networks import hash_tensors
from flatbayes.core.spec import to_spec
from flatbayes.data import Standardize
from flatbayes.likelihoods import Likelihood
from flatbayes.prediction.layer_settings import check_layers, describe_layers
from flatbayes.prediction.metadata import (
    NORM_STEM,
    REFERENCE_SCHEMA,
    SCHEMA_VERSION,
    TENSORS_STEM,
    PosteriorMetadata,
    check_info,
    compute_file_checksum,
    list_tensor_files,
    read_metadata,
    resolve_artefact_file,
    write_metadata,
)
from flatbayes.prediction.network_tensors import (
    check_numbers,
    collect_network_tensors,
    frozen_parameters,
    list_stored_tensors,
    select_required_numbers,
)
from flatbayes.prediction.restore import TRAINING_INPUTS_PREFIX, explain_damage, pop_prefix, restore_sampler
from flatbayes.prediction.sampling import NetworkSampler

MAX_READ_ATTEMPTS = 10
"""Attempts to read an artefact that other processes replace meanwhile."""


def save_posterior(
    sampler: NetworkSampler, folder: Path, *, with_training_inputs: bool = True, with_frozen: bool = True
) -> Path:
    """Write the artefact, and remove the one that it replaces.

    Training inputs are those on which the running statistics of further draws are estimated; frozen parameters are
    those that were not trained.

    Raises:
        TypeError: The transform or the posterior cannot be described by plain data.
        ValueError: An entry of `info` that flatbayes uses has another type, a tensor holds NaN, an adapter is merged
            into the frozen weights, or these are to be left out and differ between members, or settings of layers,
            such as dropout rates, do.
        OSError: It cannot be written; an earlier artefact in the folder stays as it was.
    """
    if sampler.transform is not None and not isinstance(sampler.transform, Standardize):
        raise TypeError(
            f"Only a Standardize transform can be saved, got {type(sampler.transform).__name__}. Put other "
            "preparation of inputs into the model, or set transform=None and prepare them before predict."
        )
    for state in sampler.states:
        check_unmerged(state.model, "so the artefact would add it twice")
    statistics_inputs = sampler.statistics_inputs if with_training_inputs else ()
    weights = list_stored_tensors([state.model for state in sampler.states], with_frozen=with_frozen)
    metadata: PosteriorMetadata = {
        "schema": SCHEMA_VERSION,
        "draw_rule": sampler.draw_rule,
        "posterior": to_spec(sampler.posterior),
        "likelihood": _describe_likelihood(sampler.likelihood),
        "num_data": [state.num_data for state in sampler.states],
        "num_statistics_batches": len(statistics_inputs),
        "frozen": list(frozen_parameters(sampler.states[0].model)),
        "buffers": [name for name, _ in sampler.states[0].model.named_buffers(remove_duplicate=False)],
        "updated_buffers": [
            None if state.updated_buffers is None else sorted(state.updated_buffers) for state in sampler.states
        ],
        "layers": describe_layers(sampler.posterior, sampler.states[0].model),
        "info": sampler.info,
    }
    for state in sampler.states[1:]:
        place = "This posterior cannot be saved, since its first member was fitted to"
        check_layers(metadata["layers"], sampler.posterior, state.model, place)
    if any(len(tensors) < len(collect_network_tensors(sampler.states[0].model)) for tensors in weights):
        metadata["schema"] = REFERENCE_SCHEMA
        if not with_frozen:
            metadata["frozen_sha256"] = hash_tensors(sorted(frozen_parameters(sampler.states[0].model).items()))
    check_info(sampler.info)
    interface = get_interface(sampler.states[0].model)
    if interface != NetworkInterface():
        metadata["interface"] = interface.describe()
    tensors, norm_tensors = _collect_tensors(sampler, weights, statistics_inputs), _collect_norm_statistics(sampler)
    if sampler.training_inputs is not None and with_training_inputs:
        statistics = sampler.training_inputs.to_tensors()
        tensors |= {f"{TRAINING_INPUTS_PREFIX}.{name}": tensor for name, tensor in statistics.items()}
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
    model: nn.Module | Callable[..., nn.Module] | None,
    likelihood: Likelihood | None,
    output: OutputSelector | None = None,
) -> NetworkSampler:
    """Read both files and rebuild the posterior on the CPU.

    Without a likelihood or an output, those of the metadata are used; without a model, it is one of flatbayes.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The artefact is damaged, from a newer version, or does not fit the model.
    """
    metadata, tensors, norm_tensors = _read_files(folder)
    return restore_sampler(folder, metadata, tensors, norm_tensors, model, likelihood, output)


def _collect_tensors(
    sampler: NetworkSampler, weights: Sequence[Mapping[str, Tensor]], statistics_inputs: Sequence[ModelInputs]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for k, (state, stored) in enumerate(zip(sampler.states, weights, strict=True)):
        check_numbers(select_required_numbers(state.model, stored) | state.statistics)
        tensors |= {f"run.{k}.model.{name}": tensor for name, tensor in stored.items()}
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
            norm_tensors = pop_prefix(_read_tensors(folder, metadata["norm_file"], metadata["norm_sha256"]), "draw")
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
    with explain_damage(folder):
        try:
            tensors = load_file(path)
        except Exception as error:
            if path.is_file():
                raise
            raise missing from error  # another process has replaced the artefact meanwhile
        check_numbers({key: tensor for key, tensor in tensors.items() if ".model." not in key})
    return tensors


def _describe_likelihood(likelihood: Likelihood) -> dict[str, Any] | None:
    try:
        spec: dict[str, Any] = to_spec(likelihood)
    except TypeError:  # it contains user code or tensors; load requires it as an argument
        return None
    return spec
