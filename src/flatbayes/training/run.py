"""A training run: its components, which do not change, and its status, which does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from flatbayes.core import LossFn, State, TrainingProgress
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.batches import TrainingBatches
from flatbayes.training.callbacks.callback import Record
from flatbayes.training.config import TrainingConfig


@dataclass
class RunStatus:
    """How far a training run has come.

    Attributes:
        state: The posterior's state; None before training, and while it is sharded.
        progress: Step counter, and the state of the flatness.
        completed_epochs: Number of epochs done.
        loss_sum: Sum of the losses of the current epoch.
        num_gradients: Forward and backward passes of a network; a pass over a fraction of the batch counts as that
            fraction.
        records: One record per epoch and network.
        is_trained: Whether training has ended.
    """

    state: State | None = None
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    completed_epochs: int = 0
    loss_sum: Tensor | float = 0.0
    num_gradients: float = 0
    records: list[Record] = field(default_factory=list)
    is_trained: bool = False


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A training run of one network, or of several vectorized ones.

    Attributes:
        module: Network to train, or several vectorized ones.
        init_state: Makes the posterior's state before the first step from the module.
        posterior: Takes the steps.
        flatness: Computes the gradients.
        loss_fn: Training loss; with vectorized networks, one value per network.
        batches: Training data.
        config: Training hyperparameters.
        seed: Seed of dropout and of the posterior's noise.
        validate: Evaluates every network of the module between epochs.
        find_labelled: Which examples of a batch have a target, from its targets; None if all have one.
        loss_is_nll: Whether the loss is known to be a negative log likelihood in nats; those of users may have units.
        num_networks: Number of networks in the module.
        split_state: Splits the state into one state per network.
        status: What changes during training.
    """

    module: nn.Module
    init_state: Callable[[nn.Module], State]
    posterior: Posterior
    flatness: Flatness
    loss_fn: LossFn
    batches: TrainingBatches
    config: TrainingConfig
    seed: int
    validate: Callable[[nn.Module], Sequence[Mapping[str, float]]] | None = None
    find_labelled: Callable[[Tensor], Tensor | None] = lambda targets: None
    loss_is_nll: bool = True
    num_networks: int = 1
    split_state: Callable[[State], list[State]] = lambda state: [state]
    status: RunStatus = field(default_factory=RunStatus)

    @property
    def states(self) -> list[State]:
        """Current state of each network; empty before training has started."""
        return [] if self.status.state is None else self.split_state(self.status.state)
