"""What every posterior is: five verbs over an explicit state."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, Examples, LossFn, OptimizerFactory, State

LossRequirement = Literal["never", "finally", "while collecting"]
"""`never`: any way to good weights will do. `finally`: an objective is minimised, which must not change any more.
`while collecting`: the weights are samples from a density, which every one of them must come from."""


class Posterior(ABC):
    """Decides what is done with the gradients of a closure, and how networks are drawn afterwards.

    A posterior holds hyperparameters only. What a training run changes is in its `State`; a posterior of several
    runs (an ensemble) is the equal mixture of what they end in.
    """

    @property
    @abstractmethod
    def num_members(self) -> int:
        """Independent training runs, from fresh initial weights, that the posterior is made of."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether two draws of one run differ; if not, one draw per run says everything."""

    @property
    @abstractmethod
    def needs_norm_reestimation(self) -> bool:
        """Whether draws have weights that training never visited, and so need running statistics of their own."""

    @property
    @abstractmethod
    def shardable(self) -> bool:
        """Whether init, step and collect go entry by entry, so that processes can each do it with a part of them."""

    @property
    @abstractmethod
    def requires_stationary_loss(self) -> LossRequirement:
        """When the gradients must be those of one fixed loss function of the weights, for the method to be right."""

    @property
    @abstractmethod
    def snapshot_requirements(self) -> tuple[int, int]:
        """How many snapshots a run must collect before a draw, and how many it makes full use of."""

    @property
    @abstractmethod
    def default_optimizer(self) -> OptimizerFactory:
        """What the method is usually trained with, for recipes that name no optimiser."""

    @abstractmethod
    def init(self, model: nn.Module, make_optimizer: OptimizerFactory | None, num_data: int) -> State:
        """The state before the first step: model, optimiser, empty statistics.

        Args:
            model: The network, which is not changed here. Train and draw from the state's `model`: it is this one,
                or a changed copy where the method needs layers of its own.
            make_optimizer: Builds the optimiser from parameters; None for a state that is only drawn from.
            num_data: Number of training examples.
        """

    @abstractmethod
    def step(self, state: State, closure: Closure) -> Tensor:
        """One update: call the closure, add the prior at the unperturbed weights, move. Returns the loss."""

    @abstractmethod
    def collect(self, state: State) -> None:
        """Take note of the current weights, where the posterior is built from where training has been."""

    @abstractmethod
    def finalize(self, state: State, examples: Examples, loss_fn: LossFn) -> None:
        """Take a last look at all the data once training is over, where the posterior is built from curvature.

        Args:
            state: Where training has ended, the model in eval mode.
            examples: Every training example once, in batches, as the model takes them and not augmented.
            loss_fn: The mean negative log likelihood, as trained with.
        """

    @abstractmethod
    def draw(self, state: State, generator: torch.Generator) -> AbstractContextManager[nn.Module]:
        """A context in which the model, in eval mode, is one network of the posterior.

        Afterwards weights, buffers, training flags and random state are as before. Contexts may be nested.

        Args:
            state: What was fitted.
            generator: All randomness of the draw comes from here.

        Raises:
            RuntimeError: There is nothing to draw from yet.
        """
