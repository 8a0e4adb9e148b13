"""Where training starts: from fresh weights, or from those of networks that are trained already."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.parameter_selection import format_names, match_names, named_trainable
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import Standardize
from flatbayes.models.head import find_head_name
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.metadata import METADATA_FILE, read_metadata
from flatbayes.training.config import TrainingConfig
from flatbayes.training.weight_files import extract_state_dict, read_weights

PretrainedWeights = str | Path | Mapping[str, Tensor]
"""A state dict; a file that holds one; or the folder of a fitted posterior, whose mean weights are meant."""

WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
"""What wrappers (parallel, compiled, of other libraries) put before every name."""

MAX_LISTED_NAMES = 4


@dataclass(frozen=True)
class WarmStart:
    """What is done to a network before its training.

    Attributes:
        weights: Trained weights by name, of each run, or one set for all; none for fresh ones.
        new_head: Leave the last linear layer fresh where the trained one has another shape, or there is none.
        freeze: Patterns of names of parameters that are not trained.
        transform: What the trained networks had their inputs standardised by, where that is known.
    """

    weights: Sequence[Mapping[str, Tensor]] = ()
    new_head: bool = False
    freeze: Sequence[str] = ()
    transform: Standardize | None = None

    @classmethod
    def from_init(
        cls,
        init: PretrainedWeights | Sequence[PretrainedWeights] | None,
        build_model: Callable[[], nn.Module],
        posterior: Posterior,
        *,
        new_head: bool,
        freeze: Sequence[str],
    ) -> "WarmStart":
        """Read what there is, and find out whether it goes with the network.

        Args:
            init: Trained weights, or a list of them, one for each run.
            build_model: Builds the networks that are to be trained.
            posterior: What is to be fitted.
            new_head: As the attribute.
            freeze: As the attribute.

        Raises:
            ValueError: The weights are not those of this network, there are too few of them, or a pattern of `freeze`
                matches nothing.
        """
        if init is None and new_head:
            raise ValueError("new_head is about trained weights to start from: give init too.")
        if init is None and not freeze:
            return cls()
        with preserve_rng(None):
            network = build_model()
        weights: list[Mapping[str, Tensor]] = []
        transform: Standardize | None = None
        for one in [init] if isinstance(init, str | Path | Mapping) else init or ():
            if isinstance(one, str | Path) and (Path(one) / METADATA_FILE).is_file():
                fitted = load_fitted(Path(one), network)
                transform = transform or _get_standardize(fitted)
                weights += [extract_mean_weights(fitted.posterior, state) for state in fitted.states]
            else:
                found = read_weights(Path(one)) if isinstance(one, str | Path) else extract_state_dict(one, "init")
                weights.append(found)
        runs = posterior.num_members
        if weights and len(weights) != runs and not (len(weights) == 1 and new_head):
            if len(weights) < runs:
                raise ValueError(
                    f"{type(posterior).__name__} trains {runs} networks, and {len(weights)} trained ones are given "
                    f"to start from; those that start alike end up alike. Give a list of {runs}, or new_head=True "
                    "for the weights of one below a fresh head each."
                )
            weights = weights[:runs]
        start = cls(weights, new_head, freeze, transform)
        start.check_network(network)
        return start

    def check_network(self, network: nn.Module) -> None:
        """Refuse weights and patterns that do not go with a network.

        Raises:
            ValueError: See `of`.
        """
        for weights in self.weights:
            match_weights(weights, network, new_head=self.new_head)
        _select_frozen(network, self.freeze)

    def fingerprint(self, transform: Standardize | None) -> str:
        """What tells this start from others, in the form of a checksum.

        Args:
            transform: What inputs are standardised by.
        """
        found = hashlib.sha256(repr((self.new_head, list(self.freeze))).encode())
        scale = [] if transform is None else [("mean", transform.mean), ("std", transform.std)]
        for name, tensor in [*(pair for weights in self.weights for pair in sorted(weights.items())), *scale]:
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def apply_to(self, network: nn.Module, member: int) -> nn.Module:
        """The network itself, with the weights of a run, and with gradients only where it is to be trained."""
        if self.weights:
            weights = self.weights[min(member, len(self.weights) - 1)]
            network.load_state_dict(match_weights(weights, network, new_head=self.new_head), strict=False)
        for param in _select_frozen(network, self.freeze):
            param.requires_grad_(False)
        return network


def check_epochs(config: TrainingConfig, *, has_init: bool) -> None:
    """Refuse no epochs, unless there is something trained.

    Raises:
        ValueError: There is not.
    """
    if config.epochs < 1 and not has_init:
        raise ValueError(
            f"epochs must be at least 1, got {config.epochs}: without training there must be a trained network to "
            "start from, init."
        )


def load_fitted(folder: Path, network: nn.Module) -> FittedPosterior:
    """The fitted posterior of a folder, with the architecture that it names, or else that of the network."""
    spec = read_metadata(folder)["info"].get("model")
    ours = isinstance(spec, dict) and str(spec.get("class_path")).startswith("flatbayes.models.")
    return FittedPosterior.load(folder, None if ours else network)


def extract_mean_weights(posterior: Posterior, state: State) -> dict[str, Tensor]:
    """The mean weights of a run: those that the model has, or where iterates were averaged, their average."""
    found = state.statistics
    if "sum_squares" not in found:
        return _copy_state_dict(state.model)
    still = {name: t if name.startswith(("count", "mean")) else torch.zeros_like(t) for name, t in found.items()}
    with posterior.draw(State(state.model, None, state.num_data, still), torch.Generator()) as network:
        return _copy_state_dict(network)


def match_weights(weights: Mapping[str, Tensor], network: nn.Module, *, new_head: bool) -> dict[str, Tensor]:
    """The weights under the names that the network has, all that are to be loaded.

    Args:
        weights: Trained weights by name, perhaps behind the prefix of a wrapper.
        network: The network.
        new_head: Whether its head may be left as it is.

    Raises:
        ValueError: Names or shapes differ, or values are not numbers.
    """
    wanted = network.state_dict()
    name = find_head_name(network)
    head = {f"{name}.{part}".removeprefix(".") for part in ("weight", "bias")} if name is not None else set()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    needed = wanted.keys() - counters - (head if new_head else set())
    found = _strip_prefix(weights, needed, wanted.keys())
    other = {name for name in found.keys() & wanted.keys() if found[name].shape != wanted[name].shape}
    wrong = {
        "missing": [name for name in wanted if name in needed and name not in found],
        "not in the network": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
            for name in wanted
            if name in (other & needed if new_head else other)
        ],
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {_summarize_names(names)}" for what, names in wrong.items() if names)
        only_head = not new_head and other and other <= head and not wrong["missing"]
        advice = (
            "Only the last layer differs, as with another number of classes: new_head=True (--new_head) starts it "
            "anew."
            if only_head
            else "Give the architecture that they were trained in; new_head=True (--new_head) starts the last layer "
            "anew."
        )
        raise ValueError(f"The trained weights are not those of {type(network).__name__}. {listed}. {advice}")
    bad = next((n for n, t in found.items() if t.is_floating_point() and not bool(t.isfinite().all())), None)
    if bad is not None:
        raise ValueError(f"The trained weights are damaged: {bad} holds values that are not finite.")
    return {name: tensor for name, tensor in found.items() if name not in other}


def _strip_prefix(
    weights: Mapping[str, Tensor], required_names: AbstractSet[str], network_names: AbstractSet[str]
) -> Mapping[str, Tensor]:
    """The weights below the first prefix that makes the names fit, or else as they are."""
    waiting = [dict(weights)]
    while waiting:
        inner = waiting.pop(0)
        if required_names <= inner.keys() and (len(inner) < len(weights) or not inner.keys() - network_names):
            return {name: tensor for name, tensor in inner.items() if name in network_names}
        for prefix in WRAPPER_PREFIXES:
            below = {name.removeprefix(prefix): t for name, t in inner.items() if name.startswith(prefix)}
            if below:
                waiting.append(below)
    return weights


def _summarize_names(names: Sequence[str]) -> str:
    more = len(names) - MAX_LISTED_NAMES
    return ", ".join(names[:MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def _select_frozen(network: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    params = named_trainable(network)
    for pattern in patterns:
        if not match_names(list(params), pattern):
            raise ValueError(
                f"The pattern {pattern!r} of freeze matches no trainable parameter: {format_names(params)}."
            )
    return [params[name] for pattern in patterns for name in match_names(list(params), pattern)]


def _copy_state_dict(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _get_standardize(fitted: FittedPosterior) -> Standardize | None:
    return fitted.transform if isinstance(fitted.transform, Standardize) else None
