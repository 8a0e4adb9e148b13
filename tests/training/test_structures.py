"""Networks that take several inputs or return several outputs: training, saving, loading and prediction."""

import warnings
from collections import UserDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers.utils import ModelOutput

from flatbayes import (
    MAP,
    SAM,
    SWAG,
    FittedPosterior,
    Laplace,
    TrainingConfig,
    calibrate,
    conformalize,
    distill,
    evaluate,
    fit,
)
from flatbayes.core.network_interface import adapt_network
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import IVON, LRT, SGHMC, SGLD, SGVB, Ensemble, MCDropout, Posterior

NUM_EXAMPLES, BATCH_SIZE = 24, 8
CONFIG = TrainingConfig(epochs=2).with_options(collection={"start_fraction": 0.0})
POSTERIORS: list[Posterior] = [
    MAP(),
    SWAG(rank=2),
    Laplace(),
    Laplace(structure="kron"),
    Laplace(structure="diag", predictive="sampled"),
    SGVB(),
    IVON(),
    LRT(),
    MCDropout(),
    SGLD(),
    SGHMC(),
    Ensemble(MAP(), 2),
]
Pair = namedtuple("Pair", ["logits", "features"])


@dataclass
class Heads:
    logits: Tensor
    features: Tensor


@dataclass
class Output(ModelOutput):  # type: ignore[misc]
    loss: Tensor | None = None
    logits: Tensor | None = None


class TwoInputs(nn.Module):
    """Calls its parts with two tensors, as a tuple or dictionary in one argument; has BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(2, 6)
        self.norm, self.drop, self.head = nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Linear(6, 3)

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.norm(self.first(first) + self.second(second)).relu()))
        return logits

    def forward(self, inputs: Any) -> Tensor:
        return self.combine(*(inputs.values() if isinstance(inputs, Mapping) else inputs))


class ByName(TwoInputs):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Any:  # type: ignore[override]
        assert b is not None
        return {"loss": None, "logits": self.combine(a, b)}


class Several(TwoInputs):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        return self.combine(first, second)


class Wrapped(nn.Module):
    """Returns its logits within another type."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap, self.body = wrap, nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.wrap(self.head(features), features)


class Items(Dataset[Any]):
    def __init__(self, make: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(NUM_EXAMPLES, 6, generator=generator), torch.arange(NUM_EXAMPLES) % 3
        self.make = make

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, k: int) -> Any:
        return self.make(self.x[k, :4], self.x[k, 4:], self.y[k])

    @property
    def tuple_inputs(self) -> tuple[Tensor, Tensor]:
        return self.x[:, :4].contiguous(), self.x[:, 4:].contiguous()

    @property
    def named_inputs(self) -> dict[str, Tensor]:
        return dict(zip("ab", self.tuple_inputs, strict=True))


INPUTS: dict[str, tuple[type[nn.Module], Callable[..., Any], str]] = {
    "tuple": (TwoInputs, lambda a, b, y: ((a, b), y), "tuple_inputs"),
    "tuple to several arguments": (Several, lambda a, b, y: ((a, b), y), "tuple_inputs"),
    "dictionary": (TwoInputs, lambda a, b, y: ({"a": a, "b": b}, y), "named_inputs"),
    "dictionary by name": (ByName, lambda a, b, y: ({"a": a, "b": b}, y), "named_inputs"),
    "dictionary with labels": (ByName, lambda a, b, y: {"a": a, "b": b, "labels": y}, "named_inputs"),
}


@pytest.mark.parametrize(
    ("kind", "posterior"),
    [("dictionary by name", posterior) for posterior in POSTERIORS] + [(kind, SWAG(rank=2)) for kind in INPUTS],
)
def test_several_inputs(kind: str, posterior: Posterior, tmp_path: Path) -> None:
    network, make, inputs_name = INPUTS[kind]
    items = Items(make)
    inputs = getattr(items, inputs_name)
    loader = DataLoader(items, BATCH_SIZE)
    fitted = fit(network, loader, posterior, SAM(), CONFIG, likelihood=Categorical(3))
    expected = fitted.predict(inputs, 2, batch_size=BATCH_SIZE).log_probs
    assert torch.equal(fitted.predict(loader, 2).log_probs, expected)
    torch.testing.assert_close(fitted.predict(inputs, 2, batch_size=5).log_probs, expected, atol=1e-5, rtol=1e-5)
    assert evaluate(fitted, inputs, items.y, 2).metrics["nll"] > 0
    loaded = FittedPosterior.load(fitted.save(tmp_path / "p"), network)
    assert torch.equal(loaded.predict(inputs, 2, batch_size=BATCH_SIZE).log_probs, expected)
    assert torch.equal(loaded.predict(loader, 2).log_probs, expected)
    other = loaded.predict(inputs, 2, seed=1).log_probs  # new draws, with statistics from the saved inputs
    torch.testing.assert_close(other, fitted.predict(inputs, 2, seed=1).log_probs, atol=1e-5, rtol=1e-5)


OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "dictionary": (lambda o, f: {"logits": o, "features": f}, None),
    "dictionary of one": (lambda o, f: {"scores": o}, None),
    "key": (lambda o, f: {"scores": o, "features": f}, "scores"),
    "index": (lambda o, f: (f, o), 1),
    "last index": (lambda o, f: [f, o], -1),
    "list of one": (lambda o, f: [o], None),
    "dataclass": (Heads, None),
    "named tuple": (Pair, None),
    "ModelOutput": (lambda o, f: Output(logits=o), None),
    "function": (lambda o, f: {"heads": [f, o]}, lambda outputs: outputs["heads"][1]),
}


@pytest.mark.parametrize(
    ("kind", "posterior"),
    [("index", posterior) for posterior in POSTERIORS[2:8:2]] + [(kind, SWAG(rank=2)) for kind in OUTPUTS],
)
def test_outputs(kind: str, posterior: Posterior, tmp_path: Path) -> None:
    wrap, output = OUTPUTS[kind]
    items = Items(lambda a, b, y: (torch.cat([a, b]), y))
    results = []
    for make, selector in ((wrap, output), (lambda o, f: o, None)):
        torch.manual_seed(0)
        network = partial(Wrapped, make)
        loader = DataLoader(items, BATCH_SIZE)
        fitted = fit(network, loader, posterior, SAM(), CONFIG, likelihood=Categorical(3), output=selector)
        results.append(fitted.predict(items.x, 3).log_probs)
        given: Any = {"output": selector} if callable(selector) else {}
        loaded = FittedPosterior.load(fitted.save(tmp_path / "p"), network, **given)
        assert torch.equal(loaded.predict(items.x, 3).log_probs, results[-1])
    assert torch.equal(*results)  # those of the network that returns the tensor itself


