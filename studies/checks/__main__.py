"""How often self-checks fail where they should not: fits of the data sets of the benchmark of the defaults.

Every fit is checked on its validation rows. Three counts tell false alarms apart from right ones:

* `null`: targets drawn from the predictive distribution itself, so that confidence and coverage are right by
  construction;
* `fits`: the real targets. Whether an alarm is right is measured on the test rows, which the checks have not seen:
  the same test there, or the NLL of the training that has four times the steps;
* rows are split at random, so every alarm of inputs that are outside, duplicates and BatchNorm is false.

    python -m studies.checks docs/results/checks.json --half choice
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from flatbayes import MAP, MLP, SAM, SGLD, SGVB, SWAG, Ensemble, Laplace, TrainingConfig
from flatbayes.checks import CheckReport, check
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits, Split
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior, evaluate
from flatbayes.training.sharing import try_fit_together
from studies.checks.summary import NULL_CHECKS, format_counts
from studies.defaults.tasks import TaskData, select_tasks

GROUPS: tuple[tuple[Posterior, ...], ...] = ((MAP(), SWAG(), Laplace()), (Ensemble(size=3),), (SGVB(),), (SGLD(),))
"""Posteriors; those of a group share a training."""
STEPS = (100, 400)
"""Lengths of trainings; the next one tells whether one is too short."""


def draw_targets(fitted: FittedPosterior, split: Split, seed: int) -> torch.Tensor:
    """Targets from the predictive distribution of the rows."""
    predictive, generator = fitted.predict(split.inputs, seed=seed), torch.Generator().manual_seed(seed)
    if isinstance(predictive, CategoricalPredictive):
        return torch.multinomial(predictive.mean, 1, generator=generator)[:, 0]
    assert isinstance(predictive, GaussianPredictive)
    members = torch.randint(0, len(predictive.member_means), (len(split),), generator=generator)
    rows = torch.arange(len(split))
    noise = torch.randn(len(split), generator=generator, dtype=torch.float64)
    return predictive.member_means[members, rows] + predictive.member_stds[members, rows] * noise


def describe_report(report: CheckReport) -> dict[str, Any]:
    """Value, with four digits, and result of every check."""
    return {f.name: {"value": float(f"{f.value:.4g}"), "passed": f.passed} for f in report.findings}


def run_fits(name: str, data: DataSplits, seed: int) -> Iterator[dict[str, Any]]:
    """Fit all posteriors with all lengths, and check them on validation and test rows."""
    for group, steps in product(GROUPS, STEPS):
        config = TrainingConfig(epochs=max(5, round(steps * 64 / max(64, len(data.train)))))
        outcomes = try_fit_together(MLP, data, [(posterior, config) for posterior in group], SAM(), seed=seed)
        for posterior, outcome in zip(group, outcomes, strict=True):
            row: dict[str, Any] = {"task": name, "posterior": short_name(posterior), "steps": steps}
            if outcome.fitted is None:
                yield row | {"error": f"{type(outcome.error).__name__}: {outcome.error}"[:200]}
                continue
            fitted = outcome.fitted
            reports = {
                "checks": check(fitted, data.val, seed=seed),
                "test": check(fitted, data.test, seed=seed),
                "null": check(fitted, data.val.inputs, draw_targets(fitted, data.val, seed), seed=seed),
            }
            row |= {kind: describe_report(report) for kind, report in reports.items()}
            row["null"] = {name: row["null"][name] for name in NULL_CHECKS if name in row["null"]}
            yield row | {"test_nll": evaluate(fitted, data.test, seed=seed).metrics["nll"]}


def main() -> None:
    """Fit what has no row yet, and write the rows after every data set."""
    parser = argparse.ArgumentParser(prog="python -m studies.checks", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", choices=("choice", "held-out"))
    parser.add_argument("--summary", action="store_true", help="print the counts of the rows that there are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(options.out) if options.out.exists() else []
    if options.summary:
        print(format_counts([row for row in rows if options.half in (None, row["half"])]))
        return
    done = {row["task"] for row in rows}
    for task in select_tasks(half=options.half):
        if task.name in done or task.large:
            continue
        data: TaskData = task.split(0)
        new = [row | {"half": task.half} for row in run_fits(task.name, data.splits, 0)]
        rows += new
        write_json(options.out, replace_nonfinite(rows))
        failed = [f"{row['posterior']} {row['steps']}: {list_failed(row)}" for row in new]
        print(task.name, *failed, sep="\n  ", flush=True)


def list_failed(row: dict[str, Any]) -> list[str]:
    """Names of the checks that failed, or the error."""
    return [
        name
        for name, entry in row.get("checks", {row.get("error"): {"passed": False}}).items()
        if not entry["passed"]
    ]


if __name__ == "__main__":
    main()
