"""An ensemble's runs as one: the same as one after the other, or a reason why not."""

import sys
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.data import DataSplits, Split
from flatbayes.flatness import (
    ASAM,
    SAM,
    FisherSAM,
    Flatness,
    GaussianSmoothing,
    Plain,
    PosteriorSAM,
    RandomPerturbation,
)
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP, ConvNet
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.prediction import FittedPosterior
from flatbayes.training import (
    Callback,
    CollectionConfig,
    DistributionConfig,
    History,
    Interrupted,
    PrecisionConfig,
    TrainingConfig,
    fit,
)


def blobs(n=30, images=False, augment=None):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3
    inputs = torch.randn(n, *((1, 6, 6) if images else (4,)), generator=generator)
    inputs[:, 0] += targets.view(-1, *[1] * (inputs.ndim - 2))
    part = Split(inputs=inputs, targets=targets)
    return DataSplits(train=part, val=part, test=part, class_names=("a", "b", "c"), feature_names=(), augment=augment)


def lines(n=30):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 4, generator=generator)
    part = Split(inputs=inputs, targets=inputs.sum(1) + 0.1 * torch.randn(n, generator=generator))
    return DataSplits(
        train=part, val=part, test=part, class_names=(), target_names=("y",), feature_names=(), augment=None
    )


SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2)
NESTEROV = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True)
ADAM = partial(torch.optim.Adam, lr=1e-2)
EXACT = TrainingConfig(
    epochs=3,
    batch_size=10,
    collection=CollectionConfig(start_fraction=0.0),
    num_validations=2,
    precision=PrecisionConfig(mode="64-true"),
    optimizer=SGD,
)
Narrow, Small = partial(ConvNet, width=2), partial(MLP, hidden=(5,))


def pair(model, data, posterior, flatness, training_config):
    """The same fit in both ways."""
    ways = [
        training_config.with_options(distribution={"members": members}) for members in ("vectorized", "one_by_one")
    ]
    return [fit(model, data, posterior, flatness, way, seed=3) for way in ways]


def assert_same(together, one_by_one):
    assert together.info["members"] == "vectorized"
    assert "members" not in one_by_one.info
    assert len(together.states) == len(one_by_one.states)
    for mine, yours in zip(together.states, one_by_one.states, strict=True):
        tensors = {**yours.model.state_dict(), **yours.statistics}
        for name, tensor in {**mine.model.state_dict(), **mine.statistics}.items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-10, atol=1e-10)
    sums = {float(sum(p.detach().sum() for p in state.model.parameters())) for state in together.states}
    assert len(sums) == len(together.states)
    assert together.info["cost"]["gradients"] == one_by_one.info["cost"]["gradients"]


@pytest.mark.parametrize(
    "flatness",
    [
        Plain(),
        SAM(rho=0.1),
        ASAM(rho=0.3, ascent_steps=2),
        FisherSAM(rho=0.1),
        RandomPerturbation(rho=0.1),
        GaussianSmoothing(std=0.05),
    ],
)
@pytest.mark.parametrize("member", [MAP(), SWAG(rank=3)])
def test_states_are_those_of_one_by_one_with_batch_norm(member, flatness):
    assert_same(*pair(Narrow, blobs(images=True), Ensemble(member, 3), flatness, EXACT))


@pytest.mark.parametrize("optimizer", [NESTEROV, ADAM, partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)])
def test_optimisers_that_work_entry_by_entry(optimizer):
    training_config = replace(EXACT, optimizer=optimizer)
    assert_same(*pair(Narrow, blobs(images=True), Ensemble(size=2), SAM(rho=0.1), training_config))


@pytest.mark.parametrize(
    ("data", "posterior", "changes"),
    [
        (lines(), Ensemble(SWAG(rank=2), 3), {}),
        (blobs(), Ensemble(MAP(prior_precision=2.0), 3), {"optimizer": NESTEROV}),
        (blobs(), Ensemble(size=3), {"optimization.clip_norm": 0.2}),
        (blobs(), Ensemble(size=3), {"optimization.accumulation_steps": 3}),
        (blobs(augment=lambda x, g: x + torch.rand(x.shape, generator=g)), Ensemble(size=3), {}),
    ],
)
def test_everything_else_that_a_fit_can_do(data, posterior, changes):
    assert_same(*pair(Small, data, posterior, SAM(rho=0.1), EXACT.with_options(**changes)))


def test_clipping_is_felt():
    free, clipped = (
        fit(
            Small,
            blobs(),
            Ensemble(size=2),
            Plain(),
            EXACT.with_options(distribution={"members": "vectorized"}, optimization={"clip_norm": norm}),
        )
        for norm in (None, 1e-3)
    )
    assert not torch.equal(*(next(f.states[0].model.parameters()) for f in (free, clipped)))


