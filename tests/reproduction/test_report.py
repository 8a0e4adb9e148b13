"""Comparison rows, limitations and rendering of a table."""

from dataclasses import asdict

import pytest

from flatbayes.experiments import RunResult
from reproduction import TableConfig, describe_differences, load_cells, make_comparison_rows
from reproduction.rendering import render_comparison_markdown


@pytest.fixture
def lossless(monkeypatch):
    monkeypatch.setattr("reproduction.report.is_jpeg_source", lambda _: False)


def run(cell, seed, **metrics):
    flatness = "Plain" if cell.variant == "plain" else "SAM(rho=0.1)"
    return RunResult(cell.posterior_name, flatness, seed, metrics)


def test_published_settings_at_full_scale_have_two_limitations(lossless):
    assert len(describe_differences(TableConfig(table="cifar10", scale="full"))) == 2


def test_every_difference_is_described(lossless, monkeypatch):
    plan = TableConfig(
        table="cifar10", cell_pattern="*28x10-swag-*", epochs=2, num_draws=3, split="val", max_examples=64
    )
    said = " ".join(describe_differences(plan))
    for words in (
        "on the val split",
        "WideResNet(depth=16, width=2) in place of WideResNet(depth=28, width=10)",
        "2 epochs in place of 300",
        "3 networks a prediction in place of 30",
        "At most 64 images",
    ):
        assert words in said
    assert "JPEG" not in said
    monkeypatch.setattr("reproduction.report.is_jpeg_source", lambda _: True)
    assert "lossy JPEG" in " ".join(describe_differences(plan))


def test_ours_are_means_over_seeds_of_the_same_variant():
    plain, flat = load_cells("cifar100", "preresnet164-swag-[pf]*")
    runs = [run(plain, 0, accuracy=0.5, nll=1.0, ece=0.1), run(flat, 0, accuracy=0.8, nll=0.7, ece=0.05)]
    runs.append(run(flat, 1, accuracy=0.9, nll=0.6, ece=0.03))
    rows = {
        (row.cell, row.metric, row.reference): row for row in make_comparison_rows([plain, flat], runs, "cifar100")
    }
    row = rows["preresnet164-swag-flat", "nll", "flat_bnn-logs"]
    assert row.ours == pytest.approx(0.65)
    assert row.ours_std == pytest.approx(0.0707, abs=1e-4)
    assert row.difference == pytest.approx(0.65 - 0.6675)
    both = [rows["preresnet164-swag-plain", "nll", source] for source in ("flat_bnn-logs", "swa_gaussian")]
    assert [row.published for row in both] == [0.7272, 0.71]
    assert {row.ours for row in both} == {1.0}
    assert both[0].ours_std is None


def test_cells_without_a_run_have_a_row_without_ours():
    (row, *_) = make_comparison_rows(load_cells("cifar10", "wrn28x10-map-flat"), [], "cifar10")
    assert (row.ours, row.ours_num_seeds, row.difference, row.published) == (None, 0, None, 0.9701)


def test_markdown_names_each_reference_and_flags_unverified_results():
    cells = load_cells("cifar10", "preresnet164-map-plain")
    environment = dict.fromkeys(("processor", "cores", "device", "flatbayes", "torch", "python"), "x")
    text = render_comparison_markdown(
        {
            "config": {"table": "cifar10", "scale": "full", "data_root": "secret", "epochs": None},
            "environment": environment,
            "runs": [run(cells[0], 0, accuracy=0.9, nll=0.3, ece=0.02).to_dict()],
            "published": [
                asdict(row)
                for row in make_comparison_rows(cells, [run(cells[0], 0, accuracy=0.9, nll=0.3, ece=0.02)], "cifar10")
            ],
            "remarks": ["Beware."],
            "references": {"swag-paper": "the paper", "swa_gaussian": "its code", "ot_mdr": "another"},
        }
    )
    assert "* Beware." in text
    assert "| preresnet164-map-plain | nll | 0.3000 | 1 | 0.1800 | +0.1200 | swa\\_gaussian \\[V\\] |" in text
    assert "* `swag-paper`: the paper" in text
    assert "another" not in text
    assert "unverified" in text
    assert "secret" not in text
