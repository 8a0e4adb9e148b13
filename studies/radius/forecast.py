"""What one plain training shows, and whether `rho="auto"` then gains: the data of the forecast.

    FLATBAYES_DATA=... python -m studies.radius.forecast docs/results/radius-forecast.json

Every data set of the benchmark of the defaults but the two large ones, both halves. Test data decide nothing.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch

from flatbayes.core.files import read_json, write_json
from flatbayes.core.weights import perturb, trainable_parameters
from flatbayes.data import DataSplits
from flatbayes.flatness import SAM
from flatbayes.models import MLP
from flatbayes.posteriors import MAP
from flatbayes.training import Callback, TrainingConfig
from flatbayes.training.candidates import Candidate
from flatbayes.training.members import list_groups
from flatbayes.training.radius import RADIUS_FACTORS
from flatbayes.training.run import TrainingRun
from flatbayes.training.sharing import prepare_setup
from studies.defaults.tasks import select_tasks
from studies.radius.late import EvaluatedPilot

SHARPNESS_RHO = 0.1
CONFIG = TrainingConfig()


class ObservedPilot(EvaluatedPilot):
    """A pilot that measures the network of the plain training at its end."""

    measured: dict[str, float] | None = None

    def _validate(self, run: TrainingRun) -> float | None:
        val = super()._validate(run)
        if self.measured is None:
            records = run.status.records
            self.measured = {
                "train_loss": records[-1]["loss"],
                "lowest_val_nll": min(r["val_nll"] for r in records if r.get("val_nll") is not None),
                **measure_gradients(run, self),
            }
        return val


def measure_gradients(run: TrainingRun, pilot: EvaluatedPilot) -> dict[str, float]:
    """Noise of the gradient over batches of 64, relative to its mean; rise of the training loss at a distance."""
    factory, model = pilot.setups[0].factory, run.leader.get_state().model
    examples = list(factory.training_data.iter_examples(torch.device("cpu")))
    inputs, targets = (torch.cat([pair[k] for pair in examples]).split(64) for k in (0, 1))
    params = trainable_parameters(model)

    def compute_loss() -> torch.Tensor:
        losses = [factory.likelihood.loss(model(x), y) * len(y) for x, y in zip(inputs, targets, strict=True)]
        return torch.stack(losses).sum() / sum(map(len, targets))

    grads = []
    for x, y in list(zip(inputs, targets, strict=True))[:20]:
        grads.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(factory.likelihood.loss(model(x), y), params)])
        )
    stack = torch.stack(grads)
    mean = stack.mean(0)
    loss = compute_loss()
    ascent = torch.autograd.grad(loss, params)
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    with torch.no_grad(), perturb(params, [g / norm for g in ascent], SHARPNESS_RHO):
        rise = float(compute_loss() - loss)
    noise = float((stack - mean).square().sum(1).mean() / mean.square().sum()) if len(stack) > 1 else 0.0
    return {"gradient_noise": noise, "sharpness": rise, "num_weights": sum(p.numel() for p in params)}


def run_task(data: DataSplits, seed: int) -> dict[str, Any]:
    """Measurements of plain training, and validation and test NLL by radius."""
    setup = prepare_setup(MLP, data, MAP(), SAM(rho="auto"), CONFIG, seed=seed)
    _, members = list_groups([setup])[0]
    test = DataSplits(**{**vars(data), "val": data.test})
    pilot = ObservedPilot([setup], members, Callback(), test=test)
    plain, start = pilot.train_plain()
    for factor in RADIUS_FACTORS:
        pilot.train(Candidate(SAM().reference_radius * factor, start), plain)
    val = {f"{candidate.radius:g}": outcome.score.end for candidate, outcome in pilot.outcomes.items()}
    return {**(pilot.measured or {}), "val": val, "test": pilot.test_scores, "train_size": len(data.train)}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    records: dict[str, Any] = read_json(out) if out.exists() else {}  # type: ignore[assignment]
    for task in select_tasks():
        if task.name not in records and not task.large and task.name != "cifar10":
            try:
                records[task.name] = {"half": task.half, "kind": task.kind, **run_task(task.split(0).splits, 0)}
            except RuntimeError as error:
                records[task.name] = {"half": task.half, "kind": task.kind, "error": str(error)}
            write_json(out, records)
            print(task.name, records[task.name], flush=True)


if __name__ == "__main__":
    main()
