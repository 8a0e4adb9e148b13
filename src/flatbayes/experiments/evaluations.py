"""What a comparison measures of every run beside the usual metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flatbayes.data import DataSource, DataSplits, Split, list_corruptions, load_test_split, match_input_format
from flatbayes.diagnostics import LossSlice, SharpnessConfig, compute_draw_slices, measure_posterior_sharpness
from flatbayes.metrics import METRIC_FAMILIES
from flatbayes.prediction import (
    CorruptionMetrics,
    FittedPosterior,
    evaluate_corruptions,
    evaluate_ood,
    evaluate_recalibration,
)

CALIBRATION, SHIFT, OUTSIDE, SHARPNESS = METRIC_FAMILIES
SHARPNESS_METRICS = {
    "loss": "train_loss",
    "one_step": "gap_one_step",
    "worst": "gap_worst",
    "average": "gap_average",
    "adaptive": "gap_adaptive",
    "top_eigenvalue": "top_eigenvalue",
    "trace": "trace",
}
NUM_SLICE_POINTS = 21
"""Places in a slice of the loss."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What else to measure, and on how much.

    Attributes:
        calibration: Temperature scaling on the validation part, further calibration errors, selective prediction.
        shift: Corrupted images.
        ood: Where foreign inputs come from; None for none.
        sharpness_rho: Radius of the ball in which the training loss is explored around draws, with slices through
            them;
            None for not at all.
        hessian: Also eigenvalues and trace of the Hessian.
        severities: Of the corruptions, from 1 to 5.
        max_examples: Largest number of examples for corruptions, foreign inputs and sharpness.
        num_sharpness_draws: Networks drawn for sharpness.
    """

    calibration: bool = False
    shift: bool = False
    ood: DataSource | None = None
    sharpness_rho: float | None = None
    hessian: bool = False
    severities: Sequence[int] = (1, 3, 5)
    max_examples: int = 1000
    num_sharpness_draws: int = 5

    def __post_init__(self) -> None:
        for name in ("max_examples", "num_sharpness_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def compute_metrics(
        self, fitted: FittedPosterior, data: DataSplits, split: str, num_draws: int, seed: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers by the names of `FAMILIES`, and what they were made of.

        Args:
            fitted: The posterior.
            data: All parts of its data.
            split: Which of them to report on.
            num_draws: Networks averaged in a prediction.
            seed: Decides which networks are drawn.

        Raises:
            ValueError: The data do not allow what is to be measured, such as corruptions of a table.
        """
        held_out: Split = getattr(data, split)
        few = held_out.subsample(self.max_examples)
        found: dict[str, float] = {}
        details: dict[str, Any] = {}
        if self.calibration:
            if split == "val":
                raise ValueError("Temperatures are fitted to the validation part: report calibration on another one.")
            scaled = evaluate_recalibration(fitted, data.val, held_out, num_draws, seed=seed)
            raw, tempered = scaled.raw, scaled.tempered
            found |= {"nll_scaled": tempered["nll"], "ece_scaled": tempered["ece"]}
            found |= {name: raw[name] for name in ("adaptive_ece", "classwise_ece", "aurc")}
            details["calibration_temperature"] = scaled.temperature
        if self.shift:
            names = list_corruptions(data.input_shape[0], standard_only=True)
            rows = evaluate_corruptions(fitted, few, names, self.severities, num_draws, seed=seed)
            corrupted = [row for row in rows if row.severity > 0]
            for metric in ("accuracy", "nll", "ece"):
                found[f"shift_{metric}"] = sum(row.metrics[metric] for row in corrupted) / len(corrupted)
            details["shift"] = _average_by_severity(rows)
        if self.ood is not None:
            foreign = match_input_format(
                _load_ood_split(self.ood).subsample(self.max_examples).input_tensor, data.train.inputs
            )
            scores = evaluate_ood(fitted, few.input_tensor, foreign, num_draws, seed=seed).scores
            entropy = scores["entropy"]
            found |= {"ood_auroc": entropy.auroc, "ood_aupr": entropy.aupr_out, "ood_fpr95": entropy.fpr95}
            found["ood_auroc_mi"] = scores["mutual_information"].auroc
        if self.sharpness_rho is not None:
            train, probe = data.train.subsample(self.max_examples), SharpnessConfig(rho=self.sharpness_rho)
            sharp = measure_posterior_sharpness(
                fitted,
                train.input_tensor,
                train.targets,
                probe,
                self.num_sharpness_draws,
                seed=seed,
                hessian=self.hessian,
            )
            found |= {
                SHARPNESS_METRICS[row.measure]: row.mean for row in sharp.rows if row.measure in SHARPNESS_METRICS
            }
            slices = compute_draw_slices(
                {"": fitted},
                train.input_tensor,
                train.targets,
                self.num_sharpness_draws,
                num_steps=NUM_SLICE_POINTS,
                seed=seed,
            )
            details["slice"] = _average_slices(slices[""])
        return found, details


@lru_cache(maxsize=1)
def _load_ood_split(source: DataSource) -> Split:
    return load_test_split(source)


def _average_by_severity(rows: Sequence[CorruptionMetrics]) -> dict[str, list[float]]:
    """Mean over corruptions of each metric, for every severity; 0 is clean."""
    severities = sorted({row.severity for row in rows})
    groups = [[row for row in rows if row.severity == severity] for severity in severities]
    means = {
        metric: [sum(row.metrics[metric] for row in group) / len(group) for group in groups]
        for metric in ("accuracy", "nll", "ece")
    }
    return {"severity": [float(severity) for severity in severities], **means}


def _average_slices(slices: Sequence[LossSlice]) -> dict[str, list[float]]:
    """The mean loss at each distance."""
    columns = zip(*(one.losses for one in slices), strict=True)
    return {"distance": list(slices[0].distances), "loss": [sum(column) / len(slices) for column in columns]}
