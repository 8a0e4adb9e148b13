"""Comparisons with references of the exact posterior, calibrated NLL and the deep-ensemble equivalent."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes import MAP, MLP, SAM, SGVB, SWAG, Arrays, BLoB, Digits, Ensemble, Laplace, TrainingConfig, compare
from flatbayes.experiments import ComparisonResult, Method
from flatbayes.experiments.calibrated_nll import NO_ENSEMBLE
from flatbayes.experiments.references import ReferenceFile, ReferenceWarning, explain_density_mismatch, find_density
from flatbayes.metrics import ensemble_equivalent
from flatbayes.reference import ReferenceConfig, sample_reference

NETWORK = partial(MLP, hidden=(4,))
CONFIG = TrainingConfig(epochs=2, batch_size=32)
SHORT = ReferenceConfig(num_chains=2, num_steps=20, num_draws=5, num_tuning_steps=20, num_descent_steps=20)
POSTERIORS = [MAP(prior_precision=1.0), Ensemble(MAP(prior_precision=1.0), size=3)]


@pytest.fixture(scope="module")
def splits():
    return Digits(train_size=60, test_size=40, val_size=40).load(0)


@pytest.fixture(scope="module")
def files(splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    return [
        sample_reference(NETWORK, splits, replace(SHORT, rho=rho)).save(folder / f"{rho}.safetensors")
        for rho in (0.0, 0.1)
    ]


@pytest.fixture(scope="module")
def results(splits, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    compare(
        NETWORK,
        splits,
        POSTERIORS,
        SAM(rho=0.1),
        CONFIG,
        num_seeds=2,
        reference=files,
        folder=folder,
        num_jobs=1,
    )
    return ComparisonResult.load(folder)


def test_every_run_has_its_distances_and_calibrated_nll(results):
    expected = {"agreement", "tv", "agreement_flat", "tv_flat", "nll_calibrated"}
    for run in results.runs:
        assert expected <= set(run.metrics)
        assert 0 < run.metrics["tv"] < 1
        assert run.metrics["tv"] != run.metrics["tv_flat"]
    families = {row.metric: row.family for row in results.rows}
    assert families["tv_flat"] == "Distance to the exact posterior"
    assert families["nll_calibrated"] == families["dee"] == "Calibrated likelihood"
    text = results.summary()
    assert "tv_flat" in text
    assert "dee" in text


def test_deep_ensemble_equivalent_of_every_run(results):
    """The plain ensemble of the same seed is its own measure."""
    for run in results.runs:
        ensemble = next(
            r for r in results.runs if r.seed == run.seed and r.flatness == "Plain" and "Ensemble" in r.posterior
        )
        nlls = ensemble.details.ensemble_nlls
        assert len(nlls) == 3
        assert run.metrics["dee"] == ensemble_equivalent(run.metrics["nll_calibrated"], nlls)
        assert nlls[-1] == pytest.approx(ensemble.metrics["nll_calibrated"], abs=1e-5)  # members in float32


def test_a_reference_that_has_not_mixed_is_noted(results, files):
    problems = [file for file in files if ReferenceFile.open(file).load().diagnostics.r_hat_max > 1.1]
    assert problems  # 20 steps are too few
    assert [str(file) for file in problems] == [note.split()[2] for note in results.notes]
    assert "have not mixed" in results.summary()


def test_page_of_a_comparison_with_references(results, tmp_path):
    page = results.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Distance to the exact posterior" in page
    assert "tv_flat" in page


def test_equivalent_is_left_out_without_an_ensemble(splits):
    alone = compare(NETWORK, splits, [MAP()], SAM(), CONFIG, num_seeds=1, num_jobs=1)
    assert alone.notes == (NO_ENSEMBLE,)
    assert NO_ENSEMBLE in alone.summary()
    assert all("dee" not in run.metrics for run in alone.runs)
    assert ComparisonResult.from_dict(alone.to_dict()).notes == alone.notes


def test_regression(tmp_path):
    inputs = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    targets = inputs.sum(1) + 0.1 * torch.randn(80, generator=torch.Generator().manual_seed(1))
    splits = Arrays(inputs, targets, test_size=20).load(0)
    path = sample_reference(NETWORK, splits, SHORT).save(tmp_path / "plain.safetensors")
    results = compare(
        NETWORK, splits, POSTERIORS[:1], SAM(), CONFIG, num_seeds=1, reference=path, num_jobs=1, folder=tmp_path
    )
    assert NO_ENSEMBLE not in results.notes
    assert all(run.metrics["w1"] > 0 and "nll_calibrated" not in run.metrics for run in results.runs)


def test_runs_without_a_reference_are_refused(splits, files):
    refused = partial(compare, NETWORK, posteriors=POSTERIORS[:1], config=CONFIG, num_jobs=1)
    with pytest.raises(ValueError, match=r"train has other values.*one for each seed"):
        refused(data=Digits(train_size=60, test_size=40, val_size=40), num_seeds=2, reference=files)
    with pytest.raises(ValueError, match="predicts the test split"):
        refused(data=splits, num_seeds=1, reference=files, split="val")
    with pytest.raises(ValueError, match="another network"):
        compare(partial(MLP, hidden=(5,)), splits, POSTERIORS[:1], config=CONFIG, reference=files)
    with pytest.raises(FileNotFoundError, match="flatbayes reference"):
        refused(data=splits, num_seeds=1, reference="missing.safetensors")


def test_other_densities_are_a_warning(splits, files):
    methods = [MAP(prior_precision=2.0), Method(MAP(), name="decay")]
    with pytest.warns(ReferenceWarning) as record:
        compare(NETWORK, splits, methods, SAM(rho=0.2), CONFIG, num_seeds=1, reference=files, num_jobs=1)
    messages = " ".join(str(warning.message) for warning in record)
    assert "['MAP(prior_precision=2)'] to the reference" in messages
    assert "their prior precision is 2, and that of the reference 1" in messages
    assert "their prior precision is 0.03" in messages  # weight decay 5e-4 times 60
    assert "the radius 0.2, and the sharpness-aware reference 0.1" in messages


@pytest.mark.parametrize(
    ("posterior", "expected"),
    [
        (MAP(prior_precision=3.0), (3.0, 1.0)),
        (MAP(), (0.05, 1.0)),
        (Ensemble(SWAG()), (0.05, 1.0)),
        (SGVB(prior_precision=2.0, temperature=0.5), (2.0, 0.5)),
        (SGVB(prior_precision={"*": 2.0}), (None, 1.0)),
        (BLoB(prior_std=0.5, temperature=0.5), (4.0, 0.5)),
        (Laplace(tune="evidence"), (None, 1.0)),
    ],
)
def test_density_of_a_posterior(posterior, expected):
    assert find_density(posterior, TrainingConfig(), num_data=100) == pytest.approx(expected)


def test_density_by_the_optimizer_and_the_temperature(files):
    adam = partial(torch.optim.Adam, weight_decay=0.01)
    assert find_density(MAP(), TrainingConfig(optimizer=adam), 50) == (0.5, 1.0)
    reference = ReferenceFile.open(files[0]).load()
    assert explain_density_mismatch(reference, MAP(prior_precision=1.0), CONFIG) is None
    cold = SGVB(prior_precision=1.0, temperature=0.1)
    assert explain_density_mismatch(reference, cold, CONFIG) == (
        "their temperature is 0.1, and that of the reference 1"
    )
    assert "other precisions than 1" in explain_density_mismatch(reference, SGVB(prior_precision="initial"), CONFIG)


def test_another_content_of_a_file_is_another_run(splits, files, tmp_path):
    path = tmp_path / "reference.safetensors"
    path.write_bytes(files[0].read_bytes())
    first = ReferenceFile.open(path)
    sample_reference(NETWORK, splits, SHORT, seed=5).save(path)
    assert ReferenceFile.open(path) != first
