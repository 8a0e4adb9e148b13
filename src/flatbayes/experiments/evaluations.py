"""Additional evaluations of a run: calibration, corrupted images, out-of-distribution detection, sharpness."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flatbayes.core.spec import to_spec
from flatbayes.data import DataSource, DataSplits, Split, list_corruptions, load_test_split, match_input_format
from flatbayes.data.fingerprint import describe_split
from flatbayes.diagnostics import LossSlice, SharpnessConfig, compute_draw_slices, measure_posterior_sharpness
from flatbayes.experiments.run_result import RunDetails, SeverityCurve
from flatbayes.prediction import (
    CorruptionMetrics,
    FittedPosterior,
    evaluate_corruptions,
    evaluate_ood,
    evaluate_recalibration,
)

SHARPNESS_METRICS = {
    "loss": "train_loss",
    "one_step": "gap_one_step",
    "worst": "gap_worst",
    "average": "gap_average",
    "adaptive": "gap_adaptive",
    "top_eigenvalue": "top_eigenvalue",
    "trace": "trace",
}
"""Name of the metric by name of the sharpness measure."""

NUM_SLICE_POINTS = 21
"""Number of points in a slice of the loss."""

Metrics = dict[str, float]

_load_ood_split = lru_cache(maxsize=1)(load_test_split)


@dataclass(frozen=True)
class EvaluationConfig:
    """Which additional evaluations to run, and on how many examples.

    Attributes:
        calibration: Temperature scaling on the validation split, further calibration errors, selective prediction.
        shift: Evaluation on corrupted images.
        ood: Source of out-of-distribution inputs; None for none.
        sharpness_rho: Radius within which the rise of the training loss around draws is measured, with slices of the
            loss through them; None for no sharpness.
        hessian: With sharpness, also eigenvalues and trace of the Hessian.
        severities: Severities of the corruptions, from 1 to 5.
        max_examples: Largest number of examples for corruptions, out-of-distribution inputs and sharpness.
        num_sharpness_draws: Networks drawn for sharpness.

    Examples:
        >>> evaluations = EvaluationConfig(shift=True, severities=(3,), max_examples=50)
        >>> run = ExperimentRun(source, MLP, MAP(), SAM(), config, seed=0, evaluations=evaluations)
        >>> run.execute().details.shift is None
        False
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
        if self.ood is not None and not isinstance(self.ood, DataSource):
            raise TypeError(
                f"ood is a source of data, such as Digits() or Arrays(inputs, labels), got a "
                f"{type(self.ood).__name__}."
            )

    def describe(self) -> dict[str, Any]:
        """The fields as plain data; out-of-distribution inputs that only exist in memory with their fingerprint."""
        description: dict[str, Any] = to_spec(self, allow_instances=True)
        if self.ood is not None and holds_content(self.ood):
            description["init_args"]["ood"]["content"] = describe_split(_load_ood_split(self.ood))
        return description

    def check(self, data: DataSplits, split_name: str) -> None:
        """Check, before a training, that the evaluations suit the data.

        Args:
            data: All splits of the data.
            split_name: Split to evaluate on: train, val or test.

        Raises:
            ValueError: They do not.
        """
        if self.calibration and split_name == "val":
            raise ValueError("Temperatures are fitted to the validation split: report calibration on another split.")
        targets = "numbers" if data.is_regression else "several labels of each example"
        if self.calibration and not data.class_names:
            raise ValueError(f"calibration=True is for classes, and the targets are {targets}: leave it out.")
        self._check_input_tree(data.train)
        if self.shift and (data.is_regression or len(data.input_shape) != 3):
            content = targets if data.is_regression else f"inputs of the shape {data.input_shape}"
            raise ValueError(
                f"shift=True is for classes or labels of images, and the data have {content}: leave it out."
            )
        if self.ood is not None:
            if data.is_regression:
                raise ValueError("ood is for classes or labels, and the targets are numbers: leave it out.")
            match_input_format(_load_ood_split(self.ood).subsample(1).input_tensor, data.train.inputs)

    def _check_input_tree(self, train: Split) -> None:
        """Refuse evaluations of one array of inputs, where inputs are a dictionary or tuple of tensors."""
        named = {"shift=True": self.shift, "ood": self.ood is not None}
        names = [name for name, is_set in named.items() if is_set]
        if train.has_input_tree and names:
            raise ValueError(
                f"{' and '.join(names)} need inputs that are one array, such as images, and the data have examples "
                f"{train.describe_inputs()}: leave {'it' if len(names) == 1 else 'them'} out. calibration and "
                "sharpness_rho take such inputs."
            )

    def compute_metrics(
        self, fitted: FittedPosterior, data: DataSplits, split_name: str, num_draws: int, seed: int
    ) -> tuple[Metrics, RunDetails]:
        """Metrics by the names of `METRIC_FAMILIES`, and the quantities that they were computed from.

        Args:
            fitted: The posterior.
            data: All splits of its data.
            split_name: Split to evaluate on: train, val or test.
            num_draws: Networks averaged in a prediction.
            seed: Seed of the draws.

        Raises:
            ValueError: The data do not allow an evaluation.
        """
        self.check(data, split_name)
        split: Split = getattr(data, split_name)
        subset = split.subsample(self.max_examples)
        metrics: Metrics = {}
        temperature, shift, loss_slice = None, None, None
        if self.calibration:
            calibration, temperature = _measure_calibration(fitted, data.val, split, num_draws, seed)
            metrics |= calibration
        if self.shift:
            channels, is_dense = data.input_shape[0], data.is_dense
            corruptions = list_corruptions(channels, standard_only=True, with_moving=not is_dense)
            shift_metrics, shift = _measure_shift(fitted, subset, corruptions, self.severities, num_draws, seed)
            metrics |= shift_metrics
        if self.ood is not None:
            ood = match_input_format(
                _load_ood_split(self.ood).subsample(self.max_examples).input_tensor, data.train.inputs
            )
            scores = evaluate_ood(fitted, subset.input_tensor, ood, num_draws, seed=seed).scores
            entropy = scores["entropy"]
            metrics |= {"ood_auroc": entropy.auroc, "ood_aupr": entropy.aupr_out}
            metrics |= {"ood_fpr95": entropy.fpr95, "ood_auroc_mi": scores["mutual_information"].auroc}
        if self.sharpness_rho is not None:
            sharpness_config = SharpnessConfig(rho=self.sharpness_rho)
            sharpness, loss_slice = _measure_sharpness(
                fitted,
                data.train.subsample(self.max_examples),
                sharpness_config,
                self.num_sharpness_draws,
                seed,
                hessian=self.hessian,
            )
            metrics |= sharpness
        return metrics, RunDetails(temperature, shift, loss_slice)


