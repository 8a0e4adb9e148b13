"""Warm start: initial weights from trained networks, and parameters that are not trained."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.content import hash_content
from flatbayes.core.names import format_names
from flatbayes.core.networks import hash_tensors
from flatbayes.core.parameter_selection import explain_unmatched, match_names, named_trainable
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import Standardize
from flatbayes.models.head import count_head_outputs, find_head_name, replace_head
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.metadata import METADATA_FILE, read_metadata
from flatbayes.training.weight_files import extract_state_dict, read_weights

PretrainedWeights = str | Path | Mapping[str, Tensor] | nn.Module | FittedPosterior
"""A network, a state dict, a file with one, or a fitted posterior or its folder, whose mean weights are used."""

WRAPPER_PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
"""Prefixes that wrappers (parallel, compiled, of other libraries) add to every name."""

MAX_LISTED_NAMES = 4


@dataclass(frozen=True)
class WarmStart:
    """Pretrained weights and frozen parameters of the networks of a fit.

    Attributes:
        weights: Trained weights by name, for each member, or one set for all; empty for fresh weights.
        new_head: Keep the last linear layer fresh if the trained one has another shape or is missing.
        head_outputs: Number of outputs that the last linear layer gets; None if it stays as it is built.
        has_positions: Whether outputs are those of positions, so that the last layer may be a convolution.
        has_fresh_head: Whether the last linear layer is a fresh one.
        freeze: Name patterns of parameters that are not trained.
        transform: Standardization that the trained networks used, if it is known.
        network: The network that is trained, if the model is no class or function.
        class_names: Names of the classes of the fitted posteriors whose weights are used, as far as they are known.
    """

    weights: Sequence[Mapping[str, Tensor]] = ()
    new_head: bool = False
    freeze: Sequence[str] = ()
    transform: Standardize | None = None
    head_outputs: int | None = None
    has_positions: bool = False
    has_fresh_head: bool = False
    network: nn.Module | None = None
    class_names: tuple[str, ...] = ()

    @classmethod
    def from_init(
        cls,
        init: PretrainedWeights | Sequence[PretrainedWeights] | None,
        build_model: Callable[[], nn.Module],
        *,
        new_head: bool,
        freeze: Sequence[str],
        head_outputs: int | None = None,
        has_positions: bool = False,
    ) -> "WarmStart":
        """Read trained weights, of one network or a list for all members, and check that they match the network.

        Raises:
            ValueError: The weights are not those of this network, or `freeze` is no list or has a pattern that
                matches nothing.
        """
        if isinstance(freeze, str):
            raise ValueError(f"freeze must be a list of name patterns, got a text: write freeze=[{freeze!r}].")
        if init is None and new_head and head_outputs is None:
            raise ValueError(
                "new_head needs trained weights to start from: give init, or a network with them as the model."
            )
        if init is None and not freeze and not new_head:
            return cls()
        with preserve_rng(None):
            network = build_model()
            given_outputs = count_head_outputs(network, has_positions=has_positions)
            if head_outputs is not None:
                network = replace_head(network, head_outputs, has_positions=has_positions)
        weights: list[Mapping[str, Tensor]] = []
        transform: Standardize | None = None
        class_names: tuple[str, ...] = ()
        for source in list_sources(init):
            if isinstance(source, str | Path) and (Path(source) / METADATA_FILE).is_file():
                source = _load_fitted(Path(source), network)
            if isinstance(source, FittedPosterior):
                class_names = class_names or tuple(map(str, source.info.get("class_names") or ()))
                if transform is None and isinstance(source.transform, Standardize):
                    transform = source.transform
                weights += [extract_mean_weights(source.posterior, state) for state in source.states]
            elif isinstance(source, nn.Module):
                weights.append(source.state_dict())
            elif isinstance(source, Mapping):
                weights.append(extract_state_dict(source, "init"))
            else:
                weights.append(read_weights(Path(source)))
        head = _head_names(network, has_positions=has_positions)
        matched = [match_weights(state_dict, network, head, new_head=new_head) for state_dict in weights]
        _select_frozen(network, freeze)
        is_replaced = head_outputs not in (None, given_outputs)
        is_fresh = any(head - loaded.keys() for loaded in matched) if weights else is_replaced
        return cls(
            weights, new_head, freeze, transform, head_outputs, has_positions, is_fresh, class_names=class_names
        )

    def check_class_names(self, class_names: Sequence[str]) -> None:
        """Refuse a trained last layer whose classes have other numbers in the data.

        Raises:
            ValueError: A class has another number, as where the labels of the data are texts and lack a class.
        """
        if self.has_fresh_head:
            return
        own = {name: index for index, name in enumerate(self.class_names)}
        moved = [(name, k) for k, name in enumerate(class_names) if own.get(name, k) != k]
        if moved:
            name, index = moved[0]
            raise ValueError(
                f"init was trained with {name!r} as class {own[name]}, and in the data it is class {index}: "
                f"{', '.join(map(repr, self.class_names[:5]))} and {', '.join(map(repr, class_names[:5]))}. Number "
                "the labels yourself and pass likelihood=Categorical(num_classes), or new_head=True for a new last "
                "layer."
            )

    def check_members(self, posterior: Posterior) -> None:
        """Refuse trained weights that are fewer than the networks of a posterior.

        Raises:
            ValueError: There are fewer, and the networks have no fresh heads either.
        """
        num_members, num_trained = posterior.num_members, len(self.weights)
        if (
            self.new_head
            and num_trained <= 1 < num_members
            and (num_trained or self.network is not None)
            and not self.has_fresh_head
        ):
            raise ValueError(
                f"{type(posterior).__name__} trains {num_members} networks from the same initial weights, since the "
                "trained last layer has the right shape and new_head keeps it; such networks end up alike. Give a "
                f"list of {num_members} trained ones as init."
            )
        if 0 < num_trained < num_members and not (num_trained == 1 and self.new_head):
            raise ValueError(
                f"{type(posterior).__name__} trains {num_members} networks, and init has {num_trained} trained "
                "ones; networks with the same initial weights end up alike. Give a list of "
                f"{num_members}, or new_head=True for one set of weights with a fresh head for each network."
            )

    def fingerprint(self, transform: Standardize | None, num_members: int | None = None) -> str | None:
        """Checksum of network, trained weights, frozen parameters and input transform; None for fresh weights.

        The weights are those that `num_members` networks use, None for all.
        """
        network = None if self.network is None else hash_content(self.network)
        if not self.weights and not self.freeze:
            return network
        statistics = [] if transform is None else [("mean", transform.mean), ("std", transform.std)]
        weights = [pair for state_dict in self.weights[:num_members] for pair in sorted(state_dict.items())]
        return hash_tensors([*weights, *statistics], f"{network or ''}{(self.new_head, list(self.freeze))}")

    def apply_to(self, network: nn.Module, member: int) -> nn.Module:
        """Load the weights of a member, and turn off gradients of frozen parameters, in place; return the network."""
        if self.head_outputs is not None:
            network = replace_head(network, self.head_outputs, has_positions=self.has_positions)
        if self.weights:
            weights = self.weights[min(member, len(self.weights) - 1)]
            head = _head_names(network, has_positions=self.has_positions)
            network.load_state_dict(match_weights(weights, network, head, new_head=self.new_head), strict=False)
        for param in _select_frozen(network, self.freeze):
            param.requires_grad_(False)
        return network


def list_sources(init: PretrainedWeights | Sequence[PretrainedWeights] | None) -> list[PretrainedWeights]:
    """The trained weights that are given: one, several, or none."""
    if init is None:
        return []
    return list(init) if isinstance(init, Sequence) and not isinstance(init, str) else [init]


def extract_mean_weights(posterior: Posterior, state: State) -> dict[str, Tensor]:
    """The mean weights of a member: those of the model, or the average of the iterates if the posterior has one."""
    statistics = state.statistics
    if "sum_squares" not in statistics:
        return {name: tensor.detach().clone() for name, tensor in state.model.state_dict().items()}
    # With all deviations at zero, a draw is the mean.
    mean_only = {
        name: tensor if name.startswith(("count", "mean")) else torch.zeros_like(tensor)
        for name, tensor in statistics.items()
    }
    mean_state = State(state.model, None, state.num_data, mean_only)
    with posterior.draw(mean_state, torch.Generator()) as network:
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _load_fitted(folder: Path, network: nn.Module) -> FittedPosterior:
    """The fitted posterior of a folder, with its own architecture if it is one of flatbayes, else the network's."""
    spec = read_metadata(folder)["info"].get("model")
    is_own = isinstance(spec, dict) and str(spec.get("class_path")).startswith("flatbayes.models.")
    return FittedPosterior.load(folder, None if is_own else network)


