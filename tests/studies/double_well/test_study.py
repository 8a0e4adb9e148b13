import math
from dataclasses import replace

import pytest
import torch

from flatbayes.core.files import read_json
from flatbayes.theory import (
    flatness_identity,
    gibbs_posterior,
    grid_kl,
    grid_points,
    normalize_density,
    sample_cells,
)
from studies.double_well.loss import make_sharp_and_flat_wells
from studies.double_well.study import (
    DoubleWellStudy,
    check_folder,
    compute_cell_volume,
    kolmogorov_distance,
    save_results,
)

SMALL = DoubleWellStudy(num_chains=60, num_snapshots=5, plain_steps=400, sam_steps=400, num_fits=8, fit_steps=60)


@pytest.fixture(scope="module")
def outcome():
    return SMALL.run(show_progress=False)


def test_exact_numbers(outcome):
    results, _ = outcome
    for num_params, found in results["targets"].items():
        wells, points = make_sharp_and_flat_wells(int(num_params)), SMALL.make_grid(int(num_params))
        log_prior, lam = -points.square().sum(-1) / 2, SMALL.inverse_temperature
        plain, flat = (
            gibbs_posterior(wells.worst_loss(points, rho), log_prior, lam, compute_cell_volume(points))
            for rho in (0.0, 0.3)
        )
        assert found["jeffreys"] == pytest.approx(grid_kl(plain, flat) + grid_kl(flat, plain), rel=1e-12)
        assert found["jeffreys"] == found["kl_sharpness_aware_from_gibbs"] + found["kl_gibbs_from_sharpness_aware"]
        assert found["theorem_c"]["residual"] == pytest.approx(0, abs=1e-11)
        assert found["theorem_c"]["left"] > 1
        for q, name in ((plain, "gibbs"), (flat, "sharpness_aware_posterior")):
            numbers = found["exact"][name]
            assert numbers["free_energy"] == -q.log_evidence
            assert numbers["mass_in_flat_well"] == pytest.approx(
                q.region_probability(wells.is_inside_well(points, 1))
            )
            gap = wells.worst_loss(points, 0.3) - wells.loss(points)
            assert numbers["mean_sharpness"] == pytest.approx(q.expect(gap))


def test_theorem_c_is_that_of_the_grid():
    """The closed form of the worst loss and the maximum over the grid agree where ρ is a multiple of its spacing."""
    points = SMALL.make_grid(1)
    left, right = flatness_identity(
        make_sharp_and_flat_wells(1).loss(points),
        -points.square().sum(-1) / 2,
        SMALL.inverse_temperature,
        compute_cell_volume(points),
        120.0,
    )
    plain, flat = SMALL.exact_posteriors(1)
    assert compute_cell_volume(points) * 120 == pytest.approx(0.3)
    assert left == pytest.approx(right, abs=1e-11)
    assert grid_kl(plain.posterior, flat.posterior) + grid_kl(flat.posterior, plain.posterior) == pytest.approx(
        right, rel=1e-6
    )


def test_every_method_approximates_both_posteriors(outcome):
    results, draws = outcome
    for num_params, found in results["targets"].items():
        methods = {
            (row["posterior"], row["target"], row["flatness"]) for row in found["samplers"] + found["families"]
        }
        assert methods == {
            (posterior, target, flatness)
            for posterior in ("SGLD", "SGHMC", "SGVB")
            for target, flatness in (("gibbs", "Plain"), ("sharpness_aware_posterior", "SAM(rho=0.3)"))
        }
        for name in ("SGLD", "SGHMC"):
            assert draws[f"{num_params}/gibbs/{name}"].shape == (60, 5, int(num_params))
        assert draws[f"{num_params}/gibbs/SGVB"].shape == (2, int(num_params))
    assert len(draws) == 12


@pytest.mark.slow
def test_a_seed_determines_the_numbers_and_the_global_state_is_kept(outcome):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    tiny = replace(SMALL, plain_steps=40, sam_steps=40, fit_steps=4)
    (first, draws), (_, again), (_, other) = (s.run(show_progress=False) for s in (tiny, tiny, replace(tiny, seed=1)))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(draws[name], again[name]) for name in draws)
    assert not any(torch.equal(draws[name], other[name]) for name in draws)
    assert first["config"]["seed"] == 0


