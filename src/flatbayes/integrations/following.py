"""What is kept of a training that somebody else's loop runs: a course for the flatness, a state for the posterior."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flatbayes.core import Course, State
from flatbayes.core.selection import Selection, alone, check_selection, selected
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG, Point
from flatbayes.prediction import FittedPosterior
from flatbayes.training.schedules import collects


@dataclass(frozen=True)
class Plan:
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
    params: Selection
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
    def posterior(self) -> SWAG | Point:
        """The method: all mass on the trained network where no iterates are collected."""
        return Point() if self.swag is None else self.swag


@dataclass
class Following:
    """A training that is under way, as far as it is ours.

    Attributes:
        plan: What is collected, and when.
        state: The network that is trained, and the statistics of the posterior.
        course: How far training has come, and what the flatness remembers.
        steps_per_epoch: Steps of the optimiser in an epoch.
    """

    plan: Plan
    state: State
    course: Course
    steps_per_epoch: int

    @staticmethod
    def start(
        plan: Plan, network: nn.Module, course: Course, steps_per_epoch: int | None, num_data: int
    ) -> "Following":
        """Nothing is collected yet.

        Args:
            plan: What is to be collected, and when.
            network: What is trained, where it is trained.
            course: As far as training has come.
            steps_per_epoch: Steps of an epoch; None if training is not made of epochs.
            num_data: Number of training examples.

        Raises:
            ValueError: The network has no such parameters, or nobody knows when training ends.
        """
        if plan.swag is not None and course.total_steps is None:
            raise ValueError("SWAG collects late in training, and nobody knows how long this one is: set max_steps.")
        with alone(network, selected(network, plan.params, "params")):
            state = plan.posterior.init(network, None, num_data)
        return Following(plan, state, course, steps_per_epoch or course.total_steps or 1)

    def advance(self) -> None:
        """The optimiser has made another step."""
        plan, step = self.plan, self.course.step
        self.course.advance()
        if plan.swag is None or self.course.total_steps is None:
            return
        if collects(step, self.steps_per_epoch, self.course.total_steps, plan.collect_from, plan.collect_per_epoch):
            with alone(self.state.model, self._params()):
                plan.swag.collect(self.state)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model and the optimiser, for training to go on bit for bit."""
        return {"course": self.course.state_dict(), "statistics": dict(self.state.statistics)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from here; training may have become longer.

        Raises:
            ValueError: The statistics are not those of this posterior on these parameters.
        """
        total_steps = self.course.total_steps
        self.course.load_state_dict(saved["course"])
        self.course.total_steps = total_steps
        weights = self.state.model.state_dict()
        self.state.load_state_dict({"model": weights, "optimizer": None, "statistics": saved["statistics"]})

    def fitted(
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
        network, chosen = self.state.model, self._params()
        shared = {id(param): param for param in network.parameters() if not param.requires_grad}
        copied: nn.Module = copy.deepcopy(network, dict[int, Any](shared))
        for name, param in copied.named_parameters():
            if id(param) not in shared:
                param.requires_grad_(name in chosen)
                param.grad = None
        statistics = {name: tensor.clone() for name, tensor in self.state.statistics.items()}
        held = self.state.in_main_memory
        state = State(wrap(copied).eval(), None, self.state.num_data, statistics, held)
        return FittedPosterior(
            self.plan.posterior, [state], likelihood, transform, list(statistics_inputs), dict(info or {})
        )

    def _params(self) -> dict[str, nn.Parameter]:
        return selected(self.state.model, self.plan.params, "params")


def steps_of(batches: int, accumulate: int) -> int:
    """Steps of an epoch, the last of which may have fewer micro-batches."""
    return -(-batches // accumulate)


def count_examples(plan: Plan, dataset: object) -> int:
    """Number of training examples: as the plan says, or as the data set does; one where nobody needs to know.

    Raises:
        ValueError: Neither does.
    """
    if plan.num_data is not None or plan.swag is None:
        return plan.num_data or 1
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"The number of training examples is not known ({error}): pass num_data.") from error
