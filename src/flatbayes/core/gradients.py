"""Gradients of one call of a closure: which parameters it computed them for, dense and in the dtype of the weights.

`.grad` alone does not tell. An optimizer that has a part of the model zeroes the gradients of that part only; those
of the others add up over the steps, or are left from a step in which the parameter was used. A perturbation along
them would have nothing to do with the loss of the batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import TensorWeakRef

from flatbayes.core.networks import check_one_device
from flatbayes.core.progress import TrainingProgress
from flatbayes.core.tensor_lists import zero_tensors
from flatbayes.core.types import Closure


@dataclass(frozen=True)
class FreshGradients:
    """Result of one call of a closure.

    Attributes:
        loss: The detached loss.
        params: The parameters whose `.grad` is the gradient that the call computed, by name.
        uncleared: Those of them whose gradient the closure does not zero, so that a further call would add to it.
    """

    loss: Tensor
    params: dict[str, nn.Parameter]
    uncleared: list[nn.Parameter]


class _Mark(NamedTuple):
    """The gradient of a parameter before the call, without a reference that would keep its memory."""

    grad: TensorWeakRef
    version: int
    is_placeholder: bool


def compute_fresh_gradients(closure: Closure, params: Mapping[str, nn.Parameter]) -> FreshGradients:
    """Call a closure, and determine the parameters of which it computed the gradient.

    A gradient is fresh if it is another tensor than before, or if the closure sets no gradient to None and this one
    was changed as often as the others. Parameters without a gradient get zeros before the call, so that the first
    step tells the same as the later ones; zeros that were not used are removed.

    Args:
        closure: See `Closure`. A loss that is a number is accepted.
        params: The trainable parameters by name, which `check_trainable` has checked.

    Raises:
        TypeError: The closure returns no loss.
    """
    marks = _mark_gradients(params)
    try:
        return _find_fresh_gradients(params, marks, check_loss(closure()))
    finally:
        for name in [name for name, mark in marks.items() if mark.is_placeholder]:
            if _has_same_gradient(params[name], marks[name]) and not _is_used(params[name], marks[name]):
                params[name].grad = None


def compute_some_gradients(
    closure: Closure,
    model: nn.Module,
    progress: TrainingProgress | None,
    params: Mapping[str, nn.Parameter],
) -> FreshGradients:
    """Call a closure as `compute_fresh_gradients` does, and check that it computed a gradient.

    Args:
        closure: See `Closure`.
        model: The module, for the message.
        progress: Progress of training.
        params: Its trainable parameters by name, which `check_trainable` has checked.

    Raises:
        RuntimeError: No gradient is computed, and `may_lack_gradients` is False.
    """
    fresh = compute_fresh_gradients(closure, params)
    if not fresh.params and not may_lack_gradients(closure, progress):
        raise RuntimeError(format_missing_gradients(model))
    return fresh


def format_missing_gradients(model: nn.Module) -> str:
    """The message for a closure that computes no gradient."""
    return (
        f"The closure computed no gradient of the parameters of {type(model).__name__}. It must zero the gradients, "
        "compute the loss, call loss.backward(), and return loss.detach()."
    )


def may_lack_gradients(closure: Closure, progress: TrainingProgress | None) -> bool:
    """Whether a step without gradients is no error: a later step, or a closure that has `may_skip_batch`."""
    return (progress is not None and progress.step > 0) or getattr(closure, "may_skip_batch", False)


def _mark_gradients(params: Mapping[str, nn.Parameter]) -> dict[str, _Mark]:
    """The gradients of the parameters that have a shape, with zeros for those that have none."""
    missing = {name: param for name, param in params.items() if param.grad is None and not is_lazy(param)}
    if missing:
        for param, zeros in zip(missing.values(), zero_tensors(list(missing.values())), strict=True):
            param.grad = zeros
    marks = dict[str, _Mark]()
    for name, param in params.items():
        grad = param.grad
        if grad is not None:
            marks[name] = _Mark(TensorWeakRef(grad), grad._version, name in missing)
    return marks


def _has_same_gradient(param: nn.Parameter, mark: _Mark) -> bool:
    return param.grad is not None and mark.grad() is param.grad


def _is_used(param: nn.Parameter, mark: _Mark) -> bool:
    num_changes = _count_changes(param, mark)
    return num_changes > 1 or (num_changes == 1 and param.grad is not None and bool(param.grad.any()))


def _count_changes(param: nn.Parameter, mark: _Mark) -> int:
    return 0 if param.grad is None else param.grad._version - mark.version


def _find_fresh_gradients(
    params: Mapping[str, nn.Parameter], marks: Mapping[str, _Mark], loss: Tensor
) -> FreshGradients:
    unchanged = {name: mark for name, mark in marks.items() if _has_same_gradient(params[name], mark)}
    if len(unchanged) < len(marks):  # the closure sets gradients to None: those that it leaves are not its own
        fresh = {name: p for name, p in params.items() if p.grad is not None and name not in unchanged}
        return FreshGradients(loss, fresh, [])
    changes = {name: _count_changes(params[name], mark) for name, mark in unchanged.items()}
    num_changes = max(changes.values(), default=0)  # 0 also if a graph is replayed that writes into the same memory
    fresh = {
        name: p
        for name, p in params.items()
        if p.grad is not None
        and (name not in marks or changes[name] == num_changes)
        and not (name in marks and marks[name].is_placeholder and not _is_used(p, marks[name]))
    }
    uncleared = [p for name, p in fresh.items() if name in marks and (marks[name].is_placeholder or num_changes == 1)]
    return FreshGradients(loss, fresh, uncleared)


def check_trainable(params: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Check that there are parameters to perturb, on one device, and that they are real numbers.

    Raises:
        ValueError: There are none, they are on several devices, or some are complex.
    """
    if len({param.device for param in params.values()}) > 1:
        check_one_device(model)
    if not params:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters, so there is nothing to perturb: set requires_grad "
            "on those to be trained, or pass the module that has them."
        )
    complex_names = [name for name, param in params.items() if param.is_complex()]
    if complex_names:
        raise ValueError(
            f"Complex parameters are not supported, got {', '.join(complex_names[:5])} in {type(model).__name__}. "
            "Store the real and the imaginary part as two real parameters (torch.view_as_real), and combine them in "
            "forward with torch.view_as_complex."
        )