@pytest.mark.parametrize("members", ["one_by_one", "vectorized"])
def test_outputs_of_vectorized_members_and_splits(members: str) -> None:
    from flatbayes.data import Digits

    data = Digits().load(seed=0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return self.layer(x.flatten(1)), None

    config = replace(CONFIG, epochs=1).with_options(batch_size=256, distribution={"members": members})
    fitted = fit(Net, data, Ensemble(MAP(), 2), SAM(), config)
    assert fitted.predict(data.test.inputs[:9], 2).mean.shape == (9, 10)


def test_function_of_the_output_must_be_given_again(tmp_path: Path) -> None:
    items = Items(lambda a, b, y: (torch.cat([a, b]), y))
    network = Wrapped(lambda o, f: (o, f))
    fitted = fit(
        network, DataLoader(items, 8), MAP(), SAM(), CONFIG, likelihood=Categorical(3), output=lambda o: o[0]
    )
    with pytest.raises(ValueError, match="selected by the function .* pass `output`"):
        FittedPosterior.load(fitted.save(tmp_path), network)


@pytest.mark.parametrize(
    ("wrap", "output", "words"),
    [
        (lambda o, f: (o, f), None, r"a tuple of 2 tensors.*Name the output to use: output=0"),
        (lambda o, f: {"u": o, "v": f}, None, "output='u'"),
        (lambda o, f: {"u": o}, "v", "without the output 'v'; its outputs: 'u'"),
        (lambda o, f: o, 0, "leave `output` out"),
        (lambda o, f: "text", None, "without a tensor"),
        (lambda o, f: (o, f), lambda outputs: outputs, "must be one tensor"),
    ],
)
def test_outputs_that_are_refused(wrap: Any, output: Any, words: str) -> None:
    items = Items(lambda a, b, y: (torch.cat([a, b]), y))
    with pytest.raises(ValueError, match=words):
        fit(Wrapped(wrap), DataLoader(items, 8), MAP(), SAM(), CONFIG, likelihood=Categorical(3), output=output)


@pytest.mark.parametrize(
    ("network", "make", "words"),
    [
        (TwoInputs, lambda a, b, y: (a, b, y), "2|inputs, targets"),
        (TwoInputs, lambda a, b, y: {"a": a, "b": b}, "Exactly one must hold the targets"),
        (ByName, lambda a, b, y: ({"a": a, "b": b, "c": b}, y), "also have c"),
        (TwoInputs, lambda a, b, y: (("text", a), y), "inputs\\[0\\]"),
        (TwoInputs, lambda a, b, y: ((a, a), y), "cannot be called with inputs that are a tuple of 2"),
    ],
)
def test_inputs_that_are_refused(network: Any, make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(network, DataLoader(Items(make), 8), MAP(), SAM(), CONFIG, likelihood=Categorical(3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: {"a": x["a"]}, "lacks b"),
        (lambda x: x["a"], "trained on a dictionary with a, b"),
        (lambda x: {"a": x["a"][:3], "b": x["b"]}, "numbers differ"),
    ],
)
def test_other_inputs_at_prediction_are_refused(change: Any, words: str) -> None:
    items = Items(INPUTS["dictionary by name"][1])
    fitted = fit(ByName, DataLoader(items, 8), MAP(), SAM(), CONFIG, likelihood=Categorical(3))
    with pytest.raises(ValueError, match=words):
        fitted.predict(change(items.named_inputs))
    with_labels = UserDict(items.named_inputs | {"labels": items.y})
    assert torch.equal(fitted.predict(with_labels).mean, fitted.predict(items.named_inputs).mean)


WITH_LABELS = Items(INPUTS["dictionary with labels"][1])
PAIRS = Items(INPUTS["tuple"][1])
STRUCTURED: dict[str, tuple[type[nn.Module], Any, Any]] = {
    "dataset of dictionaries": (ByName, WITH_LABELS, WITH_LABELS.named_inputs),
    "pair with a dictionary": (ByName, (UserDict(PAIRS.named_inputs), PAIRS.y), PAIRS.named_inputs),
    "pair with arrays": (ByName, (PAIRS.named_inputs, PAIRS.y.numpy()), PAIRS.named_inputs),
    "pair with a tuple": (TwoInputs, (PAIRS.tuple_inputs, PAIRS.y.tolist()), PAIRS.tuple_inputs),
    "dataset of tuples": (TwoInputs, PAIRS, PAIRS.tuple_inputs),
}


@pytest.mark.parametrize("kind", STRUCTURED)
def test_examples_of_several_inputs_are_joined_to_batches(kind: str) -> None:
    network, data, inputs = STRUCTURED[kind]
    first, second = (fit(network, data, MAP(), SAM(), CONFIG, likelihood=Categorical(3), val=data) for _ in range(2))
    expected = first.predict(inputs, 2)
    assert torch.equal(second.predict(inputs, 2).mean, expected.mean)
    assert evaluate(first, data).metrics == evaluate(first, inputs, PAIRS.y).metrics
    assert first.check(data).findings
    with warnings.catch_warnings(action="ignore"):  # few examples
        assert calibrate(first, data).calibration is not None
        assert conformalize(first, data) is not None
    if isinstance(data, Dataset):
        assert torch.equal(second.predict(data, 2, batch_size=7).mean, expected.mean)


@pytest.mark.parametrize("is_raw", [True, False])
def test_a_dataset_is_predicted_in_order(is_raw: bool) -> None:
    dataset = TensorDataset(PAIRS.x, PAIRS.y)
    fitted = fit(nn.Linear(6, 3), dataset if is_raw else DataLoader(dataset, 8), MAP(), SAM(), CONFIG)
    expected = fitted.predict(PAIRS.x).mean
    for data in (dataset, TensorDataset(PAIRS.x)):
        torch.testing.assert_close(fitted.predict(data, batch_size=5).mean, expected)


def test_one_example_in_place_of_a_batch_is_explained() -> None:
    fitted = fit(ByName, WITH_LABELS, MAP(), SAM(), CONFIG, likelihood=Categorical(3))
    with pytest.raises(ValueError, match="one axis.*pass tensor\\[None\\]"):
        fitted.predict({name: tensor[0, :2] for name, tensor in WITH_LABELS.named_inputs.items()})
    items = [WITH_LABELS[k] for k in range(4)]
    expected = evaluate(fitted, DataLoader(items, batch_size=4)).metrics
    for examples in (items, [{**item, "labels": int(item["labels"])} for item in items]):
        assert evaluate(fitted, examples).metrics == pytest.approx(expected)
    pairs = [({"a": item["a"], "b": item["b"]}, int(item["labels"])) for item in items]
    with pytest.raises(ValueError, match="one example.*pass DataLoader\\(examples, batch_size=32\\)"):
        evaluate(fitted, pairs)


def test_examples_that_cannot_be_joined_ask_for_a_collate_function() -> None:
    ragged = Items(lambda a, b, y: {"a": a[: 2 + int(y)], "b": b, "labels": y})
    with pytest.raises(ValueError, match=r"cannot be joined.*collate_fn"):
        fit(ByName, ragged, MAP(), SAM(), CONFIG, likelihood=Categorical(3))


def test_several_inputs_are_neither_compiled_nor_distilled() -> None:
    items = Items(INPUTS["tuple"][1])
    fitted = fit(TwoInputs, DataLoader(items, 8), MAP(), SAM(), CONFIG, likelihood=Categorical(3))
    with pytest.raises(ValueError, match="a compiled posterior takes one"):
        fitted.compile(1)
    with pytest.raises(ValueError, match="not one tensor, which distillation takes"):
        distill(fitted, TwoInputs(), items.tuple_inputs)  # type: ignore[arg-type]


def test_network_with_one_tensor_has_no_hooks() -> None:
    items = Items(lambda a, b, y: a)
    loader = DataLoader(TensorDataset(items.x, items.y), 8)
    network = nn.Linear(6, 3)
    fitted = fit(network, loader, MAP(), SAM(), CONFIG, likelihood=Categorical(3))
    assert not fitted.states[0].model._forward_hooks
    assert not fitted.states[0].model._forward_pre_hooks


def test_own_loop_adapts_a_network() -> None:
    network = adapt_network(Wrapped(lambda o, f: (f, o)), output=1)
    assert network(torch.zeros(2, 6)).shape == (2, 3)
    assert adapt_network(network, output=0)(torch.zeros(2, 6)).shape == (2, 5)
