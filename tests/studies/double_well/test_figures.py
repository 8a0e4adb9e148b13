from io import StringIO
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from flatbayes.core.files import read_json, write_json
from flatbayes.theory import grid_points, normalize_density
from studies.double_well.figures import (
    describe_wells,
    draw_wells,
    evaluate_density,
    highest_density_levels,
    wells_table,
)
from studies.double_well.study import DoubleWellStudy, save_results

SMALL = DoubleWellStudy(num_chains=20, num_snapshots=4, plain_steps=80, sam_steps=80, num_fits=4, fit_steps=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("theory")
    save_results(path, *SMALL.run(show_progress=False))
    return path


def test_figures_are_complete_and_reproducible(folder):
    paths = draw_wells(folder)
    assert [path.name for path in paths] == ["wells-1d.svg", "wells-1d.png", "wells-2d.svg", "wells-2d.png"]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_wells(folder)] == first
    for path, content in zip(paths, first, strict=True):
        if path.suffix == ".png":
            assert content.startswith(b"\x89PNG")
            continue
        root = ElementTree.fromstring(content)
        text = " ".join(element.text for element in root.iter() if element.tag.endswith("text") and element.text)
        for words in ("Gibbs posterior", "sharpness-aware posterior", "SGLD", "SGHMC", "SGVB", "61%"):
            assert words in text or (words == "61%" and "sharp 63%" in text), (path.name, words)
        assert len(content) < 600_000


def test_the_density_is_that_of_the_run(folder):
    results = read_json(folder / "theory.json")
    for num_params in (1, 2):
        points = grid_points(num_params, 5.0, 600 if num_params == 1 else 200)
        for target, numbers in results["targets"][str(num_params)]["exact"].items():
            exact = evaluate_density(results, num_params, target, points)
            assert -exact.log_evidence == pytest.approx(numbers["free_energy"], abs=2e-3)


def test_levels_hold_their_shares_of_the_mass():
    points = grid_points(2, 6.0, 400)
    posterior = normalize_density(-points.square().sum(-1) / 2, (12 / 400) ** 2)
    half, most = highest_density_levels(posterior, (0.5, 0.9))
    for level, share in ((half, 0.5), (most, 0.9)):  # in the plane, 1 - exp(-r² / 2) lies within r
        assert level == pytest.approx((1 - share) / (2 * torch.pi), rel=0.02)


def test_table_and_summary(folder):
    results = read_json(folder / "theory.json")
    console = Console(width=100, record=True, file=StringIO())
    console.print(wells_table(results))
    table = console.export_text()
    for words in ("Gibbs, 1-D", "sharpness-aware, 2-D", "SGLD x SAM", "SGVB x SAM", "61.1%", "λ = 7, ρ = 0.3"):
        assert words in table
    sentence = describe_wells(results)
    assert "With one weight, the Gibbs posterior has 61% of its mass in the sharp deep well" in sentence
    assert "sharpness-aware one 14%" in sentence
    assert "Theorem C" in sentence
    assert "exceeds the width of the plateau" not in sentence
    results["config"]["rho"] = 0.5
    assert "exceeds the width of the plateau" in describe_wells(results)


def test_missing_results_raise(tmp_path):
    with pytest.raises(FileNotFoundError):
        draw_wells(tmp_path)
    write_json(tmp_path / "theory.json", {})
    with pytest.raises(FileNotFoundError):
        draw_wells(tmp_path)
