"""Training of one group of members: a run, its finalized states, and its result as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flatbayes.core import State
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.prediction import NetworkSampler
from flatbayes.prediction.inputs import find_nonfinite_rows
from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.compatibility import check_finite_weights
from flatbayes.training.fabric import Fabric
from flatbayes.training.loop import train
from flatbayes.training.run import TrainingRun
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.session import Session

NUM_CHECKED_DRAWS = 3


@dataclass(frozen=True, eq=False)
class GroupResult:
    """Result of a training run.

    Attributes:
        states: Final state of each member.
        records: Records of all epochs.
        num_gradients: Forward and backward passes of a network.
    """

    states: Sequence[State]
    records: Sequence[Record]
    num_gradients: float

    def state_dict(self) -> dict[str, Any]:
        """The result as tensors and plain data."""
        return {
            "states": [
                {key: value for key, value in s.state_dict().items() if key != "optimizer"} | {"num_data": s.num_data}
                for s in self.states
            ],
            "records": list(self.records),
            "num_gradients": self.num_gradients,
        }

    @staticmethod
    def from_state_dict(
        state_dict: Mapping[str, Any], factory: RunFactory, members: Sequence[int], fabric: Fabric
    ) -> "GroupResult":
        """The result from what `state_dict` returned."""
        states = [
            factory.restore_state(member, state, fabric)
            for member, state in zip(members, state_dict["states"], strict=True)
        ]
        return GroupResult(states, state_dict["records"], state_dict["num_gradients"])


def train_group(factory: RunFactory, run: TrainingRun, session: Session, callback: Callback) -> GroupResult:
    """Train a run to its end, finalize its states, and save the result.

    Args:
        factory: The factory that made the run.
        run: The run of one member, or of several vectorized ones.
        session: Device, process group and checkpoints.
        callback: Called after every step and epoch.

    Raises:
        RuntimeError: The loss, a weight, or a prediction with a draw is not finite.
        OSError: A checkpoint cannot be written.
    """
    states = train(run, session, callback)
    for state in states:
        check_finite_weights(state.model)
    finalize_states(factory, states, session)
    if session.world.size == 1:
        check_finite_draws(factory, states)
    result = GroupResult(states, run.status.records, run.status.num_gradients)
    session.manager.save_result(session.run_index, result.state_dict())
    return result


def finalize_states(factory: RunFactory, states: Sequence[State], session: Session) -> None:
    """Run the posterior's last pass over the training data, such as the curvature of a Laplace approximation."""
    for state in states:
        with seeded_rng(spawn_seed(Stream.FINALIZATION, factory.seed), state.model):
            examples = factory.training_data.iter_examples(session.fabric.device)
            factory.posterior.finalize(state, examples, factory.likelihood.loss)


@torch.no_grad()
def check_finite_draws(factory: RunFactory, states: Sequence[State]) -> None:
    """Predict a few training examples with a few draws, which overflow after a divergence with finite weights.

    Args:
        factory: Its posterior draws, and its training data has the examples.
        states: Final state of each member.

    Raises:
        RuntimeError: A prediction is not finite.
    """
    if not factory.likelihood.has_predictive:
        return
    inputs, _ = factory.training_data.example_batch
    sampler = NetworkSampler(factory.posterior, states, factory.likelihood, statistics_inputs=[inputs])
    networks = sampler.sample_networks(NUM_CHECKED_DRAWS * len(states))
    predictive = factory.likelihood.predictive(network(sampler.preprocess(inputs)) for network in networks)
    if len(find_nonfinite_rows(predictive)):
        raise RuntimeError(
            "The predictions of networks drawn after training are not finite for training examples: the training has "
            f"diverged, to weights of up to {_largest_weight(states):.3g}. Try a lower learning rate, a smaller rho, "
            "or clipping (--optimization.clip_norm 1)."
        )


def _largest_weight(states: Sequence[State]) -> float:
    return max(float(param.abs().max()) for state in states for param in state.model.parameters() if param.numel())
