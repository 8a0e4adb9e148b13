"""What one plain training shows, and whether `rho="auto"` then gains: the data of the forecast.

    FLATBAYES_DATA=... python -m studies.radius.forecast docs/results/radius-forecast.json

Every data set of the benchmark of the defaults but the two large ones, both halves. Test data decide nothing.
"""

from typing import Any

import torch

from flatbayes.core.weights import perturb, trainable_parameters
from flatbayes.data import DataSplits
from flatbayes.flatness import SAM
from flatbayes.training.candidates import Candidate
from flatbayes.training.radius import RADIUS_FACTORS
from flatbayes.training.run import TrainingRun
from studies.defaults.tasks import Task, select_tasks
from studies.radius.late import EvaluatedPilot, make_pilot, run_missing

SHARPNESS_RHO = 0.1


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


def observe_task(data: DataSplits) -> dict[str, Any]:
    """Measurements of plain training, and validation and test NLL by radius."""
    pilot = make_pilot(ObservedPilot, data)
    plain, start = pilot.train_plain()
    for factor in RADIUS_FACTORS:
        pilot.train(Candidate(SAM().reference_radius * factor, start), plain)
    val = {f"{candidate.radius:g}": outcome.score.end for candidate, outcome in pilot.outcomes.items()}
    return {**(pilot.measured or {}), "val": val, "test": pilot.test_scores, "train_size": len(data.train)}


def run_task(task: Task) -> dict[str, Any]:
    """The observations of a data set, or the message of its failure."""
    try:
        observed = observe_task(task.split(0).splits)
    except RuntimeError as error:
        observed = {"error": str(error)}
    return {"half": task.half, "kind": task.kind, **observed}


if __name__ == "__main__":
    run_missing(__doc__, [task for task in select_tasks() if task.name != "cifar10"], run_task)
