"""A fitted posterior on disk: tensors in safetensors, everything else in JSON. Data, never code.

`posterior.json` names classes of flatbayes and their arguments, and carries the checksum of
`posterior.safetensors` and one of itself. Nothing is unpickled, no class outside flatbayes is ever imported from it,
and what it describes is not built if that is larger than the tensors that it holds.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.files import atomic_write
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.data import Standardize
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction.limits import AllocationLimit, check_max_integer
from flatbayes.prediction.metadata import (
    SCHEMA_VERSION,
    TENSORS_FILE,
    compute_file_checksum,
    read_metadata,
    resolve_artefact_file,
    write_metadata,
)

if TYPE_CHECKING:
    from flatbayes.prediction.fitted import FittedPosterior

MAX_MODEL_SPEC_CHARS = 2**16
"""Longest description of a network: constructors need not be fast at long lists."""


def save_posterior(fitted: "FittedPosterior", folder: Path) -> Path:
    """Write both files, the description last, so that an interrupted write is seen as damage.

    Raises:
        TypeError: The transform or the posterior is not one that data can describe.
    """
    if fitted.transform is not None and not isinstance(fitted.transform, Standardize):
        raise TypeError(
            f"Only a Standardize transform can be saved, got {type(fitted.transform).__name__}. Put other "
            "preparation of inputs into the model, or set transform=None and prepare them before predict."
        )
    tensors = _collect_tensors(fitted)
    description = {
        "schema": SCHEMA_VERSION,
        "posterior": to_spec(fitted.posterior),
        "likelihood": _describe_likelihood(fitted.likelihood),
        "num_data": [state.num_data for state in fitted.states],
        "num_statistics_batches": len(fitted.statistics_inputs),
        "frozen": _list_frozen_parameters(fitted.states[0].model),
        "info": fitted.info,
    }
    with atomic_write(folder / TENSORS_FILE) as temporary:
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # the library makes it private
        description["sha256"] = compute_file_checksum(temporary)
    write_metadata(folder, description)
    return folder


def load_posterior(
    folder: Path, model: nn.Module | Callable[[], nn.Module] | None, likelihood: Likelihood | None
) -> "FittedPosterior":
    """Read both files and rebuild the posterior, on the CPU.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: They are damaged, from a newer version, or do not fit the model.
    """
    from flatbayes.prediction.fitted import FittedPosterior

    description = read_metadata(folder)
    if compute_file_checksum(resolve_artefact_file(folder, TENSORS_FILE)) != description["sha256"]:
        raise ValueError(f"{folder / TENSORS_FILE} is damaged: its checksum is not the one it was saved with.")
    info: dict[str, Any] = description["info"]
    with _wrap_artefact_errors(folder):
        tensors = load_file(folder / TENSORS_FILE)
        _check_no_nan(tensors)
        check_max_integer(description["posterior"], 2**62)
        posterior = instantiate(description["posterior"], package="flatbayes.posteriors", base_class=Posterior)
        if not isinstance(posterior, Posterior):
            raise TypeError("it names no posterior")
        num_data = _check_num_data(description["num_data"], posterior)
        statistics_inputs = [tensors.pop(f"inputs.{k}") for k in range(description["num_statistics_batches"])]
        transform = _restore_transform(_pop_prefix(tensors, "standardize"))
        drawn = _pop_prefix(tensors, "draw")
        likelihood = likelihood or _restore_likelihood(description["likelihood"], tensors)
    make_model = _make_model_builder(model, info)
    states = []
    for k, n in enumerate(num_data):
        run = _pop_prefix(tensors, f"run.{k}")
        network = make_model(run)
        if "frozen" in description:
            _freeze_parameters(network, description["frozen"])
        with _wrap_artefact_errors(folder):
            states.append(_restore_state(posterior, network, n, run, folder))
    if tensors:
        raise ValueError(f"{folder} is damaged: it holds tensors that belong to nothing, such as {min(tensors)!r}.")
    fitted = FittedPosterior(
        posterior=posterior,
        states=states,
        likelihood=likelihood,
        transform=transform,
        statistics_inputs=statistics_inputs,
        info=info,
    )
    if description["schema"] > 1:
        with _wrap_artefact_errors(folder):
            fitted.norm_statistics.update(_parse_norm_statistics(drawn, states))
    return fitted


@contextmanager
def _wrap_artefact_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__} {str(error)[:500]}.") from error
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder} cannot be used: {str(error)[:500]}") from error


def _collect_tensors(fitted: "FittedPosterior") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for k, state in enumerate(fitted.states):
        twice = _find_tied_tensors(state.model)
        weights = state.model.state_dict()
        found |= {f"run.{k}.model.{name}": tensor for name, tensor in weights.items() if name not in twice}
        found |= {f"run.{k}.statistics.{name}": tensor for name, tensor in state.statistics.items()}
    # The same seed draws other networks on another kind of device, and artefacts are loaded on the CPU.
    cached = fitted.norm_statistics if fitted.device.type == "cpu" else {}
    for (seed, run, draw), buffers in cached.items():
        found |= {f"draw.{seed}.{run}.{draw}.{name}": tensor for name, tensor in buffers.items()}
    found |= {f"inputs.{k}": batch for k, batch in enumerate(fitted.statistics_inputs)}
    if isinstance(fitted.transform, Standardize):
        found |= {"standardize.mean": fitted.transform.mean, "standardize.std": fitted.transform.std}
    # Tensors that are parts of one memory are refused by the format; copies are not.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _restore_state(
    posterior: Posterior, model: nn.Module, num_data: int, tensors: Mapping[str, Tensor], folder: Path
) -> State:
    weights, statistics = _select_prefix(tensors, "model"), _select_prefix(tensors, "statistics")
    if len(weights) + len(statistics) < len(tensors):
        raise ValueError(f"{folder} is damaged: a run holds neither weights nor statistics in some of its tensors.")
    weights |= {
        name: weights[first]
        for name, first in _find_tied_tensors(model).items()
        if name not in weights and first in weights
    }
    example = next((t for t in weights.values() if t.is_floating_point()), None)
    with AllocationLimit(tensors):
        state = posterior.init(model if example is None else model.to(example.dtype), None, num_data)
    try:
        state.load_state_dict({"model": weights, "optimizer": None, "statistics": statistics})
    except RuntimeError as error:
        raise ValueError(
            f"The posterior in {folder} was fitted to another architecture than {type(model).__name__}: {error}"
        ) from error
    state.model.eval()
    return state


def _find_tied_tensors(model: nn.Module) -> dict[str, str]:
    """Names of a state dict whose tensor is there already, with the first name of it."""
    first: dict[tuple[Any, ...], str] = {}
    again: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            known = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
            again |= {name: known} if known != name else {}
    return again


def _parse_norm_statistics(
    tensors: Mapping[str, Tensor], states: list[State]
) -> dict[tuple[int, int, int], dict[str, Tensor]]:
    found: dict[tuple[int, int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        seed, run, draw, buffer = name.split(".", 3)
        wanted = dict(states[int(run)].model.named_buffers())[buffer]
        if tensor.shape != wanted.shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(wanted.shape)}.")
        found.setdefault((int(seed), int(run), int(draw)), {})[buffer] = tensor
    return found


def _check_num_data(num_data: list[Any], posterior: Posterior) -> list[int]:
    if not 1 <= len(num_data) <= posterior.num_members or not all(type(n) is int and 0 < n < 2**62 for n in num_data):
        raise ValueError(
            f"its numbers of training examples are {str(num_data)[:80]}, for {posterior.num_members} runs."
        )
    return num_data


def _restore_transform(tensors: Mapping[str, Tensor]) -> Standardize | None:
    if not tensors:
        return None
    mean, std = tensors["mean"], tensors["std"]
    if len(tensors) > 2 or mean.shape != std.shape or mean.ndim not in (1, 3) or not (std > 0).all():
        raise ValueError("it standardises inputs by what are no mean and standard deviation.")
    return Standardize(mean=mean, std=std)


def _check_no_nan(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError(f"{name} holds values that are not numbers (NaN), and so would every prediction.")


def _list_frozen_parameters(model: nn.Module) -> list[str]:
    return [name for name, param in model.named_parameters() if not param.requires_grad]


def _freeze_parameters(model: nn.Module, names: Any) -> None:
    known = {name for name, _ in model.named_parameters()}
    if not isinstance(names, list) or not all(isinstance(name, str) and name in known for name in names):
        return  # of another architecture, which is refused where its weights are loaded
    for name, param in model.named_parameters():
        if param.is_floating_point():
            param.requires_grad_(name not in names)


def _describe_likelihood(likelihood: Likelihood) -> Any:
    try:
        return to_spec(likelihood)
    except TypeError:  # it has code or tensors of the user's, who is asked for it when the artefact is read
        return None


def _restore_likelihood(spec: Any, tensors: Mapping[str, Tensor]) -> Likelihood:
    if spec is None:
        raise ValueError("This artefact's likelihood has code of yours, which is not kept: pass `likelihood`.")
    check_max_integer(spec, sum(tensor.numel() for tensor in tensors.values()))  # there is a bias for every output
    try:
        found = instantiate(spec, package="flatbayes.likelihoods", base_class=Likelihood)
    except ValueError as error:
        raise ValueError(f"{error} If this artefact's likelihood has code of yours, pass `likelihood`.") from error
    if not isinstance(found, Likelihood):
        raise TypeError("it names no likelihood")
    return found


def _make_model_builder(
    model: nn.Module | Callable[[], nn.Module] | None, info: Mapping[str, Any]
) -> Callable[[Mapping[str, Tensor]], nn.Module]:
    if isinstance(model, nn.Module):
        return lambda tensors: copy.deepcopy(model)
    if model is not None:
        return lambda tensors: model()
    spec = info.get("model")
    if not isinstance(spec, dict) or not isinstance(spec.get("init_args", {}), dict):
        raise ValueError("The artefact does not say what its model is: pass `model`, the network or its class.")
    if not str(spec.get("class_path")).startswith("flatbayes.models."):
        named = spec.get("init_args", {}).get("path") or spec.get("class_path")  # the former if it has a new head
        raise ValueError(
            f"The model of this artefact is {str(named)[:200]}, which is not part of flatbayes, and nothing is "
            "imported because an artefact says so: pass `model`, the network or a function that builds it."
        )

    def build_model(tensors: Mapping[str, Tensor]) -> nn.Module:
        if len(str(spec)) > MAX_MODEL_SPEC_CHARS:
            raise ValueError(f"The description of the model is longer than {MAX_MODEL_SPEC_CHARS} characters.")
        check_max_integer(spec, 2**62)
        try:
            with torch.random.fork_rng(devices=[]), AllocationLimit(tensors):
                network = instantiate(spec, package="flatbayes.models", base_class=nn.Module)
        except (TypeError, AttributeError, ArithmeticError, RuntimeError, LookupError) as error:
            raise ValueError(f"The artefact describes a model that cannot be built: {str(error)[:500]}") from error
        if not isinstance(network, nn.Module):
            raise ValueError("The artefact describes something else than a model.")
        return network

    return build_model


def _select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _pop_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """As `_select_prefix`, and taken out."""
    found = _select_prefix(tensors, prefix)
    for name in found:
        del tensors[f"{prefix}.{name}"]
    return found
