"""Split conformal prediction from any predictive distribution, also by class or group (Mondrian).

The threshold is the conformal quantile of the scores of calibration examples. The region of a new example has all
targets whose score is at most the threshold. Mondrian prediction (Vovk et al., 2005) has a threshold for each class
or group.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Literal, Self

import torch
from torch import Tensor

from flatbayes.calibration.coverage import ConformalEvaluation, CoverageEstimate
from flatbayes.calibration.quantiles import (
    conformal_quantile,
    coverage_interval,
    required_examples,
    sample_coverage_interval,
)
from flatbayes.calibration.regions import PredictionIntervals, PredictionSets
from flatbayes.calibration.scores import ConformalScore, NumberScore, choose_score, get_score_data, make_score
from flatbayes.calibration.targets import (
    CalibrationWarning,
    check_length,
    check_targets,
    match_names,
    to_names,
    warn_if_few,
    warn_of_unseen_groups,
)
from flatbayes.core.display import format_entries, format_fields
from flatbayes.core.names import format_count, format_names
from flatbayes.likelihoods import CategoricalPredictive, Predictive

RANGE_PROBABILITY = 0.95
"""Probability of the ranges of coverage in statements and evaluations."""
ALL = "all"
"""Name of the only group where there are no others."""
Grouping = Literal["none", "class", "group"]
"""One threshold, or one for each true class, or for each group that the user names."""


@dataclass(frozen=True)
class GroupThreshold:
    """Threshold of a class or group, or of all examples.

    Attributes:
        values: The threshold of each target; infinite where there are too few calibration examples.
        num_examples: Number of calibration examples.

    Examples:
        >>> GroupThreshold(values=(0.4,), num_examples=99).values
        (0.4,)
    """

    values: tuple[float, ...]
    num_examples: int

    __repr__ = format_fields


@dataclass(frozen=True)
class ConformalPredictor:
    """Thresholds of a score, and with them the regions of new predictions; made by `fit_conformal`.

    Attributes:
        score: The nonconformity score.
        level: The coverage that is guaranteed.
        grouping: Whether there is one threshold, or one for each true class or group.
        thresholds: Threshold by name of the class or group.
        allow_empty: Whether a set may be empty; otherwise it has the most probable class at least.

    Examples:
        >>> predictor = fit_conformal(fitted.predict(data.val.inputs), data.val.targets, level=0.8)
        >>> predictor.predict(fitted.predict(inputs)).size.shape
        torch.Size([100])
        >>> ConformalPredictor.from_dict(predictor.to_dict()) == predictor
        True
    """

    score: ConformalScore
    level: float
    grouping: Grouping
    thresholds: dict[str, GroupThreshold]
    allow_empty: bool = True

    __repr__ = format_fields

    def predict(self, predictive: Predictive, groups: Any = None) -> PredictionSets | PredictionIntervals:
        """The region of each prediction.

        Args:
            predictive: Predictions of the posterior that was calibrated, with the same number of draws.
            groups: Group of each example, if there are thresholds by group. A group without calibration examples gets
                regions that contain everything.

        Raises:
            TypeError: The score is not for predictions of this kind.
            ValueError: Groups are missing, superfluous, or of another number.

        Warns:
            CalibrationWarning: Groups have no calibration examples.
        """
        region = self.score.predict_region(predictive, self._select_thresholds(predictive, groups), self.level)
        if isinstance(region, PredictionSets) and not self.allow_empty:
            return region.fill_empty()
        return region

    def evaluate(
        self, predictive: Predictive, targets: Tensor, groups: Any = None, names: Sequence[str] | None = None
    ) -> ConformalEvaluation:
        """Coverage and size on labelled examples other than the calibration examples.

        Args:
            predictive: The predictions.
            targets: Class indices or numbers.
            groups: As in `predict`.
            names: Names of the classes, or of several targets; None numbers them.

        Raises:
            TypeError: The score is not for predictions of this kind.
            ValueError: Targets or groups do not match the predictions.
        """
        targets = check_targets(predictive, targets)
        region = self.predict(predictive, groups)
        is_covered = region.contains(targets).cpu().double().reshape(len(targets), -1)
        sizes = region.size.cpu().double().reshape(len(targets), -1)
        if isinstance(region, PredictionIntervals):
            empty_fraction = float((region.upper < region.lower).double().mean())
        else:
            empty_fraction = float((region.size == 0).double().mean())
        if self.grouping == "group":
            rows = match_names(groups, self.thresholds)
        else:
            rows = to_names(targets) if isinstance(region, PredictionSets) else []
        class_names = None if self.grouping == "group" else names
        estimates = [self._estimate(ALL, is_covered, sizes)]
        for group in sorted(set(rows), key=lambda text: (len(text), text)):
            mask = torch.tensor([other == group for other in rows])
            title = group if class_names is None else class_names[int(group)]
            estimates.append(self._estimate(group, is_covered[mask], sizes[mask], title))
        if not rows and is_covered.shape[1] > 1:
            titles = [f"target {k}" for k in range(is_covered.shape[1])] if names is None else names
            estimates += [
                self._estimate(ALL, is_covered[:, [k]], sizes[:, [k]], title) for k, title in enumerate(titles)
            ]
        return ConformalEvaluation(self.level, tuple(estimates), empty_fraction, self.guarantee())

    def guarantee(self) -> str:
        """What is guaranteed, for this number of calibration examples, and the assumptions."""
        region = "interval" if isinstance(self.score, NumberScore) else "set"
        groups = list(self.thresholds.values())
        scope = {"none": "", "class": " whatever its class", "group": " whatever its group"}[self.grouping]
        several = " (for each target separately)" if len(groups[0].values) > 1 else ""
        text = (
            f"Guarantee: the {region} of a new example contains its target with probability at least "
            f"{100 * self.level:g} %{scope}{several}, on average over calibration and new examples."
        )
        smallest = min(groups, key=lambda group: group.num_examples)
        low, high = coverage_interval(smallest.num_examples, self.level, RANGE_PROBABILITY)
        number = format_count(smallest.num_examples, "calibration example")
        if len(groups) > 1:
            number = f"the {number} of the smallest group"
        text += (
            f" With {number}, the coverage of all new examples lies between {100 * low:.1f} % and {100 * high:.1f} % "
            f"for {100 * RANGE_PROBABILITY:g} % of the calibration sets."
        )
        num_infinite = sum(math.inf in group.values for group in groups)
        if num_infinite:
            verb = "has" if num_infinite == 1 else "have"
            subject = "There are" if len(groups) == 1 else f"{num_infinite} of {len(groups)} groups {verb}"
            text += (
                f" {subject} too few calibration examples for this level (at least {required_examples(self.level)} "
                f"are needed), so every {region} there contains everything."
            )
        return (
            f"{text} Assumptions: calibration and new examples are exchangeable (one distribution, no drift), and "
            "calibration examples were used neither for training nor for any choice. The guarantee is an average "
            "over examples, not one for each example."
        )

    def summary(self, names: Sequence[str] | None = None) -> str:
        """Score, thresholds and guarantee, as text.

        Args:
            names: Names of the classes, for thresholds by class; None numbers them.
        """
        lines = {"score": repr(self.score)}
        for name, group in self.thresholds.items():
            values = ", ".join(f"{value:.4g}" for value in group.values)
            title = name if self.grouping != "class" or names is None else names[int(name)]
            lines[title] = f"threshold {values} from {format_count(group.num_examples, 'calibration example')}"
        return (
            f"{format_entries(f'Conformal predictor at level {self.level:g}', lines)}\n{fill(self.guarantee(), 100)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, from which `from_dict` makes an equal predictor; None for infinity."""
        return {
            **get_score_data(self.score),
            "level": self.level,
            "grouping": self.grouping,
            "allow_empty": self.allow_empty,
            "thresholds": {
                name: {
                    "values": [value if math.isfinite(value) else None for value in group.values],
                    "num_examples": group.num_examples,
                }
                for name, group in self.thresholds.items()
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The predictor that `to_dict` described.

        Args:
            data: Result of `to_dict`.

        Raises:
            ValueError: The score is unknown.
        """
        thresholds = {
            name: GroupThreshold(
                tuple(math.inf if value is None else float(value) for value in group["values"]),
                int(group["num_examples"]),
            )
            for name, group in data["thresholds"].items()
        }
        return cls(make_score(data), data["level"], data["grouping"], thresholds, data["allow_empty"])

    def _select_thresholds(self, predictive: Predictive, groups: Any) -> Tensor:
        """Thresholds of the shape (examples or 1, classes or targets or 1)."""
        if (groups is not None) != (self.grouping == "group"):
            raise ValueError(
                "The predictor has thresholds by group: pass the group of each example."
                if groups is None
                else "The predictor has no thresholds by group: leave out groups, or pass those of the calibration "
                "examples to the calibration."
            )
        if self.grouping == "none":
            return torch.tensor([self.thresholds[ALL].values], dtype=torch.float64)
        if self.grouping == "class":
            names = [str(k) for k in range(predictive.mean.shape[1])]
            return torch.tensor([[self._get_threshold(name)[0] for name in names]], dtype=torch.float64)
        names = match_names(groups, self.thresholds)
        check_length(names, predictive)
        warn_of_unseen_groups(names, self.thresholds)
        return torch.tensor([self._get_threshold(name) for name in names], dtype=torch.float64)

    def _get_threshold(self, name: str) -> tuple[float, ...]:
        num_targets = len(next(iter(self.thresholds.values())).values)
        return self.thresholds[name].values if name in self.thresholds else (math.inf,) * num_targets

    def _estimate(self, group: str, is_covered: Tensor, sizes: Tensor, name: str | None = None) -> CoverageEstimate:
        expected = None
        num_calibration = self.thresholds[group].num_examples if group in self.thresholds else 0
        is_guaranteed = (self.grouping == "none") == (group == ALL)
        if is_guaranteed and is_covered.shape[1] == 1:
            expected = sample_coverage_interval(num_calibration, len(is_covered), self.level, RANGE_PROBABILITY)
        coverage, size = (float(values.mean()) if len(values) else math.nan for values in (is_covered, sizes))
        return CoverageEstimate(name or group, len(is_covered), coverage, size, expected)


def fit_conformal(
    predictive: Predictive,
    targets: Tensor,
    score: ConformalScore | None = None,
    *,
    level: float = 0.9,
    groups: Any = None,
    allow_empty: bool = True,
) -> ConformalPredictor:
    """Thresholds of split conformal prediction, from predictions of calibration examples.

    Args:
        predictive: Predictions of examples that were used neither for training nor for any choice.
        targets: Their class indices or numbers.
        score: The nonconformity score; None takes `LAC` for classes, `NormalizedResidual` for a Gaussian,
            and `QuantileResidual` for any other distribution.
        level: Coverage to guarantee, strictly between 0 and 1.
        groups: `"class"` for a threshold of each class, so that every class is covered; or the group of each example,
            numbers or names, for a threshold of each group. None takes one threshold for all.
        allow_empty: False puts the most probable class into sets that would be empty, which raises the coverage.

    Raises:
        TypeError: The score is not for predictions of this kind.
        ValueError: Targets or groups do not match the predictions, or the level is out of range.

    Warns:
        CalibrationWarning: There are too few examples for a region that does not contain everything.

    Examples:
        >>> predictor = fit_conformal(
        ...     fitted.predict(data.val.inputs), data.val.targets, APS(), level=0.8
        ... )
        >>> sets = predictor.predict(fitted.predict(inputs))
        >>> sets.members.shape, predictor.evaluate(fitted.predict(inputs), labels).coverage > 0.6
        (torch.Size([100, 10]), True)
    """
    targets = check_targets(predictive, targets)
    if score is None:
        score = choose_score(predictive)
    scores = score.compute_scores(predictive, targets, level)
    grouping: Grouping
    if groups is None:
        grouping, names = "none", [ALL] * len(targets)
    elif isinstance(groups, str):
        if groups != "class" or not isinstance(predictive, CategoricalPredictive):
            raise ValueError(
                f"groups must be 'class', for predictions of classes, or one group for each example, got {groups!r} "
                f"for a {type(predictive).__name__}."
            )
        grouping, names = "class", to_names(targets)
    else:
        grouping, names = "group", to_names(groups)
    check_length(names, predictive)
    rows_by_name: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_by_name.setdefault(name, []).append(row)
    scores = scores.reshape(len(scores), -1)
    thresholds = {
        name: GroupThreshold(tuple(conformal_quantile(scores[rows], level).tolist()), len(rows))
        for name, rows in sorted(rows_by_name.items(), key=lambda item: (len(item[0]), item[0]))
    }
    counts = {name: group.num_examples for name, group in thresholds.items()}
    if grouping == "class":
        counts = {str(k): 0 for k in range(predictive.mean.shape[1])} | counts
    _warn_of_infinite_regions(counts, level, grouping)
    return ConformalPredictor(score, level, grouping, thresholds, allow_empty)


def _warn_of_infinite_regions(counts: Mapping[str, int], level: float, grouping: Grouping) -> None:
    num_required = required_examples(level)
    few = [f"{name} ({count})" for name, count in counts.items() if count < num_required]
    if few and grouping == "none":
        warn_if_few(counts[ALL], num_required, f"a region at level {level:g}", "Every region contains everything")
    elif few:
        noun = "class" if grouping == "class" else "group"
        warnings.warn(
            f"A region at level {level:g} needs at least {format_count(num_required, 'calibration example')} of each "
            f"{noun}. Regions contain everything where there are fewer: {format_names(few)}.",
            CalibrationWarning,
            stacklevel=3,
        )
