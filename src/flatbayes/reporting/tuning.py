"""Figure of the trials of a tuning."""

import math
from typing import TYPE_CHECKING

from flatbayes.core.names import format_count
from flatbayes.experiments.tuning_result import TuningResult
from flatbayes.plotting import theme
from flatbayes.plotting.scales import label_metric, scale_axis

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes


def plot_trials(result: TuningResult, name: str | None = None, axes: "Axes | None" = None) -> "Axes":
    """Draw the score of every trial against a hyperparameter, with the best in colour.

    By default it is the first hyperparameter, on new axes.

    Raises:
        ValueError: There is no such hyperparameter.
        ImportError: matplotlib is not installed.
    """
    name = result.names[0] if name is None else name
    if name not in result.names:
        raise ValueError(f"The tuning has no hyperparameter {name!r}; it has {', '.join(result.names)}.")
    values = [(trial[name] or 0.0, trial["score"]) for trial in result.trials]
    finished = [(value, score) for value, score in values if score is not None and math.isfinite(score)]
    best = [point for point in finished if point[1] == result.best_score and result.flatness_pays is not False]
    with theme.use_axes(axes, 5.0, 3.4) as target:
        target.plot(*zip(*finished, strict=True), "o", color=theme.TIE, markersize=5, label="trial")
        if best:
            target.plot(*zip(*best, strict=True), "o", color=theme.FLAT, markersize=8, label="best")
        if result.plain_score is not None:
            target.axhline(result.plain_score, color=theme.PLAIN, linewidth=1, label="plain training")
        scale_axis(target.xaxis, [value for value, _ in values])
        scale_axis(target.yaxis, [score for _, score in finished])
        failed = [value for value, score in values if score is None]
        if failed:
            low, _ = target.get_ylim()
            target.plot(failed, [low] * len(failed), "x", color=theme.PLAIN, label="diverged", clip_on=False)
        target.set_xlabel(name)
        target.set_ylabel(label_metric(result.metric))
        direction = "higher" if result.higher_is_better else "lower"
        target.set_title(f"{format_count(len(result.trials), 'trial')}, on validation data; {direction} is better")
        target.legend(fontsize=9)
        theme.style_axes(target)
        return target
