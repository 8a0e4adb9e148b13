"""Recurrent networks with parametrized weights, of dictionaries, and of packed sequences."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from flatbayes import IVON, MAP, SAM, SGVB, SWAG, Ensemble, FittedPosterior, Laplace, TrainingConfig, evaluate, fit
from flatbayes.posteriors.linearised import LinearisedNetwork
from flatbayes.prediction.drawn_networks import VectorizationError

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch.vmap

X = torch.randn(40, 6, 3, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0, 0] > 0).long()
LENGTHS = torch.arange(40) % 5 + 2
CONFIG = TrainingConfig(epochs=4, batch_size=10, collection={"start_fraction": 0.3})


class Parametrized(nn.Module):
    parametrize = staticmethod(weight_norm)

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            self.parametrize(self.rnn, name)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Normalized(Parametrized):
    parametrize = staticmethod(spectral_norm)


class OfDictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, values):
        return self.head(self.rnn(values)[0][:, -1])


class Packed(OfDictionary):
    def forward(self, values, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(values, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


INPUTS = {
    Parametrized: X,
    Normalized: X,
    OfDictionary: {"values": X},
    Packed: {"values": X, "lengths": LENGTHS},
}
POSTERIORS = [
    MAP(),
    SWAG(rank=2),
    IVON(),
    SGVB(),
    Ensemble(MAP(), 2),
    Laplace("last_layer", "sampled"),
    Laplace("diag", "sampled"),
]


def train(build, posterior, config=CONFIG):
    torch.manual_seed(0)
    return fit(build, (INPUTS[build], LABELS), posterior, SAM(), config)


@pytest.mark.parametrize("build", INPUTS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda posterior: str(posterior)[:24])
def test_a_recurrent_network_is_trained_and_loaded(build, posterior, tmp_path):
    fitted, inputs = train(build, posterior), INPUTS[build]
    loaded = FittedPosterior.load(fitted.save(tmp_path / "fitted"), build)
    assert torch.equal(loaded.predict(inputs, 4).mean, fitted.predict(inputs, 4).mean)
    assert evaluate(loaded, (inputs, LABELS), num_draws=4).metrics["accuracy"] > 0.4


@pytest.mark.parametrize("structure", ["last_layer", "diag"])
def test_linearised_predictions_of_packed_sequences_are_refused_in_plain_words(structure):
    with pytest.raises(ValueError, match=r"packed sequences .* have no forward-mode.*Use predictive='sampled'"):
        train(Packed, Laplace(structure))


def test_an_lstm_in_one_call_is_refused_and_can_be_copied_afterwards():
    fitted = train(Parametrized, SWAG(rank=2))
    expected = fitted.predict(X, 2).mean
    with pytest.raises(VectorizationError, match="Batching rule not implemented.*Leave out vectorized=True"):
        fitted.predict(X, 2, vectorized=True)
    torch.testing.assert_close(fitted.compile(2)(X)["mean"], expected.float(), rtol=1e-4, atol=1e-5)


def test_a_recurrent_layer_keeps_its_weights_after_a_call_with_others():
    network = OfDictionary().eval()
    expected = network(X)
    with torch.no_grad():
        LinearisedNetwork(network, {name: torch.ones_like(p) for name, p in network.named_parameters()})(X)
    assert all(
        weight is getattr(network.rnn, name)
        for name, weight in zip(network.rnn._flat_weights_names, network.rnn._flat_weights, strict=True)
    )
    assert torch.equal(network(X), expected)
