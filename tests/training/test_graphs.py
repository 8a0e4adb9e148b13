"""Networks for graphs of PyTorch Geometric: every kind of data, exact steps, posteriors, evaluations, refusals."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

pytest.importorskip("torch_geometric")

from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from flatbayes import (
    LRT,
    MAP,
    SAM,
    SGLD,
    SGVB,
    SWAG,
    Categorical,
    Constant,
    DataSplits,
    Ensemble,
    FittedPosterior,
    Laplace,
    MCDropout,
    MSharpness,
    Plain,
    Split,
    TorchDataset,
    TrainingConfig,
    calibrate,
    check,
    compare,
    conformalize,
    distill,
    evaluate,
    fit,
    fit_together,
    tune,
)
from flatbayes.calibration import fit_abstention
from flatbayes.certification import certify
from flatbayes.core.network_interface import adapt_network
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import Standardize, make_source
from flatbayes.data.pairs import collate_examples
from flatbayes.diagnostics import SharpnessConfig, measure_posterior_sharpness
from flatbayes.posteriors.ggn import ExampleVjps
from flatbayes.prediction.shift import evaluate_corruptions, evaluate_ood
from graphs import GCN, GIN, make_batch, make_graph, make_graphs

CONFIG = TrainingConfig(epochs=2, batch_size=8)
GRAPHS = make_graphs(40)
TARGETS = torch.cat([graph.y for graph in GRAPHS])


def make_network(cls=GIN, num_outputs=2):
    torch.manual_seed(0)
    return cls(num_outputs)


def flat(values):
    return torch.cat([value.detach().flatten() for value in values])


def weights(fitted):
    return flat(fitted.states[0].model.parameters())


@pytest.fixture(scope="module")
def fitted():
    return fit(make_network(), GRAPHS[:32], SWAG(), SAM(0.05), CONFIG, val=GRAPHS[32:])


class GraphDataset(Dataset):
    def __len__(self):
        return len(GRAPHS)

    def __getitem__(self, index):
        return GRAPHS[index]


class PairDataset(GraphDataset):
    def __getitem__(self, index):
        return make_graph(index, None), TARGETS[index]


def make_splits():
    train, test = (
        Split(inputs=make_batch(len(rows), None, rows[0]), targets=TARGETS[rows[0] : rows[-1] + 1])
        for rows in (range(24), range(24, 40))
    )
    return DataSplits(train=train, val=test, test=test, class_names=("few", "many"), feature_names=(), augment=None)


@pytest.mark.parametrize(
    "data",
    [
        lambda: Batch.from_data_list(GRAPHS),
        lambda: (Batch.from_data_list(make_graphs(40, None)), TARGETS),
        GraphDataset,
        PairDataset,
        lambda: Subset(GRAPHS, range(40)),
        lambda: DataLoader(
            GRAPHS, batch_size=8, shuffle=True, generator=make_generator(Stream.BATCHES, 0), follow_batch=["x"]
        ),
    ],
    ids=["batch", "pair", "dataset", "dataset of pairs", "subset", "loader"],
)
def test_kinds_of_data_train_the_same_network(data):
    expected = fit(make_network(), GRAPHS, MAP(), SAM(0.05), CONFIG)
    assert torch.equal(weights(fit(make_network(), data(), MAP(), SAM(0.05), CONFIG)), weights(expected))


def test_loaders_and_lists_of_batches_train_the_same_network():
    loader = DataLoader(GRAPHS, batch_size=8)  # of which the passes draw random numbers, as dropout does
    first = fit(make_network(GCN), loader, MAP(), SAM(0.05), CONFIG, val=loader)
    for data in (list(loader), [(batch, batch.y) for batch in loader]):
        fitted = fit(make_network(GCN), data, MAP(), SAM(0.05), CONFIG, val=data)
        assert torch.equal(weights(fitted), weights(first))


def compute_gradient(network, batch, offsets=None):
    """Gradient of the mean loss of a batch, at the weights plus offsets."""
    params = dict(network.named_parameters())
    offsets = offsets or [torch.zeros_like(param) for param in params.values()]
    moved = {
        name: (param + offset).detach().requires_grad_()
        for (name, param), offset in zip(params.items(), offsets, strict=True)
    }
    arguments = (batch.x.double(), batch.edge_index, batch.batch)
    loss = nn.functional.cross_entropy(torch.func.functional_call(network, moved, arguments), batch.y)
    return torch.autograd.grad(loss, list(moved.values()))


def compute_sam_gradient(network, ascent_batch, batch, rho=0.1):
    ascent = compute_gradient(network, ascent_batch)
    return flat(compute_gradient(network, batch, [rho * grad / flat(ascent).norm() for grad in ascent]))


@pytest.mark.parametrize(
    ("flatness", "steps"),
    [
        (SAM(0.1), [(range(8), range(8))]),
        (SAM(0.1, ascent_batch_fraction=0.5), [(range(4), range(8))]),
        (MSharpness(SAM(0.1), num_sub_batches=2), [(range(4), range(4)), (range(4, 8), range(4, 8))]),
    ],
    ids=["SAM", "half of the batch", "MSharpness"],
)
def test_a_step_is_the_one_computed_by_hand(flatness, steps):
    network, before = make_network(GCN).double(), make_network(GCN).double()
    optimizer = partial(torch.optim.SGD, lr=0.5)
    config = TrainingConfig(epochs=1, optimizer=optimizer, schedule=Constant(), num_validations=0)
    fitted = fit(network, [make_batch(8)], MAP(), flatness, config)
    grads = [compute_sam_gradient(before, *(make_batch(len(rows), first=rows[0]) for rows in pair)) for pair in steps]
    torch.testing.assert_close(weights(fitted), flat(before.parameters()) - 0.5 * torch.stack(grads).mean(0))


def test_the_loss_of_a_batch_is_the_mean_over_its_graphs():
    """Also where it is accumulated over parts of the batch."""
    network = make_network(GCN).double()
    mean = torch.stack([flat(compute_gradient(network, make_batch(1, first=k))) for k in range(6)]).mean(0)
    torch.testing.assert_close(flat(compute_gradient(network, make_batch(6))), mean)
    config = TrainingConfig(epochs=1, optimizer=partial(torch.optim.SGD, lr=0.5), schedule=Constant())
    accumulated = config.with_options(**{"optimization.accumulation_steps": 3, "num_validations": 0})
    fitted = fit(network, [make_batch(6)], MAP(), Plain(), accumulated)
    torch.testing.assert_close(weights(fitted), flat(make_network(GCN).double().parameters()) - 0.5 * mean)


def test_vectors_of_the_curvature_are_gradients_of_single_graphs():
    network, batch = make_network(GCN).double(), make_batch(3)
    batch.x = batch.x.double()
    network = adapt_network(network)
    params = dict(network.named_parameters())
    vectors = ExampleVjps(network, params).compute(batch, torch.eye(2, dtype=torch.float64).expand(3, 2, 2))
    for k in range(3):
        outputs = network(Batch.from_data_list([batch[k]]))[0]
        for column in range(2):
            expected = torch.autograd.grad(outputs[column], list(params.values()), retain_graph=True)
            torch.testing.assert_close(vectors[k, column], flat(expected))


@pytest.mark.parametrize(
    "posterior",
    [
        SWAG(),
        Laplace(),
        Laplace(structure="diag"),
        MCDropout(),
        Ensemble(MAP(), 2),
        SGLD(),
        SGVB(),
        LRT(),
    ],
    ids=lambda posterior: type(posterior).__name__,
)
def test_posteriors_predict_alike_when_they_are_loaded(posterior, tmp_path):
    loader = DataLoader(GRAPHS[:24], batch_size=8, shuffle=True)
    fitted = fit(GIN, loader, posterior, SAM(0.05), CONFIG, likelihood=Categorical(2))
    evaluated = evaluate(fitted, GRAPHS[24:], num_draws=2)
    assert 0 <= evaluated.metrics["accuracy"] <= 1
    loaded = FittedPosterior.load(fitted.save(tmp_path / "posterior"), GIN)
    predictions = [posterior.predict(GRAPHS[24:], 2, seed=7).mean for posterior in (fitted, loaded)]  # new draws
    assert torch.equal(*predictions)


@pytest.mark.parametrize(
    ("targets", "num_outputs", "metric"),
    [("number", 2, "rmse"), ("numbers", 4, "rmse"), ("labels", 3, "macro_auroc")],
)
def test_targets_of_every_kind(targets, num_outputs, metric):
    graphs = make_graphs(40, targets)
    fitted = fit(make_network(GCN, num_outputs), graphs[:24], SWAG(), SAM(0.05), CONFIG, val=graphs[24:])
    assert metric in evaluate(fitted, DataLoader(graphs[24:], batch_size=8), num_draws=2).metrics
    splits = make_source(graphs).load(seed=0)
    assert (splits.is_regression, splits.is_multi_label) == (targets != "labels", targets == "labels")
    assert weights(fit(make_network(GCN, num_outputs), splits, MAP(), Plain(), CONFIG)).isfinite().all()


def test_predictions_of_every_form_are_equal(fitted):
    expected = fitted.predict(DataLoader(GRAPHS[32:], batch_size=4), 3).mean
    whole, unlabelled = Batch.from_data_list(GRAPHS[32:]), make_graphs(8, None, first=32)
    for inputs in (whole, GRAPHS[32:], Subset(GRAPHS, range(32, 40)), unlabelled, [whole], [(whole, whole.y)]):
        torch.testing.assert_close(fitted.predict(inputs, 3, batch_size=4).mean, expected)
    torch.testing.assert_close(fitted.predict(GRAPHS[32:35], 3, vectorized=True).mean, expected[:3])
    assert fitted.predict([GRAPHS[32]], 3).mean.shape == (1, 2)
    assert "y" in whole


def test_evaluations_of_every_form_are_equal(fitted):
    expected = evaluate(fitted, GRAPHS[32:], num_draws=2).metrics
    batch = Batch.from_data_list(GRAPHS[32:])
    splits = TorchDataset(GRAPHS, test=GRAPHS[32:]).load(seed=0)
    for data in (batch, (batch, TARGETS[32:]), DataLoader(GRAPHS[32:], batch_size=8), splits.test):
        assert evaluate(fitted, data, num_draws=2).metrics == pytest.approx(expected, nan_ok=True)
    assert evaluate(fitted, GRAPHS[32:], TARGETS[32:], 2).metrics == pytest.approx(expected, nan_ok=True)


@pytest.mark.filterwarnings("ignore")  # so few examples
def test_what_follows_a_fit(fitted):
    sets = conformalize(fitted, GRAPHS, num_draws=2).predict(GRAPHS[:5])
    assert sets.contains(TARGETS[:5]).shape == (5,)
    calibrated = calibrate(fitted, DataLoader(GRAPHS, batch_size=8), num_draws=2)
    assert calibrated.calibration is not None
    assert check(fitted, GRAPHS, num_draws=2).num_examples == 40
    assert 0 <= fit_abstention(fitted.predict(GRAPHS, 2), TARGETS, risk=0.5).coverage <= 1
    settings = SharpnessConfig(ascent_steps=1, num_random_starts=0, num_directions=2)
    measured = [
        measure_posterior_sharpness(fitted, data, None, settings, 1).trained
        for data in (GRAPHS, Batch.from_data_list(GRAPHS))
    ]
    assert measured[0] == measured[1]
    assert evaluate_ood(fitted, GRAPHS[:10], Batch.from_data_list(GRAPHS[10:]), 2).num_ood == 30
    assert "GIN" in fitted.summary()


def test_comparison_and_tuning_take_graphs_and_splits():
    config = TrainingConfig(epochs=1, batch_size=16)
    results = compare(GCN, GRAPHS, [MAP()], SAM(0.05), config, num_seeds=2, num_jobs=1, show_progress=False)
    assert len(results.runs) == 4
    tuned = tune(GCN, make_splits(), MAP(), SAM(0.05), config, num_trials=1, num_seeds=1, show_progress=False)
    assert tuned.trials
    pair = make_source((Batch.from_data_list(make_graphs(40, None)), TARGETS)).load(seed=0)
    assert torch.equal(make_source(GRAPHS).load(seed=0).train.inputs.edge_index, pair.train.inputs.edge_index)


def test_several_posteriors_of_one_training():
    swag, alone = fit_together(make_network(), GRAPHS, [SWAG(), MAP()], SAM(0.05), CONFIG)
    expected = fit(make_network(), GRAPHS, MAP(), SAM(0.05), CONFIG)
    assert torch.equal(weights(alone), weights(expected))
    assert swag.predict(GRAPHS, 2).mean.shape == (40, 2)


def test_validation_graphs_are_held_out():
    fitted = fit(GIN, make_graphs(80), MAP(), SAM("auto"), CONFIG)
    assert fitted.info["held_out"] == 12
    assert fitted.states[0].num_data == 68


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(2)

    def forward(self, x, edge_index, batch):
        return torch.zeros(int(batch.max()) + 1, 2).index_add(0, batch, self.head(x))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = GIN(4)
        self.head = nn.Linear(8, 2)

    def forward(self, first, second):
        return self.head(torch.cat([self.network(first), self.network(second)], 1))


class PairsOfGraphs(GraphDataset):
    def __getitem__(self, index):
        return (make_graph(index, None), make_graph(index + 1, None)), TARGETS[index]


def test_lazy_networks_and_pairs_of_graphs(tmp_path):
    assert fit(Lazy(), GRAPHS, MAP(), SAM(0.05), CONFIG).predict(GRAPHS).mean.shape == (40, 2)
    fitted = fit(Siamese(), PairsOfGraphs(), SWAG(), SAM(0.05, ascent_batch_fraction=0.5), CONFIG)
    loaded = FittedPosterior.load(fitted.save(tmp_path / "pairs"), Siamese)
    assert torch.equal(fitted.predict(PairsOfGraphs(), 2).mean, loaded.predict(PairsOfGraphs(), 2).mean)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: make_graph(0), "one graph"),
        (lambda: make_graphs(20, None), "no targets"),
        (lambda: [graph.clone().update({"y": graph.x[:, 0].long()}) for graph in GRAPHS], "targets of whole graphs"),
        (
            lambda: [*GRAPHS[:9], GRAPHS[9].clone().update({"x": torch.full((3, 3), torch.nan)})],
            "inputs of the batch",
        ),
        (lambda: [(graph, 1) for graph in GRAPHS], "one example"),
    ],
    ids=["one graph", "no targets", "nodes", "not finite", "graphs and labels"],
)
def test_data_that_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        fit(make_network(), data(), MAP(), Plain(), CONFIG)


def test_uses_that_are_refused(fitted):
    with pytest.raises(ValueError, match="one graph"):
        fitted.predict(GRAPHS[0])
    with pytest.raises(ValueError, match="trained on graphs"):
        fitted.predict(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="not one tensor"):
        fitted.compile(2)
    with pytest.raises(ValueError, match="not one tensor"):
        distill(fitted, GIN, GRAPHS, CONFIG)
    with pytest.raises(ValueError, match="one array"):
        evaluate_corruptions(fitted, make_splits().test, ["fog"])
    with pytest.raises(ValueError, match="one array"):
        certify(GIN, GRAPHS)
    with pytest.raises(ValueError, match="leave transform out"):
        fit(GIN, GRAPHS, config=CONFIG, transform=Standardize(mean=torch.zeros(3), std=torch.ones(3)))
    with pytest.raises(TypeError, match="got a DataLoader"):
        compare(GIN, DataLoader(GRAPHS, batch_size=8), [MAP()])


def test_joining_examples_keeps_what_is_no_graph():
    (graphs, numbers), targets = collate_examples([((make_graph(k, None), torch.ones(2)), k) for k in range(3)])
    assert graphs.num_graphs == 3
    assert numbers.shape == (3, 2)
    assert torch.equal(targets, torch.arange(3))


def test_node_targets_in_a_loop_of_your_own():
    """One large graph whose nodes have targets."""
    graph, posterior = make_batch(10), SWAG()
    network = make_network(NodeNetwork)
    state = posterior.init(network, partial(torch.optim.SGD, lr=0.1), num_data=graph.num_nodes)
    targets = graph.x.argmax(1)

    def closure():
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(graph), targets)
        loss.backward()
        return loss.detach()

    for _ in range(4):
        posterior.step(state, SAM(0.05)(closure, network))
        posterior.collect(state)
    with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        assert drawn(graph).shape == (graph.num_nodes, 3)


class NodeNetwork(nn.Module):
    def __init__(self, num_outputs=2):
        super().__init__()
        self.conv = GCN(3).conv
        self.head = nn.Linear(8, 3)

    def forward(self, data):
        return self.head(self.conv(data.x, data.edge_index))
