"""Rows of embeddings for padding tokens, which have no gradient, so that noise must not change them either."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatbayes.core.traversal import list_modules

ROW_ATTRIBUTE = "_padding_row"
"""Attribute of a weight with the index of its row."""


def mark_padding_rows(model: nn.Module) -> None:
    """Note the row `padding_idx` at the weight of every `nn.Embedding` of a model.

    A weight that is tied to another layer has no mark, since that layer gives the row a gradient; nor has a
    parametrized or sharded one.
    """
    modules = list_modules(model)
    owners = Counter(id(param) for module in modules for param in module._parameters.values())
    for module in modules:
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            weight = module._parameters.get("weight")
            if type(weight) is nn.Parameter and owners[id(weight)] == 1:
                setattr(weight, ROW_ATTRIBUTE, module.padding_idx)


def list_padding_rows(params: Sequence[Tensor], values: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Views of the marked rows of parameters, or of values in the shapes of the parameters, of all networks."""
    rows = ((k, getattr(param, ROW_ATTRIBUTE, None)) for k, param in enumerate(params))
    return [(params if values is None else values)[k][..., row, :] for k, row in rows if row is not None]


@torch.no_grad()
def clear_padding_rows(values: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Set noise or offsets to zero, in place, in the marked rows of the parameters that they are for."""
    for row in list_padding_rows(params, values):
        row.zero_()
