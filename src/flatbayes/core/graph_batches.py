"""Graphs of PyTorch Geometric as inputs: batches are mapped, counted, selected and joined as batches of tensors are.

Graphs and batches are recognised by their methods, and PyTorch Geometric is imported only to build a batch. A batch
holds its graphs as one large graph without edges between them, so rows of its tensors are nodes, edges or graphs.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch import Tensor

from flatbayes.core.optional import require_package

TARGETS_ENTRY = "y"
"""Name under which a graph holds its targets."""
NODE_TASK_ADVICE = (
    "Targets of nodes or edges are for a training loop of your own, in which a posterior takes any closure; fit is "
    "for targets of whole graphs."
)


@runtime_checkable
class GraphBatch(Protocol):
    """A batch of graphs: the methods of a `Batch` of PyTorch Geometric that are needed here, for annotations."""

    @property
    def num_graphs(self) -> int:
        """Number of graphs."""

    def apply(self, func: Callable[[Any], Any]) -> Any:
        """Apply a function to all entries, in place."""

    def to_data_list(self) -> list[Any]:
        """The graphs."""


def is_graph(value: object) -> bool:
    """Whether this is one graph, such as a `Data` or `HeteroData` of PyTorch Geometric."""
    return _has_stores(value) and not hasattr(type(value), "to_data_list")


def is_graph_batch(value: object) -> TypeGuard[GraphBatch]:
    """Whether this is a batch of graphs, such as a `DataBatch` of PyTorch Geometric."""
    return _has_stores(value) and hasattr(type(value), "to_data_list")


def is_graph_list(value: object) -> bool:
    """Whether this is a list of graphs, one for each example, or a batch of them."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(is_graph, value))
    return is_graph_batch(value)


def _has_stores(value: object) -> bool:
    return hasattr(type(value), "stores") and hasattr(type(value), "apply")


def join_graphs(graphs: Any, like: Any = None) -> Any:
    """A batch of graphs; a batch is unchanged.

    The result has the vectors of `like`, a batch, such as `x_s_batch` (the option `follow_batch` of loaders), too.

    Raises:
        ValueError: They cannot be joined.
    """
    if is_graph_batch(graphs):
        return graphs
    suffix, names = "_batch", [] if like is None else list(like.keys())
    followed = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    with require_package("graphs"):
        from torch_geometric.data import Batch
    try:
        return Batch.from_data_list(list(graphs), follow_batch=followed)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"The graphs cannot be joined to a batch: {error}. Give all graphs the same entries, with the same "
            "number of features."
        ) from error


def map_graph_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """A copy of a batch with a function applied to every tensor; the batch is not changed."""
    return copy.copy(batch).apply(lambda value: function(value) if isinstance(value, Tensor) else value)


def count_graphs(batch: Any) -> int:
    """Number of graphs of a batch."""
    return int(batch.num_graphs)


def select_graphs(batch: Any, rows: int | slice | Tensor) -> Any:
    """A batch of some graphs, in the given order; of a number, the graph itself.

    Raises:
        ValueError: The batch cannot be taken apart, because it was not made of graphs.
    """
    try:
        graphs = batch[rows]
    except RuntimeError as error:
        raise ValueError(
            f"The {type(batch).__name__} cannot be divided into its graphs. Make it with "
            "Batch.from_data_list(graphs) or a DataLoader of PyTorch Geometric."
        ) from error
    if isinstance(rows, int):
        return graphs
    if graphs:
        return join_graphs(graphs, batch)
    empty = map_graph_tensors(lambda tensor: tensor[:0], batch)
    empty._num_graphs = 0
    return empty


def split_graph_targets(batch: Any) -> tuple[Any, Tensor]:
    """A batch without its targets, and these, one row for each graph.

    Raises:
        ValueError: It has no targets, or not one row for each graph.
    """
    targets, num_graphs = getattr(batch, TARGETS_ENTRY, None), count_graphs(batch)
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"The graphs have no targets: give each graph an entry {TARGETS_ENTRY}, or pass pairs (batch, targets)."
        )
    if not targets.ndim or len(targets) != num_graphs:
        advice = NODE_TASK_ADVICE
        if targets.ndim == 1 and len(targets) != batch.num_nodes and len(targets) % max(1, num_graphs) == 0:
            advice = f"Give each graph its targets as one row, {TARGETS_ENTRY} of the shape [1, targets]."
        raise ValueError(
            f"The targets {TARGETS_ENTRY} of a batch of {num_graphs} graphs have the shape {tuple(targets.shape)}, "
            f"and there must be one row for each graph. {advice}"
        )
    inputs = copy.copy(batch)
    del inputs[TARGETS_ENTRY]
    return inputs, targets


def list_graph_entries(batch: Any) -> dict[str, Any]:
    """The tensors of a batch by name; those of each type of nodes or edges by the name of the type."""
    stores = {getattr(store, "_key", None): dict(store.items()) for store in batch.stores}
    if len(stores) == 1 and None in stores:
        return stores[None]
    return {"__".join(key) if isinstance(key, tuple) else key or "": entries for key, entries in stores.items()}


def make_graph_batch(entries: Mapping[str, Any]) -> Any:
    """The inverse of `list_graph_entries`, for entries that are tensors; the batch cannot be taken apart."""
    with require_package("graphs"):
        from torch_geometric.data import Batch, Data, HeteroData
    if "batch" in entries:
        batch = Batch(_base_cls=Data)
        for name, value in entries.items():
            batch[name] = value
        return batch
    batch = Batch(_base_cls=HeteroData)
    for key, values in entries.items():
        parts = tuple(key.split("__"))
        store = batch if not key else batch[parts if len(parts) > 1 else key]
        for name, value in values.items():
            store[name] = value
            if name == "ptr":
                batch._num_graphs = len(value) - 1
    return batch


def make_graph_arguments(batch: Any, required: Sequence[str], optional: Iterable[str], name: str) -> dict[str, Any]:
    """Arguments of a network whose `forward` takes the tensors of a batch one by one, such as (x, edge_index, batch).

    Of the optional parameters those are passed that the batch has.

    Raises:
        ValueError: The batch lacks one that is required.
    """
    arguments = {key: getattr(batch, key, None) for key in required}
    missing = [key for key, value in arguments.items() if value is None]
    if missing:
        raise ValueError(
            f"forward of {name} requires {', '.join(missing)}, which the graphs lack: they have "
            f"{', '.join(map(str, batch.keys()))}. Name its parameters like these entries, or let it take the batch."
        )
    return arguments | {key: batch[key] for key in optional if key in batch}


def list_declared_arguments(network: object) -> tuple[str, ...]:
    """Arguments that a `Sequential` of PyTorch Geometric declares, as in `Sequential("x, edge_index", ...)`."""
    return tuple(getattr(getattr(network, "signature", None), "param_dict", ()))
