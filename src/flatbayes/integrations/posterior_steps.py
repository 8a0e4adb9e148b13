"""Steps of a posterior with the optimizer of another training loop.

`Posterior.step` calls a closure, adds the gradient of the prior, and calls `optimizer.step()`, with noise before or
after. Here the optimizer is the one that the user configured, with its learning rate and scheduler. Standard
deviations of a variational posterior are among its parameters during a step only, so the loop's checkpoints of the
optimizer are as without flatbayes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatbayes.core import Closure, State
from flatbayes.core.buffers import find_frozen_norms, norm_layers
from flatbayes.core.parameter_selection import only_optimized
from flatbayes.core.process_group import get_process_group_info
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors import Posterior
from flatbayes.posteriors.optimization import ExistingOptimizer
from flatbayes.training.distributed.gradient_averaging import all_reduce_gradients, per_process_rng


def is_optimizer_step(posterior: Posterior) -> bool:
    """Whether a step is that of the optimizer alone: no prior is added, and no noise."""
    return (
        posterior.uses_gradient_only
        and posterior.requires_stationary_loss != "while_collecting"
        and getattr(posterior, "prior_precision", None) is None
    )


@dataclass
class PosteriorSteps:
    """A posterior, its state with the optimizer of the loop, and what it adds to that optimizer.

    Attributes:
        posterior: Takes the steps.
        state: Its network is the one that is trained.
        scales: Standard deviations, which the optimizer updates and the network does not have.
        scale_states: State of the optimizer for each of them, such as the moments of Adam.
        noise_seed: Seed of the noise of weights, which is the same in all processes; None in a single process.
    """

    posterior: Posterior
    state: State
    scales: list[Tensor] = field(default_factory=list)
    scale_states: dict[Tensor, Any] = field(default_factory=dict)
    noise_seed: int | None = None
    _original_types: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list, repr=False)

    @staticmethod
    def init(posterior: Posterior, network: nn.Module, optimizer: Optimizer, num_data: int) -> "PosteriorSteps":
        """Initialise the state of a posterior on a network and with an optimizer that exist already.

        Layers of the network get the types that the posterior gives them (LRT) until `restore_layers`; the weights
        stay where they are.

        Raises:
            ValueError: The posterior does not go with the network or with the optimizer.
        """
        check_optimizer(posterior, network, optimizer)
        scales: list[Tensor] = []

        def use_optimizer(params: Iterable[nn.Parameter]) -> Optimizer:
            scales.extend(param for param in params if not param.requires_grad)
            optimizer.param_groups[0]["params"].extend(scales)
            return optimizer

        process_group = get_process_group_info()
        seed = process_group.broadcast(torch.initial_seed()) if process_group.size > 1 else None
        same_rng = nullcontext() if seed is None else seeded_rng(spawn_seed(Stream.INITIAL_STATE, seed), network)
        try:
            with same_rng:  # particles are the same in every process
                state = posterior.init(network, ExistingOptimizer(use_optimizer), num_data)
        finally:
            remove_params(optimizer, len(scales))
        state.trained = None  # the posterior may be over some of the parameters; the tracker checks them
        steps = PosteriorSteps(posterior, state, scales, noise_seed=None if is_optimizer_step(posterior) else seed)
        steps._adopt_layers(network)
        return steps

    def step(self, closure: Closure, index: int) -> Tensor:
        """Take a step of the posterior with the optimizer of the loop, and return what the closure returned.

        `index` is the number of the step, for the noise of several processes.
        """
        optimizer = self.state.optimizer
        assert optimizer is not None
        update = optimizer.step

        def update_with_scales() -> None:  # only here: a loop may clip the gradients of all that is in the optimizer
            with include_params(optimizer, self.scales, self.scale_states):
                update()

        with override_methods(optimizer, step=update_with_scales):
            if self.noise_seed is None:
                return self.posterior.step(self.state, closure)
            rank, model = get_process_group_info().rank, self.state.model

            def closure_of_process() -> Tensor:
                with per_process_rng(rank, model):  # dropout
                    return closure()

            with seeded_rng(spawn_seed(Stream.TRAINING_NOISE, self.noise_seed, index), model):
                return self.posterior.step(self.state, closure_of_process)

    @contextmanager
    def replace_optimizer_step(self, index: int) -> Iterator[None]:
        """Context in which `optimizer.step(closure)` is the step of the posterior."""
        optimizer = self.state.optimizer
        assert optimizer is not None
        original = optimizer.step

        def posterior_step(closure: Closure | None = None) -> Tensor:
            with override_methods(optimizer, step=original):
                return self.step(closure or (lambda: torch.zeros(())), index)

        is_plain = is_optimizer_step(self.posterior)
        with nullcontext() if is_plain else override_methods(optimizer, step=posterior_step):
            yield

    def restore_layers(self) -> None:
        """Give the layers of the network their own types again."""
        for layer, own_type in self._original_types:
            layer.__class__ = own_type
            for name in ("noise", "saved_means"):  # of a layer of LRT
                vars(layer).pop(name, None)
        self._original_types.clear()

    def _adopt_layers(self, network: nn.Module) -> None:
        """Convert the layers of the network, in place, as those of the posterior's copy, and train the network."""
        for layer, converted in zip(network.modules(), self.state.model.modules(), strict=True):
            if type(layer) is not type(converted):
                self._original_types.append((layer, type(layer)))
                layer.__class__ = type(converted)
        self.state.model = network


