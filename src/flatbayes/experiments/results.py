"""Typed results of runs and comparisons, and their JSON file.

`results.json` has schema 2; files of flatbayes 0.1 (without a `schema` key) are upgraded when they are read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from flatbayes.core.files import JsonValue, read_json, replace_nonfinite, write_json
from flatbayes.core.optional import get_version
from flatbayes.diagnostics import LossSlice
from flatbayes.experiments.json_reader import ObjectReader
from flatbayes.experiments.statistics import PairedComparison, Winner
from flatbayes.experiments.upgrade import upgrade_results
from flatbayes.metrics import CoverageCurve, ReliabilityBins

if TYPE_CHECKING:
    import pandas as pd  # an optional package

RESULTS_FILE = "results.json"
RESULTS_SCHEMA = 2
Verdict = Literal["flat", "plain", "tie", "unknown"]
Column = tuple[float | None, ...]


@dataclass(frozen=True)
class RunCost:
    """Cost of the training of one run.

    Attributes:
        train_seconds: Wall-clock time.
        gradients: Number of gradients of a batch.
        peak_memory_mb: Peak memory in MiB.
    """

    train_seconds: float | None = None
    gradients: float | None = None
    peak_memory_mb: float | None = None


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
    """

    calibration_temperature: float | None = None
    shift: SeverityCurve | None = None
    loss_slice: LossSlice | None = None


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

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data for JSON, without the fields that were not recorded."""
        data: dict[str, JsonValue] = replace_nonfinite(asdict(self))
        return {key: value for key, value in data.items() if value is not None and (value or key != "settings")}

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
        shift, history = details.read_object("shift"), run.read_object("history")
        loss_slice = details.read_object("loss_slice")
        reliability: ReliabilityBins | CoverageCurve | None = None
        if "edges" in bins:
            columns = (bins.read_column(key) for key in ("confidence", "accuracy"))
            confidence, accuracy = (tuple(value or 0.0 for value in column) for column in columns)
            counts = tuple(int(count) for count in bins.read_numbers("counts"))
            reliability = ReliabilityBins(bins.read_numbers("edges"), counts, confidence, accuracy)
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
            ),
            settings=run.read_object("settings").data,
        )


@dataclass(frozen=True)
class SummaryRow:
    """Paired comparison of one posterior, flatness and metric.

    Attributes:
        posterior: Label of the posterior.
        flatness: Label of the flatness that is compared with plain training.
        metric: Name of the metric.
        family: Table that the metric belongs to; empty for the usual metrics.
        comparison: The paired statistics over seeds.
        p_holm: p-value adjusted for all comparisons in the table (Holm, 1979); None where there is no p-value.
    """

    posterior: str
    flatness: str
    metric: str
    family: str
    comparison: PairedComparison
    p_holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """The winner; `unknown` where there is no interval to decide by."""
        return "unknown" if self.comparison.interval is None else self.comparison.winner

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data for JSON, the statistics beside the labels."""
        row = asdict(self)
        row |= row.pop("comparison")
        data: dict[str, JsonValue] = replace_nonfinite(row)
        return data

    @classmethod
    def from_dict(cls, data: JsonValue, place: str = "row") -> "SummaryRow":
        """Read plain data; unknown keys are ignored.

        Args:
            data: What `to_dict` returned.
            place: Name of the row in error messages.

        Raises:
            ValueError: A field is missing or has a wrong type.
        """
        row = ObjectReader(data, place)
        winners: tuple[Winner, ...] = ("flat", "plain", "tie")
        difference = row.read_number("difference")
        comparison = PairedComparison(
            plain=_nan_if_none(row.read_number("plain", required=True)),
            plain_sd=row.read_number("plain_sd"),
            flat=_nan_if_none(row.read_number("flat", required=True)),
            flat_sd=row.read_number("flat_sd"),
            num_seeds=row.read_int("num_seeds", 0),
            difference=_nan_if_none(difference),
            interval=None if difference is None else row.read_interval("interval"),
            bootstrap_interval=row.read_interval("bootstrap_interval"),
            p_value=row.read_number("p_value"),
            effect_size=row.read_number("effect_size"),
            num_flat_better=row.read_int("num_flat_better", 0),
            num_plain_better=row.read_int("num_plain_better", 0),
            winner=row.read_choice("winner", winners),
        )
        labels = (row.read_text("posterior"), row.read_text("flatness", ""), row.read_text("metric"))
        return cls(*labels, row.read_text("family", ""), comparison, row.read_number("p_holm"))


@dataclass(frozen=True)
class ComparisonResult:
    """Content of `results.json`: the runs and their paired comparison.

    Attributes:
        config: The configuration, as plain data.
        runs: Results of the finished runs.
        summary: A row for every posterior, flatness and metric; empty for a single run.
        failures: Names of failed runs, with the reason.
        environment: Versions and hardware.
        version: Version of flatbayes that wrote the results.
    """

    config: Mapping[str, JsonValue]
    runs: tuple[RunResult, ...]
    summary: tuple[SummaryRow, ...] = ()
    failures: tuple[str, ...] = ()
    environment: Mapping[str, JsonValue] = field(default_factory=dict)
    version: str = get_version()

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data for JSON."""
        return {
            "schema": RESULTS_SCHEMA,
            "flatbayes": self.version,
            "environment": dict(self.environment),
            "config": dict(self.config),
            "runs": [run.to_dict() for run in self.runs],
            "summary": [row.to_dict() for row in self.summary],
            "failures": list(self.failures),
        }

    @classmethod
    def from_dict(cls, data: JsonValue) -> "ComparisonResult":
        """Read plain data of this version or of flatbayes 0.1; unknown keys are ignored.

        Raises:
            ValueError: A field is missing or has a wrong type; the message names it.
        """
        results = ObjectReader(upgrade_results(data), "the file")
        return cls(
            config=results.read_object("config").data,
            runs=tuple(RunResult.from_dict(run, place) for run, place in results.read_list("runs")),
            summary=tuple(SummaryRow.from_dict(row, place) for row, place in results.read_list("summary")),
            failures=tuple(str(failure) for failure, _ in results.read_list("failures", required=False)),
            environment=results.read_object("environment").data,
            version=results.read_text("flatbayes", ""),
        )

    def save(self, folder: Path) -> Path:
        """Write `results.json` and return its path."""
        write_json(folder / RESULTS_FILE, self.to_dict())
        return folder / RESULTS_FILE

    @classmethod
    def load(cls, folder: Path) -> "ComparisonResult":
        """Read `results.json`.

        Raises:
            FileNotFoundError: The folder has no such file.
            ValueError: The file is damaged.
        """
        return cls.from_dict(read_json(folder / RESULTS_FILE))

    def to_pandas(self, table: Literal["summary", "runs"] = "summary") -> "pd.DataFrame":
        """The summary or the runs as a data frame.

        Args:
            table: `summary` has one row per posterior, flatness and metric; `runs` has one row per run, with a column
                for each metric and cost.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("A data frame needs pandas: pip install 'flatbayes[pandas]'.") from error
        if table == "summary":
            return pd.DataFrame([row.to_dict() for row in self.summary])
        labels = ("data", "model", "posterior", "flatness", "seed", "split")
        return pd.DataFrame(
            [
                {**{name: getattr(run, name) for name in labels}, **run.metrics, **asdict(run.cost)}
                for run in self.runs
            ]
        )


def _read_columns(cls: type[ColumnsT], columns: ObjectReader) -> ColumnsT:
    return cls(**{name: columns.read_column(name) for name in cls.__dataclass_fields__})


def _nan_if_none(value: float | None) -> float:
    return float("nan") if value is None else value
