"""Radii in the last part of training only, as in the pilot of `rho="auto"`, with the default training.

FLATBAYES_DATA=... python -m studies.radius.late docs/results/radius-late.json
"""

import argparse
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from flatbayes.core.files import read_json, write_json
from flatbayes.data import DataSplits
from flatbayes.flatness import SAM
from flatbayes.models import MLP
from flatbayes.posteriors import MAP
from flatbayes.training import Callback, TrainingConfig
from flatbayes.training.candidates import Candidate
from flatbayes.training.members import list_groups
from flatbayes.training.pilot import Pilot
from flatbayes.training.run import TrainingRun
from flatbayes.training.sharing import prepare_setup
from flatbayes.training.training_examples import make_training_data
from studies.defaults.tasks import Task, select_tasks

RADII = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass
class EvaluatedPilot(Pilot):
    """A pilot that also evaluates on test data, which decide nothing.

    Attributes:
        test: The test examples as validation examples.
        test_scores: Test NLL of each training, in order.
    """

    test: DataSplits | None = None
    test_scores: list[float] = field(default_factory=list)

    def _validate(self, run: TrainingRun) -> float | None:
        assert self.test is not None
        factory = self.setups[0].factory
        evaluate = make_training_data(self.test, factory.training_data.transform).make_validator(
            factory.likelihood, self.setups[0].world
        )
        assert evaluate is not None
        self.test_scores.append(evaluate(run.leader.get_state().model)["val_nll"])
        return super()._validate(run)

    def train_plain(self) -> tuple[Candidate, float]:
        """Train with radius 0; return that training, and the fraction from which on other radii differ.

        Raises:
            ValueError: No other radius can be tried.
        """
        plain = Candidate(0.0)
        if self.obstacle is not None:
            raise ValueError(self.obstacle)
        checkpoints = self.train(plain).checkpoints
        if checkpoints.branch is None:
            raise ValueError(f"{self.num_steps} steps are too few to repeat their end")
        return plain, checkpoints.branch_progress[0] / checkpoints.branch_progress[1]


PilotT = TypeVar("PilotT", bound=EvaluatedPilot)


def make_pilot(kind: type[PilotT], data: DataSplits) -> PilotT:
    """The pilot of a MAP training with default options, seed 0."""
    setup = prepare_setup(MLP, data, MAP(), SAM(rho="auto"), TrainingConfig(), seed=0)
    _, members = list_groups([setup])[0]
    return kind([setup], members, Callback(), test=replace(data, val=data.test))


def run_task(task: Task) -> dict[str, Any]:
    """Validation and test NLL of the weights, by radius."""
    pilot = make_pilot(EvaluatedPilot, task.split(0).splits)
    plain, start = pilot.train_plain()
    scores = {}
    for radius in (0.0, *RADII):
        outcome = pilot.outcomes[plain] if radius == 0 else pilot.train(Candidate(radius, start), plain)
        val = outcome.score.end
        scores[f"{radius:g}"] = [val, None if val is None else pilot.test_scores[-1]]
        if radius:
            outcome.checkpoints.end = None
    return scores


def run_missing(description: str | None, tasks: Iterable[Task], run: Callable[[Task], dict[str, Any]]) -> None:
    """Run the tasks, but for large ones, that have no record in the file that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records: dict[str, Any] = read_json(out) if out.exists() else {}  # type: ignore[assignment]
    for task in tasks:
        if task.name not in records and not task.large:
            records[task.name] = run(task)
            write_json(out, records)
            print(task.name, records[task.name], flush=True)


if __name__ == "__main__":
    run_missing(__doc__, select_tasks(half="choice"), run_task)
