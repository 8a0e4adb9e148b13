"""Figure of the trials of a tuning."""

from typing import TYPE_CHECKING

from flatbayes.experiments.tuning_result import TuningResult
from flatbayes.plotting import theme

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes


def plot_trials(result: TuningResult, name: str | None = None, axes: "Axes | None" = None) -> "Axes":
    """Draw the score of every trial against a hyperparameter, on a logarithmic axis, with the best in colour.

    Args:
        result: The result.
        name: The hyperparameter, by default the first.
        axes: Where to draw; by default new axes.

    Raises:
        ValueError: There is no such hyperparameter.
        ImportError: matplotlib is not installed.
    """
    name = result.names[0] if name is None else name
    if name not in result.names:
        raise ValueError(f"The tuning has no hyperparameter {name!r}; it has {', '.join(result.names)}.")
    values = [(trial[name] or 0.0, trial["score"]) for trial in result.trials]
    scores = {value: score for value, score in values if score is not None}
    best = next(value for value, score in scores.items() if score == result.best_score)
    with theme.use_axes(axes, 5.0, 3.2) as target:
        target.plot(list(scores), list(scores.values()), "o", color=theme.TIE, markersize=5)
        target.plot([best], [result.best_score], "o", color=theme.FLAT, markersize=8, label="best")
        failed = [value for value, score in values if score is None]
        if failed:
            low, _ = target.get_ylim()
            target.plot(failed, [low] * len(failed), "x", color=theme.PLAIN, label="diverged", clip_on=False)
        target.set_xscale("log")
        target.set_xlabel(name)
        direction = "higher" if result.higher_is_better else "lower"
        target.set_ylabel(f"{result.metric} on validation data, {direction} is better")
        target.set_title(f"{len(result.trials)} trials")
        target.legend()
        theme.style_axes(target)
        return target
