from functools import partial

import pytest

from studies.double_well.cli import main
from studies.double_well.study import DoubleWellStudy


@pytest.fixture
def _quick(monkeypatch):
    small = {"num_chains": 20, "num_snapshots": 4, "plain_steps": 80, "sam_steps": 80, "num_fits": 4, "fit_steps": 20}
    monkeypatch.setattr("studies.double_well.cli.DoubleWellStudy", partial(DoubleWellStudy, **small))


@pytest.mark.usefixtures("_quick")
def test_writes_figures_and_numbers_and_prints_a_summary(tmp_path, capsys):
    out = tmp_path / "theory"
    assert main(["--out", str(out), "--rho", "0.2", "--inverse_temperature", "5", "--seed", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("theory.json", "wells-1d.svg", "wells-1d.png", "wells-2d.svg", "wells-2d.png"):
        assert (out / name).stat().st_size > 1000
        assert name in said
    assert "λ = 5, ρ = 0.2" in said
    assert "Theorem C" in said
    assert main(["--out", str(out)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["--out", str(out), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--rho", "-1"], "rho must be positive"), (["--inverse_temperature", "0"], "inverse_temperature must be pos")],
)
def test_bad_input_leaves_no_folder(tmp_path, capsys, options, message):
    out = tmp_path / "theory"
    assert main(["--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
