"""Lines on the radii that were chosen on validation data, and on whether plain training lets flatness pay."""

from flatbayes.core.names import format_count
from flatbayes.diagnostics.flatness_forecast import forecast_from_history
from flatbayes.experiments.results import ComparisonResult
from flatbayes.reporting import queries


def describe_radii(results: ComparisonResult) -> str:
    """A line with the radii of every posterior, by seed; empty if none was chosen on validation data.

    Args:
        results: The results.
    """
    texts, num_zero, num_runs = [], 0, 0
    name = ""
    for posterior in dict.fromkeys(run.posterior for run in results.runs):
        records = [run.radius for run in queries.select_runs(results, posterior, True) if run.radius]
        values = [value for record in records if isinstance(value := record.get("value"), int | float)]
        if values:
            name = str(records[0].get("name", "rho"))
            texts.append(f"{posterior} {', '.join(f'{value:g}' for value in values)}")
            num_zero, num_runs = num_zero + sum(value == 0 for value in values), num_runs + len(values)
    if not texts:
        return ""
    note = f" In {num_zero} of {format_count(num_runs, 'run')} flatness does not pay." if num_zero else ""
    return f"{name} chosen on validation data, by seed: {'; '.join(texts)}.{note}"


def describe_forecast(results: ComparisonResult) -> str:
    """The forecast from the plain run whose rise is the median of all plain runs; empty without a validation history.

    Args:
        results: The results.
    """
    forecasts = [
        forecast
        for posterior in dict.fromkeys(run.posterior for run in results.runs)
        for run in queries.select_runs(results, posterior, False)
        if run.history is not None and (forecast := forecast_from_history(run.history.val_nll)) is not None
    ]
    if not forecasts:
        return ""
    return f"Forecast: {sorted(forecasts, key=lambda forecast: forecast.rise)[len(forecasts) // 2].text}"
