"""The row of an embedding for padding tokens has no gradient, and keeps its value in all draws."""

import pytest
import torch
from torch import nn

from flatbayes import SAM, Categorical, Plain, TrainingConfig, fit
from flatbayes.core.padding import list_padding_rows, mark_padding_rows
from flatbayes.core.randomness import draw_normal
from flatbayes.flatness import GaussianSmoothing, RandomPerturbation
from flatbayes.posteriors import (
    BSAM,
    IVON,
    MAP,
    SGHMC,
    SGLD,
    SGVB,
    SVGD,
    SWAG,
    Ensemble,
    EntropyMCMC,
    Laplace,
)
from flatbayes.posteriors.linearised import LinearisedNetwork

PADDING = 3
POSTERIORS = [
    MAP(),
    SWAG(rank=2),
    SGLD(prior_precision=1.0),
    SGLD(prior_precision=1.0, noise="lattice"),
    SGHMC(prior_precision=1.0),
    EntropyMCMC(prior_precision=1.0),
    SGVB(),
    IVON(),
    BSAM(),
    SVGD(num_particles=2),
    Laplace(structure="diag", prior_precision=1.0),
    Laplace(structure="diag", prior_precision=1.0, predictive="sampled"),
    Ensemble(SGLD(prior_precision=1.0), 2),
]


class MeanOfTokens(nn.Module):
    """A classifier without a mask, to which padding contributes its row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=PADDING)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens):
        return self.head(self.embedding(tokens).mean(1))


@pytest.fixture(scope="module")
def sentences():
    tokens = torch.randint(0, 7, (60, 5), generator=torch.Generator().manual_seed(0))
    tokens[:, 3:] = PADDING
    return tokens, (tokens[:, 0] > 3).long()


def read_rows(network):
    """The padding row of a draw, or its offset."""
    if isinstance(network, LinearisedNetwork):
        return [network.offsets["embedding.weight"][PADDING]]
    return [module.weight[PADDING] for module in network.modules() if isinstance(module, nn.Embedding)]


@pytest.mark.parametrize("posterior", POSTERIORS, ids=repr)
def test_draws_have_no_noise_in_the_padding_row(sentences, posterior):
    config = TrainingConfig(epochs=3, batch_size=20)
    flatness = Plain() if isinstance(posterior, BSAM) else SAM(rho=0.05)
    fitted = fit(MeanOfTokens, sentences, posterior, flatness, config, likelihood=Categorical(2))
    for sample_id in fitted.sample_ids(4):
        with fitted.sampled_network(sample_id) as network:
            rows = read_rows(network)
            assert rows
            assert all((row == 0).all() for row in rows)


@pytest.mark.parametrize("posterior", [SGLD(prior_precision=1.0), SGVB()], ids=repr)
def test_a_loaded_posterior_has_none_either(sentences, posterior, tmp_path):
    config = TrainingConfig(epochs=2, batch_size=20)
    fitted = fit(MeanOfTokens, sentences, posterior, Plain(), config, likelihood=Categorical(2))
    loaded = type(fitted).load(fitted.save(tmp_path / "run"), MeanOfTokens)
    assert torch.equal(loaded.predict(sentences[0], 3).mean, fitted.predict(sentences[0], 3).mean)
    with loaded.sampled_network(loaded.sample_ids(1)[0]) as network:
        assert all((row == 0).all() for row in read_rows(network))


def test_other_rows_have_noise(sentences):
    config = TrainingConfig(epochs=3, batch_size=20)
    fitted = fit(MeanOfTokens, sentences, SGVB(), Plain(), config, likelihood=Categorical(2))
    first, second = fitted.sample_ids(2)
    with fitted.sampled_network(first) as network:
        weight = network.embedding.weight.detach().clone()
    with fitted.sampled_network(second) as network:
        differs = (network.embedding.weight != weight).any(1)
    assert differs.tolist() == [row != PADDING for row in range(7)]


@pytest.mark.parametrize("flatness", [RandomPerturbation(rho=0.5), GaussianSmoothing(std=0.5)], ids=repr)
@pytest.mark.parametrize("posterior", [MAP(), Ensemble(MAP(), 2)], ids=repr)
def test_random_perturbations_leave_it(sentences, flatness, posterior):
    seen = []

    class Recording(MeanOfTokens):
        def forward(self, tokens):
            row = self.embedding.weight[PADDING]
            if not torch._C._functorch.is_batchedtensor(row):
                seen.append(float(row.detach().abs().max()))
            return super().forward(tokens)

    config = TrainingConfig(epochs=2, batch_size=20)
    fit(Recording, sentences, posterior, flatness, config, likelihood=Categorical(2))
    assert seen
    assert max(seen) == 0


def test_a_tied_weight_has_noise_in_all_rows():
    network = nn.ModuleDict({"in": nn.Embedding(5, 3, padding_idx=0), "out": nn.Linear(3, 5, bias=False)})
    network["out"].weight = network["in"].weight
    mark_padding_rows(network)
    assert list_padding_rows(list(network.parameters())) == []
    assert all((draw_normal(list(network.parameters()), [0])[0] != 0).flatten())


def test_noise_of_vectorized_networks():
    weights = nn.Embedding(5, 3, padding_idx=2)
    mark_padding_rows(weights)
    stacked = nn.Parameter(torch.zeros(4, 5, 3))
    stacked._padding_row = 2
    (noise,) = draw_normal([stacked], range(4), stacked=True)
    assert (noise[:, 2] == 0).all()
    assert (noise[:, [0, 1, 3, 4]] != 0).all()
    assert list_padding_rows([weights.weight])[0].shape == (3,)