def test_averages_over_draws_and_their_errors():
    """Of independent draws from the exact posterior."""
    wells, points = make_sharp_and_flat_wells(1), SMALL.make_grid(1)
    plain, flat = SMALL.exact_posteriors(1)
    cells = sample_cells(plain.posterior, 40_000, torch.Generator().manual_seed(0))
    draws = points[cells[:, 0]].view(400, 100, 1)
    found = SMALL._summarize_draws(draws, wells, points, plain)
    exact = SMALL._summarize_density(plain.posterior, wells, points)
    for name, truth in exact.items():
        assert abs(found[name] - truth) < 4 * found[f"{name}_error"]
    mass = exact["mass_in_flat_well"]
    assert found["mass_in_flat_well_error"] == pytest.approx(math.sqrt(mass * (1 - mass) / 40_000), rel=0.15)
    assert found["distance"] < 0.01  # 1.95 / √40000, one in a thousand
    assert found["r_hat"] == pytest.approx(1, abs=0.01)
    assert found["effective_sample_size"] == pytest.approx(40_000, rel=0.1)
    assert SMALL._summarize_draws(draws, wells, points, flat)["distance"] > 0.4


def test_the_reported_fit_has_the_lowest_objective():
    """Of fits at the bottoms of both wells, the plain objective prefers one and the flat one the other."""
    wells, points = make_sharp_and_flat_wells(1), SMALL.make_grid(1)
    mean = torch.tensor([[-1.24], [-1.22], [1.0], [1.2], [5.0]], dtype=torch.float64)
    std = torch.tensor([[0.13], [0.15], [0.36], [0.4], [0.3]], dtype=torch.float64)
    for target, centre, width in zip(SMALL.exact_posteriors(1), (-1.23, 1.1), (0.14, 0.38), strict=True):
        (found_mean, found_std), numbers = SMALL._select_best_fit(mean, std, points, wells, target)
        assert found_mean.item() == pytest.approx(centre)
        assert found_std.item() == pytest.approx(width)
        assert numbers["fits_in_sharp_and_flat_well"] == [2, 2]
        assert numbers["objective"] == pytest.approx(numbers["kl"] - target.posterior.log_evidence)  # Theorem A


def test_distance_of_distributions_by_hand():
    points = grid_points(1, 2.0, 4)
    posterior = normalize_density(torch.tensor([-math.inf, 0.0, 0.0, -math.inf]), 1.0)
    draws = torch.tensor([-0.5, -0.5, -0.5, 0.5], dtype=torch.float64)
    assert kolmogorov_distance(draws, points, posterior) == pytest.approx(0.25)
    assert kolmogorov_distance(draws + 9, points, posterior) == pytest.approx(1.0)
    plane = normalize_density(torch.tensor([[0.0, -math.inf], [0.0, 0.0]]), 1.0)
    at = grid_points(2, 1.0, 2)
    assert kolmogorov_distance(torch.tensor([-0.5, 0.5, 0.5]).double(), at, plane) == pytest.approx(0, abs=1e-12)


def test_results_are_saved_and_not_overwritten(outcome, tmp_path):
    check_folder(tmp_path / "new", overwrite=False)
    path = save_results(tmp_path / "new", *outcome)
    assert read_json(path)["targets"]["2"]["jeffreys"] == outcome[0]["targets"]["2"]["jeffreys"]
    with pytest.raises(ValueError, match=r"already holds a run \(theory.json, draws.safetensors\): choose another"):
        check_folder(tmp_path / "new", overwrite=False)
    check_folder(tmp_path / "new", overwrite=True)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        check_folder(path, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be positive and finite, got 0.0"),
        ({"inverse_temperature": -1.0}, "inverse_temperature must be positive"),
        ({"prior_std": math.inf}, "prior_std must be positive"),
        ({"sgld_step_size": 0.0}, "sgld_step_size must be positive"),
        ({"num_chains": 1}, "num_chains must be at least 2, got 1"),
        ({"num_snapshots": 3}, "num_snapshots must be at least 4, got 3"),
        ({"num_snapshots": 100, "sam_steps": 300}, "100 snapshots .* take 400 steps of SGLD, got 300"),
    ],
)
def test_invalid_settings_raise(options, message):
    with pytest.raises(ValueError, match=message):
        DoubleWellStudy(**options)


@pytest.mark.slow
def test_samplers_and_fits_are_close_to_the_exact_posteriors():
    """With the default settings."""
    results, _ = DoubleWellStudy().run(show_progress=False)
    for found in results["targets"].values():
        for row in found["samplers"]:
            exact = found["exact"][row["target"]]
            assert row["distance"] < 0.05
            assert abs(row["mass_in_flat_well"] - exact["mass_in_flat_well"]) < 0.06
            assert abs(row["mean_sharpness"] - exact["mean_sharpness"]) < 0.03
        plain, flat = found["families"]
        assert plain["mass_in_sharp_well"] > 0.99
        assert flat["mass_in_flat_well"] > 0.99
