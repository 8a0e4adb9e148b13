"""Evaluation of the posteriors of a training: metrics, other sentences, and what the training shows of itself."""

import math
from typing import Any

import torch

from flatbayes.diagnostics import LossSurface
from flatbayes.diagnostics.sharpness import one_step_gap
from flatbayes.metrics import aurc, auroc, classification_metrics, cross_fitted_nll, ensemble_nlls
from flatbayes.posteriors import Ensemble
from flatbayes.prediction import FittedPosterior
from flatbayes.training.sharing import FitOutcome
from studies.sentences.task import Batch, Examples

NUM_DRAWS, SHARPNESS_RHO, NUM_SHARPNESS_EXAMPLES, NUM_LOSS_EXAMPLES = 6, 0.05, 50, 200


def evaluate_all(
    fitted: dict[str, FitOutcome], sets: dict[str, Examples], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics on labelled sentences by set and posterior; a posterior that failed has an infinite NLL.

    Args:
        fitted: The posteriors by name.
        sets: `val` or `test`, or both, and other sentences, which are compared with those of `test`.
        seed: Seed of draws.
    """
    batches = {name: examples.sort_into_batches() for name, examples in sets.items()}
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in sets if name in ("val", "test")}
    for name, outcome in fitted.items():
        try:
            if outcome.fitted is None:
                raise RuntimeError(str(outcome.error))
            metrics = evaluate_one(outcome.fitted, batches, seed)
        except RuntimeError as error:  # training failed, or a prediction is not finite
            metrics = {key: {"nll": math.inf, "error": str(error)} for key in results}
        for key, values in metrics.items():
            results[key][name] = values
    return results


def evaluate_one(fitted: FittedPosterior, sets: dict[str, list[Batch]], seed: int) -> dict[str, dict[str, Any]]:
    """Metrics on labelled sentences, and detection of other sentences by the entropy of the prediction.

    All sets are predicted in one call, since the draws of large networks are not kept for the next one.

    Args:
        fitted: The posterior.
        sets: Batches by name of the set.
        seed: Seed of draws.
    """
    inputs = [inputs for batches in sets.values() for inputs, _ in batches]
    is_ensemble = isinstance(fitted.posterior, Ensemble)
    together: Any = fitted.predict(inputs, NUM_DRAWS, seed=seed, precision="bf16-mixed", keep_members=is_ensemble)
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
    for name in [name for name in sets if name not in results]:
        entropies = predictives["test"].entropy, predictives[name].entropy
        is_other = torch.arange(sum(map(len, entropies))) >= len(entropies[0])
        results["test"][f"auroc_{name}"] = auroc(torch.cat(entropies), is_other)
    return results


def measure_law(fitted: FittedPosterior, examples: Examples, val_nll: float) -> dict[str, float]:
    """What a training shows of itself: loss, generalization gap, sharpness, weights per example.

    Args:
        fitted: The MAP network.
        examples: Its training sentences.
        val_nll: Its NLL on validation sentences.
    """
    model, loss_fn = fitted.states[0].model, fitted.likelihood.loss
    train = examples.select(range(min(len(examples), NUM_LOSS_EXAMPLES)))
    loss = LossSurface(model, loss_fn, train.sort_into_batches()).loss()
    few = examples.select(range(min(len(examples), NUM_SHARPNESS_EXAMPLES)))
    surface = LossSurface(model, loss_fn, few.sort_into_batches())
    num_weights = sum(param.numel() for param in surface.params)
    return {
        "train_loss": loss,
        "gap": val_nll - loss,
        "sharpness": one_step_gap(surface, SHARPNESS_RHO),
        "weights_per_example": num_weights / len(examples),
    }
