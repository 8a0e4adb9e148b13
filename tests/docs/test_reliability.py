"""Numbers on the reliability page equal the counts of the scripts."""

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FOUND = json.loads((DOCS / "results" / "reliability.json").read_text())
PAGE = (DOCS / "reliability.md").read_text()


def total(part, end):
    """Number of disturbed commands with this outcome."""
    return sum(counts.get(end, 0) for counts in FOUND[part]["counts"].values())


@pytest.mark.parametrize(
    "part",
    [
        "commands",
        "configurations",
        "interruptions",
        "writes",
        "places",
        "hyperparameters",
        "soak",
        "faults",
        "power cuts",
        "races",
    ],
)
def test_no_failures(part):
    assert FOUND[part]["bad"] == 0


def test_faults_power_cuts_and_races():
    ends = ("ended well", "ended with a message", "killed")
    assert f"| {sum(total('faults', end) for end in ends):,} |" in PAGE
    assert f"| {total('power cuts', 'before the end') + total('power cuts', 'after the end')} |" in PAGE
    races = FOUND["races"]["counts"]
    assert f"| {races['commands']} in {races['rounds']} rounds |" in PAGE


@pytest.mark.parametrize("kind", ["commands", "configurations"])
def test_commands(kind):
    counts = FOUND[kind]["counts"]
    assert f"| {sum(counts.values()):,} |" in PAGE
    assert f"{counts['ran']:,}" in PAGE
    assert f"{counts['refused in words']:,}" in PAGE


def test_disturbances():
    assert f"| {total('interruptions', 'went on to the same end'):,} |" in PAGE
    assert f"in {total('interruptions', 'interrupted'):,} of the" in PAGE
    assert f"| {total('writes', 'went on to the same end'):,} |" in PAGE
    assert f"| {FOUND['hyperparameters']['tried']:,} |" in PAGE
    assert f"| {FOUND['places']['places']} |" in PAGE


def test_fits():
    fits = FOUND["fits"]
    numbers = (fits["fits"], fits["counts"]["works"], fits["counts"]["refused"])
    assert numbers[0] == numbers[1] + numbers[2] + fits["counts"].get("bad", 0)
    assert f"| {fits['counts'].get('bad', 0)} |" in PAGE
    for number in numbers:
        assert f"{number:,}" in PAGE
    assert f"{fits['refused with a message of torch']} of the refusals quote" in PAGE


def test_soak():
    soak = FOUND["soak"]
    assert f"| {soak['cycles']:,} |" in PAGE
    assert f"{soak['kib_per_cycle_in_the_second_half']} KiB per cycle" in PAGE
    for kind in ("open_files", "threads", "tensors", "temporary_files"):
        assert soak["first"][kind] == soak["last"][kind]
