"""Training of one group of members: a run, its finalized states, and its results as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flatbayes.core import State
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.posteriors import Posterior
from flatbayes.prediction import NetworkSampler
from flatbayes.prediction.inputs import find_nonfinite_rows
from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.compatibility import check_finite_weights
from flatbayes.training.early_stopping import has_best_weights
from flatbayes.training.fabric import Fabric
from flatbayes.training.identity import describe_branch
from flatbayes.training.recording import Recording, record_or_replay
from flatbayes.training.run import TrainingRun
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.session import Session

NUM_CHECKED_DRAWS = 3


@dataclass(frozen=True, eq=False)
class GroupResult:
    """Result of a training run for one posterior.

    `num_branches` is the number of posteriors that the run has served. The seconds are those of the steps, and of the
    snapshots and the last pass over the data of this posterior.
    """

    states: Sequence[State]
    records: Sequence[Record]
    num_gradients: float
    seconds: float = 0.0
    num_branches: int = 1
    best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The result as tensors and plain data."""
        return {
            "states": [
                {key: value for key, value in s.state_dict().items() if key != "optimizer"} | {"num_data": s.num_data}
                for s in self.states
            ],
            "records": list(self.records),
            "num_gradients": self.num_gradients,
            "run_seconds": self.seconds,
            "num_branches": self.num_branches,
            "best_epoch": self.best_epoch,
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
        records, num_gradients = state_dict["records"], state_dict["num_gradients"]
        seconds, num_branches = state_dict.get("run_seconds", 0.0), state_dict.get("num_branches", 1)
        return GroupResult(states, records, num_gradients, seconds, num_branches, state_dict.get("best_epoch"))


GroupOutcome = GroupResult | Exception
"""Result of a run for one posterior, or why this posterior has none."""


def train_group(
    factory: RunFactory,
    run: TrainingRun,
    session: Session,
    callback: Callback,
    recording: Recording | None = None,
) -> dict[str, GroupOutcome]:
    """Train a run to its end, finalize the states of its posteriors, and save the results.

    An empty recording is made; another one is replayed in place of the training.

    Returns:
        The result of every posterior by the name of its branch, or its error. The error of one posterior does not
        change the results of the others.

    Raises:
        RuntimeError: The loss or a weight is not finite.
        OSError: A checkpoint cannot be written.
        Exception: That of the first posterior, if all have failed.
    """
    states = {run.leader.name: record_or_replay(run, session, callback, recording)}
    for state in states[run.leader.name]:
        check_finite_weights(state.model)
    for branch in run.followers:  # before the first posterior is finalized
        with branch.isolate():
            states[branch.name] = [
                make_independent(state, branch.posterior, factory, member, session.fabric)
                for member, state in zip(run.status.progress.members, branch.states, strict=True)
            ]
    if run.status.best is not None:
        for branch in run.branches:
            for state in states.get(branch.name, ()) if has_best_weights(branch.posterior) else ():
                run.status.best.load_into(state, with_statistics=branch is run.leader)
    step_seconds = run.status.elapsed_seconds() - sum(branch.seconds for branch in run.branches)
    if recording is not None and not recording.is_complete:
        recording.finish(run, step_seconds)
    outcomes: dict[str, GroupOutcome] = {}
    for branch in run.branches:
        if branch.error is None:
            with branch.isolate():
                finalize_states(factory, branch.posterior, states[branch.name], session)
                if session.world.size == 1:
                    check_finite_draws(factory, branch.posterior, states[branch.name])
        status = run.status
        outcomes[branch.name] = branch.error or GroupResult(
            states[branch.name],
            status.records,
            status.num_gradients,
            step_seconds + branch.seconds,
            len(run.branches),
            None if status.best is None else status.best.epoch,
        )
    run.check_branches()
    session.manager.save_result(session.run_index, describe_outcomes(outcomes))
    return outcomes


def make_independent(state: State, posterior: Posterior, factory: RunFactory, member: int, fabric: Fabric) -> State:
    """The state with a network of its own, and with its own copies of the statistics that `step` changes."""
    shared = posterior.trajectory.statistics if posterior.trajectory else frozenset()
    statistics = {name: x.clone() if name in shared else x for name, x in state.statistics.items()}
    return replace(state, model=factory.copy_trained(state.model, member, fabric), statistics=statistics)


def describe_outcomes(outcomes: Mapping[str, GroupOutcome]) -> dict[str, Any]:
    """Tensors and plain data of the results of a run, by branch; for a single posterior those of its result alone."""
    described = {
        name: {"error": str(outcome)} if isinstance(outcome, Exception) else outcome.state_dict()
        for name, outcome in outcomes.items()
    }
    return {"branches": described} if len(described) > 1 else next(iter(described.values()))


def restore_outcome(
    saved: Mapping[str, Any], factory: RunFactory, members: Sequence[int], fabric: Fabric
) -> GroupOutcome:
    """The result of one posterior from what `describe_outcomes` returned."""
    if "branches" in saved:
        saved = saved["branches"][describe_branch(factory.posterior, factory.config)]
    if "error" in saved:
        return RuntimeError(saved["error"])
    return GroupResult.from_state_dict(saved, factory, members, fabric)


def finalize_states(factory: RunFactory, posterior: Posterior, states: Sequence[State], session: Session) -> None:
    """Run a posterior's last pass over the training data, such as the curvature of a Laplace approximation."""
    for state in states:
        with seeded_rng(spawn_seed(Stream.FINALIZATION, factory.seed), state.model):
            examples = factory.training_data.iter_examples(session.fabric.device)
            posterior.finalize(state, examples, factory.likelihood.loss)


@torch.no_grad()
def check_finite_draws(factory: RunFactory, posterior: Posterior, states: Sequence[State]) -> None:
    """Predict a few training examples with a few draws, which overflow after a divergence with finite weights.

    Raises:
        RuntimeError: A prediction is not finite.
    """
    if not factory.likelihood.has_predictive:
        return
    inputs, _ = factory.training_data.example_batch
    sampler = NetworkSampler(posterior, states, factory.likelihood, statistics_inputs=[inputs])
    networks = sampler.sample_networks(NUM_CHECKED_DRAWS * len(states))
    predictive = factory.likelihood.predictive(network(sampler.preprocess(inputs)) for network in networks)
    if len(find_nonfinite_rows(predictive)):
        data_change = factory.suggest_data_change()
        first = "" if data_change is None else f"{data_change}, "
        params = (param for state in states for param in state.model.parameters() if param.numel())
        largest = max(float(param.abs().max()) for param in params)
        raise RuntimeError(
            "The predictions of networks drawn after training are not finite for training examples: the training has "
            f"diverged, to weights of up to {largest:.3g}. Try {first}a lower learning rate, a "
            "smaller rho, or clipping (--optimization.clip_norm 1)."
        )
