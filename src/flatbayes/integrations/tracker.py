"""What is kept of a training that somebody else's loop runs: a course for the flatness, a state for the posterior."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flatbayes.core import State, TrainingProgress
from flatbayes.core.parameter_selection import (
    ParameterSelection,
    check_selection,
    only_requires_grad,
    select_parameters,
)
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import MAP, SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training.schedules import is_collection_step


@dataclass(frozen=True)
class CollectionConfig:
    """What is collected beside a training, from when on, and of which weights.

    Attributes:
        swag: How iterates are collected; None for the trained network alone.
        collect_from: Share of training after which iterates are collected.
        collect_per_epoch: Iterates an epoch from then on.
        params: The trainable parameters that the posterior is over; the others stay as training leaves them.
        num_data: Number of training examples; None where the loop knows it.
    """

    swag: SWAG | None
    collect_from: float
    collect_per_epoch: int
    params: ParameterSelection
    num_data: int | None

    def __post_init__(self) -> None:
        if self.swag is not None and self.swag.prior_precision is not None:
            raise ValueError(
                f"The optimizer of this loop knows nothing of prior_precision={self.swag.prior_precision}: give it a "
                "weight_decay of the precision divided by the number of training examples instead."
            )
        if not 0 <= self.collect_from < 1:
            raise ValueError(f"collect_from is a share of training, at least 0 and below 1; got {self.collect_from}.")
        if self.collect_per_epoch < 1:
            raise ValueError(f"collect_per_epoch must be at least 1, got {self.collect_per_epoch}.")
        check_selection(self.params, "params")

    @property
    def posterior(self) -> SWAG | MAP:
        """The method: all mass on the trained network where no iterates are collected."""
        return MAP() if self.swag is None else self.swag


@dataclass
class TrainingTracker:
    """A training that is under way, as far as it is ours.

    Attributes:
        config: What is collected, and when.
        state: The network that is trained, and the statistics of the posterior.
        progress: How far training has come, and what the flatness remembers.
        steps_per_epoch: Steps of the optimiser in an epoch.
    """

    config: CollectionConfig
    state: State
    progress: TrainingProgress
    steps_per_epoch: int

    @staticmethod
    def start_tracking(
        config: CollectionConfig,
        network: nn.Module,
        progress: TrainingProgress,
        steps_per_epoch: int | None,
        num_data: int,
    ) -> "TrainingTracker":
        """Nothing is collected yet.

        Args:
            config: What is to be collected, and when.
            network: What is trained, where it is trained.
            progress: As far as training has come.
            steps_per_epoch: Steps of an epoch; None if training is not made of epochs.
            num_data: Number of training examples.

        Raises:
            ValueError: The network has no such parameters, or nobody knows when training ends.
        """
        if config.swag is not None and progress.total_steps is None:
            raise ValueError("SWAG collects late in training, and nobody knows how long this one is: set max_steps.")
        with only_requires_grad(network, select_parameters(network, config.params, "params")):
            state = config.posterior.init(network, None, num_data)
        return TrainingTracker(config, state, progress, steps_per_epoch or progress.total_steps or 1)

    def advance(self) -> None:
        """The optimiser has made another step."""
        plan, step = self.config, self.progress.step
        self.progress.advance()
        if plan.swag is None or self.progress.total_steps is None:
            return
        if is_collection_step(
            step, self.steps_per_epoch, self.progress.total_steps, plan.collect_from, plan.collect_per_epoch
        ):
            with only_requires_grad(self.state.model, self._posterior_params()):
                plan.swag.collect(self.state)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model and the optimiser, for training to go on bit for bit."""
        return {"course": self.progress.state_dict(), "statistics": dict(self.state.statistics)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from here; training may have become longer.

        Raises:
            ValueError: The statistics are not those of this posterior on these parameters.
        """
        total_steps = self.progress.total_steps
        self.progress.load_state_dict(state_dict["course"])
        self.progress.total_steps = total_steps
        weights = self.state.model.state_dict()
        self.state.load_state_dict({"model": weights, "optimizer": None, "statistics": state_dict["statistics"]})

    def make_posterior(
        self,
        likelihood: Likelihood,
        wrap: Callable[[nn.Module], nn.Module],
        transform: Callable[[Tensor], Tensor] | None,
        statistics_inputs: Sequence[Tensor],
        info: Mapping[str, Any] | None,
    ) -> FittedPosterior:
        """The posterior as it is now, which later training leaves alone.

        Parameters that are not trained are shared with the network, in which they do not change either; the others
        are copied.

        Args:
            likelihood: Makes predictions out of outputs.
            wrap: Makes a network that takes one tensor and returns outputs.
            transform: Applied to inputs before a network sees them.
            statistics_inputs: Batches of training inputs, on which running statistics of draws are estimated.
            info: Plain data that travels with the artefact.
        """
        network, chosen = self.state.model, self._posterior_params()
        shared = {id(param): param for param in network.parameters() if not param.requires_grad}
        copied: nn.Module = copy.deepcopy(network, dict[int, Any](shared))
        for name, param in copied.named_parameters():
            if id(param) not in shared:
                param.requires_grad_(name in chosen)
                param.grad = None
        statistics = {name: tensor.clone() for name, tensor in self.state.statistics.items()}
        held = self.state.cpu_statistics
        state = State(wrap(copied).eval(), None, self.state.num_data, statistics, held)
        return FittedPosterior(
            self.config.posterior, [state], likelihood, transform, list(statistics_inputs), dict(info or {})
        )

    def _posterior_params(self) -> dict[str, nn.Parameter]:
        return select_parameters(self.state.model, self.config.params, "params")


def count_optimizer_steps(num_batches: int, accumulation_steps: int) -> int:
    """Steps of an epoch, the last of which may have fewer micro-batches."""
    return -(-num_batches // accumulation_steps)


def count_examples(config: CollectionConfig, dataset: object) -> int:
    """Number of training examples: as the plan says, or as the data set does; one where nobody needs to know.

    Raises:
        ValueError: Neither does.
    """
    if config.num_data is not None or config.swag is None:
        return config.num_data or 1
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"The number of training examples is not known ({error}): pass num_data.") from error
