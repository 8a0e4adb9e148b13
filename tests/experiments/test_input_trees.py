"""Comparisons and searches where inputs are a dictionary or tuple of tensors, such as those of a tokenizer."""

import re
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from flatbayes import (
    MAP,
    SAM,
    SWAG,
    Arrays,
    Digits,
    Ensemble,
    Plain,
    TorchDataset,
    compare,
    evaluate,
    fit,
    tune,
)
from flatbayes.certification import certify
from flatbayes.data import ClassSplit, DataSplits, Split, Standardize, make_source
from flatbayes.experiments import Comparison, EvaluationConfig, Method, select_methods
from flatbayes.reference import ReferenceConfig, sample_reference

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(12, (80, 5), generator=GENERATOR)
MASK = (torch.rand(80, 5, generator=GENERATOR) < 0.8).long().index_fill(1, torch.tensor([0]), 1)
ENCODINGS, LABELS = {"input_ids": IDS, "attention_mask": MASK}, IDS.sum(1) % 3
CONFIG = {"epochs": 2, "batch_size": 16}
OPTIONS = {"config": CONFIG, "num_seeds": 2, "num_draws": 2, "num_jobs": 1}


class Words(nn.Module):
    """Mean of embeddings of the tokens that the mask leaves, and a linear layer."""

    def __init__(self, num_outputs=3):
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 4), nn.Linear(4, num_outputs)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))


class Named(Dataset):
    """Items that are dictionaries with labels."""

    def __init__(self, rows=range(80)):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return {"input_ids": IDS[row], "attention_mask": MASK[row], "labels": int(LABELS[row])}


class Pairs(Named):
    """Items that are pairs of two inputs and a target."""

    def __getitem__(self, index):
        return (IDS[index], MASK[index]), LABELS[index]


def outcome(results):
    assert not results.failures
    return [(run.posterior, run.flatness, run.seed, run.metrics) for run in results.runs]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return folder, compare(Words, (ENCODINGS, LABELS), [MAP(), SWAG(rank=2)], folder=folder, **OPTIONS)


@pytest.mark.parametrize(
    "data",
    [((IDS, MASK), LABELS), ([IDS.numpy(), MASK.numpy()], LABELS.tolist()), Named(), Pairs()],
    ids=["tuple", "list of arrays", "dictionaries", "pairs"],
)
def test_all_forms_give_the_same_results(finished, data):
    results = compare(Words, data, [MAP()], **OPTIONS)
    assert outcome(results) == [entry for entry in outcome(finished[1]) if entry[0] == "MAP"]


@pytest.mark.parametrize(
    ("targets", "num_outputs", "likelihood", "metric"),
    [
        (IDS.sum(1), 2, "Gaussian", "rmse"),
        (torch.eye(3, dtype=torch.int64)[LABELS], 3, "Bernoulli", "macro_auroc"),
        (LABELS.double(), 3, "Categorical", "accuracy"),
    ],
    ids=["numbers", "labels", "classes"],
)
def test_the_likelihood_says_what_whole_numbers_are(targets, num_outputs, likelihood, metric):
    model, options = partial(Words, num_outputs), OPTIONS | {"num_seeds": 1}
    results = compare(model, (ENCODINGS, targets), [MAP()], likelihood=likelihood, **options)
    assert metric in outcome(results)[0][3]


def test_some_classes_are_selected():
    splits = ClassSplit(source=Arrays((IDS, MASK), LABELS), classes=(0, 2)).load(0)
    rows = {tuple(row.tolist()) for row in IDS[LABELS != 1]}
    assert {tuple(row.tolist()) for row in splits.train.inputs[0]} <= rows
    assert splits.num_classes == 2


TARGETS = {
    "classes": (LABELS, 3),
    "single logit": (LABELS % 2, 1),
    "numbers": (IDS.float().std(1), 2),
    "several labels": ((IDS[:, :3] > 5).long(), 3),
}


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("flatness", [Plain(), SAM()], ids=["plain", "flat"])
def test_a_run_is_fit_and_evaluate_on_its_splits(task, flatness):
    (targets, num_outputs), seed = TARGETS[task], 1
    model, posterior = partial(Words, num_outputs), SWAG(rank=2)
    splits = make_source((ENCODINGS, targets)).load(seed)
    train, val, test = ((split.inputs, split.targets) for split in (splits.train, splits.val, splits.test))
    fitted = fit(model, train, posterior, flatness, CONFIG, val=val, seed=seed)
    metrics = evaluate(fitted, test, num_draws=2, seed=seed).metrics
    results = compare(model, (ENCODINGS, targets), [posterior], SAM(), **OPTIONS)
    (run,) = (run for run in results.runs if run.seed == seed and (run.flatness == "Plain") == (flatness == Plain()))
    assert metrics == {name: run.metrics[name] for name in metrics}
    assert run.history.val_nll[-1] is not None
    again = fit(model, splits, posterior, flatness, CONFIG, seed=seed)
    assert evaluate(again, splits.test, num_draws=2, seed=seed).metrics == metrics


