"""Gradients of one call of a closure: which parameters it computed them for, dense and in the dtype of the weights.

`.grad` alone does not tell. An optimizer that has a part of the model zeroes the gradients of that part only; those
of the others add up over the steps, or are left from a step in which the parameter was used. A perturbation along
them would have nothing to do with the loss of the batch.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flatbayes.core.networks import check_one_device
from flatbayes.core.progress import TrainingProgress
from flatbayes.core.tensor_lists import zero_tensors
from flatbayes.core.types import Closure


class FreshGradients(NamedTuple):
    """Result of one call of a closure.

    Attributes:
        loss: The detached loss.
        params: The parameters whose `.grad` is the gradient that the call computed, by name.
        uncleared: Those of them whose gradient the closure does not zero, so that a further call would add to it.
    """

    loss: Tensor
    params: dict[str, nn.Parameter]
    uncleared: list[nn.Parameter]


class _Marks(NamedTuple):
    """The gradients of some parameters before the call, without references that would keep their memory.

    Attributes:
        grads: A weak reference to each gradient; None for a parameter of a lazy module, which has no shape.
        versions: The version of each, which every change in place increments.
        placeholders: Indices of the parameters that had no gradient, and got zeros.
    """

    grads: list[weakref.ref[Tensor] | None]
    versions: list[int]
    placeholders: set[int]


def compute_fresh_gradients(closure: Closure, params: Mapping[str, nn.Parameter]) -> FreshGradients:
    """Call a closure, and determine the parameters of which it computed the gradient.

    A gradient is fresh if it is another tensor than before, or if the closure sets no gradient to None and this one
    was changed as often as the others. Parameters without a gradient get zeros before the call, so that the first
    step tells the same as the later ones; zeros that were not used are removed. A loss that is a number is accepted.

    Raises:
        TypeError: The closure returns no loss.
    """
    names, tensors = list(params), list(params.values())
    marks = _mark_gradients(tensors)
    try:
        loss = check_loss(closure())
        fresh, uncleared = _find_fresh_gradients(tensors, marks)
        return FreshGradients(loss, {names[k]: tensors[k] for k in fresh}, [tensors[k] for k in uncleared])
    finally:
        for k in marks.placeholders:
            grad, mark = tensors[k].grad, marks.grads[k]
            if mark is not None and mark() is grad and not _is_used(grad, marks.versions[k]):
                tensors[k].grad = None


def compute_some_gradients(
    closure: Closure,
    model: nn.Module,
    progress: TrainingProgress | None,
    params: Mapping[str, nn.Parameter],
) -> FreshGradients:
    """Call a closure as `compute_fresh_gradients` does, and check that it computed a gradient.

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


def _mark_gradients(params: Sequence[nn.Parameter]) -> _Marks:
    """Mark the gradients of the parameters that have a shape, with zeros for those that have none."""
    grads = [param.grad for param in params]
    placeholders = {k for k, grad in enumerate(grads) if grad is None and not is_lazy(params[k])}
    if placeholders:
        for k, zeros in zip(placeholders, zero_tensors([params[k] for k in placeholders]), strict=True):
            params[k].grad = grads[k] = zeros
    return _Marks(
        [None if grad is None else weakref.ref(grad) for grad in grads],
        [0 if grad is None else grad._version for grad in grads],
        placeholders,
    )


def _find_fresh_gradients(params: Sequence[nn.Parameter], marks: _Marks) -> tuple[list[int], list[int]]:
    """Indices of the parameters with a fresh gradient, and of those of them whose gradient is not zeroed."""
    grads = [param.grad for param in params]
    present = [k for k, grad in enumerate(grads) if grad is not None]
    unchanged = {k for k in present if (mark := marks.grads[k]) is not None and mark() is grads[k]}
    if len(unchanged) < len(grads) - marks.grads.count(None):
        # the closure sets gradients to None: those that it leaves are not its own
        return [k for k in present if k not in unchanged], []
    changes = {k: _count_changes(grads[k], marks.versions[k]) for k in unchanged}
    num_changes = max(changes.values(), default=0)  # 0 also if a graph is replayed that writes into the same memory
    fresh = [
        k
        for k in present
        if changes.get(k, num_changes) == num_changes
        and (k not in marks.placeholders or _is_used(grads[k], marks.versions[k]))
    ]
    return fresh, [k for k in fresh if k in unchanged and (k in marks.placeholders or num_changes == 1)]


def _is_used(grad: Tensor | None, version: int) -> bool:
    """Whether a placeholder was added to; a single change may also have set it to zero again."""
    num_changes = _count_changes(grad, version)
    return num_changes > 1 or (num_changes == 1 and grad is not None and bool(grad.any()))


def _count_changes(grad: Tensor | None, version: int) -> int:
    return 0 if grad is None else grad._version - version


def check_trainable(params: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Check that there are parameters to perturb, on one device, and that they are real numbers."""
    devices = [param.device for param in params.values()]
    if devices and devices.count(devices[0]) < len(devices):
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
    grad = param.grad
    if grad is None:
        return torch.zeros_like(param)
    grad = grad.to_dense() if grad.is_sparse else grad
    return grad if grad.dtype is param.dtype else grad.to(param.dtype)


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