def test_laplace_takes_its_curvature_of_each_network():
    data = blobs()
    both = pair(Small, data, Ensemble(Laplace("kron", prior_precision=1.0), 2), SAM(), replace(EXACT, optimizer=None))
    for mine, yours in zip(*(f.states for f in both), strict=True):
        for name in ("eigenvalues", "finished", "prior_precision"):
            torch.testing.assert_close(mine.statistics[name], yours.statistics[name], rtol=1e-8, atol=1e-8)


def test_draws_and_artefacts_are_those_of_one_by_one(tmp_path):
    data = blobs(images=True)
    together, one_by_one = pair(Narrow, data, Ensemble(SWAG(rank=2), 2), SAM(), EXACT)
    predictions = [f.predict(data.test.inputs, 6).mean for f in (together, one_by_one)]
    torch.testing.assert_close(*predictions, rtol=1e-8, atol=1e-8)
    together.save(tmp_path / "it")
    loaded = FittedPosterior.load(tmp_path / "it", model=Narrow((1, 6, 6), 3))
    assert torch.equal(loaded.predict(data.test.inputs, 6).mean, predictions[0])
    assert loaded.info["members"] == "vectorized"


def test_curves_are_those_of_one_by_one():
    curves = [History(), History()]
    for watch, members in zip(curves, ("vectorized", "one_by_one"), strict=True):
        fit(
            Small,
            blobs(),
            Ensemble(size=2),
            SAM(),
            EXACT.with_options(distribution={"members": members}),
            seed=3,
            callback=watch,
        )
    together, one_by_one = (sorted(c.records, key=lambda r: (r["member"], r["epoch"])) for c in curves)
    assert [list(r) for r in together] == [list(r) for r in one_by_one]
    for mine, yours in zip(together, one_by_one, strict=True):
        assert mine == pytest.approx(yours, rel=1e-10)


