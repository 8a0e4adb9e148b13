"""Guard of a state whose network changes: parameters that are frozen, unfrozen, added or replaced after `init`.

The statistics of a posterior are those of the parameters that were trained at `init`. Training and snapshots with
others are refused. A draw is over the parameters of `init`, also where the network was frozen for prediction.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from inspect import isfunction
from typing import Any

from torch import nn

from flatbayes.core import State
from flatbayes.core.names import format_names
from flatbayes.core.traversal import trainable_by_name


def guard_methods(posterior_class: type) -> None:
    """Guard the methods that a class of posteriors defines itself, in place."""
    guards: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("step", "collect"), _guard_training),
        **dict.fromkeys(("finalize", "find_varying_layer", "draw_layer"), _guard_reading),
        **dict.fromkeys(("draw", "load_snapshot"), _guard_draw),
    }
    for name, guard in guards.items():
        method = vars(posterior_class).get(name)
        if isfunction(method):
            setattr(posterior_class, name, guard(method))


def refuse_changes(trained: Mapping[str, nn.Parameter], current: Mapping[str, nn.Parameter], method: str) -> None:
    """Check that the parameters that are trained are those of the start; names may differ, as in a compiled network.

    Raises:
        ValueError: Some were frozen, unfrozen, added, removed or replaced.
    """
    if current.keys() == trained.keys() and all(current[name] is param for name, param in trained.items()):
        return
    current_ids, trained_ids = {id(param) for param in current.values()}, {id(param) for param in trained.values()}
    missing = [name for name, param in trained.items() if id(param) not in current_ids]
    new = [name for name, param in current.items() if id(param) not in trained_ids]
    changes = {
        "replaced": [name for name in new if name in missing],
        "frozen or removed": [name for name in missing if name not in new],
        "unfrozen or added": [name for name in new if name not in missing],
    }
    texts = [f"{verb}: {format_names(names)}" for verb, names in changes.items() if names]
    if texts:
        raise ValueError(
            f"The trained parameters have changed since the posterior was initialised ({'; '.join(texts)}), and "
            f"{method} has statistics of the {len(trained)} that were trained then. Make its state after the last "
            "change, such as after a first training without it; or use MAP(), which has no statistics."
        )


@contextmanager
def train_as_at_start(state: State) -> Iterator[None]:
    """Context in which the parameters that require gradients are those of the start."""
    trained = list((state.trained or {}).values()) if state.statistics else []
    frozen = [param for param in trained if not param.requires_grad]
    trained_ids = {id(param) for param in trained}
    unfrozen = [p for p in trainable_by_name(state.model).values() if trained and id(p) not in trained_ids]
    try:
        _set_requires_grad(frozen, unfrozen)
        yield
    finally:
        _set_requires_grad(unfrozen, frozen)


def _set_requires_grad(params: list[nn.Parameter], others: list[nn.Parameter]) -> None:
    for param in params:
        param.requires_grad_(True)
    for param in others:
        param.requires_grad_(False)


def _guard_training(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def guarded(self: Any, state: State, *args: Any, **kwargs: Any) -> Any:
        if state.statistics and state.trained is not None:
            refuse_changes(state.trained, trainable_by_name(state.model), type(self).__name__)
        return method(self, state, *args, **kwargs)

    return guarded


def _guard_reading(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def guarded(self: Any, state: State, *args: Any, **kwargs: Any) -> Any:
        with train_as_at_start(state):
            return method(self, state, *args, **kwargs)

    return guarded


def _guard_draw(method: Callable[..., AbstractContextManager[nn.Module]]) -> Callable[..., Any]:
    @wraps(method)
    @contextmanager
    def guarded(self: Any, state: State, *args: Any, **kwargs: Any) -> Iterator[nn.Module]:
        with train_as_at_start(state), method(self, state, *args, **kwargs) as network:
            yield network

    return guarded
