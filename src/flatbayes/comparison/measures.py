"""What a comparison measures of every run beside the usual metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flatbayes.data import Dataset, Part, Source, corruptions_for, held_out, shaped_like
from flatbayes.diagnostics import Probe, Slice, posterior_sharpness, slices_of_draws
from flatbayes.metrics import FAMILIES
from flatbayes.prediction import FittedPosterior, evaluate_corruptions, evaluate_ood, recalibrated

CALIBRATION, SHIFT, OUTSIDE, SHARPNESS = FAMILIES
SHARP = {
    "loss": "train_loss",
    "one_step": "gap_one_step",
    "worst": "gap_worst",
    "average": "gap_average",
    "adaptive": "gap_adaptive",
    "top_eigenvalue": "top_eigenvalue",
    "trace": "trace",
}
STEPS = 21
"""Places in a slice of the loss."""


@dataclass(frozen=True)
class Measures:
    """What else to measure, and on how much.

    Attributes:
        calibration: Temperature scaling on the validation part, further calibration errors, selective prediction.
        shift: Corrupted images.
        outside: Where foreign inputs come from; None for none.
        sharpness: Radius of the ball in which the training loss is explored around draws, with slices through them;
            None for not at all.
        hessian: Also eigenvalues and trace of the Hessian.
        severities: Of the corruptions, from 1 to 5.
        examples: Largest number of examples for corruptions, foreign inputs and sharpness.
        draws: Networks drawn for sharpness.
    """

    calibration: bool = False
    shift: bool = False
    outside: Source | None = None
    sharpness: float | None = None
    hessian: bool = False
    severities: Sequence[int] = (1, 3, 5)
    examples: int = 1000
    draws: int = 5

    def __post_init__(self) -> None:
        for name in ("examples", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def of(
        self, fitted: FittedPosterior, data: Dataset, part: str, num_draws: int, seed: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers by the names of `FAMILIES`, and what they were made of.

        Args:
            fitted: The posterior.
            data: All parts of its data.
            part: Which of them to report on.
            num_draws: Networks averaged in a prediction.
            seed: Decides which networks are drawn.

        Raises:
            ValueError: The data do not allow what is to be measured, such as corruptions of a table.
        """
        held_out: Part = getattr(data, part)
        few = held_out.some(self.examples)
        found: dict[str, float] = {}
        details: dict[str, Any] = {}
        if self.calibration:
            if part == "val":
                raise ValueError("Temperatures are fitted to the validation part: report calibration on another one.")
            scaled = recalibrated(fitted, data.val, held_out, num_draws, seed=seed)
            raw, tempered = scaled["raw"], scaled["tempered"]
            found |= {"nll_scaled": tempered["nll"], "ece_scaled": tempered["ece"]}
            found |= {name: raw[name] for name in ("adaptive_ece", "classwise_ece", "aurc")}
            details["temperature"] = scaled["temperature"]
        if self.shift:
            names = corruptions_for(data.input_shape[0], standard=True)
            rows = evaluate_corruptions(fitted, few, names, self.severities, num_draws, seed=seed)
            corrupted = [row for row in rows if row["severity"] > 0]
            for metric in ("accuracy", "nll", "ece"):
                found[f"shift_{metric}"] = sum(row[metric] for row in corrupted) / len(corrupted)
            details["shift"] = _by_severity(rows)
        if self.outside is not None:
            foreign = shaped_like(_foreign(self.outside).some(self.examples).tensor, data.train.inputs)
            scores = evaluate_ood(fitted, few.tensor, foreign, num_draws, seed=seed)["scores"]
            entropy = scores["entropy"]
            found |= {"ood_auroc": entropy["auroc"], "ood_aupr": entropy["aupr_out"], "ood_fpr95": entropy["fpr95"]}
            found["ood_auroc_mi"] = scores["mutual_information"]["auroc"]
        if self.sharpness is not None:
            train, probe = data.train.some(self.examples), Probe(rho=self.sharpness)
            sharp = posterior_sharpness(
                fitted, train.tensor, train.targets, probe, self.draws, seed=seed, hessian=self.hessian
            )
            found |= {SHARP[row.measure]: row.mean for row in sharp.rows if row.measure in SHARP}
            slices = slices_of_draws({"": fitted}, train.tensor, train.targets, self.draws, steps=STEPS, seed=seed)
            details["slice"] = _averaged(slices[""])
        return found, details


@lru_cache(maxsize=1)
def _foreign(source: Source) -> Part:
    return held_out(source)


def _by_severity(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Mean over corruptions of each metric, for every severity; 0 is clean."""
    severities = sorted({row["severity"] for row in rows})
    groups = [[row for row in rows if row["severity"] == severity] for severity in severities]
    means = {
        metric: [sum(row[metric] for row in group) / len(group) for group in groups]
        for metric in ("accuracy", "nll", "ece")
    }
    return {"severity": [float(severity) for severity in severities], **means}


def _averaged(slices: Sequence[Slice]) -> dict[str, list[float]]:
    """The mean loss at each distance."""
    columns = zip(*(one.losses for one in slices), strict=True)
    return {"distance": list(slices[0].distances), "loss": [sum(column) / len(slices) for column in columns]}
