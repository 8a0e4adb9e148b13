import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import (
    MAP,
    SAM,
    SWAG,
    Arrays,
    Bernoulli,
    Categorical,
    Custom,
    Diabetes,
    Digits,
    FittedPosterior,
    Gaussian,
    Plain,
    evaluate,
    fit,
    fit_together,
)
from flatbayes.data import DataWarning
from flatbayes.training.input_scale import compute_constant_loss
from flatbayes.training.trial import NetworkWarning, warn_of_probabilities

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=GENERATOR)
Y = (X @ torch.randn(4, 3, generator=GENERATOR) > 0).long()
ONE_HOT = torch.eye(3, dtype=torch.int64)[torch.arange(64) % 3]
CONFIG = {"epochs": 2}


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return {"features": x, "scores": self.linear(x)}


def linear(num_outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, num_outputs))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16], ids=str
)
def test_labels_of_a_loader_have_any_type(dtype):
    fitted = fit(linear, DataLoader(TensorDataset(X, Y.to(dtype)), 16), MAP(), config=CONFIG)
    assert fitted.likelihood == Bernoulli(3)
    expected = evaluate(fit(linear, DataLoader(TensorDataset(X, Y), 16), MAP(), config=CONFIG), (X, Y))
    assert evaluate(fitted, (X, Y)).metrics == expected.metrics


def test_one_hot_rows_of_a_loader_ask_what_they_are():
    data = DataLoader(TensorDataset(X, ONE_HOT), 16)
    with pytest.raises(ValueError, match=r"class indices after argmax\(1\).*likelihood=Bernoulli\(num_labels\)"):
        fit(linear, data, MAP(), config=CONFIG)
    assert fit(linear, data, MAP(), config=CONFIG, likelihood=Bernoulli(3)).likelihood == Bernoulli(3)


@pytest.mark.parametrize("likelihood", [Bernoulli, "bernoulli", Bernoulli(3)], ids=["class", "name", "instance"])
def test_the_likelihood_makes_labels_of_one_hot_rows(likelihood):
    fitted = fit(linear, (X, ONE_HOT), MAP(), config=CONFIG, likelihood=likelihood)
    assert fitted.likelihood == Bernoulli(3)
    assert fitted.info["target_names"] == ["label_0", "label_1", "label_2"]


def test_a_gaussian_makes_numbers_of_zeros_and_ones():
    assert fit(linear(6), (X, Y), MAP(), config=CONFIG, likelihood=Gaussian).likelihood.num_targets == 3


def test_examples_without_a_label_do_not_count():
    targets = Y.clone()
    targets[5], targets[6, 1] = -100, -100
    for data in ((X, targets), DataLoader(TensorDataset(X, targets), 16)):
        assert fit(linear, data, MAP(), config=CONFIG).states[0].num_data == 63
    twice = (torch.cat([X, X]), torch.cat([targets, targets]))  # enough to hold some out
    fitted = fit(linear, twice, MAP(), config={"min_steps": 20, "min_epochs": 1})
    assert fitted.states[0].num_data + fitted.info["held_out"] == 126


def test_a_label_with_one_value_is_warned_of():
    with pytest.warns(DataWarning, match="at most one of the values 0 and 1.*'label_2'"):
        fit(linear, (X, Y * torch.tensor([1, 1, 0])), MAP(), config=CONFIG)


def test_the_description_says_labels():
    fitted = fit(linear, (X, Y), MAP(), config=CONFIG)
    assert "3 labels" in repr(fitted)
    assert "3 labels" in fitted.summary()
    assert "3 targets" in repr(fit(linear(6), (X, Y), MAP(), config=CONFIG, likelihood=Gaussian))
    assert [*fitted.predict(X).to_pandas(fitted.info["target_names"])][2:] == [
        f"probability_label_{k}" for k in range(3)
    ]


@pytest.mark.parametrize(
    ("data", "likelihood", "message"),
    [
        (
            Digits(),
            Bernoulli(10),
            r"Bernoulli.*for several labels of each example, and the targets are one of 10 classes",
        ),
        (Diabetes(), Bernoulli(1), r"for several labels of each example, and the targets are numbers to predict"),
        ((X, Y), Categorical(3), r"for one class of each example, and the targets are 3 labels"),
        ((X, Y), Custom(nn.CrossEntropyLoss(), Categorical(3)), "for one class of each example"),
        ((X, Y), Bernoulli(4), "must have 4 labels"),
        (
            (X, Y.clone().fill_diagonal_(-100)),
            Bernoulli(3, ignore_index=None),
            "not known are -100",
        ),
    ],
    ids=["classes", "numbers", "labels", "custom", "count", "unknown"],
)
def test_likelihood_and_targets_of_different_kinds_are_refused(data, likelihood, message):
    with pytest.raises(ValueError, match=message):
        fit("MLP", data, MAP(), config=CONFIG, likelihood=likelihood)


