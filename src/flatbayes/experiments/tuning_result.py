"""Typed result of a tuning: its trials and the best hyperparameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatbayes.core.display import format_html_table, format_number, make_data_frame
from flatbayes.core.names import format_count
from flatbayes.core.spec import short_name
from flatbayes.experiments.run import ExperimentRun
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior

if TYPE_CHECKING:  # optional packages
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TuningResult:
    """Trials of a tuning and the best of them.

    Attributes:
        best_run: The run with the best settings, for its first seed.
        trials: Values by name, and under `score` the mean over seeds, in the order in which they ran; None where
            training failed.
        higher_is_better: Direction of the score.
        metric: Metric on the validation split that the score is.
        plain_score: Score of plain training with the other hyperparameters at their best; None if it failed.
        has_plain: Whether plain training was tried.
        edges: Hyperparameters whose best value is at the `low` or `high` edge of its range.

    Examples:
        >>> run = ExperimentRun(source, MLP, SWAG(), SAM(rho=0.2), config, seed=0)
        >>> trials = [{"flatness.rho": 0.1, "score": 0.35}, {"flatness.rho": 0.2, "score": 0.31}]
        >>> tuned = TuningResult(run, trials)
        >>> tuned.names, tuned.best_score, tuned.flatness.rho
        (['flatness.rho'], 0.31, 0.2)
        >>> axes = tuned.plot()
    """

    best_run: ExperimentRun
    trials: list[dict[str, float | None]]
    higher_is_better: bool = False
    metric: str = "nll"
    plain_score: float | None = None
    has_plain: bool = False
    edges: Mapping[str, str] = field(default_factory=dict)

    @property
    def flatness_pays(self) -> bool | None:
        """Whether a radius above 0 has a better score than plain training; None if plain training was not tried."""
        if not self.has_plain:
            return None
        sign = 1.0 if self.higher_is_better else -1.0
        return self.plain_score is None or sign * self._best_trial_score > sign * self.plain_score

    @property
    def posterior(self) -> Posterior:
        """The posterior with the best hyperparameters."""
        return self.best_run.posterior

    @property
    def flatness(self) -> Flatness:
        """The flatness with the best hyperparameters."""
        return self.best_run.flatness

    @property
    def best_score(self) -> float:
        """Score of the best trial, or of plain training if that is the best."""
        return float(self.plain_score) if self.flatness_pays is False else self._best_trial_score  # type: ignore[arg-type]

    @property
    def _best_trial_score(self) -> float:
        scores = [trial["score"] for trial in self.trials if trial["score"] is not None]
        return max(scores) if self.higher_is_better else min(scores)

    @property
    def notes(self) -> list[str]:
        """Sentences on plain training and on values at an edge of their range."""
        notes = []
        if self.flatness_pays is not None:
            plain = "diverged" if self.plain_score is None else f"{self.metric} {self.plain_score:.4f}"
            flat = f"with the best radius {self._best_trial_score:.4f}"
            start = "Flatness pays here" if self.flatness_pays else "Flatness does not pay here"
            notes.append(f"{start}: plain training {plain}, {flat}.")
        if self.flatness_pays is not False:
            edges = [f"{name} is best at the {edge} edge of its range" for name, edge in self.edges.items()]
            notes += [f"{text}: continue with more trials, or with a wider range." for text in edges]
        return notes

    @property
    def names(self) -> list[str]:
        """Names of the tuned hyperparameters."""
        return [name for name in self.trials[0] if name != "score"]

    @property
    def best_name(self) -> str:
        """Posterior and flatness with the best hyperparameters, as text."""
        is_plain = self.flatness_pays is False
        return (
            f"{short_name(self.posterior)} x {'Plain (chosen radius 0)' if is_plain else short_name(self.flatness)}"
        )

    def __repr__(self) -> str:
        score = f"{self.metric} {self.best_score:.4g} on validation data"
        return f"<TuningResult: {self.best_name}, {score}, {format_count(len(self.trials), 'trial')}>"

    def _repr_html_(self) -> str:
        rows = [[*(f"{t[n]:.3g}" for n in self.names), format_number(t["score"])] for t in self._sort_trials()]
        header, notes = [*self.names, self.metric], [f"best: {self.best_name}", *self.notes]
        return format_html_table("Trials, the best first", header, rows[:10], notes, num_label_columns=0)

    def summary(self) -> str:
        """All trials, the best first, as a table in plain text."""
        width = max(12, *(len(name) + 2 for name in self.names))
        lines = ["".join(f"{name:>{width}}" for name in (*self.names, self.metric))]
        for trial in self._sort_trials():
            score = "diverged" if trial["score"] is None else f"{trial['score']:.4f}"
            values = [*(f"{trial[name]:.3g}" for name in self.names), score]
            lines.append("".join(f"{value:>{width}}" for value in values))
        return "\n".join([*lines, f"best: {self.best_name}", *self.notes])

    def to_pandas(self) -> "pd.DataFrame":
        """One row for each trial, in the order in which they ran.

        Raises:
            ImportError: pandas is not installed.
        """
        return make_data_frame(self.trials)

    def plot(self, name: str | None = None, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the score of every trial against a hyperparameter.

        Args:
            name: The hyperparameter, by default the first.
            ax: Where to draw; by default new axes.

        Raises:
            ValueError: There is no such hyperparameter.
            ImportError: matplotlib is not installed.
        """
        from flatbayes.reporting.tuning import plot_trials

        return plot_trials(self, name, ax)

    def _sort_trials(self) -> list[dict[str, float | None]]:
        """The trials, the best first and failed ones last."""
        sign = -1.0 if self.higher_is_better else 1.0
        return sorted(
            self.trials, key=lambda trial: float("inf") if trial["score"] is None else sign * trial["score"]
        )
