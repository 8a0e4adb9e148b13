"""Random graphs of PyTorch Geometric, with targets for each graph, and networks for them."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, GINConv, global_add_pool, global_mean_pool


def make_graph(seed, targets="class"):
    """A path of atoms of three kinds; the targets depend on the kinds."""
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(3, 8, (), generator=generator))
    kinds = torch.randint(3, (size,), generator=generator)
    ends = torch.arange(size - 1)
    edges = torch.stack([torch.cat([ends, ends + 1]), torch.cat([ends + 1, ends])])
    mean = kinds.float().mean()
    values = {
        "class": (mean > 1).long().view(1),
        "number": mean.view(1) + 0.001 * seed,
        "numbers": torch.stack([mean, mean.square() + 0.001 * seed])[None],
        "labels": torch.stack([mean > 1, kinds[0] > 0, kinds[1] > 1]).long()[None],
    }
    extra = {} if targets is None else {"y": values[targets]}
    return Data(x=F.one_hot(kinds, 3).float(), edge_index=edges, edge_attr=torch.ones(len(edges.T), 1), **extra)


def make_graphs(count, targets="class", first=0):
    """A list of graphs."""
    return [make_graph(first + k, targets) for k in range(count)]


def make_batch(count, targets="class", first=0):
    """A batch of graphs."""
    return Batch.from_data_list(make_graphs(count, targets, first))


class GIN(nn.Module):
    """Graph isomorphism network with batch normalization, that takes a batch of graphs."""

    def __init__(self, num_outputs=2):
        super().__init__()
        self.conv = GINConv(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU()))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, data):
        return self.head(self.dropout(global_add_pool(self.conv(data.x, data.edge_index), data.batch)))


class GCN(nn.Module):
    """Graph convolution without normalization layers, that takes the tensors of a batch one by one."""

    def __init__(self, num_outputs=2):
        super().__init__()
        self.conv = GCNConv(3, 8)
        self.head = nn.Linear(8, num_outputs)

    def forward(self, x, edge_index, batch):
        return self.head(global_mean_pool(self.conv(x, edge_index).relu(), batch))