def match_weights(
    weights: Mapping[str, Tensor], network: nn.Module, head: AbstractSet[str] | None = None, *, new_head: bool
) -> dict[str, Tensor]:
    """The trained weights that are to be loaded, under the names of the network.

    The head is by default the last linear layer; with `new_head` its weights may be missing or have another shape.
    Names of trained weights may have the prefix of a wrapper.

    Raises:
        ValueError: Names or shapes differ, or a value is not finite.
    """
    own = network.state_dict()
    head = _head_names(network) if head is None else head
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    required = own.keys() - counters - (head if new_head else set())
    weights = _strip_prefix(weights, required, own.keys())
    reshaped = {name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape}
    problems = {
        "missing": [name for name in own if name in required and name not in weights],
        "not in the network": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in (reshaped & required if new_head else reshaped)
        ],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{problem}: {format_names(names, MAX_LISTED_NAMES)}" for problem, names in problems.items() if names
        )
        is_head_only = not new_head and reshaped and reshaped <= head and not problems["missing"]
        advice = (
            "Only the last layer differs, as with another number of classes: new_head=True (--new_head) starts it "
            "from fresh weights."
            if is_head_only
            else "Give the architecture that they were trained in; new_head=True (--new_head) starts the last layer "
            "from fresh weights."
        )
        raise ValueError(f"The trained weights are not those of {type(network).__name__}. {listed}. {advice}")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"The trained weights are damaged: {name} holds values that are not finite.")
    return {name: tensor for name, tensor in weights.items() if name not in reshaped}


