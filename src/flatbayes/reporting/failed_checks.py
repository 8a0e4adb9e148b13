"""Summary of the self-checks that failed in the runs of a comparison."""

from flatbayes.core.names import format_count
from flatbayes.experiments.results import ComparisonResult
from flatbayes.reporting import queries


def describe_failed_checks(results: ComparisonResult) -> str:
    """A line for every check that failed in half of the runs of a posterior, with one of its messages; else empty.

    Args:
        results: The results.
    """
    posteriors_by_check: dict[str, list[str]] = {}
    messages: dict[str, str] = {}
    for posterior in dict.fromkeys(run.posterior for run in results.runs):
        runs = [run for flat in (False, True) for run in queries.select_runs(results, posterior, flat)]
        for name in dict.fromkeys(name for run in runs for name in run.failed_checks):
            failed = [run for run in runs if name in run.failed_checks]
            if 2 * len(failed) >= len(runs):
                count = f"{len(failed)} of {format_count(len(runs), 'run')}"
                posteriors_by_check.setdefault(name, []).append(f"{posterior} ({count})")
                messages.setdefault(name, failed[0].failed_checks[name])
    return "\n".join(
        f"Check {name} failed: {', '.join(posteriors)}; such as: {messages[name]}."
        for name, posteriors in posteriors_by_check.items()
    )