def check_loss(loss: object) -> Tensor:
    """The loss that a closure returned, as a detached tensor.

    Raises:
        TypeError: It is no number.
    """
    if isinstance(loss, Tensor):
        return loss.detach()
    if isinstance(loss, int | float):
        return torch.tensor(float(loss))
    raise TypeError(
        f"The closure must return the detached loss, a tensor, and returned {type(loss).__name__}: end it with "
        "`loss.backward()` and `return loss.detach()`."
    )


def dense_gradient(param: Tensor) -> Tensor:
    """The gradient of a parameter, dense and in its dtype; zeros if there is none."""
    if param.grad is None:
        return torch.zeros_like(param)
    grad = param.grad.to_dense() if param.grad.is_sparse else param.grad
    return grad if grad.dtype == param.dtype else grad.to(param.dtype)


def densify_gradients(params: Iterable[Tensor]) -> None:
    """Replace sparse gradients, as of `nn.Embedding(sparse=True)`, by dense ones of the same values."""
    for param in params:
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()


def replace_gradient(param: Tensor, grad: Tensor) -> None:
    """Set the gradient of a parameter to dense values, in the layout and dtype of the gradient that it has."""
    old = param.grad
    if old is None or old is grad:
        param.grad = grad
    elif old.is_sparse:
        param.grad = grad.to_sparse(old.sparse_dim()).to(old.dtype)
    else:
        old.copy_(grad)
