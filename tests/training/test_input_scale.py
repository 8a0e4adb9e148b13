"""Inputs of trained networks: as given where the network was trained on them as they are, standardized elsewhere."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import (
    MAP,
    SAM,
    SGVB,
    SWAG,
    Bernoulli,
    Categorical,
    FittedPosterior,
    Gaussian,
    Laplace,
    MCDropout,
    Plain,
    TrainingConfig,
    compare,
    evaluate,
    fit,
)
from flatbayes.core.spec import short_name
from flatbayes.data import Arrays, Standardize
from flatbayes.data.checks import DataWarning
from flatbayes.posteriors import TFB
from flatbayes.training import fit_together
from flatbayes.training.input_scale import compute_constant_loss

AS_TRAINED, ADAM = TrainingConfig(epochs=0), partial(torch.optim.Adam, lr=0.01)


def make_data(seed=0):
    """Three classes by the largest of three features, whose offsets and scales are far from standard."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(300, 6, generator=generator)
    offsets = torch.tensor([5.0, -3.0, 0.0, 100.0, 0.0, 2.0])
    return inputs * torch.tensor([3.0, 1.0, 1.0, 10.0, 1.0, 0.1]) + offsets, inputs[:, :3].argmax(1)


def make_network():
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))


def train(inputs, targets):
    """A network that is trained in a loop of its own."""
    torch.manual_seed(0)
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def network(data):
    return train(*data)


@pytest.mark.parametrize("posterior", [MAP(), Laplace(temperature=0.01)], ids=["MAP", "Laplace"])
def test_a_network_that_was_trained_on_inputs_as_they_are_gets_them(data, network, posterior, tmp_path):
    fitted = fit(network, data, posterior, Plain(), AS_TRAINED)
    expected = nn.functional.cross_entropy(network(data[0]), data[1]).item()
    assert evaluate(fitted, data).metrics["nll"] == pytest.approx(expected, rel=0.05)
    assert "used as given, since the initial network has a training NLL of" in fitted.summary()
    fitted.save(tmp_path / "fitted")
    loaded = FittedPosterior.load(tmp_path / "fitted", make_network())
    assert torch.equal(loaded.predict(data[0]).mean, fitted.predict(data[0]).mean)
    assert "used as given" in loaded.summary()


def test_so_do_its_weights_further_training_and_shared_trainings(data, network):
    weights, config = network.state_dict(), TrainingConfig(epochs=1, optimizer=ADAM)
    fits = [
        fit(make_network, data, MAP(), Plain(), AS_TRAINED, init=weights),
        fit(make_network, data, SWAG(rank=2), SAM(), config, init=weights),
        fit(lambda: network, data, MAP(), Plain(), TrainingConfig(min_epochs=1, min_steps=1), val=data),
        *fit_together(network, data, [MAP(), MAP()], Plain(), AS_TRAINED),
    ]
    for fitted in fits:
        assert torch.equal(fitted.transform.mean, torch.zeros(6))
        assert fitted.info["scale_nlls"][0] < 0.5 < fitted.info["scale_nlls"][1]


def test_others_get_standardized_inputs(data, network):
    inputs, targets = data
    standardize = Standardize.fit(inputs)
    elsewhere = train(standardize(inputs), targets)
    fits = [
        fit(elsewhere, data, MAP(), Plain(), AS_TRAINED),  # trained on standardized ones
        fit(make_network(), data, MAP(), Plain(), AS_TRAINED),  # not trained
        fit(network, data, MAP(), Plain(), AS_TRAINED, transform=standardize),  # given
        fit(make_network, data, MAP(), Plain(), TrainingConfig(epochs=1, optimizer=ADAM)),  # fresh weights
    ]
    for fitted in fits:
        assert torch.allclose(fitted.transform.mean, standardize.mean)
        assert "scale_nlls" not in fitted.info
        assert "used as given" not in fitted.summary()


