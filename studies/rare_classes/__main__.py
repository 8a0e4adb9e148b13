"""Class weights against decisions of least expected cost, on digits with 2 % positives.

    python -m studies.rare_classes docs/results/rare-classes.json

Each digit of scikit-learn's in turn is the positive class: 16 positives among 800 training examples, and all other
images as test examples, weighted to 2 % positives. A false alarm costs 1, a missed positive 10 or 49.
Every training is that of SWAG with SAM, and its loss has the class weights 1 and w, divided by their mean over the
training examples.
"""

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from flatbayes import MLP, SAM, SWAG, Categorical, Custom, TrainingConfig, fit
from flatbayes.core.files import write_json
from flatbayes.decisions import decide, mean_cost
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.training import OptimizationConfig

SHARE, NUM_TRAINING, NUM_SEEDS = 0.02, 800, 2
COSTS_OF_MISS, WEIGHTS = (10.0, 49.0), (1.0, 10.0, 49.0)
CONFIG = TrainingConfig(epochs=30, optimization=OptimizationConfig(clip_norm=1.0))


def weighted_loss(weights: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy with a weight for each class."""
    return (weights[targets] * F.cross_entropy(outputs, targets, reduction="none")).mean()


def predict_probs(train: tuple[Tensor, Tensor], inputs: Tensor, weight: float, seed: int) -> Tensor:
    """Probabilities of a training in which positives have a weight."""
    weights = torch.tensor([1.0, weight])
    loss = partial(weighted_loss, weights / weights[train[1]].mean())
    likelihood = Custom(loss, Categorical(2)) if weight != 1 else Categorical(2)
    fitted = fit(MLP, train, SWAG(), SAM(), CONFIG, likelihood=likelihood, seed=seed, show_progress=False)
    return fitted.predict(inputs).mean


def average(values: Tensor, targets: Tensor) -> float:
    """Mean over test examples that are weighted to the share of positives in training."""
    return float((1 - SHARE) * values[targets == 0].mean() + SHARE * values[targets == 1].mean())


def evaluate_probs(probs: Tensor, targets: Tensor) -> dict[str, float]:
    """NLL, and the mean cost of the most probable class and of the decision of least expected cost."""
    log_probs = probs.clamp_min(1e-300).log()
    result = {"nll": average(-log_probs[torch.arange(len(targets)), targets], targets)}
    for cost in COSTS_OF_MISS:
        costs = [[0.0, 1.0], [cost, 0.0]]
        for name, decisions in (("most_probable", probs.argmax(1)), ("least_cost", decide(probs, costs))):
            per_class = [mean_cost(decisions[targets == c], targets[targets == c], costs) for c in (0, 1)]
            result[f"{name}_{cost:g}"] = (1 - SHARE) * per_class[0] + SHARE * per_class[1]
    return result


def run_trial(digit: int, seed: int) -> dict[str, Any]:
    """All trainings with one digit as the positive class."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images).float(), (torch.tensor(labels) == digit).long()
    generator = torch.Generator().manual_seed(100 * seed + digit)
    groups = [(targets == c).nonzero().flatten() for c in (1, 0)]
    positives, negatives = (rows[torch.randperm(len(rows), generator=generator)] for rows in groups)
    count = round(SHARE * NUM_TRAINING)
    train = torch.cat([positives[:count], negatives[: NUM_TRAINING - count]])
    test = torch.cat([positives[count:], negatives[NUM_TRAINING - count :]])
    result: dict[str, Any] = {"digit": digit, "seed": seed}
    for weight in WEIGHTS:
        probs = predict_probs((inputs[train], targets[train]), inputs[test], weight, seed)
        result[f"weight {weight:g}"] = evaluate_probs(probs, targets[test])
        if weight != 1:  # the odds of the weighted training are too high by the weight, if it is calibrated
            divided = probs / torch.tensor([1.0, weight])
            divided /= divided.sum(1, keepdim=True)
            result[f"weight {weight:g}, divided"] = evaluate_probs(divided, targets[test])
    return result


def summarize(trials: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means, and paired differences from the training without weights and its decision of least expected cost."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, metrics in trials[0].items():
        for metric in metrics if isinstance(metrics, dict) else ():
            reference = "nll" if metric == "nll" else f"least_cost_{metric.rpartition('_')[2]}"
            values = [trial[name][metric] for trial in trials]
            changes = [trial[name][metric] - trial["weight 1"][reference] for trial in trials]
            error = statistics.stdev(changes) / len(trials) ** 0.5
            summary.setdefault(name, {})[metric] = {
                "mean": statistics.mean(values),
                "difference": statistics.mean(changes),
                "standard_error": error,
            }
    return summary


def main(path: Path) -> None:
    """Run all trials, and write and print their summary."""
    trials = [run_trial(digit, seed) for seed in range(NUM_SEEDS) for digit in range(10)]
    summary = summarize(trials)
    write_json(path, {"environment": describe_environment(), "summary": summary, "trials": trials})
    for name, metrics in summary.items():
        for metric, numbers in metrics.items():
            print(f"{name:20} {metric:18}", *(f"{key} {value:+.4f}" for key, value in numbers.items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
