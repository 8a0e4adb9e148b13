"""Networks that are refused before the first step, each in words that say what to do."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import LRT, MAP, SWAG
from flatbayes.training import TrainingConfig, fit
from flatbayes.training.callbacks.callback import Callback


class Network(nn.Module):
    def __init__(self, **attributes) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.last(x)


class StepCounter(Callback):
    count = 0

    def on_step_end(self, step, loss, lr):
        self.count += 1


def fit_network(model, posterior=MAP(), **options):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 16)
    return fit(model, loader, posterior, SAM(), TrainingConfig(epochs=4), likelihood=Categorical(3), **options)


@pytest.mark.parametrize(
    ("posterior", "is_built", "advice"),
    [(MAP(), False, "Pass its class, or a function"), (LRT(), True, "LRT trains a copy.*use SGVB")],
)
def test_a_network_that_cannot_be_copied(posterior, is_built, advice):
    def build():
        return Network(rows={"all": (row for row in range(3))})

    with pytest.raises(ValueError, match=rf"Network cannot be copied, for its attribute rows \(dict\).*{advice}"):
        fit_network(build if is_built else build(), posterior)


def with_buffer(value):
    network = Network()
    network.register_buffer("extra", value)
    return network


class ExtraState(Network):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


UNSTORABLE = {
    "sparse buffer": (lambda: with_buffer(torch.eye(3).to_sparse()), "extra of Network is a .*sparse tensor"),
    "complex128": (lambda: with_buffer(torch.ones(3, dtype=torch.complex128)), "of dtype torch.complex128"),
    "extra state": (ExtraState, "_extra_state of ExtraState is no tensor but a dict"),
    "NaN": (
        lambda: Network(extra=nn.Parameter(torch.tensor([1.0, float("nan")]), requires_grad=False)),
        r"extra of Network holds values that are not numbers \(NaN\)",
    ),
    "unused lazy module": (lambda: Network(unused=nn.LazyLinear(3)), "unused.weight has no shape after a forward"),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_a_network_that_cannot_be_saved(name):
    build, message = UNSTORABLE[name]
    counter = StepCounter()
    with pytest.raises(ValueError, match=message):
        fit_network(build, callback=counter)
    assert counter.count == 0


def test_weights_that_are_not_numbers_are_not_saved(tmp_path):
    fitted = fit_network(Network, SWAG(rank=2))
    fitted.states[0].statistics["mean"][0] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        fitted.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "convert", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(1, 6))], ids=["script", "trace"]
)
@pytest.mark.parametrize("is_part", [False, True])
def test_networks_of_torchscript_are_refused(convert, is_part):
    network = convert(Network())
    with pytest.raises(ValueError, match=r"of TorchScript, whose copies cannot be trained. Give the torch.nn.Module"):
        fit_network(nn.Sequential(network) if is_part else network)


class Headless(nn.Module):
    """Returns what a network of transformers without a head does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        hidden = self.layer(x)
        return {"last_hidden_state": hidden[:, None].repeat(1, 5, 1), "pooler_output": hidden}


def test_a_network_without_a_head_is_told_of_those_with_one():
    with pytest.raises(ValueError, match=r"has no head.*AutoModelForSequenceClassification.from_pretrained\(name"):
        fit_network(Headless())
