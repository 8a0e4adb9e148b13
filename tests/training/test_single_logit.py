"""Networks with one output for two classes: the likelihood is inferred, and everything after it has two classes."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import (
    MAP,
    SAM,
    SWAG,
    BLoB,
    Categorical,
    Ensemble,
    FittedPosterior,
    Gaussian,
    Laplace,
    MCDropout,
    Plain,
    TrainingConfig,
    calibrate,
    compare,
    distill,
    evaluate,
    fit,
)
from flatbayes.certification import CertificationConfig, certify
from flatbayes.data import Arrays
from flatbayes.diagnostics import SharpnessConfig, measure_posterior_sharpness
from flatbayes.estimators import FlatBayesClassifier
from flatbayes.likelihoods import Custom
from flatbayes.models import MLP
from flatbayes.posteriors import SGLD, SGVB
from flatbayes.reference import ReferenceConfig, sample_reference
from flatbayes.training.likelihood_inference import count_outputs
from flatbayes.training.trial import NetworkWarning

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long()
BINARY = Categorical(2, single_logit=True)
CONFIG = TrainingConfig(epochs=5)


class Vector(nn.Module):
    """A network whose outputs have no axis beside that of the examples."""

    def __init__(self, axes=(1,)):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.1))
        self.head, self.axes = nn.Linear(5, 1), axes

    def forward(self, x):
        return self.head(self.body(x)).squeeze(*self.axes)


def build(input_shape):
    return nn.Sequential(nn.Linear(*input_shape, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 1))


def train(model, data, posterior=MAP(), **options):
    return fit(model, data, posterior, Plain(), CONFIG, **options)


DATA = {
    "integers": (X, Y),
    "booleans": (X, Y.bool()),
    "floats": (X, Y.float()),
    "column": (X, Y.double()[:, None]),
    "texts": (X.numpy(), np.where(Y.numpy(), "yes", "no")),
    "frame": (pd.DataFrame(X.numpy()), pd.Series(Y.numpy().astype(float))),
    "dataset": TensorDataset(X, Y),
    "dataset of floats": TensorDataset(X, Y.float()),
    "dataset of columns": TensorDataset(X, Y.float()[:, None]),
    "splits": Arrays(X, Y).load(seed=0),
    "loader": DataLoader(TensorDataset(X, Y), 16),
    "loader of floats": DataLoader(TensorDataset(X, Y.float()), 16),
    "loader of columns": [(X, Y.float()[:, None])],
    "loader of booleans": [(X, Y.bool())],
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("model", [nn.Linear(4, 1), Vector], ids=["column", "vector"])
def test_the_likelihood_is_inferred(name, model):
    fitted = train(model, DATA[name])
    assert fitted.likelihood == BINARY
    predictive = fitted.predict(X)
    assert predictive.mean.shape == (64, 2)
    assert evaluate(fitted, (X, Y)).metrics["accuracy"] == float((predictive.top_class == Y).double().mean())


def test_the_likelihood_may_be_named():
    for likelihood in ("categorical", Categorical, BINARY):
        assert train(nn.Linear(4, 1), (X, Y.float()), likelihood=likelihood).likelihood == BINARY


def test_other_networks_have_an_output_for_each_class():
    assert train(nn.Linear(4, 2), (X, Y)).likelihood == Categorical(2)
    assert train(MLP, (X, Y)).likelihood == Categorical(2)
    assert train(nn.Linear(4, 1), (X, Y), new_head=True).likelihood == Categorical(2)
    assert train(nn.Linear(4, 3), (X, torch.arange(64) % 3)).likelihood == Categorical(3)
    assert train(MLP, (X, Y), likelihood=BINARY).states[0].model(X).shape == (64, 1)
    assert train(nn.Linear(4, 3), (X, Y), likelihood=BINARY, new_head=True).states[0].model(X).shape == (64, 1)


def test_networks_are_looked_at_for_two_classes_only(monkeypatch):
    counted = []

    def count(model, inputs, *arguments):
        counted.append(len(inputs))
        return count_outputs(model, inputs, *arguments)

    monkeypatch.setattr("flatbayes.training.likelihood_inference.count_outputs", count)
    train(nn.Linear(4, 3), (X, torch.arange(64) % 3))
    train(MLP, (X, Y))
    train(nn.Linear(4, 2), (X, X[:, 0]))
    assert not counted
    train(nn.Linear(4, 1), (X, Y))
    assert counted == [4]


def test_no_random_state_changes():
    before = torch.get_rng_state()
    train(Vector, (X, Y.float()))
    assert torch.equal(torch.get_rng_state(), before)


def test_token_ids_of_an_embedding_stay_integers():
    tokens = torch.randint(9, (64, 4), generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 1))
    assert train(network, (tokens, Y)).likelihood == BINARY


@pytest.mark.parametrize("targets", [Y.float(), Y], ids=["floats", "integers"])
def test_whole_numbers_are_classes_for_a_categorical(targets):
    assert train(nn.Linear(4, 2), (X, targets), likelihood=Categorical(2)).likelihood == Categorical(2)
    source = Arrays(X, targets)
    assert train(nn.Linear(4, 1), source, likelihood=BINARY).likelihood == BINARY


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (nn.Linear(4, 2), (X, Y.float()), {}, "For classes write integers.*or pass likelihood=Categorical to fit"),
        (nn.Linear(4, 1), (X, Y.float()), {"new_head": True}, "For classes write integers"),
        (nn.Linear(4, 1), (X, (torch.arange(64) % 3).float()), {}, "For classes write integers"),
        (nn.Linear(4, 1), (X, (2 * Y).float()), {}, "For classes write integers"),
        (MLP, (X, Y.float()), {}, "For classes write integers"),
        (nn.Linear(4, 1), (X, torch.arange(64) % 3), {}, r"but there are 3 classes: expected \(batch, 3\)"),
        (nn.Linear(4, 1), (X, X[:, 0]), {}, r"a mean and a raw scale to predict for 1 target: expected \(batch, 2\)"),
        (nn.Linear(4, 1), [(X, X[:, 0])], {}, r"not clear from targets of torch.float32 .* 1 output .*Gaussian.fit"),
        (nn.Linear(4, 1), [(X, torch.arange(64) % 3)], {}, r"not clear from targets of torch.int64 .* 1 output"),
        pytest.param(  # values on an accelerator are not checked
            *(nn.Linear(4, 1), [(X, Y), (X, 2 * Y)], {}, "Batch 1 .*Labels must lie between 0 and 1 for 2 classes"),
            marks=pytest.mark.cpu_path,
        ),
        (nn.Linear(4, 1), (X, Y), {"likelihood": Categorical(2)}, r"likelihood=Categorical\(2, single_logit=True\)"),
        (partial(Vector, ()), (X, Y), {}, r"outputs of Vector for one example have the shape \(\).*squeeze\(1\)"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:20],
)
def test_what_stays_unclear_is_refused(model, data, options, message):
    with pytest.raises(ValueError, match=message):
        train(model, data, **options)


def test_a_network_that_cannot_be_called_is_explained_by_the_trial():
    with pytest.raises(ValueError, match="The network cannot be used with MAP and Plain"):
        train(nn.Linear(5, 1), (X, Y))


def test_a_sigmoid_at_the_end_is_warned_of():
    with pytest.warns(NetworkWarning, match="those of a sigmoid"):
        train(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)), (X, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1)), (X, Y))


def test_the_loss_is_that_of_a_training_with_torch():
    network = nn.Linear(4, 1)
    config = TrainingConfig(epochs=3, batch_size=64, optimizer=partial(torch.optim.SGD, lr=0.1))
    fitted = fit(network, [(X, Y.float())], MAP(), Plain(), config.with_options(schedule="constant"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(X)[:, 0], Y.float()).backward()
        optimizer.step()
    torch.testing.assert_close(fitted.states[0].model.weight, network.weight)


@pytest.mark.parametrize("val_of_loader", [False, True])
def test_the_validation_accuracy_is_that_of_two_classes(val_of_loader):
    config = TrainingConfig(epochs=30, num_validations=1)
    val = (X, Y.float())
    data, val = ([(X, Y)], [val]) if val_of_loader else ((X, Y.float()), val)
    fitted = fit(nn.Linear(4, 1), data, MAP(), Plain(), config, val=val)
    metrics = fitted.info["training"]["last_epoch"]
    evaluation = evaluate(fitted, (X, Y)).metrics
    assert evaluation["accuracy"] > 0.8
    assert metrics["val_accuracy"] == pytest.approx(evaluation["accuracy"])


def test_the_validation_accuracy_of_a_loss_of_the_user():
    likelihood = Custom(nn.BCEWithLogitsLoss(), BINARY)
    config = TrainingConfig(epochs=30, num_validations=1)
    fitted = fit(nn.Linear(4, 1), (X, Y), MAP(), Plain(), config, val=(X, Y), likelihood=likelihood)
    assert fitted.info["training"]["last_epoch"]["val_accuracy"] > 0.8


POSTERIORS = [
    MAP(),
    SWAG(rank=2),
    Laplace("last_layer"),
    Laplace("last_layer_kron"),
    Laplace("kron"),
    Laplace("diag", predictive="sampled"),
    Ensemble(SWAG(rank=2), size=2),
    MCDropout(),
    SGLD(),
    SGVB(),
    BLoB(),
]


@pytest.mark.parametrize("model", [build, Vector], ids=["column", "vector"])
@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda posterior: type(posterior).__name__)
def test_posteriors_predict_save_and_load(posterior, model, tmp_path):
    fitted = fit(model, (X, Y.float()), posterior, Plain(), TrainingConfig(epochs=8))
    predictive = fitted.predict(X, 4, seed=1)
    assert predictive.mean.shape == (64, 2)
    if not isinstance(posterior, MCDropout):  # whose masks depend on the batches
        one_by_one = fitted.predict(X, 4, seed=1, vectorized=False, batch_size=63)  # a last batch of one example
        torch.testing.assert_close(one_by_one.mean, predictive.mean, rtol=1e-5, atol=1e-6)
    fitted.save(tmp_path / "run")
    loaded = FittedPosterior.load(tmp_path / "run", model=model(axes=(1,)) if model is Vector else build((4,)))
    assert loaded.likelihood == BINARY
    assert torch.equal(loaded.predict(X, 4, seed=1).mean, predictive.mean)


@pytest.mark.parametrize("model", [build, Vector], ids=["column", "vector"])
def test_ensembles_are_trained_vectorized(model):
    config = TrainingConfig(epochs=3, num_validations=1)
    fitted = fit(model, (X, Y), Ensemble(MAP(), size=3), SAM(), config, val=(X, Y))
    assert 0 <= fitted.info["training"]["last_epoch"]["val_accuracy"] <= 1
    assert len(fitted.states) == 3


@pytest.mark.parametrize("model", [build, Vector], ids=["column", "vector"])
@pytest.mark.parametrize("posterior", [SWAG(rank=2), Laplace("last_layer")], ids=["whole", "last layer"])
def test_compiled_and_exported_posteriors_predict_two_classes(posterior, model):
    fitted = calibrate(fit(model, (X, Y), posterior, Plain(), TrainingConfig(epochs=8)), (X, Y))
    compiled, predictive = fitted.compile(num_draws=4), fitted.predict(X, 4)
    for name in ("mean", "entropy", "mutual_information"):
        torch.testing.assert_close(compiled(X)[name].double(), getattr(predictive, name), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(compiled, (X[:3],), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    torch.testing.assert_close(exported(X)["mean"], compiled(X)["mean"])


def test_students_learn_two_classes():
    fitted = fit(build, (X, Y), SWAG(rank=2), config={"epochs": 8})
    assert distill(fitted, MLP, X, TrainingConfig(epochs=2))(X)["mean"].shape == (64, 2)


@pytest.mark.parametrize("model", [build, Vector], ids=["column", "vector"])
def test_certificates_and_reference_posteriors(model):
    settings = CertificationConfig(prior_stds=(0.03,), epochs=1, num_draws=9, num_trial_draws=3, num_test_draws=3)
    certificate = certify(model, Arrays(X, Y.float()), SAM(), CONFIG, settings)
    assert 0 < certificate.error.bound <= 1
    config = ReferenceConfig(num_chains=2, num_steps=40, num_tuning_steps=20, num_descent_steps=10, num_draws=4)
    reference = sample_reference(partial(Small, model is Vector), Arrays(X, Y.float()), config, likelihood=BINARY)
    assert reference.outputs.shape[-1] == 1
    assert reference.predictive.mean.shape == (len(reference.outputs[0, 0]), 2)


class Small(nn.Linear):
    def __init__(self, squeezes):
        super().__init__(4, 1)
        self.squeezes = squeezes

    def forward(self, x):
        return super().forward(x).squeeze(1) if self.squeezes else super().forward(x)


@pytest.mark.parametrize("targets", [Y.float(), Y.float()[:, None], Y.bool()], ids=["floats", "column", "booleans"])
def test_sharpness_takes_the_labels_of_the_training(targets):
    fitted = train(nn.Linear(4, 1), (X, targets))
    config = SharpnessConfig(num_eigenvalues=1, num_trace_probes=2)
    (row, *_), (expected, *_) = (
        measure_posterior_sharpness(fitted, (X, labels), num_draws=1, sharpness_config=config).rows
        for labels in (targets, Y)
    )
    assert row.trained == expected.trained


def test_comparisons_take_whole_numbers_as_classes():
    options = {"config": CONFIG, "num_seeds": 1, "likelihood": BINARY}
    result = compare(build, (X, Y.float()), [MAP()], SAM(), **options)
    assert "accuracy" in result.to_pandas().to_string()


def test_the_scikit_learn_classifier():
    labels = np.where(Y.numpy(), "yes", "no")
    classifier = FlatBayesClassifier(MAP(), Plain(), model=build, epochs=30, random_state=0).fit(X.numpy(), labels)
    assert classifier.posterior_.likelihood == BINARY
    assert classifier.score(X.numpy(), labels) > 0.8


def test_a_trained_network_gets_inputs_as_they_are():
    network = nn.Linear(4, 1)
    inputs = 30 + 5 * X
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        network.bias.fill_(-60.0)
    fitted = fit(network, (inputs, Y), MAP(), Plain(), TrainingConfig(epochs=0))
    assert evaluate(fitted, (inputs, Y)).metrics["accuracy"] == 1


def test_regressions_have_no_single_logit():
    assert isinstance(train(nn.Linear(4, 2), (X, X[:, 0])).likelihood, Gaussian)


def test_outputs_are_counted_on_the_device_of_the_network():
    device = torch.device("meta")  # in place of an accelerator: operations on a tensor elsewhere fail
    assert count_outputs(nn.Linear(4, 1).to(device), X) == 1
