"""Batches of graphs in the functions on inputs: exact under division and joining, and never changed."""

import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")

from torch_geometric.data import Batch, Data, HeteroData

from flatbayes.core.batch_targets import split_batch
from flatbayes.core.graph_batches import join_graphs
from flatbayes.core.input_trees import (
    cast_floating,
    cast_integers,
    count_examples,
    first_tensor,
    flatten_tree,
    is_input_tree,
    list_tensors,
    make_inputs,
    map_tensors,
    slice_examples,
    split_examples,
    unflatten_tree,
)
from flatbayes.core.network_interface import adapt_network, infer_interface
from graphs import GCN, make_batch, make_graph, make_graphs


def assert_equal(first, second):
    assert first.num_graphs == second.num_graphs
    mine, others = flatten_tree(first, "inputs"), flatten_tree(second, "inputs")
    assert mine.keys() == others.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name


def hetero_graph(seed):
    generator = torch.Generator().manual_seed(seed)
    graph = HeteroData()
    graph["author"].x = torch.randn(3, 2, generator=generator)
    graph["paper"].x = torch.randn(4, 5, generator=generator)
    graph["author", "writes", "paper"].edge_index = torch.randint(3, (2, 6), generator=generator)
    graph.y = torch.tensor([seed % 2])
    return graph


def test_parts_joined_again_are_the_whole():
    batch = make_batch(7)
    parts = split_examples(batch, 3)
    assert [count_examples(part) for part in parts] == [3, 3, 1]
    assert_equal(join_graphs([graph for part in parts for graph in part.to_data_list()]), batch)
    assert_equal(split_examples(batch, 7)[0], batch)


@pytest.mark.parametrize(
    "rows", [slice(2, 5), torch.tensor([2, 3, 4]), torch.tensor([False, False, True, True, True, False, False])]
)
def test_rows_are_the_graphs_themselves(rows):
    assert_equal(slice_examples(make_batch(7), rows), make_batch(3, first=2))


def test_order_and_single_graphs():
    graphs = make_graphs(4)
    batch = Batch.from_data_list(graphs)
    assert_equal(slice_examples(batch, torch.tensor([3, 0])), Batch.from_data_list([graphs[3], graphs[0]]))
    assert torch.equal(slice_examples(batch, 2).edge_index, graphs[2].edge_index)
    assert count_examples(slice_examples(batch, slice(0))) == 0


def test_vectors_of_followed_entries_are_kept():
    batch = Batch.from_data_list(make_graphs(4), follow_batch=["edge_attr"])
    expected = Batch.from_data_list(make_graphs(2), follow_batch=["edge_attr"])
    assert_equal(slice_examples(batch, slice(2)), expected)


def test_mapping_changes_neither_the_batch_nor_other_entries():
    batch = make_batch(3)
    batch.names = ["a", "b", "c"]
    before = batch.clone()
    doubled = map_tensors(lambda tensor: 2 * tensor, batch)
    assert_equal(batch, before)
    assert torch.equal(doubled.x, 2 * batch.x)
    assert doubled.names == ["a", "b", "c"]
    assert torch.equal(doubled[1].x, 2 * batch[1].x)  # still divisible


def test_casts_leave_edges_whole_numbers():
    batch = make_batch(3)
    assert cast_integers(batch).edge_index.dtype == torch.int64
    cast = cast_floating(batch, torch.float64)
    assert (cast.x.dtype, cast.edge_attr.dtype, cast.edge_index.dtype) == (torch.float64, torch.float64, torch.int64)
    integers = cast_integers((batch, torch.ones(3, dtype=torch.int64)))
    assert integers[1].dtype == torch.float32


@pytest.mark.parametrize("make", [make_graph, hetero_graph])
def test_flattened_batches_are_restored(make):
    batch, _ = split_batch(Batch.from_data_list([make(k) for k in range(3)]))
    tree = {"graphs": batch, "rest": (torch.zeros(3), torch.ones(3))}
    for inputs, name in ((batch, "a"), (tree, "b.0")):
        restored = unflatten_tree(flatten_tree(inputs, name), name)
        assert_equal(restored if inputs is batch else restored["graphs"], batch)
    assert torch.equal(restored["rest"][1], torch.ones(3))


def test_a_graph_without_features_keeps_its_number_of_nodes():
    batch = Batch.from_data_list([Data(edge_index=torch.zeros(2, 1).long(), num_nodes=k + 1) for k in range(3)])
    assert unflatten_tree(flatten_tree(batch, "a"), "a").num_nodes == 6
    assert slice_examples(batch, slice(1, 3)).num_nodes == 5


def test_trees_with_graphs():
    batch, numbers = make_batch(4, None), torch.arange(4.0)
    inputs = make_inputs([batch, {"weights": numbers}])
    assert is_input_tree(batch)
    assert is_input_tree([batch, numbers])
    assert count_examples(inputs) == 4
    assert torch.equal(first_tensor(inputs), batch.x)
    assert "inputs[0] (edge_index)" in list_tensors(inputs)
    part = slice_examples(inputs, slice(1, 3))
    assert_equal(part[0], make_batch(2, None, first=1))
    assert torch.equal(part[1]["weights"], numbers[1:3])
    with pytest.raises(ValueError, match="numbers differ"):
        make_inputs((batch, torch.zeros(5)))


def test_targets_are_taken_out():
    batch = make_batch(3, "numbers")
    inputs, targets = split_batch(batch)
    assert "y" in batch
    assert "y" not in inputs
    assert torch.equal(targets, batch.y)
    pair, given = split_batch((batch, torch.arange(3)))
    assert pair is batch
    assert torch.equal(given, torch.arange(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_batch(3, None), "no targets"),
        (lambda: Batch.from_data_list([Data(x=g.x, y=g.x[:, 0]) for g in make_graphs(3)]), "loop of your own"),
        (
            lambda: Batch.from_data_list([Data(x=g.x, y=torch.ones(9)) for g in make_graphs(3)]),
            r"shape \[1, targets\]",
        ),
        (lambda: make_graph(0), "one graph"),
        (lambda: (make_graph(0), torch.ones(1)), "one graph"),
        (lambda: (make_batch(3), torch.ones(2)), r"3 graphs and targets of the shape \(2,\)"),
    ],
)
def test_batches_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        split_batch(make())


def test_batches_that_cannot_be_divided():
    batch = make_batch(3)
    by_hand = Batch(x=batch.x, edge_index=batch.edge_index, batch=batch.batch)
    assert count_examples(by_hand) == 3
    with pytest.raises(ValueError, match="from_data_list"):
        slice_examples(by_hand, slice(1))
    with pytest.raises(ValueError, match="same entries"):
        join_graphs([make_graph(0), Data(x=torch.zeros(2, 3))])


class OptionalEdges(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x, edge_index, edge_attr=None, unknown=None):
        assert unknown is None
        return self.head(x)[:1] * edge_attr.mean() * len(edge_index)


def test_entries_are_passed_where_forward_requires_several():
    batch = make_batch(4)
    network = adapt_network(GCN())
    assert torch.equal(network(batch), network(batch.x, batch.edge_index, batch.batch))
    assert infer_interface(GCN(), batch).inputs == "graphs"
    assert adapt_network(OptionalEdges())(batch).shape == (1, 2)
    incomplete = batch.clone()
    del incomplete["edge_index"]
    with pytest.raises(ValueError, match="requires edge_index, which the graphs lack"):
        network(incomplete)
