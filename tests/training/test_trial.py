"""What torch cannot do with a network is said before the first step; the trial that finds it leaves no trace."""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import compare, fit_together
from flatbayes.data import Arrays
from flatbayes.flatness import SAM, Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SWAG, Laplace, MCDropout
from flatbayes.training import Callback, CollectionConfig, TrainingConfig, fit
from flatbayes.training.trial import is_deliberate
from support import POSTERIORS, network

CONFIG = TrainingConfig(
    epochs=2,
    batch_size=8,
    collection=CollectionConfig(start_fraction=0.0),
    optimizer=lambda p: torch.optim.SGD(p, 0.05),
)


class CountSteps(Callback):
    num_steps = 0

    def on_step_end(self, step, loss, lr):
        self.num_steps += 1


def loader(**options):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 3
    return DataLoader(TensorDataset(x, y), batch_size=8, **options)


class Fails(nn.Sequential):
    """Fails in one mode, as a layer whose shapes do not match does."""

    def __init__(self, *, in_training):
        super().__init__(*network())
        self.in_training = in_training

    def forward(self, x):
        outputs = super().forward(x)
        return outputs @ torch.zeros(7, 3) if self.training is self.in_training else outputs


CASES = [
    (p, t) for p in POSTERIORS for t in (True, False) if t or not isinstance(p, MCDropout)
]  # draws in training mode


@pytest.mark.parametrize(("posterior", "in_training"), CASES, ids=[f"{str(p)[:50]}-{t}" for p, t in CASES])
def test_an_operation_that_fails_is_reported_before_the_first_step(posterior, in_training):
    counter = CountSteps()
    with pytest.raises(ValueError, match="cannot be used with|cannot be multiplied|cannot differentiate") as caught:
        fit(
            lambda: Fails(in_training=in_training),
            loader(),
            posterior,
            Plain() if posterior.perturbs_weights else SAM(),
            CONFIG,
            likelihood=Categorical(3),
            callback=counter,
        )
    assert counter.num_steps == 0
    assert is_deliberate(caught.value)


def test_a_backward_pass_that_fails_is_reported():
    class Overwrites(nn.Sequential):
        def forward(self, x):
            hidden = self[1](self[0](x)).sigmoid()
            hidden.mul_(2)  # sigmoid needs its output in the backward pass
            return self[2](hidden)

    make = lambda: Overwrites(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))  # noqa: E731
    with pytest.raises(ValueError, match="the first step ends in RuntimeError.*inplace operation"):
        fit(make, loader(), MAP(), SAM(), CONFIG, likelihood=Categorical(3))


class AuxiliaryHead(nn.Linear):
    """Returns the outputs of a second head in training, as networks of torchvision do."""

    def forward(self, x):
        outputs = super().forward(x)
        return (outputs, outputs) if self.training else outputs


@pytest.mark.parametrize("posterior", [MAP(), Laplace(prior_precision=1.0), SWAG()], ids=repr)
def test_outputs_of_training_that_are_no_tensor_are_refused(posterior):
    x, y = torch.randn(16, 4), torch.arange(16) % 3
    with pytest.raises(ValueError, match="returns a tensor in eval mode and a tuple in training.*aux_logits=False"):
        fit(AuxiliaryHead(4, 3), (x, y), posterior, SAM(), CONFIG)
    select = lambda outputs: outputs if isinstance(outputs, torch.Tensor) else outputs[0]  # noqa: E731
    fitted = fit(AuxiliaryHead(4, 3), (x, y), posterior, SAM(), CONFIG, output=select)
    assert fitted.predict(x, 2).mean.shape == (16, 3)


class OwnError(Exception):
    pass


@pytest.mark.parametrize("error", [OwnError("ours"), torch.OutOfMemoryError("full"), OSError("no space")], ids=repr)
def test_errors_with_words_of_their_own_are_passed_on(error):
    class Raises(nn.Linear):
        def forward(self, x):
            raise error

    with pytest.raises(type(error), match=str(error)):
        fit(Raises(64, 3), loader(), MAP(), SAM(), CONFIG, likelihood=Categorical(3))


@pytest.mark.parametrize(("last", "warns"), [(nn.Softmax(-1), True), (nn.ReLU(), False), (nn.LogSoftmax(-1), False)])
def test_probabilities_instead_of_logits_give_a_warning(last, warns):
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    network = nn.Sequential(nn.Linear(3, 2), last)
    with pytest.warns(UserWarning, match="probabilities") if warns else nullcontext():
        fit(network, (x, y), MAP(), config={"epochs": 1})
    fit(network, (x, torch.rand(40, 1)), MAP(), config={"epochs": 1})  # mean and scale of a number


