"""State initialisation and optimizer step with a Gaussian prior, shared by all gradient-based posteriors.

With n training examples, mean negative log likelihood L(w), prior N(0, I / prior_precision) and temperature T, the
posterior density is proportional to exp(-(n / T) L(w) - prior_precision / 2 ||w||²). Its negative logarithm,
times T / n, is L(w) plus a weight decay of T prior_precision / n. The prior is therefore given once: as a prior
precision or as the optimizer's weight decay.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatbayes.core import Closure, OptimizerFactory, State
from flatbayes.core.adapters import check_unmerged, keep_unmerged
from flatbayes.core.gradients import densify_gradients
from flatbayes.core.names import format_count
from flatbayes.core.networks import check_one_device
from flatbayes.core.padding import mark_padding_rows
from flatbayes.core.signatures import read_signature
from flatbayes.core.weights import trainable_parameters

DEFAULT_ADAM = partial(torch.optim.Adam, lr=1e-3)
"""Optimizer of most published results with variational inference."""


def default_sgd(
    prior_precision: float | None, *, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
) -> OptimizerFactory:
    """Return SGD, by default that of most published SWAG and SAM results, without weight decay if a prior is given.

    Momentum is 0 for samplers, which add their own dynamics.
    """
    weight_decay = weight_decay if prior_precision is None else 0.0
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=weight_decay)


def init_state(
    model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int, prior_precision: float | None
) -> State:
    """Return a state with an optimizer over all trainable parameters and no statistics.

    Raises:
        ValueError: The model is on several devices or has a merged adapter, no parameter is trainable, `num_data` is
            not positive, the optimizer has parameters of another network, or the prior is given twice.
    """
    check_one_device(model)
    check_unmerged(model, "so training would not change it and draws would not differ")
    keep_unmerged(model)
    mark_padding_rows(model)
    params = trainable_parameters(model)
    if not params:
        raise ValueError("The model has no trainable parameters; set requires_grad on those to be learnt.")
    if num_data < 1:
        raise ValueError(f"num_data is the number of training examples: it must be at least 1, got {num_data}.")
    optimizer = None if make_optimizer is None else build_optimizer(make_optimizer, params)
    decay = 0.0 if optimizer is None else max_weight_decay(optimizer)
    if decay > 0 and prior_precision is not None:
        raise ValueError(
            f"The prior is given twice: prior_precision={prior_precision} and an optimizer with "
            f"weight_decay={decay}. Set weight_decay=0, or omit prior_precision: a weight decay of {decay} is a "
            f"prior precision of {decay * num_data:g} here, at temperature 1."
        )
    return State(model, optimizer, num_data)


@dataclass(frozen=True)
class ExistingOptimizer:
    """Returns an optimizer that exists already, and may have parameters of several networks.

    Attributes:
        use: Takes the parameters that are trained, and returns the optimizer.
    """

    use: OptimizerFactory

    def __call__(self, params: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer."""
        return self.use(params)


def build_optimizer(make_optimizer: OptimizerFactory, params: Iterable[nn.Parameter]) -> Optimizer:
    """Build the optimizer over parameters, or over some of them, and check that it has no others.

    Raises:
        ValueError: It has other trainable parameters, such as those of the network that was copied, or needs several
            gradients in a step.
        TypeError: It is an optimizer already, and not what builds one.
    """
    params = list(params)
    refuse_optimizer(make_optimizer)
    optimizer = make_optimizer(params)
    if needs_closure(optimizer) and not isinstance(make_optimizer, ExistingOptimizer):
        kind = type(optimizer).__name__
        raise ValueError(
            f"{kind} computes several gradients in a step, and a posterior makes one step with each gradient. Use "
            f"another optimizer, or train with {kind} in a loop of your own, optimizer.step(flatness(closure, "
            "network)), and then fit the posterior to the trained network, with config={'epochs': 0} for Laplace."
        )
    own_ids = {id(param) for param in params}
    optimized = [param for group in optimizer.param_groups for param in group["params"]]
    num_others = sum(param.requires_grad and id(param) not in own_ids for param in optimized)
    if num_others and not isinstance(make_optimizer, ExistingOptimizer):
        raise ValueError(
            f"The optimizer has {format_count(num_others, 'trainable parameter')} that the function for it was not "
            "given, so the network would not be trained as written: fit trains a copy of the network that it gets. "
            "Build the optimizer from the given parameters, which are in the order of named_parameters(), such as "
            "lambda params: torch.optim.AdamW([{'params': params[:2], 'lr': 1e-4}, {'params': params[2:]}]); "
            "docs/fine-tuning.md has groups by name."
        )
    return optimizer


