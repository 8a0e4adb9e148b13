"""Checks that the Lightning callback can control the steps of a module, before training."""

from typing import TYPE_CHECKING

from torch import nn

from flatbayes.core.names import format_suggestion
from flatbayes.core.signatures import read_signature
from flatbayes.posteriors import Posterior

if TYPE_CHECKING:  # modules and trainers may be those of pytorch_lightning as well
    from lightning.pytorch import LightningModule, Trainer

SUPPORTED_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}
"""Strategies in which every process holds all weights. Both packages have classes of these names."""


def check_supported(trainer: "Trainer", module: "LightningModule") -> None:
    """Check that the callback can control the steps of a module.

    Raises:
        ValueError: The module uses manual optimization or an iterator of batches, or its weights are sharded.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{name} uses manual optimization (automatic_optimization=False), which a callback cannot control. Use "
            "the flatness in its training_step: loss = flatness(closure, self)()."
        )
    if "dataloader_iter" in read_signature(module.training_step).parameters:
        raise ValueError(f"training_step of {name} takes an iterator, whose batches cannot be repeated.")
    strategy_names = get_class_names(trainer.strategy)
    if not strategy_names & SUPPORTED_STRATEGIES or "DeepSpeedStrategy" in strategy_names:
        raise ValueError(
            f"{type(trainer.strategy).__name__} is not supported, since it may shard the weights; use one "
            "device, or strategy='ddp'."
        )


def check_steps(posterior: Posterior, accumulation_steps: int, has_loss_scaler: bool) -> None:
    """Check that Lightning computes all gradients of a step within the step, if the posterior needs this.

    Raises:
        ValueError: It computes them before.
    """
    if posterior.uses_gradient_only or (accumulation_steps == 1 and not has_loss_scaler):
        return
    option = "precision='16-mixed'" if has_loss_scaler else f"accumulate_grad_batches={accumulation_steps}"
    instead = "precision='bf16-mixed'" if has_loss_scaler else "accumulate_grad_batches=1 and larger batches"
    raise ValueError(
        f"{type(posterior).__name__} changes the network for every gradient, by weight samples, noise or its dropout "
        f"rate, and with {option} Lightning computes gradients before the step. Use {instead}."
    )


def get_class_names(instance: object) -> set[str]:
    """Names of the class of an object and of its bases."""
    return {cls.__name__ for cls in type(instance).__mro__}


def get_network(module: "LightningModule", name: str) -> nn.Module:
    """The submodule of a name; the module itself for an empty one.

    Raises:
        ValueError: There is none.
    """
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        names = [child for child, _ in module.named_children()]
        raise ValueError(
            f"network={name!r} is no submodule of {type(module).__name__}. {format_suggestion(name, names)}It has "
            f"{', '.join(names)}."
        ) from error