def check_optimizer(posterior: Posterior, network: nn.Module, optimizer: Optimizer) -> None:
    """Check that a sampler moves all the weights that the optimizer updates."""
    own_ids = {id(param) for param in network.parameters()}
    others = sum(id(param) not in own_ids for group in optimizer.param_groups for param in group["params"])
    if others and posterior.requires_stationary_loss == "while_collecting":
        raise ValueError(
            f"{type(posterior).__name__} samples all weights that the optimizer updates, and {others} of its "
            f"parameters are outside of the network ({type(network).__name__}) that the posterior is over. Choose a "
            "network that has all of them, or give the optimizer those of the network only."
        )


@contextmanager
def include_params(optimizer: Optimizer, params: list[Tensor], param_states: dict[Tensor, Any]) -> Iterator[None]:
    """Context in which an optimizer updates further parameters too, with the options of its first group.

    Afterwards the optimizer is the same as before, and `param_states` has its state for each of them.
    """
    optimizer.param_groups[0]["params"].extend(params)
    optimizer.state.update(param_states)
    try:
        yield
    finally:
        remove_params(optimizer, len(params))
        param_states |= {param: optimizer.state.pop(param) for param in params if param in optimizer.state}


def remove_params(optimizer: Optimizer, count: int) -> None:
    """Remove the last parameters of the first group of an optimizer, in place."""
    params = optimizer.param_groups[0]["params"]
    del params[len(params) - count :]


@contextmanager
def override_methods(owner: object, **methods: Callable[..., Any]) -> Iterator[None]:
    """Context in which methods of this one object are replaced."""
    own = {name: vars(owner)[name] for name in methods if name in vars(owner)}
    vars(owner).update(methods)
    try:
        yield
    finally:
        for name in methods:
            vars(owner).pop(name, None)
        vars(owner).update(own)


@contextmanager
def freeze_norm_statistics(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Context in which frozen normalisation layers are in eval mode, also after a call of `model.train()`."""
    layers = list[nn.Module]()
    if norm_layers(model):  # `only_optimized` takes longer, in every step
        with only_optimized(model, optimizer):
            layers = [layer for layer in find_frozen_norms(model) if layer.training]
    if not layers:
        yield
        return
    set_mode = model.train

    def set_mode_of_others(mode: bool = True) -> nn.Module:
        set_mode(mode)
        for layer in layers:
            layer.training = False
        return model

    try:
        with override_methods(model, train=set_mode_of_others):
            model.train(model.training)
            yield
    finally:
        for layer in layers:
            layer.training = True


def synchronize_gradients(model: nn.Module, others: Iterable[Tensor] = ()) -> None:
    """Average gradients over the processes, and broadcast the buffers of the first one.

    The flatness of each process perturbs the weights by the gradient of its own part of the batch, without
    communication; only the final gradient is averaged, so a step costs the traffic of ordinary training. A missing
    gradient counts as zero; a parameter without a gradient in any process keeps none. Buffers are those that
    DistributedDataParallel broadcasts when gradients are synchronised.
    """
    process_group, params = get_process_group_info(), [*trainable_parameters(model), *others]
    if process_group.size > 1 and params:
        all_reduce_gradients(torch.zeros((), device=params[0].device), params, 1)
    process_group.broadcast_tensors(list(model.buffers()))
