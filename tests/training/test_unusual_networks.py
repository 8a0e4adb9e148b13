"""Every posterior with networks that people have: each trains, predicts, is saved and predicts the same again."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, TrainingConfig, fit

FAST = [MCDropout(), SWAG(rank=2), LRT(), Laplace("diag", prior_precision=100.0)]
SAMPLED_LAPLACE = Laplace("kron", "sampled", prior_precision=100.0)
SLOW = [MAP(), SGLD(), SGHMC(), SGVB(), Laplace(tune="evidence"), SAMPLED_LAPLACE, Ensemble(SWAG(rank=2), size=2)]
POSTERIORS = [*FAST, *(pytest.param(posterior, marks=pytest.mark.slow) for posterior in SLOW)]
CONFIG = TrainingConfig(
    epochs=2, batch_size=16, collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=2)
)


class Network(nn.Module):
    """Two linear layers with something unusual in between."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3)
        self.middle = nn.Identity() if middle is None else middle

    def forward(self, x):
        return self.last(self.drop(self.middle(self.first(x)).relu()))


class TwoNames(Network):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.first, self.last])


class CalledTwice(Network):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8))

    def forward(self, x):
        return self.last(self.drop(self.middle(self.middle(self.first(x)).relu())))


class Tied(Network):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
        self.middle[1].weight = self.middle[0].weight


class Bfloat16Backbone(Network):
    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(8))
        self.first.bfloat16()

    def forward(self, x):
        return self.last(self.drop(self.middle(self.first(x.bfloat16()).float()).relu()))


class Float64Head(Network):
    def __init__(self) -> None:
        super().__init__()
        self.last.double()

    def forward(self, x):
        return self.last(self.drop(self.first(x).relu()).double()).float()


class Lazy(Network):
    def __init__(self) -> None:
        super().__init__(nn.LazyBatchNorm1d())
        self.first, self.last = nn.LazyLinear(8), nn.LazyLinear(3)


class AlwaysDropout(Network):
    def forward(self, x):
        return self.last(F.dropout(self.drop(self.first(x)).relu(), 0.5))


class Buffers(Network):
    """A marker that is not a number, a cache from the first pass, a counter that is not persistent, odd dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.tensor(float("nan")))
        self.register_buffer("cache", None)
        self.register_buffer("history", torch.zeros(0))
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("complex", torch.randn(3, dtype=torch.cfloat))
        self.codes = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.scale += 0.01
            self.cache = x.mean(0).detach()
            self.history = torch.cat([self.history, x[:1, 0].detach()])
        return super().forward(x) * self.scale


class MaskedEncoder(Network):
    def __init__(self) -> None:
        super().__init__(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.2, batch_first=True), 1))

    def forward(self, x):
        tokens = self.first(x)[:, None].repeat(1, 3, 1)
        mask = (torch.arange(3) == 2)[None].expand(len(x), 3)
        return self.last(self.drop(self.middle(tokens, src_key_padding_mask=mask)[:, 0]))


class HoldsOutput(Network):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.outputs = [self.first(torch.ones(6))]

    def forward(self, x):
        with self.lock:
            self.outputs[0] = super().forward(x)
        return self.outputs[0]


class MeanSquareNorm(nn.modules.batchnorm._NormBase):
    """A user's subclass: it needs a momentum that is a number, and does not count batches."""

    def forward(self, x):
        if self.training:
            square = x.square().mean(0)
            self.running_var = self.running_var * (1 - self.momentum) + self.momentum * square.detach()
        return x / (square if self.training else self.running_var).add(1e-5).sqrt() * self.weight + self.bias


class Recurrent(Network):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.last(self.drop(self.middle(self.first(x)[:, None].repeat(1, 3, 1))[0][:, -1]))


def make_pruned():
    network = Network()
    prune.l1_unstructured(network.first, "weight", 0.5)
    return network


NETWORKS = {
    **{kind.__name__: kind for kind in (TwoNames, CalledTwice, Tied, Bfloat16Backbone, Float64Head, Lazy)},
    **{kind.__name__: kind for kind in (AlwaysDropout, Buffers, MaskedEncoder, HoldsOutput, Recurrent)},
    "Lazy, float64": lambda: Lazy().double(),
    "HoldsOutput, built": lambda: HoldsOutput(),
    "MeanSquareNorm": lambda: Network(MeanSquareNorm(8)),
    "InstanceNorm": lambda: Network(
        nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten())
    ),
    "pruned": make_pruned,
}


def make_loader(size=32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 6, generator=generator)
    return x, DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 16, shuffle=True)


REFUSALS = {
    (LRT, "MaskedEncoder"): "Use SGVB",
    (LRT, "Recurrent"): "Use SGVB",
    (LRT, "pruned"): "Use SGVB",
    (Laplace, "Tied"): "KFAC needs separate weights",
    (Laplace, "MaskedEncoder"): "KFAC supports",
    (Laplace, "Recurrent"): "KFAC supports",
    (Laplace, "pruned"): "KFAC supports",
}
"""Refused before the first step; those of Laplace only with Kronecker factors."""


