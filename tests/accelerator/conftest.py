"""Reports how many of the committed launches and waits can be lowered."""

import pytest

SAVINGS = pytest.StashKey[list[float]]()


@pytest.fixture
def record_saving(request):
    """A function of a budget and the actual numbers, which keeps the differences for the summary."""
    savings = request.config.stash.setdefault(SAVINGS, [])

    def record(budget, totals):
        savings.extend(budget[kind] - totals[kind] for kind in totals if totals[kind] < budget[kind])

    return record


def pytest_terminal_summary(terminalreporter, config):
    savings = config.stash.get(SAVINGS, [])
    if savings:
        terminalreporter.write_line(
            f"{len(savings)} numbers of launches or waits are below the committed ones. Commit them with "
            "`python tests/accelerator/measure.py --write`, so that they do not rise again."
        )
