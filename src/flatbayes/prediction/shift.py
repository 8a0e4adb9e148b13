"""A fitted posterior away from its training data: corrupted images, examples from outside, and a second look at T.

Severities and corruptions are those of Hendrycks and Dietterich (ICLR 2019). Examples from outside are the positive
ones in every number on detection. A temperature is fitted to validation examples, never to those it is judged by
(Ashukha et al., ICLR 2020).
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, cat

from flatbayes.data import CIFAR10C, LazyImages, Split, corrupt_images, infer_white_value
from flatbayes.likelihoods import CategoricalPredictive
from flatbayes.metrics import (
    adaptive_ece,
    apply_temperature,
    aupr,
    aurc,
    auroc,
    classification_metrics,
    classwise_ece,
    entropy_divergence,
    fit_temperature,
    fpr_at_tpr,
)
from flatbayes.prediction.fitted import FittedPosterior

CLEAN = "clean"
SEVERITIES = (1, 2, 3, 4, 5)


def evaluate_corruptions(
    fitted: FittedPosterior,
    split: Split,
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    num_draws: int = 30,
    *,
    corruption_source: CIFAR10C | None = None,
    corruption_seed: int = 0,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Metrics of classification against severity. One corrupted copy of the examples is held at a time.

    Args:
        fitted: The posterior.
        split: Clean images, raw, with their labels.
        corruptions: Corruptions to try.
        severities: From 1 to 5.
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        corruption_source: Take corrupted images from these files, instead of making them.
        corruption_seed: Decides all that is random in the corruptions.
        batch_size: Examples a forward pass sees at a time.
        seed: Decides which networks are drawn; they are the same for all rows.
        show_progress: Show progress bars on standard error.

    Returns:
        Rows of `corruption`, `severity` and the metrics by their names; the first is "clean", of severity 0.

    Raises:
        ValueError: Images are not those that the posterior takes, or there is no such corruption or severity.
    """
    images = split.input_tensor
    white = infer_white_value(images)

    def make_row(name: str, severity: int, examples: Split) -> dict[str, Any]:
        found = _predict_classes(fitted, examples.inputs, num_draws, batch_size, seed, show_progress)
        metrics = classification_metrics(found.log_probs.cpu(), examples.targets.cpu())
        return {"corruption": name, "severity": severity, **metrics}

    rows = [make_row(CLEAN, 0, split)]
    for name in corruptions:
        for severity in severities:
            if corruption_source is None:
                inputs = corrupt_images(images, name, severity, corruption_seed, white)
                corrupted = Split(inputs=inputs, targets=split.targets)
            else:
                found = corruption_source.read_split(name, severity)
                inputs = (found.input_tensor * (white / 255)).to(images.dtype)  # files have values from 0 to 255
                corrupted = Split(inputs=inputs, targets=found.targets)
            rows.append(make_row(name, severity, corrupted))
    return rows


