"""Typed result of a comparison, and its JSON file.

`results.json` has schema 2; files of flatbayes 0.1 (without a `schema` key) are upgraded when they are read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flatbayes.core.display import make_data_frame
from flatbayes.core.files import JsonValue, read_json, replace_nonfinite, write_json
from flatbayes.core.optional import get_version
from flatbayes.experiments.json_reader import ObjectReader, upgrade_results
from flatbayes.experiments.run_result import RunResult
from flatbayes.experiments.statistics import PairedComparison, Winner

if TYPE_CHECKING:
    import pandas as pd  # an optional package
    from matplotlib.axes import Axes

RESULTS_FILE = "results.json"
RESULTS_SCHEMA = 2
Verdict = Literal["flat", "plain", "tie", "unknown"]


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

    Examples:
        >>> row = results.rows[0]
        >>> row.posterior, row.metric, row.comparison.num_seeds
        ('MAP', 'accuracy', 2)
        >>> row.verdict
        'unknown'
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
        rows: The paired comparison, a row for every posterior, flatness and metric; empty for a single run.
        failures: Names of failed runs, with the reason.
        environment: Versions and hardware.
        version: Version of flatbayes that wrote the results.
        notes: Sentences on what was left out, and why.

    Examples:
        >>> print(results.summary().splitlines()[1].strip())
        Posterior     Metric                   Plain             Flat  Difference  Better
        >>> results.to_pandas().shape
        (12, 18)
        >>> path = results.report("report.html")
    """

    config: Mapping[str, JsonValue]
    runs: tuple[RunResult, ...]
    rows: tuple[SummaryRow, ...] = ()
    failures: tuple[str, ...] = ()
    environment: Mapping[str, JsonValue] = field(default_factory=dict)
    version: str = get_version()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, JsonValue]:
        """Plain data for JSON."""
        return {
            "schema": RESULTS_SCHEMA,
            "flatbayes": self.version,
            "environment": dict(self.environment),
            "config": dict(self.config),
            "runs": [run.to_dict() for run in self.runs],
            "summary": [row.to_dict() for row in self.rows],
            "failures": list(self.failures),
            "notes": list(self.notes),
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
            rows=tuple(SummaryRow.from_dict(row, place) for row, place in results.read_list("summary")),
            failures=tuple(str(failure) for failure, _ in results.read_list("failures", required=False)),
            notes=tuple(str(note) for note, _ in results.read_list("notes", required=False)),
            environment=results.read_object("environment").data,
            version=results.read_text("flatbayes", ""),
        )

    def save(self, folder: Path) -> Path:
        """Write `results.json` and return its path."""
        write_json(folder / RESULTS_FILE, self.to_dict())
        return folder / RESULTS_FILE

    @classmethod
    def load(cls, folder: "Path | str") -> "ComparisonResult":
        """Read `results.json`.

        Raises:
            FileNotFoundError: The folder has no such file.
            ValueError: The file is damaged.
        """
        return cls.from_dict(read_json(Path(folder) / RESULTS_FILE))

    def __repr__(self) -> str:
        from flatbayes.reporting.queries import format_conclusion, select_family

        return f"<ComparisonResult: {format_conclusion(select_family(self))}>"

    def _repr_html_(self) -> str:
        from flatbayes.reporting.terminal_table import to_html

        return to_html(self)

    def summary(self) -> str:
        """The tables that `flatbayes compare` prints, and the conclusion in words."""
        from flatbayes.reporting.terminal_table import format_tables

        return format_tables(self)

    def plot(self, metric: str = "nll", *, ax: "Axes | None" = None) -> "Axes":
        """Draw the difference flat − plain of every posterior, with its 95 % interval.

        Args:
            metric: Name of the metric.
            ax: Where to draw; by default new axes.

        Raises:
            ValueError: The comparison has no such metric.
            ImportError: matplotlib is not installed.
        """
        from flatbayes.reporting.figures import plot_differences

        return plot_differences(self, metric, ax)

    def report(self, path: "Path | str") -> Path:
        """Write a self-contained HTML page, and return its path.

        Args:
            path: Path of the page; a folder gets `report.html`.

        Raises:
            OSError: It cannot be written.
            ImportError: matplotlib is not installed.
        """
        from flatbayes.reporting.html import write_page

        return write_page(self, Path(path))

    def to_pandas(self, table: Literal["summary", "runs"] = "summary") -> "pd.DataFrame":
        """The summary or the runs as a data frame.

        Args:
            table: `summary` has one row per posterior, flatness and metric; `runs` has one row per run, with a column
                for each metric and cost.

        Raises:
            ImportError: pandas is not installed.
        """
        if table == "summary":
            return make_data_frame([row.to_dict() for row in self.rows])
        labels = ("data", "model", "posterior", "flatness", "seed", "split")
        return make_data_frame(
            [{**{n: getattr(run, n) for n in labels}, **run.metrics, **asdict(run.cost)} for run in self.runs]
        )


def _nan_if_none(value: float | None) -> float:
    return float("nan") if value is None else value
