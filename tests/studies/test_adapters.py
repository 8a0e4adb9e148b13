"""Table of the noise that adapters tolerate."""

from studies.adapters.page import render_table


def make_row(flatness, seed, std, std_changed_classes):
    test = {"MAP": {"nll": 0.5}, "TFB": {"nll": 0.4}}
    return {"flatness": flatness, "seed": seed, "std": std, "std_changed_classes": std_changed_classes, "test": test}


def test_table_pairs_seeds_and_counts_larger_noise():
    rows = [make_row("Plain", 0, 0.1, 0.01), make_row("SAM", 0, 0.05, 0.02)]
    rows += [make_row("Plain", 1, 0.1, 0.01), make_row("SAM", 1, 0.2, 0.08), make_row("Plain", 2, 0.3, 0.3)]
    table = render_table(rows)
    assert "| 1 | 0.1 → 0.2 | 0.01 → 0.08 | 0.5 → 0.5 | 0.4 → 0.4 |" in table
    assert "| 2 |" not in table  # no pair
    assert "larger in 1 of 2 seeds by the NLL, and in 2 by changed classes, where it is 4 times as large" in table
