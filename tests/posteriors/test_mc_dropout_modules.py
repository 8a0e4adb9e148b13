"""MC dropout with modules that drop in ways of their own: active in draws exactly as in training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import SWAG, MCDropout
from flatbayes.posteriors.mc_dropout import DEFAULT_RATE, find_dropout_modules, find_other_dropout
from flatbayes.prediction.export import export_torch
from flatbayes.training import TrainingConfig, fit


class Network(nn.Module):
    def __init__(self, rate: float, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.rate, self.first, self.last = rate, nn.Linear(6, 8), nn.Linear(8, 3)
        self.middle = nn.Identity() if middle is None else middle
        self.layer = nn.Dropout(rate / 10)  # a network with functional dropout alone is refused

    def forward(self, x):
        return self.last(self.layer(self.mix(self.first(x).relu())))

    def mix(self, hidden):
        return self.middle(hidden)


class Attention(Network):
    def __init__(self, rate) -> None:
        super().__init__(rate, nn.MultiheadAttention(8, 2, dropout=rate, batch_first=True))

    def mix(self, hidden):
        tokens = torch.stack([hidden, -hidden, hidden.square()], 1)
        return self.middle(tokens, tokens, tokens)[0].mean(1)


class FunctionalAttention(Network):
    def mix(self, hidden):
        tokens, rate = hidden.view(-1, 4, 2), self.rate if self.training else 0.0
        return F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=rate).flatten(1)


class FunctionalDropout(Network):
    def mix(self, hidden):
        return F.dropout(hidden, self.rate, self.training)


class StochasticDepth(nn.Module):
    def __init__(self, rate) -> None:
        super().__init__()
        self.drop_prob, self.branch = rate, nn.Linear(8, 8)

    def forward(self, x):
        mask = torch.ones(len(x), 1)
        if self.training and self.drop_prob:
            mask.bernoulli_(1 - self.drop_prob)
        return x + self.branch(x) * mask


class DropPath(Network):
    def __init__(self, rate) -> None:
        super().__init__(rate, StochasticDepth(rate))


class Encoder(Network):
    def __init__(self, rate) -> None:
        layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=rate, batch_first=True)
        super().__init__(rate, nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))

    def mix(self, hidden):
        return self.middle(torch.stack([hidden, -hidden], 1)).mean(1)


class Recurrent(Network):
    def __init__(self, rate) -> None:
        super().__init__(rate, nn.LSTM(8, 8, num_layers=2, dropout=rate, batch_first=True))

    def mix(self, hidden):
        return self.middle(torch.stack([hidden, -hidden], 1))[0][:, -1]


class FrozenBackbone(Network):
    """Dropout of its first part is off in training."""

    def __init__(self, rate) -> None:
        super().__init__(rate, nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.9)))
        self.drop = nn.Dropout(rate)

    def train(self, mode=True):
        super().train(mode)
        self.middle.eval()
        return self

    def mix(self, hidden):
        return self.drop(self.middle(hidden))


KINDS = (Attention, FunctionalAttention, FunctionalDropout, DropPath, Encoder, Recurrent, FrozenBackbone)


class FunctionalOnly(Network):
    def __init__(self, rate) -> None:
        super().__init__(rate)
        self.layer = nn.Identity()

    def mix(self, hidden):
        return F.dropout(hidden, self.rate, self.training)


def test_functional_dropout_alone_is_refused():
    with pytest.raises(ValueError, match="only dropout is a call of torch.nn.functional.dropout"):
        fit_network(FunctionalOnly, 0.5)


class AlwaysActive(Network):
    def mix(self, hidden):
        return F.dropout(hidden, self.rate)


def fit_network(kind, rate, posterior=MCDropout()):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 16)
    config = TrainingConfig(epochs=4)
    return fit(lambda: kind(rate), loader, posterior, SAM(), config, likelihood=Categorical(3)), x


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_dropout_is_active_in_draws_as_in_training(kind):
    fitted, x = fit_network(kind, 0.5)
    spread = fitted.predict(x, 100, keep_members=True).member_probs.std(0).mean()
    network = fitted.states[0].model.train()
    with torch.no_grad():
        reference = torch.stack([network(x).softmax(-1) for _ in range(100)]).std(0).mean()
    assert spread > 0
    assert float(spread) == pytest.approx(float(reference), rel=0.1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_dropout_modules_of_rate_zero_get_the_default_rate_and_other_dropout_is_refused(kind):
    modules = find_dropout_modules(kind(0.0))
    if find_other_dropout(kind(0.0)) or not modules or any(module.p for module in modules):
        with pytest.raises(ValueError, match=r"needs dropout|is active in training"):
            fit_network(kind, 0.0)
    else:
        fitted, x = fit_network(kind, 0.0)
        assert fitted.posterior.rate == DEFAULT_RATE
        assert fitted.predict(x, 20, keep_members=True).member_probs.std(0).mean() > 0


def test_networks_that_are_random_in_eval_mode_are_compiled_reproducibly_and_not_exported(tmp_path):
    fitted, x = fit_network(AlwaysActive, 0.5, SWAG(rank=2))
    compiled, state = fitted.compile(3), torch.get_rng_state()
    assert torch.equal(compiled(x)["mean"], compiled(x)["mean"])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="random numbers in eval mode"):
        export_torch(compiled, tmp_path / "file.pt2", x)
    with pytest.raises(ValueError, match="Leave out vectorized=True"):
        fitted.predict(x, 3, vectorized=True)
