"""Posteriors of adapters on a frozen network: memory, draws, artefacts and merged adapters, for every posterior."""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes import (
    IVON,
    LRT,
    MAP,
    SAM,
    SGHMC,
    SGLD,
    SGVB,
    SVGD,
    SWAG,
    TFB,
    BLoB,
    Categorical,
    Ensemble,
    EntropyMCMC,
    FittedPosterior,
    Laplace,
    MCDropout,
    Plain,
    TrainingConfig,
    fit,
)
from flatbayes.core.adapters import find_factor_pairs
from flatbayes.integrations import join_posteriors
from flatbayes.posteriors import BSAM

peft = pytest.importorskip("peft")

WIDTH, RANK, NUM_CLASSES = 64, 2, 3
CONFIG = TrainingConfig(epochs=2, batch_size=10, num_validations=0).with_options(
    **{"collection.start_fraction": 0.0, "collection.snapshots_per_epoch": 3}
)
POSTERIORS = {
    "MAP": (MAP(), 0),
    "SWAG": (SWAG(rank=2), 4),
    "SWAG-Diag": (SWAG(rank=0), 2),
    "diag": (Laplace("diag", prior_precision=1.0), 1),
    "IVON": (IVON(), 3),
    "BSAM": (BSAM(), 3),
    "SGLD": (SGLD(max_snapshots=2), 2),
    "SGHMC": (SGHMC(max_snapshots=2), 3),
    "EntropyMCMC": (EntropyMCMC(max_snapshots=2), 5),
    "SGVB": (SGVB(), 2),
    "LRT": (LRT(), 1),
    "flipout": (LRT(estimator="flipout"), 1),
    "BLoB": (BLoB(), 1),
    "SVGD": (SVGD(num_particles=3), 2),
    "TFB": (TFB(std=0.1), 1),
    "MCDropout": (MCDropout(), 0),
    "Ensemble": (Ensemble(SWAG(rank=2), size=2), 8),
}
"""Posterior, and the largest size of its statistics in copies of the trained weights."""
STRUCTURES = {"kron": Laplace("kron", prior_precision=1.0), "last_layer": Laplace(prior_precision=1.0)}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, x):
        return self.head(self.body(x))


def make_adapted(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"r": RANK, "target_modules": ["body.2"], "modules_to_save": ["head"], "lora_dropout": 0.1}
        return peft.get_peft_model(Network(), peft.LoraConfig(**settings | options))


def make_data():
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :NUM_CLASSES].argmax(1)


def fit_adapters(posterior, flatness=None):
    model = make_adapted if isinstance(posterior, Ensemble) else make_adapted()
    flatness = flatness or (Plain() if posterior.perturbs_weights else SAM(rho=0.05))
    return fit(model, make_data(), posterior, flatness, CONFIG, likelihood=Categorical(NUM_CLASSES))


def frozen(model):
    return {name: param for name, param in model.named_parameters() if not param.requires_grad}


@pytest.mark.parametrize("name", [*POSTERIORS, *STRUCTURES])
def test_posterior_of_adapters(name, tmp_path):
    posterior, max_copies = POSTERIORS.get(name, (STRUCTURES.get(name), None))
    fitted, inputs = fit_adapters(posterior), make_data()[0]
    pretrained, num_trained = frozen(make_adapted()), sum(p.numel() for p in make_adapted().parameters())
    num_trained -= sum(param.numel() for param in pretrained.values())
    size = sum(value.numel() for state in fitted.states for value in state.statistics.values())
    if max_copies is not None:
        assert size <= max_copies * num_trained + 20 * len(fitted.states)
    networks = [state.model for state in fitted.states]
    for key, value in pretrained.items():
        assert all(torch.equal(frozen(network)[key], value) for network in networks)
        assert len({frozen(network)[key].data_ptr() for network in networks}) == 1  # one copy for all members
    prediction = fitted.predict(inputs, num_draws=4)
    if posterior.stochastic and name not in ("kron", "diag", "last_layer"):
        kept = fitted._runner.drawn_networks
        assert kept is not None
        assert sum(column.numel() for column in kept._columns) <= 4 * num_trained
    if posterior.stochastic:
        assert float(prediction.mutual_information.max()) > 0
    for folder, with_frozen in ((tmp_path / "whole", True), (tmp_path / "reference", False)):
        fitted.save(folder, with_frozen=with_frozen)
        loaded = FittedPosterior.load(folder, make_adapted)
        assert torch.equal(loaded.predict(inputs, num_draws=4).log_probs, prediction.log_probs)
        num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        num_stored = with_frozen * sum(value.numel() for value in pretrained.values())
        assert num_bytes <= 4 * (num_stored + len(networks) * num_trained + size) + 30_000
    with pytest.raises(ValueError, match="those of the given network are others"):
        FittedPosterior.load(tmp_path / "reference", lambda: make_adapted(seed=1))