def refuse_optimizer(make_optimizer: object) -> None:
    """Refuse an optimizer in place of a function that builds one.

    Raises:
        TypeError: It is an optimizer.
    """
    if isinstance(make_optimizer, Optimizer):
        kind = type(make_optimizer).__name__
        raise TypeError(
            f"Got an optimizer ({kind}) in place of a function that builds one from the parameters: pass "
            f"lambda params: torch.optim.{kind}(params, lr=...), and take the optimizer from the state, "
            "state.optimizer. Some posteriors train more than the parameters of the network."
        )


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step` must get a closure, as that of LBFGS."""
    closure = read_signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def step_optimizer(state: State, closure: Closure, prior_precision: float | None, temperature: float = 1.0) -> Tensor:
    """Call the closure, add the gradient of the prior, and step the optimizer.

    Where `prior_precision` is None, the optimizer's weight decay is the prior. The temperature is a factor on the
    gradient of the prior, since the closure's is that of the untempered likelihood.

    Returns:
        The loss of the closure.

    Raises:
        RuntimeError: The state has no optimizer, because it was loaded for prediction.
    """
    if state.optimizer is None:
        raise RuntimeError("This state has no optimizer, so it can be drawn from but not trained further.")
    loss = closure()
    if not isinstance(state.optimizer, torch.optim.SparseAdam):
        densify_gradients(trainable_parameters(state.model))  # momentum, priors and weight decay concern every row
    precision = temper_precision(prior_precision, temperature)
    if precision is not None:
        add_prior_gradient(trainable_parameters(state.model), precision, state.num_data)
    state.optimizer.step()
    return loss


def temper_precision(prior_precision: float | None, temperature: float) -> float | None:
    """Return the precision of the prior whose gradient `step_optimizer` adds; None where it adds none."""
    return None if prior_precision is None else prior_precision * temperature


def add_prior_gradient(params: Sequence[nn.Parameter], prior_precision: float, num_data: int) -> None:
    """Compute `grad += prior_precision / num_data * param` for every parameter that has a gradient."""
    pairs = [(param.grad, param.detach()) for param in params if param.grad is not None]
    torch._foreach_add_([grad for grad, _ in pairs], [value for _, value in pairs], alpha=prior_precision / num_data)


def max_weight_decay(optimizer: Optimizer) -> float:
    """Return the largest weight decay of the optimizer's parameter groups, 0 for an optimizer without the option."""
    return max(float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups)


def find_weight_decay(make_optimizer: OptimizerFactory, params: Sequence[nn.Parameter] = ()) -> float:
    """Return the largest weight decay of the optimizer that a factory builds.

    The optimizer may have some of the parameters only; without any it is built for a single weight.
    """
    return max_weight_decay(make_optimizer(params or [nn.Parameter(torch.zeros(1, 1))]))  # a matrix, as for Muon


def resolve_weight_decay(state: State, prior_precision: float | None, temperature: float, method: str) -> float:
    """Return the weight decay of a prior that is one for all weights; 0 for a state that is only drawn from.

    Where `prior_precision` is None, it is that of the optimizer.

    Raises:
        ValueError: The optimizer has different weight decays.
    """
    if prior_precision is not None:
        return prior_precision * temperature / state.num_data
    groups = [] if state.optimizer is None else state.optimizer.param_groups
    decays = {float(group.get("weight_decay", 0.0)) for group in groups} or {0.0}
    if len(decays) > 1:
        raise ValueError(
            f"{method} needs one prior for all weights, and the optimizer has weight_decay="
            f"{' and '.join(map(str, sorted(decays)))}. Set one weight_decay, or set it to 0 and set prior_precision."
        )
    return decays.pop()


def resolve_temperature(temperature: float | None) -> float:
    """The temperature, 1 where none is set."""
    return 1.0 if temperature is None else temperature


def check_temperature(temperature: float, hint: str = "") -> None:
    """Validate a temperature; the method adds `hint` to the message."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}.{hint and ' '}{hint}")
