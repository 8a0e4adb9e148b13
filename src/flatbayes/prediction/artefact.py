"""A fitted posterior on disk: tensors in safetensors, everything else in JSON. Data, never code.

`posterior.json` names classes of flatbayes and their arguments, and carries the checksum of
`posterior.safetensors`; nothing is unpickled, and no class outside flatbayes is ever imported from it.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.files import read_json, replacing, write_json
from flatbayes.core.spec import build, to_spec
from flatbayes.data import Standardize
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior

if TYPE_CHECKING:
    from flatbayes.prediction.fitted import FittedPosterior

SCHEMA, READ = 2, (1, 2)
"""Schema 1 is that of versions in which the same seed drew other networks; its statistics of draws are not theirs."""
TENSORS, DESCRIPTION = "posterior.safetensors", "posterior.json"


def save(fitted: "FittedPosterior", folder: Path) -> Path:
    """Write both files, the description last, so that an interrupted write is seen as damage.

    Raises:
        TypeError: The transform or the posterior is not one that data can describe.
    """
    if fitted.transform is not None and not isinstance(fitted.transform, Standardize):
        raise TypeError(
            f"Only a Standardize transform can be saved, got {type(fitted.transform).__name__}. Put other "
            "preparation of inputs into the model, or set transform=None and prepare them before predict."
        )
    tensors = _tensors(fitted)
    description = {
        "schema": SCHEMA,
        "posterior": to_spec(fitted.posterior),
        "likelihood": _described(fitted.likelihood),
        "num_data": [state.num_data for state in fitted.states],
        "num_statistics_batches": len(fitted.statistics_inputs),
        "info": fitted.info,
    }
    with replacing(folder / TENSORS) as temporary:
        save_file(tensors, temporary)
        temporary.chmod(0o644)  # the library makes it private
        description["sha256"] = _checksum(temporary)
    write_json(folder / DESCRIPTION, description)
    return folder


def load(
    folder: Path, model: nn.Module | Callable[[], nn.Module] | None, likelihood: Likelihood | None
) -> "FittedPosterior":
    """Read both files and rebuild the posterior, on the CPU.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: They are damaged, from a newer version, or do not fit the model.
    """
    from flatbayes.prediction.fitted import FittedPosterior

    for name in (DESCRIPTION, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"There is no fitted posterior in {folder}: {name} is missing.")
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or "schema" not in description:
        raise ValueError(f"{folder / DESCRIPTION} is damaged: it does not describe a fitted posterior.")
    if description["schema"] not in READ:
        raise ValueError(
            f"{folder} was written in schema {description['schema']}, and this version of flatbayes reads schemas "
            f"{READ}. Use the version that it names: {description.get('info', {}).get('flatbayes')}."
        )
    if _checksum(folder / TENSORS) != description.get("sha256"):
        raise ValueError(f"{folder / TENSORS} is damaged: its checksum is not the one it was saved with.")
    try:
        tensors = load_file(folder / TENSORS)
        posterior = build(description["posterior"], within="flatbayes.posteriors")
        likelihood = likelihood or _likelihood(description["likelihood"])
        info, num_data = dict(description["info"]), list(description["num_data"])
        statistics_inputs = [tensors[f"inputs.{k}"] for k in range(description["num_statistics_batches"])]
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__} {error}.") from error
    make_model = _architecture(model, info)
    states = [_state(posterior, make_model(), n, _below(tensors, f"run.{k}"), folder) for k, n in enumerate(num_data)]
    scale = _below(tensors, "standardize")
    fitted = FittedPosterior(
        posterior=posterior,
        states=states,
        likelihood=likelihood,
        transform=Standardize(mean=scale["mean"], std=scale["std"]) if scale else None,
        statistics_inputs=statistics_inputs,
        info=info,
    )
    for name, tensor in _below(tensors, "draw").items() if description["schema"] == SCHEMA else ():
        seed, run, draw, buffer = name.split(".", 3)
        fitted.statistics_of_draws.setdefault((int(seed), int(run), int(draw)), {})[buffer] = tensor
    return fitted


def _tensors(fitted: "FittedPosterior") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for k, state in enumerate(fitted.states):
        found |= {f"run.{k}.model.{name}": tensor for name, tensor in state.model.state_dict().items()}
        found |= {f"run.{k}.statistics.{name}": tensor for name, tensor in state.statistics.items()}
    # The same seed draws other networks on another kind of device, and artefacts are loaded on the CPU.
    cached = fitted.statistics_of_draws if fitted.device.type == "cpu" else {}
    for (seed, run, draw), buffers in cached.items():
        found |= {f"draw.{seed}.{run}.{draw}.{name}": tensor for name, tensor in buffers.items()}
    found |= {f"inputs.{k}": batch for k, batch in enumerate(fitted.statistics_inputs)}
    if isinstance(fitted.transform, Standardize):
        found |= {"standardize.mean": fitted.transform.mean, "standardize.std": fitted.transform.std}
    # Tied weights share memory, which the format refuses; a copy each is loaded back into the same tensor.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}


def _state(
    posterior: Posterior, model: nn.Module, num_data: int, tensors: Mapping[str, Tensor], folder: Path
) -> State:
    weights, statistics = _below(tensors, "model"), _below(tensors, "statistics")
    example = next((t for t in weights.values() if t.is_floating_point()), None)
    state = posterior.init(model if example is None else model.to(example.dtype), None, num_data)
    try:
        state.load_state_dict({"model": weights, "optimizer": None, "statistics": statistics})
    except RuntimeError as error:
        raise ValueError(
            f"The posterior in {folder} was fitted to another architecture than {type(model).__name__}: {error}"
        ) from error
    state.model.eval()
    return state


def _described(likelihood: Likelihood) -> Any:
    try:
        return to_spec(likelihood)
    except TypeError:  # it has code or tensors of the user's, who is asked for it when the artefact is read
        return None


def _likelihood(spec: Any) -> Likelihood:
    if spec is None:
        raise ValueError("This artefact's likelihood has code of yours, which is not kept: pass `likelihood`.")
    try:
        found: Likelihood = build(spec, within="flatbayes.likelihoods")
    except ValueError as error:
        raise ValueError(f"{error} If this artefact's likelihood has code of yours, pass `likelihood`.") from error
    return found


def _architecture(
    model: nn.Module | Callable[[], nn.Module] | None, info: Mapping[str, Any]
) -> Callable[[], nn.Module]:
    if isinstance(model, nn.Module):
        return lambda: copy.deepcopy(model)
    if model is not None:
        return model
    spec = info.get("model")
    if not isinstance(spec, dict):
        raise ValueError("The artefact does not say what its model is: pass `model`, the network or its class.")
    if not str(spec.get("class_path")).startswith("flatbayes.models."):
        named = spec.get("init_args", {}).get("path") or spec.get("class_path")  # the former if it has a new head
        raise ValueError(
            f"The model of this artefact is {named}, which is not part of flatbayes, and nothing is "
            "imported because an artefact says so: pass `model`, the network or a function that builds it."
        )

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = build(spec, within="flatbayes.models")
        return network

    return make


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