@pytest.mark.parametrize("targets", [LABELS, IDS.float().mean(1)], ids=["classes", "numbers"])
def test_rows_are_split_as_those_of_arrays(targets):
    rows = torch.arange(80)
    sources = [Arrays(inputs, targets, val_size=0.25) for inputs in (rows[:, None].double(), {"row": rows})]
    for seed in range(2):
        arrays, tree = (source.load(seed) for source in sources)
        for name in ("train", "val", "test"):
            expected, split = getattr(arrays, name), getattr(tree, name)
            assert torch.equal(split.inputs["row"], expected.inputs[:, 0].long())
            assert torch.equal(split.targets, expected.targets)
    assert torch.equal(sources[1].load(0).test.inputs["row"], sources[1].load(7).test.inputs["row"])


def test_results_are_reused_for_equal_examples_only(finished, monkeypatch):
    folder, results = finished
    monkeypatch.setattr("flatbayes.experiments.run.execute_together", lambda *args: pytest.fail("it was trained"))
    copies = {name: tensor.clone() for name, tensor in ENCODINGS.items()}
    arguments = {"folder": folder, **OPTIONS}
    assert compare(Words, (copies, LABELS), [MAP(), SWAG(rank=2)], **arguments).runs == results.runs
    for other in ({**ENCODINGS, "attention_mask": MASK.flip(0)}, {"attention_mask": IDS, "input_ids": MASK}):
        with pytest.raises(ValueError, match="train has other values in its 58 rows"):
            compare(Words, (other, LABELS), [MAP()], **arguments)


def test_processes_give_the_same_results(finished):
    results = compare(Words, (ENCODINGS, LABELS), [MAP(), SWAG(rank=2)], **OPTIONS | {"num_jobs": 2})
    assert outcome(results) == outcome(finished[1])


def test_shared_trainings_are_those_of_single_runs():
    arguments = {"posteriors": [MAP(), SWAG(rank=2), Ensemble(size=2)], **OPTIONS, "num_seeds": 1}
    together, alone = (
        compare(Words, (ENCODINGS, LABELS), share_trainings=shared, **arguments) for shared in (True, False)
    )
    assert outcome(together) == outcome(alone)


def test_a_trained_network_is_the_start_of_every_seed():
    network, options = Words(), OPTIONS | {"config": {"epochs": 0}}
    results = compare(network, (ENCODINGS, LABELS), [MAP()], **options)
    fitted = fit(network, (ENCODINGS, LABELS), MAP(), Plain(), {"epochs": 0})
    expected = evaluate(fitted, make_source((ENCODINGS, LABELS)).load(0).test, num_draws=2).metrics
    assert {run.metrics["nll"] for run in results.runs} == {expected["nll"]}


def test_given_splits_are_used():
    parts = {"train": slice(60), "val": slice(60, 70), "test": slice(70, 80)}
    pairs = {
        name: ({key: tensor[rows] for key, tensor in ENCODINGS.items()}, LABELS[rows]) for name, rows in parts.items()
    }
    padded = {key: nn.functional.pad(tensor, (0, 2)) for key, tensor in pairs["test"][0].items()}, pairs["test"][1]
    named = {name: Named(range(80)[rows]) for name, rows in parts.items()}
    splits = {name: Split(inputs=inputs, targets=targets) for name, (inputs, targets) in pairs.items()}
    options = OPTIONS | {"num_seeds": 1}
    results = [
        outcome(compare(Words, data, [MAP()], **options))
        for data in (
            Arrays(*pairs["train"], val=pairs["val"], test=padded),
            TorchDataset(named["train"], val=named["val"], test=named["test"]),
            DataSplits(**splits, class_names=("0", "1", "2"), feature_names=(), augment=None),
        )
    ]
    for (*_, metrics), (*_, expected) in zip(results[0], results[1], strict=True):  # padding changes the rounding
        assert metrics == pytest.approx(expected, abs=1e-5)
    shuffled = make_source(TorchDataset(named["train"], val=named["val"], test=named["test"])).load(0)
    assert outcome(compare(Words, shuffled, [MAP()], **options)) == results[1]
    fitted = fit(Words, pairs["train"], MAP(), Plain(), CONFIG, val=pairs["val"])
    assert evaluate(fitted, pairs["test"], num_draws=2).metrics.items() <= results[2][0][3].items()


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        (EvaluationConfig(shift=True), r"shift=True need.*inputs\['input_ids'\] of shape \(5,\).*leave it out"),
        (EvaluationConfig(shift=True, ood=Digits()), "shift=True and ood need .* leave them out"),
    ],
    ids=["shift", "ood"],
)
def test_evaluations_of_one_array_are_refused_before_training(evaluations, message, monkeypatch):
    monkeypatch.setattr("flatbayes.experiments.run.execute_together", lambda *args: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=message):
        compare(Words, (ENCODINGS, LABELS), [MAP()], evaluations=evaluations, **OPTIONS)


