"""Low-rank adapters (LoRA): their factors, found by names, merged adapters, and frozen weights that networks share.

An adapter adds `scaling * outer @ inner` to a frozen weight, with `inner` of shape (rank, inputs) and `outer` of
shape (outputs, rank). No library of adapters is imported: PEFT, torchtune and loralib name their factors alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core.traversal import list_modules, named_parameters

FACTOR_NAMES = (("lora_embedding_A", "lora_embedding_B"), ("lora_A", "lora_B"), ("lora_a", "lora_b"))
"""Names of the inner and the outer factor."""


@dataclass(frozen=True, eq=False)
class FactorPair:
    """The two factors of an adapter.

    Attributes:
        inner: A, whose first dimension is the rank.
        outer: B, whose second dimension is the rank.
        rank_scales: E of AdaLoRA, whose product is B diag(E) A; None for all others.
    """

    inner: nn.Parameter
    outer: nn.Parameter
    rank_scales: nn.Parameter | None = None

    @property
    def outer_matrix(self) -> Tensor:
        """B, or B diag(E), as a matrix, shape (outputs, rank); B of a convolution has kernels of size 1."""
        outer = self.outer.detach().flatten(1)
        return outer if self.rank_scales is None else outer * self.rank_scales.detach().flatten()


def find_factor_pairs(model: nn.Module) -> dict[str, FactorPair]:
    """Find the adapters that are trained, by the name of their inner factor.

    Adapters of which no factor requires gradients are left out: PEFT turns off those of inactive adapters.

    Raises:
        ValueError: Two factors have shapes that cannot be multiplied.
    """
    params = named_parameters(model)
    pairs: dict[str, FactorPair] = {}
    for name, param in params.items():
        outer = params.get(_replace_factor_name(name))
        if outer is None or outer is param or not (param.requires_grad or outer.requires_grad):
            continue
        rank_scales = params.get(name.replace("lora_A", "lora_E")) if "lora_A" in name else None
        pair = pairs[name] = FactorPair(param, outer, rank_scales)
        if param.ndim < 2 or outer.ndim < 2 or pair.outer_matrix.shape[1] != len(param):
            raise ValueError(
                f"{name} of shape {tuple(param.shape)} and {_replace_factor_name(name)} of shape "
                f"{tuple(outer.shape)} are not the factors of a product: expected (rank, inputs) and (outputs, rank)."
            )
    return pairs


def find_merged_adapter(model: nn.Module) -> str | None:
    """Name of a layer whose adapter is merged into the frozen weight, so that its factors are not used; else None."""
    if not any(_is_merged(module) for module in list_modules(model)):
        return None
    return next(name or type(module).__name__ for name, module in model.named_modules() if _is_merged(module))


def check_unmerged(model: nn.Module, reason: str) -> None:
    """Refuse a network with a merged adapter; the first sentence of the message ends with `reason`."""
    name = find_merged_adapter(model)
    if name is not None:
        raise ValueError(
            f"The adapter of {name} is merged into its frozen weight, {reason}. Call unmerge_adapter() on the model "
            "of PEFT, unmerge() on the layers, or train() on a model of loralib."
        )


def keep_unmerged(model: nn.Module) -> None:
    """Stop the layers of loralib from merging their adapters whenever they are set to eval mode, in place.

    Merged factors would not change the outputs, so that all draws would be one network, and a saved network would
    merge them a second time when it is loaded.
    """
    for module in list_modules(model):
        if _has_factors(module) and getattr(module, "merge_weights", False) is True:
            setattr(module, "merge_weights", False)  # noqa: B010


def describe_scaling(module: nn.Module) -> dict[str, float] | None:
    """The factors of the products of a layer's active adapters, by name of the adapter; None for other modules.

    Layers of PEFT and loralib have the factor as `scaling`, those of torchtune have `alpha`.
    """
    if not _has_factors(module):
        return None
    scaling = getattr(module, "scaling", None)
    if isinstance(scaling, Mapping):  # PEFT
        is_disabled = getattr(module, "disable_adapters", False) is True
        active = () if is_disabled else getattr(module, "active_adapters", scaling)
        return {name: float(scaling[name]) for name in active if isinstance(scaling.get(name), int | float)}
    values = {"scaling": scaling, "alpha": getattr(module, "alpha", None)}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def share_frozen_parameters(networks: Sequence[nn.Module]) -> None:
    """Let networks share the frozen parameters that are equal, in place: those of the first are used in all."""
    first, *others = networks
    own = dict(first.named_parameters(remove_duplicate=False)) if others else {}
    for network in others:
        for prefix, module in network.named_modules():
            for name, param in module._parameters.items():
                common = own.get(f"{prefix}.{name}".removeprefix("."))
                if param is not None and common is not None and _can_share(param, common):
                    module._parameters[name] = common


def _can_share(param: nn.Parameter, common: nn.Parameter) -> bool:
    if param.requires_grad or common.requires_grad or type(param) is not type(common):
        return False
    if (param.dtype, param.device, param.shape) != (common.dtype, common.device, common.shape):
        return False
    return param is common or torch.equal(param, common)


def _is_merged(module: nn.Module) -> bool:
    """Whether a layer with factors says that they are merged, as those of PEFT and loralib do."""
    return _has_factors(module) and getattr(module, "merged", False) is True


def _has_factors(module: nn.Module) -> bool:
    names = (*module._modules.keys(), *module._parameters.keys())  # of TorchScript, which is not iterable
    return any(name.startswith("lora_") for name in names)


def _replace_factor_name(name: str) -> str:
    """The name of the outer factor for that of an inner one; any other name itself."""
    for inner, outer in FACTOR_NAMES:
        if inner in name:
            return name.replace(inner, outer)
    return name
