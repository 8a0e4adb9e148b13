"""Where training starts: from fresh weights, or from those of networks that are trained already."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.randomness import unmoved
from flatbayes.core.selection import all_names, listed, matching
from flatbayes.data import Standardize
from flatbayes.models.head import head_name
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.description import DESCRIPTION, read_description
from flatbayes.training.recipe import Recipe
from flatbayes.training.trained import read_weights, weights_in

Trained = str | Path | Mapping[str, Tensor]
"""A state dict; a file that holds one; or the folder of a fitted posterior, whose mean weights are meant."""

PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.")
"""What wrappers (parallel, compiled, of other libraries) put before every name."""

SHOWN = 4


@dataclass(frozen=True)
class Start:
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
    def of(
        cls,
        init: Trained | Sequence[Trained] | None,
        build: Callable[[], nn.Module],
        posterior: Posterior,
        *,
        new_head: bool,
        freeze: Sequence[str],
    ) -> "Start":
        """Read what there is, and find out whether it goes with the network.

        Args:
            init: Trained weights, or a list of them, one for each run.
            build: Builds the networks that are to be trained.
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
        with unmoved(None):
            network = build()
        weights: list[Mapping[str, Tensor]] = []
        transform: Standardize | None = None
        for one in [init] if isinstance(init, str | Path | Mapping) else init or ():
            if isinstance(one, str | Path) and (Path(one) / DESCRIPTION).is_file():
                fitted = earlier(Path(one), network)
                transform = transform or _standardize(fitted)
                weights += [centre(fitted.posterior, state) for state in fitted.states]
            else:
                found = read_weights(Path(one)) if isinstance(one, str | Path) else weights_in(one, "init")
                weights.append(found)
        runs = posterior.runs
        if weights and len(weights) != runs and not (len(weights) == 1 and new_head):
            if len(weights) < runs:
                raise ValueError(
                    f"{type(posterior).__name__} trains {runs} networks, and {len(weights)} trained ones are given "
                    f"to start from; those that start alike end up alike. Give a list of {runs}, or new_head=True "
                    "for the weights of one below a fresh head each."
                )
            weights = weights[:runs]
        start = cls(weights, new_head, freeze, transform)
        start.check(network)
        return start

    def check(self, network: nn.Module) -> None:
        """Refuse weights and patterns that do not go with a network.

        Raises:
            ValueError: See `of`.
        """
        for weights in self.weights:
            matched(weights, network, new_head=self.new_head)
        _frozen(network, self.freeze)

    def identity(self, transform: Standardize | None) -> str:
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

    def put(self, network: nn.Module, run: int) -> nn.Module:
        """The network itself, with the weights of a run, and with gradients only where it is to be trained."""
        if self.weights:
            weights = self.weights[min(run, len(self.weights) - 1)]
            network.load_state_dict(matched(weights, network, new_head=self.new_head), strict=False)
        for param in _frozen(network, self.freeze):
            param.requires_grad_(False)
        return network


def check_epochs(recipe: Recipe, *, trained: bool) -> None:
    """Refuse no epochs, unless there is something trained.

    Raises:
        ValueError: There is not.
    """
    if recipe.epochs < 1 and not trained:
        raise ValueError(
            f"epochs must be at least 1, got {recipe.epochs}: without training there must be a trained network to "
            "start from, init."
        )


def earlier(folder: Path, network: nn.Module) -> FittedPosterior:
    """The fitted posterior of a folder, with the architecture that it names, or else that of the network."""
    spec = read_description(folder)["info"].get("model")
    ours = isinstance(spec, dict) and str(spec.get("class_path")).startswith("flatbayes.models.")
    return FittedPosterior.load(folder, None if ours else network)


def centre(posterior: Posterior, state: State) -> dict[str, Tensor]:
    """The mean weights of a run: those that the model has, or where iterates were averaged, their average."""
    found = state.statistics
    if "sum_squares" not in found:
        return _copied(state.model)
    still = {name: t if name.startswith(("count", "mean")) else torch.zeros_like(t) for name, t in found.items()}
    with posterior.draw(State(state.model, None, state.num_data, still), torch.Generator()) as network:
        return _copied(network)


def matched(weights: Mapping[str, Tensor], network: nn.Module, *, new_head: bool) -> dict[str, Tensor]:
    """The weights under the names that the network has, all that are to be loaded.

    Args:
        weights: Trained weights by name, perhaps behind the prefix of a wrapper.
        network: The network.
        new_head: Whether its head may be left as it is.

    Raises:
        ValueError: Names or shapes differ, or values are not numbers.
    """
    wanted = network.state_dict()
    name = head_name(network)
    head = {f"{name}.{part}".removeprefix(".") for part in ("weight", "bias")} if name is not None else set()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    needed = wanted.keys() - counters - (head if new_head else set())
    found = _without_prefix(weights, needed, wanted.keys())
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
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names)
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


def _without_prefix(
    weights: Mapping[str, Tensor], needed: AbstractSet[str], known: AbstractSet[str]
) -> Mapping[str, Tensor]:
    """The weights below the first prefix that makes the names fit, or else as they are."""
    waiting = [dict(weights)]
    while waiting:
        inner = waiting.pop(0)
        if needed <= inner.keys() and (len(inner) < len(weights) or not inner.keys() - known):
            return {name: tensor for name, tensor in inner.items() if name in known}
        for prefix in PREFIXES:
            below = {name.removeprefix(prefix): t for name, t in inner.items() if name.startswith(prefix)}
            if below:
                waiting.append(below)
    return weights


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _frozen(network: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    params = all_names(network)
    for pattern in patterns:
        if not matching(list(params), pattern):
            raise ValueError(f"The pattern {pattern!r} of freeze matches no trainable parameter: {listed(params)}.")
    return [params[name] for pattern in patterns for name in matching(list(params), pattern)]


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _standardize(fitted: FittedPosterior) -> Standardize | None:
    return fitted.transform if isinstance(fitted.transform, Standardize) else None