def test_a_new_head_has_an_output_for_each_label():
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))
    for data in ((X, Y), DataLoader(TensorDataset(X, Y.float()), 16)):
        fitted = fit(body, data, MAP(), config=CONFIG, new_head=True)
        assert fitted.states[0].model[-1].out_features == 3
    with pytest.raises(ValueError, match="there are 3 labels.*new_head=True"):
        fit(body, (X, Y), MAP(), config=CONFIG)


def test_init_and_output():
    start = linear().state_dict()
    fitted = fit(linear, (X, Y), MAP(), config={"epochs": 0}, init=start)
    assert torch.equal(fitted.states[0].model[0].weight, start["0.weight"])
    assert fit(Pairs, (X, Y), MAP(), config=CONFIG, output="scores").likelihood == Bernoulli(3)


def test_inputs_of_a_trained_network_are_used_as_given():
    network, scaled = linear(), 20 * X + 5
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(scaled), Y.float()).backward()
        optimizer.step()
    fitted = fit(network, (scaled, Y), MAP(), config={"epochs": 0})
    nll = 3 * nn.functional.binary_cross_entropy_with_logits(network(scaled), Y.float()).item()
    assert fitted.info["scale_nlls"][0] == pytest.approx(nll, abs=1e-4)
    assert evaluate(fitted, (scaled, Y)).metrics["nll"] == pytest.approx(nll, abs=1e-4)


def test_the_loss_of_a_constant_is_the_entropy_of_each_label():
    targets = torch.tensor([[0, 1], [0, 1], [1, -100], [1, 1]])
    assert compute_constant_loss(Bernoulli(2), targets) == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
    assert compute_constant_loss(Categorical(2), targets[:, 0]) == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("data", [(X, Y), DataLoader(TensorDataset(X, Y), 16)], ids=["pair", "loader"])
def test_a_loss_of_torch_takes_the_labels(data):
    likelihood = Custom(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])), Bernoulli(3))
    fitted = fit(linear, data, MAP(), config=CONFIG, likelihood=likelihood)
    assert fitted.predict(X).mean.shape == (64, 3)


def test_a_loss_gets_nan_for_labels_that_are_not_known():
    seen = []
    likelihood = Custom(lambda outputs, targets: seen.append(targets) or outputs.sum(), Bernoulli(2))
    likelihood.loss(torch.zeros(2, 2), torch.tensor([[1, -100], [0, 1]]))
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), equal_nan=True)


def test_probabilities_as_outputs_are_warned_of():
    with pytest.warns(NetworkWarning, match="those of a sigmoid.*Leave out the sigmoid"):
        fit(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), (X, Y), MAP(), config=CONFIG)
    warn_of_probabilities(torch.rand(4, 3, requires_grad=True) * 0.5)  # in the range of probabilities, and none
    warn_of_probabilities(nn.functional.silu(torch.rand(4, 1, requires_grad=True)))


def test_label_smoothing_is_for_classes():
    with pytest.raises(ValueError, match="label_smoothing is for classes"):
        fit(linear, (X, Y), MAP(), config={"epochs": 2, "optimization": {"label_smoothing": 0.1}})


def test_posteriors_of_one_training_save_and_load(tmp_path):
    data = Arrays(X, Y).load(seed=0)
    posteriors = fit_together("MLP", data, [MAP(), SWAG(rank=2)], Plain(), config={"epochs": 8})
    for name, fitted in zip(("map", "swag"), posteriors, strict=True):
        again = FittedPosterior.load(fitted.save(tmp_path / name))
        assert again.likelihood == Bernoulli(3)
        assert torch.equal(again.predict(X, seed=1).mean, fitted.predict(X, seed=1).mean)


def test_the_radius_is_chosen():
    fitted = fit("MLP", Arrays(X, Y).load(seed=0), MAP(), SAM("auto"), {"epochs": 3})
    assert "rho" in fitted.info["radius"]["name"]


@pytest.mark.parametrize("as_loader", [False, True])
def test_the_accuracy_of_validation_labels_is_that_of_the_known_ones(as_loader):
    labels = Y.clone()
    labels[::3, 0], labels[5] = -100, -100
    data = X, labels
    val = DataLoader(TensorDataset(*data), 10) if as_loader else data
    fitted = fit(linear(), val, MAP(), Plain(), CONFIG, val=val, likelihood=Bernoulli(3))
    expected = evaluate(fitted, data).metrics["accuracy"]
    assert fitted.info["training"]["last_epoch"]["val_accuracy"] == pytest.approx(expected)
