"""Abstract base class of posterior approximations: hyperparameters, with the training state held outside."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State
from flatbayes.core.context import WeightDistribution
from flatbayes.posteriors.draw_options import DrawOption, get_draw_option
from flatbayes.posteriors.optimization import default_sgd
from flatbayes.posteriors.parameter_guard import guard_methods
from flatbayes.posteriors.requirements import (
    DEPENDENT_MEMBERS,
    RENAMED_MEMBERS,
    LossRequirement,
    SnapshotRequirements,
    Trajectory,
)


class Posterior(ABC):
    """A posterior approximation: how weights are updated with gradients, and how networks are drawn afterwards.

    A posterior is an immutable set of hyperparameters. Everything that a training run changes is in its `State`.
    A subclass implements `init`, `step` and `draw`. All other members have a default here, which the subclass
    overrides, with a property or a class attribute, where the default does not hold.

    Examples:
        >>> posterior = SWAG(rank=2)
        >>> state = posterior.init(network, torch.optim.SGD, num_data=12)
        >>> for _ in range(5):
        ...     loss = posterior.step(state, SAM(rho=0.05)(closure, network))
        ...     posterior.collect(state)
        >>> with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        ...     logits = drawn(examples)
        >>> logits.shape
        torch.Size([12, 3])
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        old_names = [name for name in RENAMED_MEMBERS if name in vars(cls)]
        if old_names:
            raise TypeError(
                f"{cls.__name__} defines members of flatbayes 0.1. Rename "
                f"{', '.join(f'{name} to {RENAMED_MEMBERS[name]}' for name in old_names)}."
            )
        guard_methods(cls)
        for name, described in DEPENDENT_MEMBERS.items():
            if min(map(cls._find_owner, described)) < cls._find_owner(name):
                setattr(cls, name, vars(Posterior)[name])

    @classmethod
    def _find_owner(cls, name: str) -> int:
        """Position in the method resolution order of the class that defines a member."""
        return next(k for k, base in enumerate(cls.__mro__) if name in vars(base))

    @property
    def depends_on_model(self) -> bool:
        """Whether defaults of options depend on the network, so that `adapt_to` is called. Default: False."""
        return False

    def adapt_to(self, model: nn.Module) -> "Posterior":
        """Return this posterior with the defaults that depend on the network. Default: itself.

        Args:
            model: The network, which is left unchanged.
        """
        return self

    def with_automatic_options(self, *, is_trained: bool = False) -> "Posterior":
        """Return this posterior with the defaults for an automatic number of epochs, of a trained network or not."""
        return self

    def without_weight_decay(self) -> "Posterior":
        """Return this posterior for an optimizer whose weight decay is no prior, such as AdamW. Default: itself."""
        return self

    @property
    def num_members(self) -> int:
        """Number of independent training runs, each from new initial weights. Default: 1."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether two draws of one run differ; if not, prediction draws one network per run. Default: True."""
        return True

    @property
    def needs_norm_reestimation(self) -> bool:
        """Whether draws have new weights, so that BatchNorm statistics must be re-estimated. Default: True."""
        return True

    @property
    def shardable(self) -> bool:
        """Whether `init`, `step` and `collect` treat each weight on its own, so that FSDP can shard them.

        Default: False.
        """
        return False

    @property
    def requires_stationary_loss(self) -> LossRequirement:
        """When the gradients must be those of one fixed loss function of the weights. Default: "never"."""
        return "never"

    @property
    def has_weight_distribution(self) -> bool:
        """Whether weights have a Gaussian during training, or in its course, for `PosteriorSAM`. Default: False."""
        return False

    def make_weight_distribution(self, state: State) -> WeightDistribution | None:
        """Return the distribution of the weights for gradients that a loop computes before the step. Default: None.

        For posteriors with `has_weight_distribution` and `uses_gradient_only`. The step of a posterior offers its
        distribution itself, by `flatbayes.core.context.offer_distribution`.

        Args:
            state: The state before the step.
        """
        return None

    @property
    def gradients_per_step(self) -> float:
        """Gradients of a whole batch that a step computes, where the closure computes one. Default: 1."""
        return 1.0

    @property
    def perturbs_weights(self) -> bool:
        """Whether a step takes gradients at perturbed weights itself, so that it goes with `Plain` only.

        Default: False.
        """
        return False

    @property
    def tolerates_skipped_steps(self) -> bool:
        """Whether all that a step changes is left out with the optimizer's update, so that a loss scaler may skip it.

        The loss scaler of float16 leaves out the update of a gradient that is not finite. Noise, or averages of
        gradients in the statistics, would stay. Default: True, and False for `requires_stationary_loss`
        "while_collecting", where steps add noise.
        """
        return self.requires_stationary_loss != "while_collecting"

    @property
    def uses_gradient_only(self) -> bool:
        """Whether a step needs nothing but the gradient at the current weights.

        Then a loop such as that of Lightning may compute the gradient before the step, over several micro-batches.
        It does not hold for weights that are sampled for every gradient. A subclass that overrides `step` without it
        has the default. Default: False.
        """
        return False

    @property
    def snapshot_requirements(self) -> SnapshotRequirements:
        """Number of snapshots that a draw needs. Default: (0, 0), no snapshots."""
        return SnapshotRequirements(0, 0)

    @property
    def trajectory(self) -> Trajectory | None:
        """What the weights that training visits depend on, so that posteriors with equal ones share a training.

        A posterior that has one promises that its `init` does not change the model, and that its `collect` changes
        nothing but its own statistics and draws no random numbers. Default: None, the training is not shared.
        """
        return None

    def count_stored_snapshots(self, state: State) -> int:
        """Number of snapshots in the state, which `load_snapshot` can select. Default: 0.

        A prediction uses every snapshot once before it repeats one. A subclass with another `draw` overrides this.
        """
        return 0

    def load_snapshot(self, state: State, index: int) -> AbstractContextManager[nn.Module]:
        """Return a context as that of `draw` with a stored snapshot, in posteriors that draw one of them.

        Args:
            state: The fitted state.
            index: Number of the snapshot, from 0 on, below `count_stored_snapshots`.

        Raises:
            NotImplementedError: The posterior has no snapshots to choose from.
        """
        raise NotImplementedError(f"{type(self).__name__} does not draw stored snapshots.")

    @property
    def draw_options(self) -> Mapping[str, DrawOption]:
        """Options that only draws depend on, by name. Default: none.

        A user may set them to "auto": `fit` then tries candidates on the validation examples, without training.
        """
        return {}

    def get_draw_option(self, name: str) -> Any:
        """Return the value of one of the `draw_options`, and its default in place of "auto".

        In a subclass with another `draw`, which has no options of its own, the default is that of the base class.

        Args:
            name: Name of the option.

        Raises:
            KeyError: No class of this posterior has the option.
        """
        for base in type(self).__mro__:
            member = vars(base).get("draw_options", {})
            options = member.__get__(self) if isinstance(member, property) else member
            if name in options:
                return get_draw_option(options, self, name)
        raise KeyError(name)

    @property
    def default_optimizer(self) -> OptimizerFactory:
        """Optimizer for a `TrainingConfig` without one.

        Default: SGD with momentum 0.9, and with weight decay 5e-4 unless the posterior has a `prior_precision`.
        """
        return default_sgd(getattr(self, "prior_precision", None))

    @abstractmethod
    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """Return the state before the first step: model, optimizer, empty statistics.

        Args:
            model: The network, which is left unchanged. Train and draw with the model of the state: it is this
                network, or a modified copy where the method needs layers of its own.
            make_optimizer: Builds the optimizer from parameters; None for a state that is only drawn from.
            num_data: Number of training examples.
        """

    @abstractmethod
    def step(self, state: State, closure: Closure) -> Tensor:
        """Do one update: call the closure, add the gradient of the prior at the unperturbed weights, update.

        Returns:
            The loss of the batch, detached and without the prior.
        """

    def collect(self, state: State) -> None:
        """Record the current weights, in posteriors that are built from iterates. Default: do nothing."""
        return

    def check_model(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Try what the method needs of the network beyond a gradient, before the first step. Default: do nothing.

        Args:
            state: The state before the first step, with a network of its own that is discarded afterwards.
            examples: A few training examples in one batch, preprocessed for the model.
            loss_fn: Mean negative log likelihood, the one of training.

        Raises:
            ValueError: The method cannot be used with this network.
        """
        return

    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Process all training data once after the last step, in posteriors from curvature. Default: do nothing.

        Args:
            state: The state after the last step, with the model in eval mode.
            examples: Every training example once, in batches, preprocessed for the model and not augmented.
            loss_fn: Mean negative log likelihood, the one of training.
        """
        return

    def describe_state(self, state: State) -> Mapping[str, float]:
        """Return figures of the training by name, which the summary of a fit shows. Default: none.

        Args:
            state: The fitted state.
        """
        return {}

    def find_varying_layer(self, state: State) -> nn.Linear | None:
        """Return the linear layer that has all weights in which draws of a state differ. Default: None, no layer.

        Where the outputs of the network are those of this layer, a prediction computes its inputs once for all draws.
        They are linear in its weights, so that a draw that is linearised in them is a network with other weights. A
        subclass that overrides `draw` without this method has the default.

        Args:
            state: The fitted state.
        """
        return None

    def draw_layer(
        self, state: State, layer: nn.Linear, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layer's weights in several draws, those of `draw` up to rounding. Default: one `draw` for each.

        Args:
            state: The fitted state.
            layer: The result of `find_varying_layer`.
            generators: Source of all randomness of each draw.

        Returns:
            Weights, shape (draws, outputs, inputs), and biases, shape (draws, outputs), if the layer has them.

        Raises:
            RuntimeError: The state has nothing to draw from yet.
        """
        weights, biases = list[Tensor](), list[Tensor]()
        for generator in generators:
            with self.draw(state, generator):
                weights.append(layer.weight.detach().clone())
                if layer.bias is not None:
                    biases.append(layer.bias.detach().clone())
        return torch.stack(weights), torch.stack(biases) if biases else None

    def describe_random_layers(self, model: nn.Module) -> Mapping[str, Mapping[str, Any]]:
        """Return the settings, plain data, of each layer that draws leave random, by its name. Default: none.

        An artefact stores them, and is refused where those of the network that it is loaded into differ.

        Args:
            model: The network.
        """
        return {}

    def convert_statistics(self, state: State, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the statistics of an artefact of an earlier version in the form of this one. Default: unchanged.

        Args:
            state: A state of this posterior, before the statistics are loaded.
            statistics: Statistics of the artefact; untrusted.
        """
        return statistics

    @abstractmethod
    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """Return a context in which the yielded module, in eval mode, is one network of the posterior.

        On exit weights, buffers, training flags and random state are restored. Contexts can be nested.

        Args:
            state: The fitted state.
            generator: Source of all randomness of the draw.

        Raises:
            RuntimeError: The state has nothing to draw from yet.
        """
