"""Data as tokenizers and data sets of texts give them: lists of numbers, texts, names of classes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler

from flatbayes import MAP, Arrays, FittedPosterior, TrainingConfig, compare, evaluate, fit, fit_together
from flatbayes.data.checks import DataWarning
from flatbayes.data.pairs import collate_examples

NUM_EXAMPLES, LENGTH = 24, 5
CONFIG = TrainingConfig(epochs=2, batch_size=8)
IDS = torch.randint(1, 9, (NUM_EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
LISTS = {name: tensor.tolist() for name, tensor in INPUTS.items()}
LABELS = (IDS[:, 0] > 4).long()
TEXTS = [" ".join(map(str, row)) for row in IDS.tolist()]


class Words(nn.Module):
    """Mean of embeddings, and a linear layer."""

    def __init__(self, num_outputs: int = 2) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, num_outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = attention_mask[:, :, None]
        return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))


class Rows(Dataset):
    """Rows of lists and a label, as a Hugging Face data set without a format gives them."""

    def __init__(self, labels=LABELS.tolist(), key="label", **more) -> None:
        self.labels, self.key, self.more = labels, key, more

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, k: int) -> dict:
        more = {name: values[k] for name, values in self.more.items()}
        return {**{name: rows[k] for name, rows in LISTS.items()}, self.key: self.labels[k], **more}


def make_network(num_outputs: int = 2) -> Words:
    torch.manual_seed(0)
    return Words(num_outputs)


def fit_map(data, **options):
    return fit(make_network(), data, MAP(), config=CONFIG, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit_map((INPUTS, LABELS))


@pytest.mark.parametrize("key", ["label", "labels"])
def test_rows_of_lists_are_examples(fitted, key):
    rows = Rows(key=key)
    from_rows = fit_map(rows, val=rows)
    torch.testing.assert_close(from_rows.predict(INPUTS).mean, fitted.predict(INPUTS).mean)
    torch.testing.assert_close(from_rows.predict(rows).mean, from_rows.predict(INPUTS).mean)
    assert evaluate(from_rows, rows).metrics == evaluate(from_rows, (INPUTS, LABELS)).metrics
    compare(make_network(), rows, [MAP()], num_seeds=2, config={"epochs": 1})


def test_labels_in_lists_are_rows():
    labels = torch.stack([LABELS, 1 - LABELS, torch.ones_like(LABELS)], 1)
    fitted = fit(make_network(3), Rows(labels.tolist()), MAP(), config=CONFIG)
    assert fitted.predict(INPUTS).mean.shape == (NUM_EXAMPLES, 3)


def test_lists_of_a_tokenizer_are_tensors(fitted):
    from_lists = fit_map((LISTS, LABELS))
    torch.testing.assert_close(from_lists.predict(LISTS).mean, fitted.predict(INPUTS).mean)


def test_lists_of_several_lengths_ask_for_padding(fitted):
    ragged = {name: [row[: 2 + k % 3] for k, row in enumerate(rows)] for name, rows in LISTS.items()}
    for call in (lambda: fit_map((ragged, LABELS)), lambda: fitted.predict(ragged)):
        with pytest.raises(ValueError, match=r"\['input_ids'\]\[0\] is a list of 2 numbers.*padding=True"):
            call()


def test_lists_that_torch_has_transposed_are_explained():
    with pytest.raises(ValueError, match="'input_ids' is a tuple of 5 tensors, one for each position.*with_format"):
        fit_map(DataLoader(Rows(), batch_size=8))


@pytest.mark.parametrize("inputs", [TEXTS, np.array(TEXTS), tuple(TEXTS)], ids=["list", "array", "tuple"])
def test_texts_ask_for_a_tokenizer(fitted, inputs):
    labels = LABELS.tolist()
    calls = (
        lambda: fit_map((inputs, labels)),
        lambda: fit_map([(inputs, LABELS)]),
        lambda: fit_map(Rows(text=TEXTS)),
        lambda: compare(make_network(), (inputs, labels), [MAP()]),
        lambda: fitted.predict(inputs),
        lambda: evaluate(fitted, (inputs, labels)),
    )
    for call in calls:
        with pytest.raises(ValueError, match="Turn texts into numbers with the tokenizer of the network"):
            call()


def test_a_dictionary_with_its_labels_is_no_pair():
    with pytest.raises(TypeError, match=r"A dict is not data to train on: take its labels out"):
        fit_map({**INPUTS, "labels": LABELS})


def test_names_of_classes_are_labels_beside_several_inputs(fitted, tmp_path):
    named = fit_map((INPUTS, NAMES), val=(INPUTS, NAMES))
    torch.testing.assert_close(named.predict(INPUTS).mean, fitted.predict(INPUTS).mean)
    assert named.info["class_names"] == ["no", "yes"]
    assert "2 classes" in named.summary()
    loaded = FittedPosterior.load(named.save(tmp_path / "named"), make_network())
    expected = evaluate(named, (INPUTS, LABELS)).metrics
    assert evaluate(named, (INPUTS, NAMES)).metrics == evaluate(loaded, (INPUTS, NAMES)).metrics == expected
    for posterior in fit_together(make_network(), (INPUTS, NAMES), [MAP()], config=CONFIG):
        assert posterior.info["class_names"] == ["no", "yes"]
    splits = Arrays(INPUTS, NAMES, val_size=0.2).load(seed=0)
    assert fit_map(splits).info["class_names"] == ["no", "yes"]


NAMES = [("no", "yes")[label] for label in LABELS.tolist()]


class HubRows:
    """What a data set of Hugging Face has, which is no data set of torch."""

    def __init__(self, rows):
        self.rows, self.column_names = rows, list(rows[0])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return self.rows[k]


@pytest.mark.parametrize("key", ["label", "labels"])
@pytest.mark.parametrize("kind", [Rows, list, HubRows])
def test_names_of_classes_are_labels_of_rows(fitted, kind, key):
    named = Rows(NAMES, key=key)
    rows = named if kind is Rows else kind([named[k] for k in range(NUM_EXAMPLES)])
    from_rows = fit_map(rows, val=rows)
    assert from_rows.info["class_names"] == ["no", "yes"]
    torch.testing.assert_close(from_rows.predict(INPUTS).mean, fitted.predict(INPUTS).mean)
    torch.testing.assert_close(from_rows.predict(rows).mean, fitted.predict(INPUTS).mean)
    expected = evaluate(fitted, (INPUTS, LABELS)).metrics
    loader = DataLoader(named, batch_size=7, collate_fn=collate_examples)
    for data in (rows, loader, (INPUTS, NAMES)):
        assert evaluate(from_rows, data).metrics == pytest.approx(expected)
    positive = [row for row in (named[k] for k in range(NUM_EXAMPLES)) if row[key] == "yes"]
    where = LABELS == 1
    expected = evaluate(fitted, ({name: tensor[where] for name, tensor in INPUTS.items()}, LABELS[where])).metrics
    assert evaluate(from_rows, positive).metrics["nll"] == pytest.approx(expected["nll"])
    with pytest.raises(ValueError, match="'maybe'"):
        evaluate(from_rows, Rows(["maybe"] * NUM_EXAMPLES, key=key))


def test_rows_with_numbers_as_labels_are_examples_and_no_batches(fitted):
    rows = [Rows()[k] for k in range(NUM_EXAMPLES)]
    torch.testing.assert_close(fit_map(rows).predict(INPUTS).mean, fitted.predict(INPUTS).mean)
    batches = [
        {**{name: tensor[k : k + 8] for name, tensor in INPUTS.items()}, "label": LABELS[k : k + 8]} for k in (0, 8)
    ]
    assert fit_map(batches).states[0].num_data == 16


def test_names_of_classes_of_rows_are_held_out_and_compared():
    rows = 4 * [Rows(NAMES)[k] for k in range(NUM_EXAMPLES)]
    held_out = fit(make_network(), rows, MAP(), config={"min_steps": 2, "min_epochs": 1})
    assert (held_out.info["held_out"], held_out.info["class_names"]) == (14, ["no", "yes"])
    result = compare(make_network(), Rows(NAMES), [MAP()], num_seeds=2, config={"epochs": 1})
    numbers = compare(make_network(), Rows(), [MAP()], num_seeds=2, config={"epochs": 1})
    assert str(result) == str(numbers)


@pytest.mark.parametrize("as_list", [True, False])
def test_names_of_classes_are_labels_of_pairs(as_list):
    inputs = torch.randn(NUM_EXAMPLES, 3, generator=torch.Generator().manual_seed(0))
    pairs = [*zip(inputs, NAMES, strict=True)]

    class Pairs(Dataset):
        def __len__(self):
            return NUM_EXAMPLES

        def __getitem__(self, k):
            return pairs[k]

    data = pairs if as_list else Pairs()
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    named, numbered = (fit(network, examples, MAP(), config=CONFIG) for examples in (data, (inputs, LABELS)))
    assert named.info["class_names"] == ["no", "yes"]
    torch.testing.assert_close(named.predict(inputs).mean, numbered.predict(inputs).mean)
    assert evaluate(named, data).metrics == evaluate(numbered, (inputs, LABELS)).metrics
    only = [pair for pair in pairs if pair[1] == "yes"]  # the class with the number 1
    assert (
        evaluate(named, only).metrics["nll"]
        == evaluate(named, (inputs[LABELS == 1], LABELS[LABELS == 1])).metrics["nll"]
    )


def test_a_missing_name_and_validation_examples_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="labels of the training examples"):
        fit_map(Rows([*NAMES[:-1], None]))
    with pytest.raises(TypeError, match="so val must be a map-style dataset with texts as labels"):
        fit_map(Rows(NAMES), val=Rows())


def test_names_in_a_loader_are_classes():
    fitted = fit_map(DataLoader(Rows(NAMES), batch_size=8, collate_fn=collate_examples))
    assert fitted.info["class_names"] == sorted(set(NAMES))


def test_names_of_classes_are_held_out_alike():
    inputs = {name: tensor.repeat(4, 1) for name, tensor in INPUTS.items()}
    held_out = fit(make_network(), (inputs, 4 * NAMES), MAP(), config={"min_steps": 2, "min_epochs": 1})
    assert held_out.info["held_out"] == 14


def test_validation_labels_beside_names_of_classes_must_be_names():
    with pytest.raises(TypeError, match=r"val must be a pair \(inputs, labels\) like the data.*got a list"):
        fit_map((INPUTS, NAMES), val=[(INPUTS, LABELS)])


@pytest.mark.parametrize(
    "data", [(INPUTS, LABELS), (INPUTS, NAMES), [(INPUTS, LABELS)]], ids=["pair", "names", "loader"]
)
def test_outputs_without_an_example_are_noted(data):
    with pytest.warns(
        DataWarning, match=r"^2 of the 4 classes have no training example: \['2', '3'\].*new_head=True"
    ):
        fit(make_network(4), data, MAP(), config=CONFIG)
    assert fit(make_network(4), data, MAP(), config=CONFIG, new_head=True).predict(INPUTS).mean.shape[1] == 2


def test_a_random_order_of_examples_to_predict_is_noted(fitted):
    rows = Rows()
    shuffled = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate_examples)
    with pytest.warns(DataWarning, match="in a random order, so it is unknown which prediction belongs to which"):
        fitted.predict(shuffled)
    in_order = DataLoader(rows, batch_size=8, collate_fn=collate_examples)
    torch.testing.assert_close(fitted.predict(in_order).mean, fitted.predict(INPUTS).mean)
    assert evaluate(fitted, shuffled).metrics["nll"] == pytest.approx(evaluate(fitted, in_order).metrics["nll"])


@pytest.mark.parametrize("kind", ["batch sampler", "distributed"])
def test_so_it_is_of_other_samplers(fitted, kind):
    rows = Rows()
    options = {"batch_sampler": BatchSampler(RandomSampler(rows), 8, drop_last=False)}
    if kind == "distributed":
        options = {"batch_size": 8, "sampler": DistributedSampler(rows, num_replicas=1, rank=0)}
    with pytest.warns(DataWarning, match="in a random order"):
        fitted.predict(DataLoader(rows, collate_fn=collate_examples, **options))


def test_examples_that_a_loader_leaves_out_are_noted(fitted):
    loader = DataLoader(Rows(), batch_size=7, drop_last=True, collate_fn=collate_examples)
    with pytest.warns(DataWarning, match="leaves out 3 examples of 24.*drop_last=False"):
        assert len(fitted.predict(loader).mean) == 21
    with pytest.warns(DataWarning, match="leaves out 3 examples of 24"):
        evaluate(fitted, loader)
    fitted.predict(DataLoader(Rows(), batch_size=8, drop_last=True, collate_fn=collate_examples))


def test_the_number_of_trained_weights_is_said(fitted, tmp_path):
    frozen = fit_map((INPUTS, LABELS), freeze=["embedding*"])
    assert "Words with 46 weights, 10 of them trained" in frozen.summary()
    loaded = FittedPosterior.load(frozen.save(tmp_path / "frozen"), make_network())
    assert "Words with 46 weights, 10 of them trained" in repr(loaded)
    assert "Words with 46 weights, 24 training examples" in repr(fitted)


def test_another_architecture_of_an_artefact_is_answered_in_short(fitted, tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(200)])

    with pytest.raises(ValueError, match="was fitted to another architecture than Other") as error:
        FittedPosterior.load(fitted.save(tmp_path / "words"), Other())
    assert len(str(error.value)) < 1000
