"""Weights divided among processes, by torch's `fully_shard`: for networks that one device cannot train.

Each process holds a part of every parameter, of its gradient, of what the optimiser keeps and of what the posterior
does; a layer is put together for as long as it computes. When training is over the network is put together in every
process, as it would be without.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.weights import to_local, trainable_parameters
from flatbayes.posteriors import Posterior
from flatbayes.training.checkpoint import Checkpoints
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.process_group import ProcessGroupInfo

MIN_SHARD_PARAMETERS = 2**20
"""Weights that are worth sending in a message of their own."""
MIN_TORCH_VERSION = "2.13"
"""Oldest version of torch whose sharding gave what one process gives (2.8 does not)."""


def check_fsdp(
    posterior: Posterior, config: TrainingConfig, world: ProcessGroupInfo, checkpoints: Checkpoints | None = None
) -> None:
    """Refuse what needs all weights in one place, or gradients of other means than the one that comes of sharding.

    Raises:
        ValueError: The recipe is for shards, and there is something that does not go with them.
    """
    reasons = {
        f"{type(posterior).__name__} looks at all weights at once": not posterior.shardable,
        "every gradient is one of all processes; set ascent_scope='synchronised'": config.distribution.ascent_scope
        != "synchronised",
        f"{config.batch_size} examples do not divide by {world.size} processes": config.batch_size % world.size != 0,
        "a loss scale would have to be the same everywhere; use bf16-mixed": config.precision.mode == "16-mixed",
        "networks are not compiled": config.precision.compile,
        "there are no checkpoints of parts": checkpoints is not None,
        "there is one process; start several": world.size == 1,
        f"torch {torch.__version__} is older than {MIN_TORCH_VERSION}, the oldest tried: one before gave wrong gradients": (
            torch.__version__ < MIN_TORCH_VERSION
        ),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(f"strategy='fsdp' cannot be used here: {'; '.join(found)}. Or use strategy='ddp'.")


def shard_module(module: nn.Module, world: ProcessGroupInfo, device: torch.device) -> nn.Module:
    """The module with its parameters divided, in place: it computes what it did."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    divided: set[int] = set()
    inner = list(module.modules())[:0:-1]  # from the innermost on, without the module itself
    for part in [*inner, module]:
        rest = [param for param in part.parameters() if id(param) not in divided]
        is_container = isinstance(part, nn.ModuleList | nn.ModuleDict)
        if part is module or (sum(param.numel() for param in rest) >= MIN_SHARD_PARAMETERS and not is_container):
            divided |= {id(param) for param in rest}
            # Put together only while it computes: in between, parameters are to be what the optimiser moves.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            divided |= {id(param) for param in part.parameters()}
    return module


def gather_state(
    sharded_state: State, init_state: Callable[[nn.Module], State], module: nn.Module, world: ProcessGroupInfo
) -> State:
    """The whole state, from the parts of all processes; each must call this.

    Args:
        sharded_state: What this process holds.
        init_state: The state before the first step, of a module.
        module: A network of the same architecture, not divided, which gets the weights.
        world: All processes.
    """
    whole = init_state(module)
    sizes = [to_local(param).numel() for param in trainable_parameters(sharded_state.model)]
    with torch.no_grad():
        for divided, param in zip(sharded_state.model.parameters(), whole.model.parameters(), strict=True):
            param.copy_(divided.full_tensor())  # type: ignore[attr-defined]
        for mine, buffer in zip(sharded_state.model.buffers(), whole.model.buffers(), strict=True):
            buffer.copy_(mine)
        for name, statistic in sharded_state.statistics.items():
            full = whole.statistics[name]
            is_wide = full.ndim > 0 and full.shape[-1] == sum(param.numel() for param in trainable_parameters(module))
            full.copy_(gather_columns(statistic, sizes, world) if is_wide else statistic)
    return whole


def gather_columns(local_statistic: Tensor, sizes: list[int], world: ProcessGroupInfo) -> Tensor:
    """One statistic of all weights, [..., params], from that of the weights that each process holds.

    Args:
        local_statistic: Of this process.
        sizes: Entries that it holds of every parameter.
        world: All processes.
    """
    parts = world.all_gather((local_statistic.cpu(), sizes))
    pieces = [held.split(lengths, dim=-1) for held, lengths in parts]
    return torch.cat([piece for param in zip(*pieces, strict=True) for piece in param], dim=-1)