@pytest.mark.filterwarnings(
    "ignore:.*nested tensors is in prototype", "ignore:There is a performance drop", "ignore:Weights that are trained"
)
@pytest.mark.parametrize("posterior", POSTERIORS, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_trains_predicts_and_predicts_the_same_after_loading(name, posterior, tmp_path):
    build = NETWORKS[name]
    x, loader = make_loader()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = build() if name == "HoldsOutput" and posterior.num_members == 1 else build
    torch.set_rng_state(before)
    refusal = REFUSALS.get((type(posterior), name))
    if refusal is not None and getattr(posterior, "structure", "kron") == "kron":
        with pytest.raises(ValueError, match=refusal):
            fit(model, loader, posterior, SAM(), CONFIG, likelihood=Categorical(3))
        return
    fitted = fit(model, loader, posterior, SAM(), CONFIG, likelihood=Categorical(3))
    predictive = fitted.predict(x, 3, vectorized=False)
    assert torch.equal(predictive.log_probs, fitted.predict(x, 3, vectorized=False).log_probs)
    fitted.predict(x[:2], 3)
    assert torch.equal(before, torch.get_rng_state())
    with fitted.sampled_network((0, 0, 0)) as network:
        if isinstance(network, type(fitted.states[0].model)):
            assert {n: p.dtype for n, p in network.named_parameters()} == {
                n: p.dtype for n, p in fitted.states[0].model.named_parameters()
            }
    fitted.save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, build)
    assert torch.equal(predictive.log_probs, loaded.predict(x, 3, vectorized=False).log_probs)


class EvalInForward(nn.BatchNorm1d):
    def forward(self, x):
        self.eval()
        return super().forward(x)


class AlwaysEval(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


FROZEN_NORMS = {
    "eval in forward": EvalInForward,
    "eval by train()": AlwaysEval,
    "momentum 0": lambda size: nn.BatchNorm1d(size, momentum=0.0),
    "no gradients": lambda size: nn.BatchNorm1d(size).requires_grad_(False),
}
MOVING_NORMS = {
    "BatchNorm": nn.BatchNorm1d,
    "momentum None": lambda size: nn.BatchNorm1d(size, momentum=None),
    "SyncBatchNorm": nn.SyncBatchNorm,
    "LazyBatchNorm": lambda size: nn.LazyBatchNorm1d(),
    "user's subclass": MeanSquareNorm,
    "InstanceNorm": lambda size: nn.InstanceNorm1d(size, track_running_stats=True),
}


class Normalized(nn.Module):
    """A layer that is frozen or not, before one that is never frozen."""

    def __init__(self, make_norm) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 4), make_norm(4), nn.Linear(8, 3)
        self.always = nn.BatchNorm1d(4)
        if getattr(self.norm, "num_features", 0):
            self.norm.running_var.fill_(0.3)

    def forward(self, x):
        hidden = self.first(x)
        stacked = torch.stack([hidden, -2 * hidden], 2)
        normalized = self.norm(stacked if not isinstance(self.norm, MeanSquareNorm) else hidden)
        if normalized.ndim == 2:
            normalized = torch.stack([normalized, hidden], 2)
        return self.last((normalized + self.always(stacked)).relu().flatten(1))


@pytest.mark.parametrize(
    "posterior",
    [SWAG(rank=2), *(pytest.param(p, marks=pytest.mark.slow) for p in (SGLD(), SGVB(), LRT(), SAMPLED_LAPLACE))],
    ids=lambda posterior: type(posterior).__name__,
)
@pytest.mark.parametrize("name", [*FROZEN_NORMS, *MOVING_NORMS])
def test_draws_reestimate_exactly_the_norms_that_training_updated(name, posterior, tmp_path):
    def build():
        return Normalized({**FROZEN_NORMS, **MOVING_NORMS}[name])

    _, loader = make_loader()
    fitted = fit(build, loader, posterior, SAM(), CONFIG, likelihood=Categorical(3))
    fitted.save(tmp_path)
    for sampler in (fitted, FittedPosterior.load(tmp_path, build)):
        trained, sampler.norm_statistics = sampler.states[0].model.norm.running_var.clone(), {}
        assert bool((trained == 0.3).all()) is (name in FROZEN_NORMS)
        with sampler.sampled_network((0, 0, 0)) as network:
            variances, always = network.norm.running_var.clone(), network.always.running_var.clone()
            hidden = [network.first(batch) for batch in sampler.statistics_inputs]
        spread = [torch.stack([h, -2 * h], 2) for h in hidden]
        expected = torch.stack([batch.var((0, 2)) for batch in spread]).mean(0)
        torch.testing.assert_close(always, expected)
        if name in FROZEN_NORMS:
            assert torch.equal(variances, trained)
        elif name == "user's subclass":
            torch.testing.assert_close(variances, torch.stack([h.square().mean(0) for h in hidden]).mean(0))
        elif name == "InstanceNorm":
            per_example = torch.stack([batch.var(2).mean(0) for batch in spread]).mean(0)
            torch.testing.assert_close(variances, per_example)
        else:
            torch.testing.assert_close(variances, expected)
