"""Fully sharded data parallelism by torch's `fully_shard`, for networks that one device cannot train.

Each process holds a shard of every parameter, of its gradient, of the optimizer's state and of the posterior's
statistics; a layer is gathered while it computes. After training the whole network is gathered in every process.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flatbayes.core import State
from flatbayes.core.names import format_count
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.tensor_lists import to_local
from flatbayes.core.weights import trainable_parameters
from flatbayes.flatness import Flatness, Plain
from flatbayes.posteriors import Posterior
from flatbayes.training.checkpoint import Checkpoints
from flatbayes.training.config import TrainingConfig
from flatbayes.training.vectorized import is_per_weight

MIN_SHARD_PARAMETERS = 2**20
"""Smallest number of weights that are sent in a message of their own."""
MIN_TORCH_VERSION = "2.13"
"""Oldest version of torch whose sharded gradients were equal to those of one process (those of 2.8 are not)."""


def check_fsdp(
    posterior: Posterior,
    config: TrainingConfig,
    world: ProcessGroupInfo,
    checkpoints: Checkpoints | None = None,
    flatness: Flatness = Plain(),
) -> None:
    """Refuse what sharded training does not support.

    Raises:
        ValueError: Configuration, posterior, flatness or checkpoints cannot be used with `strategy="fsdp"`.
    """
    scope, size = config.distribution.ascent_scope, config.batch_size
    obstacles = {
        f"{type(posterior).__name__} needs all weights in one process": not posterior.shardable,
        f"{type(flatness).__name__} needs the distribution of all weights in one process": (
            flatness.needs_weight_distribution
        ),
        "gradients are averaged in every pass; set ascent_scope='synchronised'": scope != "synchronised",
        f"{format_count(size, 'example does', 'examples do')} not divide by {world.size} processes": size % world.size
        != 0,
        "the loss scale must be the same in all processes; use bf16-mixed": config.precision.mode == "16-mixed",
        "networks are not compiled": config.precision.compile,
        "there are no checkpoints of shards": checkpoints is not None,
        "there is one process; start several": world.size == 1,
        f"torch {torch.__version__} is older than {MIN_TORCH_VERSION}, the oldest tested: 2.8 gave wrong gradients": (
            torch.__version__ < MIN_TORCH_VERSION
        ),
    }
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if reasons:
        raise ValueError(f"strategy='fsdp' cannot be used here: {'; '.join(reasons)}. Or use strategy='ddp'.")


def shard_module(module: nn.Module, world: ProcessGroupInfo, device: torch.device) -> nn.Module:
    """Shard the parameters of a module over the processes, in place; its outputs do not change."""
    from torch.distributed.device_mesh import init_device_mesh  # only with a process group
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    sharded: set[int] = set()
    inner_modules = list(module.modules())[:0:-1]  # from the innermost on, without the module itself
    for submodule in [*inner_modules, module]:
        rest = [param for param in submodule.parameters() if id(param) not in sharded]
        is_container = isinstance(submodule, nn.ModuleList | nn.ModuleDict)
        is_large = sum(param.numel() for param in rest) >= MIN_SHARD_PARAMETERS
        if submodule is module or (is_large and not is_container):
            sharded |= {id(param) for param in rest}
            # Gathered only while it computes: in between, the parameters are the tensors that the optimizer updates.
            fully_shard(submodule, mesh=mesh, reshard_after_forward=True)
            sharded |= {id(param) for param in submodule.parameters()}
    return module


def gather_state(
    sharded_state: State, init_state: Callable[[nn.Module], State], module: nn.Module, world: ProcessGroupInfo
) -> State:
    """The whole state from the shards of all processes; every process must call this.

    `module` is a network of the same architecture, not sharded, which gets the weights.
    """
    whole = init_state(module)
    whole.updated_buffers = sharded_state.updated_buffers
    local_sizes = [to_local(param).numel() for param in trainable_parameters(sharded_state.model)]
    sizes = [param.numel() for param in trainable_parameters(module)]
    with torch.no_grad():
        for shard, param in zip(sharded_state.model.parameters(), whole.model.parameters(), strict=True):
            param.copy_(shard.full_tensor())  # type: ignore[attr-defined]  # of a DTensor
        for source, buffer in zip(sharded_state.model.buffers(), whole.model.buffers(), strict=True):
            buffer.copy_(source)
        for name, local in sharded_state.statistics.items():
            full = whole.statistics[name]
            full.copy_(gather_columns(local, local_sizes, world) if is_per_weight(full, sizes) else local)
    return whole


def gather_columns(local_statistic: Tensor, sizes: list[int], world: ProcessGroupInfo) -> Tensor:
    """A statistic of all weights, [..., params], from those of the weights that each process holds.

    `sizes` are the numbers of entries of every parameter in this process.
    """
    gathered = world.all_gather((local_statistic.cpu(), sizes))
    pieces = [statistic.split(lengths, dim=-1) for statistic, lengths in gathered]
    return torch.cat([piece for param in zip(*pieces, strict=True) for piece in param], dim=-1)