def evaluate_ood(
    fitted: FittedPosterior,
    test_inputs: Tensor,
    ood_inputs: Tensor,
    num_draws: int = 30,
    *,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """How well uncertainty tells examples from outside from those inside.

    Args:
        fitted: The posterior.
        test_inputs: Inputs like those of the training, which the posterior has not seen; raw.
        ood_inputs: Inputs of another kind, in the same form; raw.
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples a forward pass sees at a time.
        seed: Decides which networks are drawn.
        show_progress: Show progress bars on standard error.

    Returns:
        `scores`: for `entropy`, `mutual_information` and `one_minus_confidence` each `auroc`, `aupr_out` and
        `fpr95` (examples from outside positive) and `aupr_in` (the others); `entropy_divergence`, the symmetric
        KL divergence of histograms of the entropy; `num_inside` and `num_outside`.

    Raises:
        ValueError: The two have different shapes, or none that the posterior takes.
    """
    if test_inputs.shape[1:] != ood_inputs.shape[1:]:
        raise ValueError(
            f"Inputs inside have the shape {tuple(test_inputs.shape[1:])} and those from outside "
            f"{tuple(ood_inputs.shape[1:])}. Bring them into one: flatbayes.data.match_input_format(outside, inside)."
        )
    parts = [
        _predict_classes(fitted, inputs, num_draws, batch_size, seed, show_progress)
        for inputs in (test_inputs, ood_inputs)
    ]
    uncertainties = [_compute_uncertainties(part) for part in parts]
    positive = cat(
        [test_inputs.new_zeros(len(test_inputs)).bool(), ood_inputs.new_ones(len(ood_inputs)).bool()]
    ).cpu()
    scores = {name: _detection_metrics(cat([u[name] for u in uncertainties]), positive) for name in uncertainties[0]}
    return {
        "scores": scores,
        "entropy_divergence": entropy_divergence(*(u["entropy"] for u in uncertainties)),
        "num_inside": len(test_inputs),
        "num_outside": len(ood_inputs),
    }


def evaluate_recalibration(
    fitted: FittedPosterior,
    val: Split,
    test: Split,
    num_draws: int = 30,
    *,
    batch_size: int = 256,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Metrics of test examples as they are, and with the temperature that suits the validation examples best.

    Args:
        fitted: The posterior.
        val: Examples to fit the temperature to, not trained on.
        test: Examples to report on.
        num_draws: Networks to average, as in `FittedPosterior.predict`.
        batch_size: Examples a forward pass sees at a time.
        seed: Decides which networks are drawn.
        show_progress: Show progress bars on standard error.

    Returns:
        `temperature`, and the metrics by their names under `raw` and under `tempered`.

    Raises:
        ValueError: Inputs are not those that the posterior takes, or there is no temperature.
    """
    chosen, judged = (
        _predict_classes(fitted, part.inputs, num_draws, batch_size, seed, show_progress).log_probs.cpu()
        for part in (val, test)
    )
    temperature = fit_temperature(chosen, val.targets.cpu())
    labels = test.targets.cpu()
    return {
        "temperature": temperature,
        "raw": _calibration_metrics(judged, labels),
        "tempered": _calibration_metrics(apply_temperature(judged, temperature), labels),
    }


def _predict_classes(
    fitted: FittedPosterior,
    inputs: Tensor | LazyImages,
    num_draws: int,
    batch_size: int,
    seed: int,
    show_progress: bool,
) -> CategoricalPredictive:
    known = fitted.info.get("input_shape")
    if known is not None and tuple(known) != tuple(inputs.shape[1:]):
        raise ValueError(
            f"The posterior takes inputs of the shape {tuple(known)}, got {tuple(inputs.shape[1:])}. Give inputs "
            "like those of the training; flatbayes.data.match_input_format brings images into their shape."
        )
    found = fitted.predict(inputs, num_draws, batch_size=batch_size, seed=seed, show_progress=show_progress)
    if not isinstance(found, CategoricalPredictive):
        raise ValueError(f"Shift is measured for classifications, and this posterior gives a {type(found).__name__}.")
    return found


def _compute_uncertainties(predictive: CategoricalPredictive) -> dict[str, Float[Tensor, " examples"]]:
    return {
        "entropy": predictive.entropy.cpu().clamp_min(0.0),
        "mutual_information": predictive.mutual_information.cpu(),
        # In the order of 1 - max p, which is 0 to all digits for many confident predictions.
        "one_minus_confidence": -predictive.log_probs.amax(-1).cpu(),
    }


def _detection_metrics(scores: Tensor, positive: Tensor) -> dict[str, float]:
    return {
        "auroc": auroc(scores, positive),
        "aupr_out": aupr(scores, positive),
        "aupr_in": aupr(-scores, ~positive),
        "fpr95": fpr_at_tpr(scores, positive, 0.95),
    }


def _calibration_metrics(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    probs = log_probs.double().exp()
    wrong = (probs.argmax(-1) != labels).double()
    return {
        **classification_metrics(log_probs, labels),
        "adaptive_ece": adaptive_ece(probs, labels),
        "classwise_ece": classwise_ece(probs, labels),
        "aurc": aurc(log_probs.amax(-1), wrong),
    }
