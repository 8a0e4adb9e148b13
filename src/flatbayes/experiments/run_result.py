"""Typed result of one run, and its plain data for JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

from flatbayes.core.display import format_fields
from flatbayes.core.files import JsonValue, replace_nonfinite
from flatbayes.diagnostics import LossSlice
from flatbayes.experiments.json_reader import ObjectReader
from flatbayes.metrics import CoverageCurve, ReliabilityBins

Column = tuple[float | None, ...]


@dataclass(frozen=True)
class RunCost:
    """Cost of the training of one run, as if it had been alone where several posteriors share the training.

    Attributes:
        train_seconds: Wall-clock time of the steps, and of the snapshots and the last pass over the data of this
            posterior. Posteriors that share a training have the time of its steps each.
        gradients: Number of gradients of a batch, likewise those of the whole training.
        peak_memory_mb: Peak memory in MiB, of all posteriors of the training together.
        num_posteriors: Number of posteriors that the training served; None of a training by `fit`.
    """

    train_seconds: float | None = None
    gradients: float | None = None
    peak_memory_mb: float | None = None
    num_posteriors: float | None = None


@dataclass(frozen=True)
class TrainingHistory:
    """Columns of equal length, one entry per epoch; None where nothing was recorded."""

    epoch: Column = ()
    loss: Column = ()
    val_nll: Column = ()
    lr: Column = ()


@dataclass(frozen=True)
class SeverityCurve:
    """Means over image corruptions, by severity; severity 0 is the uncorrupted data."""

    severity: Column = ()
    accuracy: Column = ()
    nll: Column = ()
    ece: Column = ()


ColumnsT = TypeVar("ColumnsT", TrainingHistory, SeverityCurve)


@dataclass(frozen=True)
class RunDetails:
    """Intermediate quantities of the additional evaluations.

    Attributes:
        calibration_temperature: Softmax temperature fitted to the validation split.
        shift: Metrics by severity of corruption.
        loss_slice: Mean training loss along random directions through draws.
        ensemble_nlls: Of an ensemble of single networks, the calibrated NLL of 1, 2, ... of them.
    """

    calibration_temperature: float | None = None
    shift: SeverityCurve | None = None
    loss_slice: LossSlice | None = None
    ensemble_nlls: Column = ()


@dataclass(frozen=True)
class RunResult:
    """Result of one run: one posterior, flatness and seed.

    Attributes:
        posterior: Label of the posterior.
        flatness: Label of the flatness, `Plain` for plain training.
        seed: The seed of the run.
        metrics: Metrics by name; None where a metric is not finite.
        data: Label of the data.
        model: Label of the network.
        split: Split that the metrics were computed on.
        cost: Cost of training.
        num_networks: Number of networks averaged in a prediction.
        reliability: Reliability bins of a classification, coverage curve of a regression.
        history: Training history, of an ensemble that of its first member.
        details: Intermediate quantities of additional evaluations.
        settings: Options of the evaluation that the metrics depend on, such as `num_draws`.
        raw_metrics: For a posterior with a calibration, the metrics without it; empty otherwise.
        failed_checks: What the self-checks that failed say, by their names.
        radius: Choice of the radius on validation data, with its scores; empty if it was given.
        regions: Of thresholds by `flatbayes calibrate`: coverage and size of the regions by level, errors of accepted
            predictions by risk, and the examples that the thresholds are from; empty without thresholds.

    Examples:
        >>> run = results.runs[0]
        >>> run.posterior, run.flatness, run.seed, sorted(run.metrics)
        ('MAP', 'Plain', 0, ['accuracy', 'auroc_correct', 'brier', 'ece', 'nll', 'nll_calibrated'])
    """

    posterior: str
    flatness: str
    seed: int
    metrics: Mapping[str, float | None]
    data: str = ""
    model: str = ""
    split: str = "test"
    cost: RunCost = RunCost()
    num_networks: int | None = None
    reliability: ReliabilityBins | CoverageCurve | None = None
    history: TrainingHistory | None = None
    details: RunDetails = RunDetails()
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    raw_metrics: Mapping[str, float | None] = field(default_factory=dict)
    failed_checks: Mapping[str, str] = field(default_factory=dict)
    radius: Mapping[str, JsonValue] = field(default_factory=dict)
    regions: Mapping[str, JsonValue] = field(default_factory=dict)

    __repr__ = format_fields

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data for JSON, without the fields that were not recorded."""
        data: dict[str, JsonValue] = replace_nonfinite(asdict(self))
        optional = ("settings", "raw_metrics", "failed_checks", "radius", "regions")
        return {key: value for key, value in data.items() if value is not None and (value or key not in optional)}

    @classmethod
    def from_dict(cls, data: JsonValue, place: str = "run") -> "RunResult":
        """Read plain data; unknown keys are ignored.

        Args:
            data: What `to_dict` returned.
            place: Name of the run in error messages.

        Raises:
            ValueError: A field is missing or has a wrong type.
        """
        run = ObjectReader(data, place)
        details, bins = run.read_object("details"), run.read_object("reliability")
        checks = run.read_object("failed_checks")
        shift, history = details.read_object("shift"), run.read_object("history")
        loss_slice = details.read_object("loss_slice")
        reliability: ReliabilityBins | CoverageCurve | None = None
        if "edges" in bins:
            columns = (bins.read_column(key) for key in ("confidence", "accuracy"))
            confidence, accuracy = (tuple(value or 0.0 for value in column) for column in columns)
            counts = tuple(int(count) for count in bins.read_numbers("counts"))
            effect = bins.read_number("design_effect") or 1.0  # missing in results of earlier versions
            reliability = ReliabilityBins(bins.read_numbers("edges"), counts, confidence, accuracy, effect)
        elif "levels" in bins:
            count = bins.read_int("count")
            rows = tuple(
                ObjectReader({"coverage": row}, where).read_numbers("coverage")
                for row, where in bins.read_list("target_coverage", required=False)
            )
            levels, coverage = bins.read_numbers("levels"), bins.read_numbers("coverage")
            reliability = CoverageCurve(levels, coverage, count, rows)
        return cls(
            posterior=run.read_text("posterior"),
            flatness=run.read_text("flatness"),
            seed=run.read_int("seed"),
            metrics=run.read_metrics("metrics"),
            data=run.read_text("data", ""),
            model=run.read_text("model", ""),
            split=run.read_text("split", "test"),
            cost=RunCost(**{f.name: run.read_object("cost").read_number(f.name) for f in fields(RunCost)}),
            num_networks=run.read_int("num_networks") if "num_networks" in run else None,
            reliability=reliability,
            history=_read_columns(TrainingHistory, history) if history else None,
            details=RunDetails(
                details.read_number("calibration_temperature"),
                _read_columns(SeverityCurve, shift) if shift else None,
                LossSlice(loss_slice.read_numbers("distances"), loss_slice.read_numbers("losses"))
                if loss_slice
                else None,
                details.read_column("ensemble_nlls") if "ensemble_nlls" in details else (),
            ),
            settings=run.read_object("settings").data,
            raw_metrics=run.read_metrics("raw_metrics") if "raw_metrics" in run else {},
            failed_checks={name: checks.read_text(name) for name in checks.data},
            radius=run.read_object("radius").data,
            regions=run.read_object("regions").data,
        )


def _read_columns(cls: type[ColumnsT], columns: ObjectReader) -> ColumnsT:
    return cls(**{name: columns.read_column(name) for name in cls.__dataclass_fields__})