def test_a_network_of_several_labels_gets_inputs_as_it_was_trained_on_them(data):
    inputs = data[0]
    labels = (Standardize.fit(inputs)(inputs)[:, :3] > 1).long()  # rare ones
    labels[::3, 1] = -100
    torch.manual_seed(0)
    networks = [make_network() for _ in range(2)]
    known, standardize = (labels >= 0).float(), Standardize.fit(inputs)
    for network, scale in zip(networks, (lambda x: x, standardize), strict=True):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            losses = nn.functional.binary_cross_entropy_with_logits(
                network(scale(inputs)), labels.clamp_min(0).float(), known
            )
            losses.backward()
            optimizer.step()
    as_given, standardized = (fit(network, (inputs, labels), MAP(), Plain(), AS_TRAINED) for network in networks)
    assert torch.equal(as_given.transform.mean, torch.zeros(6))
    assert as_given.info["scale_nlls"][0] < 0.5 < as_given.info["scale_nlls"][1]
    assert torch.allclose(standardized.transform.mean, standardize.mean)


def test_loss_of_a_constant_is_that_of_frequencies():
    classes = torch.tensor([0, 1, 1, -1, 2])
    expected = Categorical(3).loss(torch.tensor([[0.25, 0.5, 0.25]]).log().repeat(4, 1), classes[classes >= 0])
    assert compute_constant_loss(Categorical(3), classes) == pytest.approx(expected.item())
    labels = torch.tensor([[0, 1], [1, -100], [0, 1], [0, 0], [-100, -100]])
    shares = torch.tensor([[1 / 4, 2 / 3]])
    expected = Bernoulli(2).loss(torch.logit(shares).repeat(5, 1), labels)
    assert compute_constant_loss(Bernoulli(2), labels) == pytest.approx(expected.item())