def test_a_transform_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(Comparison, "run", lambda *args, **kwargs: pytest.fail("it was trained"))
    transform = Standardize(mean=torch.zeros(5), std=torch.ones(5))
    for function in (compare, tune):
        with pytest.raises(ValueError, match="transform standardizes one array .* leave transform out"):
            function(Words, (ENCODINGS, LABELS), transform=transform)


def test_calibration_and_sharpness_are_measured():
    evaluations = EvaluationConfig(
        calibration=True, sharpness_rho=0.05, hessian=True, max_examples=20, num_sharpness_draws=1
    )
    source = Arrays((IDS, MASK), LABELS, val_size=20)
    results = compare(Words, source, [MAP()], evaluations=evaluations, **OPTIONS | {"num_seeds": 1})
    assert {"nll_scaled", "gap_worst", "top_eigenvalue"} <= outcome(results)[0][3].keys()


def test_a_search_over_radii_and_a_selection(tmp_path):
    options = {"num_seeds": 1, "num_draws": 2, "config": CONFIG}
    tuned = tune(Words, Named(), MAP(), num_trials=2, **options)
    assert len(tuned.trials) == 2
    comparison = Comparison(make_source(Named()), Words, [MAP()], **options)
    (method,) = select_methods(comparison, {"MAP": [Method(MAP())]}, [SAM(rho=0.05)], tmp_path, jobs=1)
    assert method.flatness == SAM(rho=0.05)


@pytest.mark.filterwarnings("ignore:1 of the 4 classes has no training example")
def test_classes_without_a_training_example_have_an_output():
    source = Arrays(ENCODINGS, LABELS, test=(ENCODINGS, torch.full((80,), 3)))
    results = compare(Words(), source, [MAP()], new_head=True, **OPTIONS | {"num_seeds": 1})
    assert len(outcome(results)) == 2
    with pytest.raises(ValueError, match=r"The data have 4 classes, and the likelihood has 3: pass likelihood"):
        compare(Words, source, [MAP()], **OPTIONS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((ENCODINGS, LABELS[1:]), r"same number of examples, got the shapes \(80,\) and \(79,\)"),
        (({"input_ids": IDS, "attention_mask": MASK[1:]}, LABELS), "one row per example, and the numbers differ"),
        (({"input_ids": [[1], *IDS.tolist()[1:]]}, LABELS), r"\['input_ids'\]\[0\] is a list"),
        (({"x": torch.full((80, 2), torch.nan)}, LABELS), r"inputs\['x'\] of the given examples hold 160 values"),
        (Arrays(ENCODINGS, LABELS, test=({"input_ids": IDS}, LABELS)), "The test examples have inputs.*same inputs"),
        (Arrays(ENCODINGS, LABELS, flip=True), "for images, and these examples have several inputs"),
    ],
    ids=["targets", "rows", "lists", "nan", "keys", "flip"],
)
def test_examples_that_do_not_belong_together_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        compare(Words, data, [MAP()], **OPTIONS)


def test_a_list_of_examples_is_the_dataset_of_them():
    examples = Named()
    expected, found = (
        compare(Words, data, [MAP()], **OPTIONS) for data in (examples, [examples[k] for k in range(80)])
    )
    assert [row.comparison for row in found.rows] == [row.comparison for row in expected.rows]


def test_a_list_of_batches_is_refused_with_advice():
    with pytest.raises(TypeError, match="got a list. Give a map-style torch Dataset"):
        compare(Words, list(DataLoader(Named(), batch_size=8)), [MAP()], **OPTIONS)


def test_what_needs_one_array_says_so(monkeypatch):
    splits = make_source((ENCODINGS, LABELS)).load(0)
    shapes = "inputs['input_ids'] of shape (5,), inputs['attention_mask'] of shape (5,)"
    assert repr(splits) == f"<DataSplits: 58 train, 6 val, 16 test examples with {shapes}, 3 classes>"
    assert repr(splits.val) == f"<Split: 6 examples with {shapes}>"
    message = re.escape("one array, and these are several tensors: inputs['input_ids'], inputs['attention_mask']")
    module = sys.modules[certify.__module__]
    monkeypatch.setattr(module, "train_prior_network", lambda *args, **kwargs: pytest.fail("it was trained"))
    for call in (
        lambda: splits.input_shape,
        lambda: splits.train.input_tensor,
        lambda: certify(Words, splits),
        lambda: sample_reference(Words, splits, ReferenceConfig()),
    ):
        with pytest.raises(ValueError, match=message):
            call()