@pytest.mark.parametrize("posterior", [SWAG(rank=2), TFB(std=0.1), Laplace("kron", prior_precision=1.0), SGVB()])
def test_merged_adapters_are_refused(posterior, tmp_path):
    fitted, (inputs, _) = fit_adapters(posterior), make_data()
    before = fitted.predict(inputs, num_draws=3).log_probs
    adapted = fitted.states[0].model
    adapted.merge_adapter()
    for call in (lambda: fitted.predict(inputs, num_draws=3), lambda: next(fitted.sample_networks(1))):
        with pytest.raises(ValueError, match=r"body\.2 is merged into its frozen weight, so draws would not differ"):
            call()
    with pytest.raises(ValueError, match="the artefact would add it twice"):
        fitted.save(tmp_path)
    with pytest.raises(ValueError, match="so training would not change it"):
        fit(adapted, make_data(), posterior, config=CONFIG)
    adapted.unmerge_adapter()
    torch.testing.assert_close(fitted.predict(inputs, num_draws=3).log_probs, before)


def test_a_merged_point_estimate_predicts_as_before():
    fitted, (inputs, _) = fit_adapters(MAP()), make_data()
    before = fitted.predict(inputs).log_probs
    fitted.states[0].model.merge_adapter()
    torch.testing.assert_close(fitted.predict(inputs).log_probs, before, rtol=1e-4, atol=1e-5)


def test_one_call_for_all_draws_has_frozen_weights_once():
    fitted, (inputs, _) = fit_adapters(SWAG(rank=2)), make_data()
    each = fitted.predict(inputs, num_draws=4, vectorized=False).log_probs
    torch.testing.assert_close(fitted.predict(inputs, num_draws=4, vectorized=True).log_probs, each)


def test_members_of_separate_trainings_share_frozen_weights(tmp_path):
    members = [fit_adapters(SWAG(rank=2)) for _ in range(2)]
    joined = join_posteriors([replace(member, transform=None) for member in members])
    first, second = (frozen(state.model) for state in joined.states)
    assert first.keys() == second.keys()
    assert all(first[name] is second[name] for name in first)
    assert joined.states[0].model.base_model.model.head is not joined.states[1].model.base_model.model.head


def test_members_with_other_frozen_weights_are_stored_with_theirs(tmp_path):
    def make_member(seed):
        model = make_adapted(seed)
        return FittedPosterior(MAP(), [MAP().init(model, None, 40)], Categorical(NUM_CLASSES))

    joined, inputs = join_posteriors([make_member(0), make_member(1)]), make_data()[0]
    loaded = FittedPosterior.load(joined.save(tmp_path), make_adapted)
    assert torch.equal(loaded.predict(inputs).log_probs, joined.predict(inputs).log_probs)
    with pytest.raises(ValueError, match="with_frozen=False refers to one set"):
        joined.save(tmp_path, with_frozen=False)


@pytest.mark.parametrize(
    ("layer", "target"), [(nn.Linear(8, 5), "0"), (nn.Conv2d(3, 4, 3), "0"), (nn.Embedding(10, 6), "0")]
)
def test_factors_of_the_layers_of_peft(layer, target):
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(r=RANK, target_modules=[target]))
    ((name, pair),) = find_factor_pairs(model).items()
    assert "lora_" in name
    change = pair.outer_matrix @ pair.inner.detach().flatten(1)
    assert (
        change.shape
        == (layer.weight.flatten(1).T if isinstance(layer, nn.Embedding) else layer.weight.flatten(1)).shape
    )
