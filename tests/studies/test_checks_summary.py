"""Counts of right and false alarms from rows of the study of the self-checks."""

from studies.checks.summary import count_alarms, format_counts


def row(steps, test_nll, **checks):
    entries = {name: {"value": value, "passed": passed} for name, (value, passed) in checks.items()}
    null = {name: {"value": 1.0, "passed": True} for name in ("confidence",) if name in checks}
    test = {name: {"value": 1.5, "passed": False} for name in checks}
    base = {"task": "a", "posterior": "MAP", "steps": steps, "test_nll": test_nll, "half": "choice"}
    return base | {"checks": entries, "test": test, "null": null}


def test_alarms_are_confirmed_by_test_rows_and_by_the_other_length():
    short = row(100, 1.0, too_few_steps=(0.5, False), confidence=(1.4, False), one_network=(0.001, False))
    long = row(400, 0.8, too_few_steps=(0.1, True), confidence=(0.5, False), too_many_steps=(0.5, False))
    counts = count_alarms([short, long, {"task": "b", "posterior": "MAP", "steps": 100, "error": "no"}])
    assert counts["too_few_steps"] == {
        "fits": 2, "alarms": 1, "confirmed": 1, "refuted": 0, "missed": 0, "null": 0,
    }  # fmt: skip
    assert (counts["confidence"]["confirmed"], counts["confidence"]["refuted"]) == (1, 1)  # 0.5 is underconfident
    assert counts["too_many_steps"]["refuted"] == 1
    assert counts["one_network"]["confirmed"] == 1
    assert "| `confidence` | 2 | 2 | 1 | 1 | – | 0 |" in format_counts([short, long])


def test_a_fit_without_an_alarm_that_more_steps_improve_is_missed():
    counts = count_alarms([row(100, 1.0, too_few_steps=(0.1, True)), row(400, 0.5, too_few_steps=(0.1, True))])
    assert counts["too_few_steps"]["missed"] == 1