class TokenNetwork(nn.Module):
    """The mean of the embeddings of all tokens, which must be integers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids):
        return {"logits": self.layer(self.embedding(input_ids).mean(1))}


TOKENS, LABELS = torch.arange(60).reshape(30, 2) % 9, torch.arange(30) % 2
SHORT = TrainingConfig(epochs=2, batch_size=10)


@pytest.mark.parametrize(
    "make_data",
    [lambda x, y: (x, y), TensorDataset, lambda x, y: (x.numpy(), y.numpy()), Arrays],
    ids=["tensors", "dataset", "arrays", "source"],
)
def test_token_ids_of_arrays_and_data_sets_stay_as_they_are(make_data, tmp_path):
    fitted = fit(TokenNetwork, make_data(TOKENS, LABELS), SWAG(rank=2), SAM(), SHORT)
    batches = DataLoader(TensorDataset(TOKENS, LABELS), 10)
    mean = fitted.predict(TOKENS).mean
    network = fit(TokenNetwork, batches, SWAG(rank=2), SAM(), SHORT).predict(TOKENS)
    assert mean.shape == network.mean.shape == (30, 2)
    assert evaluate(fitted, (TOKENS, LABELS)).metrics["nll"] < 1
    fitted.save(tmp_path / "fitted")
    loaded = FittedPosterior.load(tmp_path / "fitted", TokenNetwork())
    assert torch.equal(loaded.predict(TOKENS.numpy()).mean, mean)
    assert torch.allclose(fitted.compile(30)(TOKENS)["mean"].double(), mean)


def test_methods_are_compared_on_token_ids():
    result = compare(TokenNetwork, Arrays(TOKENS, LABELS), [MAP()], SAM(), SHORT, num_seeds=2, num_jobs=1)
    assert {run.flatness for run in result.runs} == {"Plain", "SAM"}
    assert not result.failures


def test_what_is_no_token_id_is_refused_or_standardized():
    with pytest.raises(ValueError, match="Expected tensor for argument"):
        fit(TokenNetwork(), (TOKENS + 0.5, LABELS), MAP(), Plain(), SHORT)
    whole = fit(nn.Linear(2, 2), (TOKENS, LABELS), MAP(), Plain(), SHORT)
    assert whole.transform.mean.is_floating_point()


def make_numbers():
    """A linear target far from standard, with a noise of 5, from features far from standard."""
    generator = torch.Generator().manual_seed(0)
    inputs = 5 + 3 * torch.randn(300, 4, generator=generator)
    return inputs, 10 * inputs[:, 0] + 20 * inputs[:, 1] + 100 + 5 * torch.randn(300, generator=generator)


def standardize(values):
    return (values - values.mean(0)) / values.std(0, correction=0)


def solve(inputs, targets):
    """A linear network that predicts the targets, with a noise of the first raw scale."""
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    solution = torch.linalg.lstsq(design, targets.double()[:, None]).solution[:, 0]
    network = nn.Linear(4, 2)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[0] = solution[:-1]
        network.bias.copy_(torch.tensor([solution[-1], 5.0]))
    return network


def compute_rmse(fitted, x, y):
    return float((fitted.predict(x).mean.flatten() - y).square().mean().sqrt())


@pytest.mark.parametrize("form", ["instance", "function", "init"])
@pytest.mark.parametrize("posterior", [MAP(), Laplace(prior_precision=1.0)], ids=["MAP", "Laplace"])
@pytest.mark.parametrize("standardized", [False, True], ids=["inputs as given", "standardized inputs"])
def test_a_network_that_predicts_targets_in_their_own_unit_keeps_doing_so(form, posterior, standardized):
    x, y = make_numbers()
    network = solve(standardize(x) if standardized else x, y)
    model = {"instance": network, "function": lambda: copy.deepcopy(network), "init": lambda: nn.Linear(4, 2)}[form]
    init = network.state_dict() if form == "init" else None
    with pytest.warns(DataWarning, match=r"in their own unit: its first outputs explain 99% .* Gaussian\(1\)"):
        fitted = fit(model, (x, y), posterior, Plain(), AS_TRAINED, init=init)
    assert compute_rmse(fitted, x, y) < 6
    assert (fitted.likelihood.location, fitted.likelihood.scale) == ((0.0,), (1.0,))


def test_a_loader_of_numbers_and_a_given_likelihood_are_read_alike():
    x, y = make_numbers()
    loader = DataLoader(TensorDataset(x, y), batch_size=50)
    with pytest.warns(DataWarning, match="in their own unit"):
        fitted = fit(solve(x, y), loader, MAP(), Plain(), AS_TRAINED)
    assert compute_rmse(fitted, x, y) < 6
    given = fit(solve(x, y), (x, y), MAP(), Plain(), AS_TRAINED, likelihood=Gaussian())
    assert compute_rmse(given, x, y) < 6  # inputs as they are


def test_networks_of_standardized_targets_and_fresh_ones_get_standardized_targets():
    x, y = make_numbers()
    fitted = fit(solve(standardize(x), standardize(y)), (x, y), MAP(), Plain(), AS_TRAINED)
    assert fitted.likelihood.location == pytest.approx((float(y.mean()),))
    assert compute_rmse(fitted, x, y) < 6
    fresh = fit(nn.Linear(4, 2), (x, y), MAP(), Plain(), TrainingConfig(epochs=1))
    assert fresh.likelihood.location == pytest.approx((float(y.mean()),))


@pytest.mark.parametrize("posterior", [MAP(), Laplace(), SGVB(), TFB(), MCDropout(rate=0.1)], ids=short_name)
def test_a_function_that_returns_a_trained_network_is_as_the_network(data, posterior):
    network = nn.Sequential(*train(*data), nn.Dropout(0.1))
    fits = [fit(model, data, posterior, Plain(), AS_TRAINED) for model in (network, lambda: copy.deepcopy(network))]
    assert torch.equal(*(fitted.predict(data[0], num_draws=3).mean for fitted in fits))


def test_a_function_that_builds_a_new_network_is_refused_without_training(data):
    trained = train(*data)
    for model in (make_network, lambda: nn.Sequential(copy.deepcopy(trained)[:-1], nn.Linear(30, 3))):
        with pytest.raises(ValueError, match="epochs must be at least 1.*a function that returns it"):
            fit(model, data, MAP(), Plain(), AS_TRAINED)
