"""What gradient-based posteriors share: a state around an optimiser, and a step with a Gaussian prior.

With a prior N(0, I / prior_precision) and a temperature of one, the negative log posterior per training example
is the mean negative log likelihood plus prior_precision / (2 num_data) ||w||². Its last term is the weight decay
prior_precision / num_data; so there is one way to ask for it at a time.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.weights import trainable_parameters

DEFAULT_ADAM = partial(torch.optim.Adam, lr=1e-3)
"""The optimiser of most published results with variational inference."""


def default_sgd(prior_precision: float | None, *, lr: float = 0.1, momentum: float = 0.9) -> OptimizerFactory:
    """The optimiser of most published SWAG and SAM results; its weight decay is the prior unless that is given.

    Args:
        prior_precision: The posterior's own.
        lr: Learning rate.
        momentum: Momentum, zero for methods that add the dynamics themselves.
    """
    weight_decay = 5e-4 if prior_precision is None else 0.0
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)


def init_state(
    model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int, prior_precision: float | None
) -> State:
    """A state with an optimiser over all trainable parameters and no statistics.

    Raises:
        ValueError: Nothing is trainable, `num_data` is not positive, or the prior is given twice.
    """
    params = trainable_parameters(model)
    if not params:
        raise ValueError("The model has no trainable parameters; set requires_grad on those to be learnt.")
    if num_data < 1:
        raise ValueError(f"num_data is the number of training examples: it must be at least 1, got {num_data}.")
    optimizer = None if make_optimizer is None else make_optimizer(params)
    if optimizer is not None and prior_precision is not None:
        check_prior_given_once(optimizer, prior_precision, num_data)
    return State(model, optimizer, num_data)


def step_optimizer(state: State, closure: Closure, prior_precision: float | None) -> Tensor:
    """Call the closure, add the gradient of the prior, let the optimiser move. Returns the closure's loss.

    Raises:
        RuntimeError: The state has no optimiser: it was loaded for prediction.
    """
    if state.optimizer is None:
        raise RuntimeError("This state has no optimizer, so it can be drawn from but not trained further.")
    loss = closure()
    if prior_precision is not None:
        add_prior_gradient(trainable_parameters(state.model), prior_precision, state.num_data)
    state.optimizer.step()
    return loss


def add_prior_gradient(params: Sequence[nn.Parameter], prior_precision: float, num_data: int) -> None:
    """`grad += prior_precision / num_data * param`, for every parameter that has a gradient."""
    found = [(p.grad, p.detach()) for p in params if p.grad is not None]
    torch._foreach_add_([g for g, _ in found], [p for _, p in found], alpha=prior_precision / num_data)


def check_prior_precision(prior_precision: float | None) -> None:
    """Refuse what is no precision.

    Raises:
        ValueError: It is negative or not finite.
    """
    if prior_precision is not None and not 0 <= prior_precision < float("inf"):
        raise ValueError(f"prior_precision must be finite and at least 0, got {prior_precision}.")


def check_prior_given_once(optimizer: Optimizer, prior_precision: float, num_data: int) -> None:
    """Refuse a weight decay beside a prior precision, since both are the prior.

    Raises:
        ValueError: Both are there.
    """
    decay = max(group.get("weight_decay", 0.0) for group in optimizer.param_groups)
    if decay > 0:
        raise ValueError(
            f"The prior is given twice: prior_precision={prior_precision} and an optimizer with "
            f"weight_decay={decay}. Set weight_decay=0, or leave prior_precision out: a weight decay of "
            f"{decay} is a prior precision of {decay * num_data:g} here, at temperature 1."
        )