def _head_names(network: nn.Module, *, has_positions: bool = False) -> set[str]:
    """Names of the parameters of the last layer, as of `replace_head`; none if there is no such layer."""
    name = find_head_name(network, has_positions=has_positions)
    return (
        set()
        if name is None
        else {f"{name}.{kind}".removeprefix(".") for kind in ("weight", "bias")} & {*network.state_dict()}
    )


def _strip_prefix(
    weights: Mapping[str, Tensor], required_names: AbstractSet[str], network_names: AbstractSet[str]
) -> Mapping[str, Tensor]:
    """The weights below the first prefix that makes the names match, or the weights themselves."""
    candidates = [dict(weights)]
    while candidates:
        inner = candidates.pop(0)
        if required_names <= inner.keys() and (len(inner) < len(weights) or not inner.keys() - network_names):
            return {name: tensor for name, tensor in inner.items() if name in network_names}
        for prefix in WRAPPER_PREFIXES:
            below = {name.removeprefix(prefix): t for name, t in inner.items() if name.startswith(prefix)}
            if below:
                candidates.append(below)
    return weights


def _select_frozen(network: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    params = named_trainable(network)
    for pattern in patterns:
        if not match_names(list(params), pattern):
            frozen_names = [name for name, param in network.named_parameters() if not param.requires_grad]
            raise ValueError(
                f"The pattern {pattern!r} of freeze matches no trainable parameter of {type(network).__name__}. "
                f"{explain_unmatched(pattern, list(params), frozen_names)}"
            )
    return [params[name] for pattern in patterns for name in match_names(list(params), pattern)]
