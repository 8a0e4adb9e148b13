"""Evaluation of the posteriors of a training: metrics, detection of other inputs, and what the training shows."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from flatbayes.diagnostics import LossSurface
from flatbayes.diagnostics.sharpness import one_step_gap
from flatbayes.metrics import aurc, auroc, classification_metrics, cross_fitted_nll, ensemble_nlls
from flatbayes.posteriors import Ensemble
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.placement import PredictionPrecision
from flatbayes.training.fit import FitOutcome

SHARPNESS_RHO = 0.05
Batches = Sequence[tuple[Any, Tensor]]
"""Inputs as the network takes them, and labels."""


def evaluate_all(
    fitted: Mapping[str, FitOutcome],
    sets: Mapping[str, Batches],
    seed: int,
    num_draws: int,
    *,
    shifted: Collection[str] = (),
    precision: PredictionPrecision | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics on `val` and `test` by posterior; a posterior that failed has an infinite NLL.

    Args:
        fitted: The posteriors by name.
        sets: Batches by name: `val`, `test`, and other inputs that are compared with those of `test`.
        seed: Seed of draws.
        num_draws: Networks averaged in a prediction.
        shifted: Names of sets that have labels; the others are out of distribution.
        precision: As in `FittedPosterior.predict`.
    """
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in sets if name in ("val", "test")}
    for name, outcome in fitted.items():
        try:
            if outcome.fitted is None:
                raise RuntimeError(str(outcome.error))
            metrics = evaluate_posterior(outcome.fitted, sets, seed, num_draws, shifted, precision)
        except RuntimeError as error:  # training failed, or a prediction is not finite
            metrics = {key: {"nll": math.inf, "error": str(error)} for key in results}
        for key, values in metrics.items():
            results[key][name] = values
    return results


def evaluate_posterior(
    fitted: FittedPosterior,
    sets: Mapping[str, Batches],
    seed: int,
    num_draws: int,
    shifted: Collection[str],
    precision: PredictionPrecision | None,
) -> dict[str, dict[str, Any]]:
    """Metrics of one posterior.

    Those on shifted inputs, averaged over the sets, and the detection of out-of-distribution inputs by the entropy of
    the prediction belong to `test`. All sets are predicted in one call, since the draws of large networks are not
    kept for the next one.

    Args:
        fitted: The posterior.
        sets: As for `evaluate_all`, like the others.
        seed: Seed of draws.
        num_draws: Networks averaged in a prediction.
        shifted: Names of sets that have labels.
        precision: As in `FittedPosterior.predict`.
    """
    is_ensemble = isinstance(fitted.posterior, Ensemble)
    inputs = [batch for batches in sets.values() for batch, _ in batches]
    together: Any = fitted.predict(inputs, num_draws, seed=seed, precision=precision, keep_members=is_ensemble)
    labels = {name: torch.cat([targets for _, targets in batches]) for name, batches in sets.items()}
    rows = torch.arange(sum(map(len, labels.values()))).split([len(targets) for targets in labels.values()])
    predictives = {name: together.select(part) for name, part in zip(sets, rows, strict=True)}
    results: dict[str, dict[str, Any]] = {}
    for name in [name for name in sets if name in ("val", "test")]:
        log_probs, targets = predictives[name].log_probs, labels[name]
        results[name] = classification_metrics(log_probs, targets) | {
            "aurc": aurc(log_probs.max(-1).values.double(), (log_probs.argmax(-1) != targets).double()),
            "nll_calibrated": cross_fitted_nll(log_probs, targets),
        }
        if is_ensemble:
            results[name]["ensemble_nlls"] = ensemble_nlls(predictives[name].member_probs, targets)
    for name in [name for name in sets if name not in results and name not in shifted]:
        entropies = predictives["test"].entropy, predictives[name].entropy
        is_other = torch.arange(sum(map(len, entropies))) >= len(entropies[0])
        results["test"][f"auroc_{name}"] = auroc(torch.cat(entropies), is_other)
    on_shifted = [classification_metrics(predictives[k].log_probs, labels[k]) for k in sets if k in shifted]
    if on_shifted:
        results["test"] |= {f"shift_{key}": fmean(m[key] for m in on_shifted) for key in ("accuracy", "nll", "ece")}
    return results


def measure_law(
    fitted: FittedPosterior, train: Batches, few: Batches, num_examples: int, val_nll: float
) -> dict[str, float]:
    """What a training shows of itself: loss, generalization gap, sharpness, trainable weights per example.

    Args:
        fitted: The MAP network.
        train: Training examples for the loss.
        few: Some of them, for the sharpness.
        num_examples: Number of all training examples.
        val_nll: NLL of the network on validation examples.
    """
    model, loss_fn = fitted.states[0].model, fitted.likelihood.loss
    loss, surface = LossSurface(model, loss_fn, train).loss(), LossSurface(model, loss_fn, few)
    return {
        "train_loss": loss,
        "gap": val_nll - loss,
        "sharpness": one_step_gap(surface, SHARPNESS_RHO),
        "weights_per_example": surface.num_params / num_examples,
    }


def describe_cost(fitted: Mapping[str, FitOutcome], wall: float, cpu: float) -> dict[str, Any]:
    """Cost of the fits: of the whole call, and of the training together and one by one, in seconds.

    Each posterior reports the time of the common steps and of its own snapshots and last pass. The shortest of these
    is taken for that of the steps.

    Args:
        fitted: The posteriors by name.
        wall: Wall-clock seconds of the call that fitted all, with the checks before training.
        cpu: CPU seconds of this call.

    Returns:
        Seconds, gradients of a batch, the epochs after which early stopping has ended the training (NaN without), and
        the device with the version of torch.
    """
    infos = [outcome.fitted.info for outcome in fitted.values() if outcome.fitted]
    costs = [info["cost"] for info in infos]
    seconds = [cost["train_seconds"] for cost in costs]
    steps = min(seconds, default=0.0)
    return {
        "call_seconds": wall,
        "call_cpu_seconds": cpu,
        "seconds_together": steps + sum(value - steps for value in seconds),
        "seconds_one_by_one": sum(seconds),
        "gradients": costs[0]["gradients"] if costs else math.nan,
        "num_epochs": fmean(infos[0]["training"].get("last_epochs", [math.nan])) if infos else math.nan,
        "device": f"{infos[0]['device']}, torch {torch.__version__}" if infos else None,
    }
