"""Reports how many of the committed launches and waits can be lowered."""

import pytest

SAVING = "saving"


@pytest.fixture
def record_saving(record_property):
    """A function of a budget and the actual numbers, which keeps the differences for the summary."""

    def record(budget, totals):
        for kind in totals:
            if totals[kind] < budget[kind]:
                record_property(SAVING, budget[kind] - totals[kind])

    return record


def pytest_terminal_summary(terminalreporter):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    savings = [value for report in reports for name, value in report.user_properties if name == SAVING]
    if savings:
        terminalreporter.write_line(
            f"{len(savings)} numbers of launches or waits are below the committed ones. Commit them with "
            "`python tests/accelerator/measure.py --write`, so that they do not rise again."
        )