def make_low_precision(dtype=torch.bfloat16, *, is_frozen=False):
    base = nn.Linear(3, 8).to(dtype).requires_grad_(not is_frozen)
    return nn.Sequential(base, Float() if is_frozen else nn.ReLU(), nn.Linear(8, 2).to(None if is_frozen else dtype))


class Float(nn.Module):
    def forward(self, x):
        return x.float()


class Half(nn.Module):
    def forward(self, x):
        return x.bfloat16()


PAIR = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
TWO_EPOCHS = {"epochs": 2, "collection": {"start_fraction": 0.0}}
ENTRIES = {
    "fit": lambda model: fit(model, PAIR, MAP(), Plain(), TWO_EPOCHS),
    "fit_together": lambda model: fit_together(model, PAIR, [MAP(), SWAG(rank=2)], Plain(), TWO_EPOCHS),
    "compare": lambda model: compare(
        model,
        Arrays(*PAIR),
        [MAP(), SWAG(rank=2)],
        config=TWO_EPOCHS,
        num_seeds=2,
        num_draws=2,
        num_jobs=1,
    ),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_trained_weights_of_low_precision_give_one_warning(entry, recwarn):
    ENTRIES[entry](make_low_precision())
    (warning,) = [w for w in recwarn if "lost to rounding" in str(w.message)]
    assert "Weights that are trained are bfloat16" in str(warning.message)
    assert "model.float(), and use precision.mode='bf16-mixed'" in str(warning.message)


def test_frozen_weights_of_low_precision_are_fine(recwarn):
    fit(nn.Sequential(Half(), *make_low_precision(is_frozen=True)), PAIR, MAP(), Plain(), {"epochs": 1})
    fit(make_low_precision(), PAIR, MAP(), Plain(), {"epochs": 0})
    fit(make_low_precision(), PAIR, MAP(), Plain(), {"epochs": 1, "precision": {"mode": "64-true"}})
    assert not any("lost to rounding" in str(warning.message) for warning in recwarn)


def test_the_trial_has_the_optimizer_of_the_training():
    built = []

    class Recording(MAP):
        def init(self, model, make_optimizer, num_data):
            state = super().init(model, make_optimizer, num_data)
            built.append(type(state.optimizer))
            return state

    transformer = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    fit(transformer, PAIR, Recording(), Plain(), {"epochs": 1})
    assert set(built) == {torch.optim.AdamW}


@pytest.mark.parametrize("with_generator", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize("posterior", [SWAG(rank=2), Laplace(prior_precision=1.0)], ids=str)
def test_results_are_those_without_a_trial(posterior, with_generator, monkeypatch):
    weights = []
    for has_trial in (True, False):
        if not has_trial:
            monkeypatch.setattr(sys.modules["flatbayes.training.fit"], "run_trial", lambda *args: None)
        generator = torch.Generator().manual_seed(4) if with_generator else None
        steps = []

        class RecordingSGD(torch.optim.SGD):
            def step(self, closure=None, steps=steps):
                steps.append(self.param_groups[0]["lr"])
                return super().step(closure)

        config = CONFIG.with_options(optimizer=lambda p: RecordingSGD(p, lr=0.05))
        data = loader(shuffle=True, generator=generator)
        fitted = fit(network, data, posterior, SAM(), config, likelihood=Categorical(3))
        assert len(steps) == 4
        weights.append(fitted.states[0].model.state_dict() | fitted.states[0].statistics)
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_trial_does_not_diverge():
    config = CONFIG.with_options(optimizer=lambda p: torch.optim.SGD(p, lr=1e30))
    with pytest.raises(RuntimeError, match="The loss is"):
        fit(network, loader(), Laplace("kron", prior_precision=1.0), SAM(), config, likelihood=Categorical(3))


class Recast(nn.Sequential):
    """A network that does not convert its inputs."""

    def forward(self, x):
        return self[1](self[0](x.flatten(1)).float())


@pytest.mark.parametrize(
    ("dtypes", "mode", "words"),
    [
        ((torch.bfloat16, torch.float32), "32-true", "weights are bfloat16 and float32, and the inputs stay float32"),
        (
            (torch.float64, torch.float64),
            "bf16-mixed",
            "does not convert weights of float64: use a network of float32",
        ),
    ],
)
def test_dtypes_that_do_not_go_together_are_named(dtypes, mode, words):
    config = CONFIG.with_options(**{"precision.mode": mode})
    make_model = lambda: Recast(nn.Linear(64, 7).to(dtypes[0]), nn.Linear(7, 3).to(dtypes[1]))  # noqa: E731
    with pytest.raises(ValueError, match=words):
        fit(make_model, loader(), MAP(), SAM(), config, likelihood=Categorical(3))