def holds_content(source: DataSource) -> bool:
    """Whether a source holds examples itself, which a description of its arguments leaves out."""
    try:
        to_spec(source)
    except TypeError:
        return True
    return False


def _measure_calibration(
    fitted: FittedPosterior, val: Split, split: Split, num_draws: int, seed: int
) -> tuple[Metrics, float]:
    """Calibration metrics before and after temperature scaling, and the temperature."""
    recalibration = evaluate_recalibration(fitted, val, split, num_draws, seed=seed)
    raw, tempered = recalibration.raw, recalibration.tempered
    metrics = {"nll_scaled": tempered["nll"], "ece_scaled": tempered["ece"]}
    metrics |= {name: raw[name] for name in ("adaptive_ece", "classwise_ece", "aurc")}
    return metrics, recalibration.temperature


def _measure_shift(
    fitted: FittedPosterior,
    images: Split,
    corruptions: Sequence[str],
    severities: Sequence[int],
    num_draws: int,
    seed: int,
) -> tuple[Metrics, SeverityCurve]:
    """Mean metrics on corrupted images, over all corruptions and severities, and their means by severity."""
    rows = evaluate_corruptions(fitted, images, corruptions, severities, num_draws, seed=seed)
    corrupted = [row for row in rows if row.severity > 0]
    metrics = {f"shift_{name}": _average_rows(corrupted, name) for name in ("accuracy", "nll", "ece")}
    levels = sorted({row.severity for row in rows})
    groups = [[row for row in rows if row.severity == level] for level in levels]
    means = {name: tuple(_average_rows(group, name) for group in groups) for name in ("accuracy", "nll", "ece")}
    return metrics, SeverityCurve(severity=tuple(map(float, levels)), **means)


def _measure_sharpness(
    fitted: FittedPosterior,
    train: Split,
    sharpness_config: SharpnessConfig,
    num_draws: int,
    seed: int,
    *,
    hessian: bool,
) -> tuple[Metrics, LossSlice]:
    """Rise of the training loss around draws, and the mean loss along random directions through them."""
    inputs, targets = train.inputs, train.targets
    sharpness = measure_posterior_sharpness(
        fitted, inputs, targets, sharpness_config, num_draws, seed=seed, hessian=hessian
    )
    metrics = {SHARPNESS_METRICS[row.measure]: row.mean for row in sharpness.rows if row.measure in SHARPNESS_METRICS}
    slices = compute_draw_slices({"": fitted}, inputs, targets, num_draws, num_steps=NUM_SLICE_POINTS, seed=seed)[""]
    columns = zip(*(loss_slice.losses for loss_slice in slices), strict=True)
    return metrics, LossSlice(slices[0].distances, tuple(sum(column) / len(slices) for column in columns))


def _average_rows(rows: Sequence[CorruptionMetrics], metric: str) -> float:
    return sum(row.metrics[metric] for row in rows) / len(rows)