class Stop(Callback):
    def on_epoch_end(self, record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt


def test_ctrl_c_hands_over_all_networks_as_far_as_they_are():
    data = blobs()
    with pytest.raises(Interrupted, match="after 2 of 3 epochs of 3 vectorized members") as caught:
        fit(
            Small,
            data,
            Ensemble(SWAG(rank=2), 3),
            SAM(),
            EXACT.with_options(distribution={"members": "vectorized"}, collection={"snapshots_per_epoch": 1}),
            callback=Stop(),
        )
    fitted = caught.value.fitted
    assert len(fitted.states) == 3
    assert all(int(state.statistics["count"]) == 2 for state in fitted.states)
    assert fitted.predict(data.test.inputs, 6).mean.shape == (30, 3)


class Fragile(nn.Module):
    """The second one that is built of two has a gradient that is not finite."""

    made = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        Fragile.made += 1
        self.register_buffer("factor", torch.tensor(1.0 if Fragile.made % 2 else torch.inf))

    def forward(self, x):
        return self.linear(x) * self.factor


def test_a_loss_that_is_not_finite_names_its_run(monkeypatch):
    monkeypatch.setattr("flatbayes.training.vectorization_trial.find_vectorization_obstacle", lambda runs: None)
    monkeypatch.setattr(sys.modules["flatbayes.training.fit"], "run_trial", lambda *args: None)
    Fragile.made = 0
    with pytest.raises(RuntimeError, match=r"The loss of member 2 is nan in epoch 1 of 3"):
        fit(Fragile, blobs(), Ensemble(size=2), SAM(), EXACT.with_options(distribution={"members": "vectorized"}))


def test_randomness_is_left_alone():
    before = torch.get_rng_state()
    fit(Small, blobs(), Ensemble(size=2), SAM(), EXACT.with_options(distribution={"members": "auto"}))
    assert torch.equal(torch.get_rng_state(), before)


class Counting(nn.Module):
    """Replaces its buffer instead of editing it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.linear(x)


class Unstackable(nn.Module):
    """Looks at numbers, which vmap cannot."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        outputs = self.linear(x)
        return outputs * 2 if float(outputs.detach().sum()) > 0 else outputs


class Projected(nn.Module):
    """A random tensor of its own that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.linear, self.directions = nn.Linear(4, 3), torch.randn(4, 4, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x @ self.directions.to(x.dtype))


@dataclass(frozen=True)
class Joint(Flatness):
    """Normalises the gradient by a norm of its own making, which stacked networks would share."""

    gradients_per_step = 1
    stationary_after = 0.0

    def __call__(self, closure, model, progress=None):
        def normalised():
            loss = closure()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for param in model.parameters():
                param.grad /= norm
            return loss

        return normalised


ADAFACTOR = partial(torch.optim.Adafactor, lr=1e-2)
RANDOM = "training uses random numbers"


@pytest.mark.parametrize(
    ("model", "member", "flatness", "changes", "reason"),
    [
        (Small, SGLD(), Plain(), {"optimizer": None}, RANDOM),
        (Small, SGHMC(), Plain(), {"optimizer": None}, RANDOM),
        (Small, SGVB(), Plain(), {"optimizer": None}, RANDOM),
        (Small, LRT(), SAM(), {"optimizer": None}, RANDOM),
        (Small, MCDropout(rate=0.2), SAM(), {}, RANDOM),
        (partial(Small, dropout=0.2), MAP(), Plain(), {}, RANDOM),
        (Small, MAP(), Joint(), {}, "in other weights than one by one"),
        (Small, MAP(), Plain(), {"optimizer": ADAFACTOR}, "in other weights than one by one"),
        (Small, MAP(), Plain(), {"precision.mode": "bf16-mixed"}, "autocast"),
        (Narrow, MAP(), Plain(), {"precision.channels_last": True}, "channels last"),
        (Counting, MAP(), Plain(), {}, "in other buffers than one by one"),
        (Projected, MAP(), Plain(), {}, "in other weights than one by one"),
        (Unstackable, MAP(), Plain(), {}, "raised RuntimeError: vmap"),
    ],
)
def test_what_cannot_be_stacked_is_trained_one_by_one(model, member, flatness, changes, reason):
    training_config = EXACT.with_options(epochs=1, distribution={"members": "auto"}, **changes)
    data = blobs(images=model is Narrow)
    fell_back = fit(model, data, Ensemble(member, 2), flatness, training_config)
    usual = fit(
        model,
        data,
        Ensemble(member, 2),
        flatness,
        training_config.with_options(distribution={"members": "one_by_one"}),
    )
    assert fell_back.info["members"].startswith("one by one: ")
    assert reason in fell_back.info["members"]
    for mine, yours in zip(fell_back.states, usual.states, strict=True):
        for name, tensor in mine.model.state_dict().items():
            assert torch.equal(tensor, yours.model.state_dict()[name])
    with pytest.raises(ValueError, match=f"The 2 members cannot be vectorized: .*{reason}"):
        fit(
            model,
            data,
            Ensemble(member, 2),
            flatness,
            training_config.with_options(distribution={"members": "vectorized"}),
        )


def test_a_flatness_that_does_not_suit_the_posterior_says_so_in_any_way():
    for members in ("auto", "vectorized"):
        with pytest.raises(ValueError, match="takes its geometry from the Gaussian that a posterior has"):
            fit(
                Small,
                blobs(),
                Ensemble(size=2),
                PosteriorSAM(),
                EXACT.with_options(distribution={"members": members}),
            )


def test_a_loader_gives_one_batch_at_a_time():
    data = blobs()
    loader = DataLoader(TensorDataset(data.train.inputs, data.train.targets), batch_size=10)
    training_config = EXACT.with_options(distribution={"members": "auto"}, precision={"mode": "32-true"})

    def make():
        return nn.Linear(4, 3)

    fitted = fit(make, loader, Ensemble(size=2), SAM(), training_config, likelihood=Categorical(3))
    assert "a loader of your own" in fitted.info["members"]


def test_auto_leaves_much_work_one_by_one_and_one_run_alone(monkeypatch):
    training_config = EXACT.with_options(epochs=1, distribution={"members": "auto"}, precision={"mode": "32-true"})
    wide = partial(MLP, hidden=(400, 400))
    assert (
        "a network has 163603 weights"
        in fit(wide, blobs(), Ensemble(size=2), Plain(), training_config).info["members"]
    )
    monkeypatch.setattr("flatbayes.training.vectorization_trial.MAX_VECTORIZED_FLOPS", 699)
    how = fit(Small, blobs(), Ensemble(size=2), Plain(), training_config).info["members"]
    assert how == "one by one: a forward pass takes 7e+02 operations, and with more than 7e+02 one by one is as fast"
    assert (
        "one member"
        in fit(
            Small, blobs(), MAP(), Plain(), training_config.with_options(distribution={"members": "vectorized"})
        ).info["members"]
    )
    with pytest.raises(ValueError, match="members must be one_by_one or auto or vectorized or workers, got 'both'"):
        TrainingConfig(distribution=DistributionConfig(members="both"))


class RecordingFlatness(Plain):
    """Plain training that records the seed, members and step of the progress that it is given."""

    def __init__(self):
        object.__setattr__(self, "calls", [])

    def __call__(self, closure, model, progress=None):
        self.calls.append((progress.seed, progress.members, progress.step))
        return closure


@pytest.mark.parametrize(("members", "groups"), [("one_by_one", [(0,), (1,)]), ("vectorized", [(0, 1)])])
def test_the_flatness_is_given_the_seed_of_the_fit_and_the_members(members, groups):
    flatness = RecordingFlatness()
    config = EXACT.with_options(epochs=1, num_validations=0, **{"distribution.members": members})
    fit(Small, blobs(), Ensemble(size=2), flatness, config, seed=7)
    assert flatness.calls[-3 * len(groups) :] == [(7, group, step) for group in groups for step in range(3)]
