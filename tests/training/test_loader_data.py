"""Loaders of users: labelled examples, labels of every form, dtypes of inputs, batches of one, other data."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from flatbayes import (
    IVON,
    LRT,
    MAP,
    SAM,
    SGHMC,
    SGLD,
    SGVB,
    SWAG,
    Ensemble,
    Laplace,
    MCDropout,
    Plain,
    TrainingConfig,
    evaluate,
    fit,
)
from flatbayes.certification import certify
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import DataSplits, DataWarning, Split
from flatbayes.data.ood import match_input_format
from flatbayes.diagnostics import compare_sharpness, compute_draw_slices
from flatbayes.likelihoods import Categorical, Custom, Gaussian
from flatbayes.prediction import evaluate_corruptions, evaluate_ood
from flatbayes.training import Constant, OptimizationConfig, dry_run
from flatbayes.training.batches import SpacedBatches
from flatbayes.training.closure import count_micro_batches
from flatbayes.training.draw_search import evaluate_nll, predict_examples
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.loader_pass import count_loader_examples

X = torch.randn(21, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(21) % 3
DATASET = TensorDataset(X, Y)


def make_splits(dataset):
    inputs, targets = dataset.tensors
    split = Split(inputs=inputs, targets=targets)
    names = {"class_names": ("a", "b", "c"), "target_names": ()}
    if targets.is_floating_point():
        names = {"class_names": (), "target_names": ("y",)}
    return DataSplits(train=split, val=split, test=split, feature_names=(), augment=None, **names)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X[:13], Y[:13], strict=True)


def train(loader, posterior=MAP(), likelihood=Categorical(3), model=None, **options):
    model = (lambda: nn.Linear(4, likelihood.num_outputs)) if model is None else model
    return fit(model, loader, posterior, Plain(), TrainingConfig(epochs=1), likelihood=likelihood, **options)


LOADERS = {
    "plain": (DataLoader(DATASET, 8), 21),
    "drop_last": (DataLoader(DATASET, 8, drop_last=True), 16),
    "subset": (DataLoader(DATASET, 4, sampler=SubsetRandomSampler(range(9))), 9),
    "weighted": (DataLoader(DATASET, 4, sampler=WeightedRandomSampler([1.0] * 21, 30)), 21),
    "weighted, few": (DataLoader(DATASET, 4, sampler=WeightedRandomSampler([1.0] * 21, 10)), 10),
    "weighted, ignored": (
        DataLoader(
            TensorDataset(X[:20], torch.where(torch.arange(20) < 10, Y[:20], -100)), 10, sampler=[*range(20)] * 3
        ),
        10,
    ),
    "repeated batches": (DataLoader(DATASET, batch_sampler=[[*range(7)], [*range(7, 21)]] * 4), 21),
    "batch_sampler": (DataLoader(DATASET, batch_sampler=BatchSampler(RandomSampler(DATASET), 5, drop_last=True)), 20),
    "stream": (DataLoader(Stream(), 4), 13),
    "list": ([(X[:5], Y[:5]), (X[5:], Y[5:])], 21),
    "ignored": (DataLoader(TensorDataset(X, torch.where(Y == 0, -100, Y)), 4), 14),
}


@pytest.mark.parametrize(("loader", "expected"), LOADERS.values(), ids=LOADERS)
def test_num_data_is_what_a_pass_gives(loader, expected):
    assert train(loader).states[0].num_data == expected


@pytest.mark.parametrize(
    "posterior", [Laplace(prior_precision=1.0), SGLD(), SGVB(), IVON(), LRT()], ids=lambda p: type(p).__name__
)
def test_posteriors_use_the_number_of_labelled_examples(posterior):
    labels = torch.where(torch.arange(21) < 9, -100, Y)
    state = train(DataLoader(TensorDataset(X, labels), 7), posterior).states[0]
    selected = train(DataLoader(TensorDataset(X[9:], Y[9:]), 7), posterior).states[0]
    assert state.num_data == selected.num_data == 12
    assert train(LOADERS["plain"][0], posterior, num_data=500).states[0].num_data == 500


SUBSET = DataLoader(DATASET, 9, sampler=SubsetRandomSampler(range(9)))


def take_step(posterior, num_data=None):
    """Weights before and after a step whose loss has no gradient: what is left depends on the number of examples."""
    network = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3))
    likelihood = Custom(lambda outputs, targets: 0 * outputs.sum(), Categorical(3))
    config = TrainingConfig(epochs=1, optimizer=partial(torch.optim.SGD, lr=0.5), schedule=Constant())
    config = config.with_options(**{"collection.start_fraction": 0.0, "collection.snapshots_per_epoch": 1})
    start = network[1].weight.detach().clone()
    fitted = fit(network, SUBSET, posterior, Plain(), config, likelihood=likelihood, num_data=num_data)
    assert fitted.states[0].num_data == (num_data or 9)
    return start, dict(fitted.states[0].model.named_parameters())["1.weight"].detach()


@pytest.mark.parametrize(
    "posterior",
    [
        MAP(prior_precision=2.0),
        MCDropout(prior_precision=2.0),
        Laplace(prior_precision=2.0),
        SGVB(prior_precision=2.0),  # the gradient of the KL divergence with regard to the mean
        IVON(prior_precision=2.0),
        LRT(prior_precision=2.0),
    ],
    ids=lambda posterior: type(posterior).__name__,
)
def test_prior_and_kl_have_the_weight_of_the_examples_of_a_sampler(posterior):
    start, end = take_step(posterior)
    assert torch.allclose(end, (1 - 0.5 * 2 / 9) * start, atol=1e-6)


@pytest.mark.parametrize("posterior", [SGLD(), SGHMC()], ids=lambda posterior: type(posterior).__name__)
def test_noise_has_the_scale_of_the_examples_of_a_sampler(posterior):
    changes = []
    for num_data in (None, 36):
        torch.manual_seed(0)
        start, end = take_step(posterior, num_data)
        changes.append(end - start)
    assert torch.allclose(changes[0], 2 * changes[1], atol=1e-6)  # the root of 36 / 9
    assert changes[0].abs().min() > 1e-4


def test_laplace_has_the_precision_of_the_examples_of_a_sampler():
    network, config = nn.Linear(4, 3), TrainingConfig(epochs=0)
    config = replace(config, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.1))
    subset, direct = (
        fit(network, loader, Laplace(), Plain(), config, likelihood=Categorical(3)).states[0].statistics
        for loader in (SUBSET, [(X[:9], Y[:9])])
    )
    assert subset["prior_precision"].item() == pytest.approx(0.9)
    assert torch.allclose(subset["scale"], direct["scale"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        *(
            LOADERS[name]
            for name in (
                "plain",
                "drop_last",
                "subset",
                "weighted",
                "weighted, few",
                "batch_sampler",
                "repeated batches",
            )
        ),
        (DataLoader(DATASET, batch_sampler=[[0, 1, 2], [3], [4, 5]]), 6),
        (LOADERS["stream"][0], None),
        (LOADERS["list"][0], None),
        (DataLoader(DATASET, None), None),  # every item is a batch
        ({"first": LOADERS["plain"][0]}, None),
    ],
)
def test_examples_are_counted_without_reading(loader, expected):
    assert count_loader_examples(loader) == expected


def test_examples_of_shares_and_of_shorter_epochs_are_counted():
    for drop_last, expected in ((False, 21), (True, 20)):
        sampler = DistributedSampler(DATASET, num_replicas=2, rank=0)
        assert count_loader_examples(DataLoader(DATASET, 5, sampler=sampler, drop_last=drop_last), 2) == expected
        assert count_loader_examples(DataLoader(DATASET, 5, sampler=sampler, drop_last=drop_last), 2, 1) == 10
    assert count_loader_examples(LOADERS["plain"][0], num_batches=2) == 16


def test_the_curvature_is_that_of_the_labelled_examples():
    labels = torch.where(torch.arange(21) < 9, -100, Y)
    network, config = nn.Linear(4, 3), TrainingConfig(epochs=0)
    scales = [
        fit(network, loader, Laplace(prior_precision=1.0), Plain(), config, likelihood=Categorical(3))
        .states[0]
        .statistics["scale"]
        for loader in (DataLoader(TensorDataset(X, labels), 7), DataLoader(TensorDataset(X[9:], Y[9:]), 12))
    ]
    assert torch.allclose(*scales, rtol=1e-4, atol=1e-5)


def test_micro_batches_are_weighted_by_their_labels():
    labels, network = torch.where(torch.arange(21) < 9, -100, Y), nn.Linear(4, 3)
    weights = []
    for steps in (1, 3):
        config = TrainingConfig(epochs=1, optimization=OptimizationConfig(accumulation_steps=steps))
        loader = [(X, labels)]
        weights.append(fit(network, loader, MAP(), Plain(), config, likelihood=Categorical(3)).states[0].model.weight)
    assert torch.allclose(*weights, atol=1e-6)


@pytest.mark.parametrize(
    "convert",
    [
        *(lambda y, dtype=dtype: y.to(dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)),
        *(lambda y, dtype=dtype: y.to(dtype) for dtype in (torch.uint16, torch.uint64, torch.float32, torch.float64)),
        lambda y: y[:, None],
        lambda y: F.one_hot(y, 3),
        lambda y: F.one_hot(y, 3).float(),
    ],
)
def test_labels_that_are_class_indices_in_another_form_are_the_same(convert):
    expected = train(DataLoader(DATASET, 21))
    fitted = train(DataLoader(TensorDataset(X, convert(Y)), 21))
    assert torch.equal(fitted.states[0].model.weight, expected.states[0].model.weight)
    assert evaluate(fitted, X, convert(Y)).metrics == evaluate(expected, X, Y).metrics


@pytest.mark.parametrize(
    ("labels", "likelihood", "message"),
    [
        (Y + 1, Categorical(3), "Labels must lie between 0 and 2 for 3 classes, got 1 to 3"),
        (torch.where(Y == 0, -1, Y), Categorical(3), "set ignore_index of the likelihood"),
        (Y + 0.5, Categorical(3), "must be whole numbers"),
        (torch.full((21, 3), 0.5), Categorical(3), "with sum 1"),
        (torch.zeros(21, 2), Categorical(3), "one class index for each example"),
        (torch.full((21,), -100), Categorical(3), "None of the targets"),
        (torch.full((21,), torch.nan), Gaussian(1), "missing or not finite"),
        (torch.zeros(21, 3), Gaussian(2), "must have 2 targets"),
    ],
)
def test_other_targets_are_refused_before_training(labels, likelihood, message):
    with pytest.raises(ValueError, match=message):
        train(DataLoader(TensorDataset(X, labels), 4), likelihood=likelihood)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (iter([(X, Y)]), TypeError, "can be read only once"),
        ({"x": X}, TypeError, "is not data to train on"),
        (Stream(), TypeError, "IterableDataset without a length"),
        (DataLoader(DATASET, 30, drop_last=True), ValueError, "smaller than batch_size=30"),
        ([], ValueError, "is empty"),
        (DataLoader(TensorDataset(X), 4), ValueError, "got a list of 1"),
        (DataLoader(TensorDataset(X, X, Y), 4), ValueError, "got a list of 3"),
        ([{"x": X, "y": Y}], ValueError, "dictionary with the entries x, y"),
        ([(X, Y[:3])], ValueError, "same number of examples"),
        ([(X / 0, Y)], ValueError, "not finite"),
    ],
)
def test_what_is_no_loader_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        train(data)


@pytest.mark.parametrize("data", [(X, Y), (X.numpy(), Y.numpy()), [X, Y]])
def test_pairs_of_tensors_or_arrays_are_data(data):
    assert train(data).predict(X).mean.shape == (21, 3)


def spoil(split, row):
    inputs = split.inputs.clone()
    inputs[row].view(-1)[0] = torch.nan
    return Split(inputs=inputs, targets=split.targets)


@pytest.mark.parametrize("name", ["train", "val", "test"])
@pytest.mark.parametrize("caller", ["fit", "dry_run", "certify"])
def test_splits_made_by_hand_are_checked(caller, name):
    splits = make_splits(DATASET)
    splits = replace(splits, **{name: spoil(getattr(splits, name), 13)})
    if name == "test" and caller != "certify":
        return  # training does not use it
    call = {
        "fit": lambda: fit(make_norm_network, splits),
        "dry_run": lambda: dry_run(make_norm_network, splits, MAP(), Plain(), TrainingConfig()),
        "certify": lambda: certify(make_norm_network, splits),
    }[caller]
    with pytest.raises(ValueError, match=f"{name} examples hold 1 value .* row 13 .*feature 0"):
        call()


def test_inputs_of_diagnoses_and_of_shifts_are_checked():
    fitted = fit(nn.Linear(4, 3), make_splits(DATASET), config=TrainingConfig(epochs=1), posterior=MAP())
    bad = spoil(make_splits(DATASET).test, 13)
    images = Split(inputs=torch.rand(20, 3, 8, 8), targets=torch.arange(20) % 3)
    bad_images = spoil(images, 13)
    calls = [
        lambda: compare_sharpness({"a": fitted}, bad.inputs, bad.targets),
        lambda: compute_draw_slices({"a": fitted}, bad.inputs, bad.targets),
        lambda: evaluate_ood(fitted, X, bad.inputs),
        lambda: evaluate_ood(fitted, bad.inputs, X),
        lambda: evaluate_corruptions(fitted, bad_images, ["fog"]),
        lambda: match_input_format(bad_images.inputs, images.inputs),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="hold 1 value .* row 13 "):
            call()


@pytest.mark.filterwarnings("ignore:Weights that are trained")
def test_inputs_are_converted_to_the_dtype_of_the_network():
    assert train(DataLoader(TensorDataset(X.double(), Y), 7)).dtype == torch.float32
    assert train(DataLoader(DATASET, 7), model=nn.Linear(4, 3).bfloat16()).predict(X).mean.shape == (21, 3)
    fitted = train(DataLoader(TensorDataset((10 * X).int(), Y), 7))
    whole = (10 * X).int()
    assert torch.equal(fitted.predict(whole).mean, fitted.predict(whole.float()).mean)
    tokens = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 3))
    ids = torch.randint(0, 9, (21, 4))
    assert train(DataLoader(TensorDataset(ids, Y), 7), model=tokens).predict(ids).mean.shape == (21, 3)


def test_a_last_batch_of_one_is_refused_with_batch_normalization():
    with pytest.raises(ValueError, match="drop_last=True"):
        train(DataLoader(DATASET, 4), model=make_norm_network)
    assert train(DataLoader(DATASET, 4, drop_last=True), model=make_norm_network).states[0].num_data == 20
    assert train(DataLoader(DATASET, 4)).states[0].num_data == 21  # no batch normalization


class NormOfDictionary(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs["x"])


def test_a_last_batch_of_one_dictionary_is_refused_with_batch_normalization():
    loader = DataLoader([{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)], 4)
    norm = lambda: NormOfDictionary(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))  # noqa: E731
    with pytest.raises(ValueError, match="drop_last=True"):
        train(loader, model=norm)


def make_norm_network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "num_data"), [(1, 1, 6), (4, 4, 6), (7, 4, 7), (8, 4, 6)]
)
@pytest.mark.parametrize("posterior", [MAP(), Ensemble(size=2), SWAG()], ids=lambda p: type(p).__name__)
def test_calls_with_one_example_are_refused_with_batch_normalization(
    posterior, batch_size, accumulation_steps, num_data
):
    config = TrainingConfig(epochs=40, batch_size=batch_size)
    config = config.with_options(**{"optimization.accumulation_steps": accumulation_steps})
    data = TensorDataset(X[:num_data], torch.arange(num_data).float())
    with pytest.raises(ValueError, match=f"larger batch_size \\(now {batch_size}, of {num_data} "):
        fit(
            lambda: nn.Sequential(make_norm_network(), nn.Linear(3, 2)), make_splits(data), posterior, Plain(), config
        )


@pytest.mark.parametrize("batch_size", [2, 4, 10, 20, 21, 64])
@pytest.mark.parametrize("flatness", [Plain(), SAM(rho=0.1, ascent_batch_fraction=0.1)], ids=str)
def test_a_remainder_of_one_is_no_batch(batch_size, flatness):
    config = TrainingConfig(epochs=1, batch_size=batch_size)
    config = config.with_options(**{"optimization.accumulation_steps": max(1, min(batch_size, 21) // 4)})
    fitted = fit(make_norm_network, make_splits(DATASET), MAP(), flatness, config)
    assert fitted.predict(X, 1).mean.shape == (21, 3)


@pytest.mark.parametrize(
    ("count", "size", "steps"), [(k, n, s) for n in (2, 5, 8, 9) for k in range(2, n) for s in (1, 2, 4)]
)
def test_micro_batches_of_a_fraction_have_several_examples(count, size, steps):
    num_micro_batches = count_micro_batches(count, size, steps)
    sizes = [len(rows) for rows in torch.arange(count).tensor_split(num_micro_batches)]
    assert min(sizes) >= min(2, -(-size // steps))
    assert max(sizes) <= max(3, -(-size // steps))


@pytest.mark.parametrize("posterior", [MAP(), Laplace(prior_precision=1.0), SWAG()], ids=lambda p: type(p).__name__)
def test_inputs_that_are_not_finite_are_refused_with_their_row(posterior):
    config = TrainingConfig(epochs=40)
    fitted = fit(nn.Linear(4, 3), [(X, Y)], posterior, Plain(), config, likelihood=Categorical(3))
    for value in (np.nan, np.inf):
        inputs = X.clone()
        inputs[17, 2] = value
        for call in (lambda x: fitted.predict(x, 2, batch_size=4), lambda x: evaluate(fitted, x, Y)):
            with pytest.raises(ValueError, match=r"inputs hold 1 value .* in row 17"):
                call(inputs)


class Noisy(torch.utils.data.Dataset):
    """Examples with noise of torch and NumPy."""

    def __len__(self):
        return 21

    def __getitem__(self, k):
        return X[k] + torch.randn(4) + float(np.random.randn()), Y[k]  # noqa: NPY002


def capture_random_state(generator):
    state = np.random.get_state()[1]  # noqa: NPY002
    return torch.get_rng_state(), torch.from_numpy(state.astype(np.int64)), generator.get_state()


def make_noisy_loader(generator):
    return DataLoader(Noisy(), 4, shuffle=True, generator=generator)


@pytest.mark.parametrize("posterior", [SWAG(rank=2), MCDropout(), SGVB(scale="auto")], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("num_examples", [20, 2000], ids=["some", "all"])
def test_no_pass_over_validation_batches_changes_a_random_state(posterior, num_examples, monkeypatch):
    monkeypatch.setattr("flatbayes.training.draw_choice.MAX_EXAMPLES", num_examples)
    generator = torch.Generator().manual_seed(0)
    config = TrainingConfig(min_epochs=10, min_steps=1, num_validations=2)
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 3))
    before = capture_random_state(generator)
    fitted = fit(
        model, [(X, Y)], posterior, Plain(), config, likelihood=Categorical(3), val=make_noisy_loader(generator)
    )
    assert fitted.info["training"]["draw_options"]
    torch.testing.assert_close(capture_random_state(generator), before, rtol=0, atol=0)


@pytest.mark.parametrize("spacing", [1, 2])
@pytest.mark.parametrize("own", [False, True], ids=["", "own generator"])
def test_all_values_of_an_option_are_tried_on_the_same_examples(spacing, own):
    fitted = train(DataLoader(DATASET, 7), SGVB())
    examples = SpacedBatches(make_noisy_loader(torch.Generator() if own else None), spacing)
    assert evaluate_nll(fitted, examples, 2) == evaluate_nll(fitted, examples, 2)
    one, other = (predict_examples(fitted, examples, 2) for _ in range(2))
    assert torch.equal(one[1], other[1])
    assert torch.equal(one[0].mean, other[0].mean)


def test_passes_after_training_leave_the_loader_as_it_was():
    generator = torch.Generator().manual_seed(0)
    sampler = DistributedSampler(Noisy(), num_replicas=1, rank=0)
    sampler.set_epoch(3)
    for loader in (make_noisy_loader(generator), DataLoader(Noisy(), 4, sampler=sampler)):
        data = LoaderData(loader, likelihood=Categorical(3), val=loader)
        before = capture_random_state(generator)
        assert data.num_validation == 21
        assert len(list(data.predict_validation(nn.Linear(4, 3)))) == 6
        assert len(data.sample_inputs(TrainingConfig(), 0)) == 5
        with preserve_rng(None):
            assert len(list(data.iter_examples(torch.device("cpu")))) == 6
        torch.testing.assert_close(capture_random_state(generator)[1:], before[1:], rtol=0, atol=0)
    assert sampler.epoch == 3


def test_a_sampler_that_changes_proportions_is_warned_of():
    """Predicted probabilities are those of the drawn examples; equal weights change no proportions."""
    sampler = WeightedRandomSampler([9.0] + [1.0] * 20, 21)
    batches = DataLoader(DATASET, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    for loader in (DataLoader(DATASET, 4, sampler=sampler), batches):
        with pytest.warns(DataWarning, match=r"draws some examples more often.*decide.*method='vector'"):
            train(loader)


@pytest.mark.parametrize("name", ["tensor", "dict"])
def test_batches_that_another_network_computed_have_no_graph(name):
    features = nn.Linear(4, 4)(X)
    inputs = features if name == "tensor" else {"x": features}
    model = nn.Linear(4, 3) if name == "tensor" else NamedInputs()
    state = train([(inputs, Y)], model=model).states[0]
    detached = features.detach() if name == "tensor" else {"x": features.detach()}
    expected = train([(detached, Y)], model=model).states[0]
    for param, other in zip(state.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(param, other)


class NamedInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)
