"""Compatibility checks of posterior, flatness and configuration, before the first step."""

from math import inf

from torch import nn

from flatbayes.core.names import format_count
from flatbayes.flatness import Flatness, Plain
from flatbayes.posteriors import Posterior
from flatbayes.training.config import TrainingConfig
from flatbayes.training.identity import describe_name
from flatbayes.training.model_builder import ModelFactory

MIN_USEFUL_SNAPSHOT_FRACTION = 0.5
"""Fraction of the snapshots that a posterior can use below which a message says that there are few."""
REQUIREMENT_REASONS = {
    "at_end": "minimises an objective, which must be stationary at least by the end of training",
    "while_collecting": "samples from a density, which must be the same for all collected snapshots",
}


def check_compatibility(posterior: Posterior, flatness: Flatness, config: TrainingConfig) -> None:
    """Refuse a flatness or a precision that the posterior does not support.

    Raises:
        ValueError: The posterior perturbs the weights itself; the gradients are not those of one loss, or not early
            enough; the weights have no Gaussian; or the loss is scaled, and the posterior needs every step or the
            flatness depends on the scale.
    """
    if flatness.needs_weight_distribution and not posterior.has_weight_distribution:
        raise ValueError(
            f"{describe_name(posterior)} does not go with {describe_name(flatness)}: the flatness takes its geometry "
            "from the Gaussian that a posterior has for the weights during training, and this posterior has none "
            "then. Use SGVB, LRT, IVON, SWAG, BLoB, or an Ensemble of them, or another flatness such as SAM or ASAM."
        )
    if posterior.perturbs_weights and not isinstance(flatness, Plain):
        raise ValueError(
            f"{describe_name(posterior)} does not go with {describe_name(flatness)}: the posterior takes its second "
            "gradient at perturbed weights itself. Use Plain, or IVON with this flatness or with PosteriorSAM."
        )
    if config.precision.mode == "16-mixed" and not posterior.tolerates_skipped_steps:
        raise ValueError(
            f"{describe_name(posterior)} changes more than the optimizer in every step (noise, or averages of "
            "gradients), and the loss scaler of precision.mode 16-mixed leaves out steps whose gradient is not "
            "finite, but not these changes. Use bf16-mixed, which has none."
        )
    if config.precision.mode == "16-mixed" and flatness.depends_on_loss_scale:
        raise ValueError(
            f"{describe_name(flatness)} compares gradients with the loss, and the loss scaler of precision.mode "
            "16-mixed multiplies gradients. Use bf16-mixed, which has none."
        )
    requirement, stationary_after = posterior.requires_stationary_loss, flatness.stationary_after
    collection_start = config.collection.start_fraction / config.schedule.num_cycles  # in the first cycle
    latest = {"never": inf, "at_end": 1.0, "while_collecting": collection_start}[requirement]
    if stationary_after <= latest:
        return
    message = (
        f"{describe_name(posterior)} does not go with {describe_name(flatness)}: the posterior "
        f"{REQUIREMENT_REASONS[requirement]}, and the gradients of this flatness are not those of "
    )
    if stationary_after < inf:
        raise ValueError(
            f"{message}one loss before {stationary_after:g} of training, when snapshots have been collected since "
            f"{latest:g}. Collect from {stationary_after:g} on, or let the flatness start earlier."
        )
    raise ValueError(
        f"{message}any one loss. Use SAM, which may take `ascent_batch_fraction` of the batch or perturb only some "
        "`params`, or GaussianSmoothing, which costs one gradient a step."
    )


def count_snapshots(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Number of snapshots that a run collects."""
    return sum(
        config.is_collection_step(step, steps_per_epoch) for step in range(steps_per_epoch * config.num_epochs)
    )


def check_collection(posterior: Posterior, config: TrainingConfig, steps_per_epoch: int) -> str | None:
    """Check the number of snapshots against the requirements of the posterior.

    Returns:
        A message if there are fewer than half of the snapshots that the posterior can use, otherwise None.

    Raises:
        ValueError: There are too few snapshots to draw from.
    """
    start, per_epoch = config.collection.start_fraction, config.collection.snapshots_per_epoch or "automatic"
    advice = (
        f"Lower collection.start_fraction (now {start:g}), raise collection.snapshots_per_epoch (now {per_epoch}), "
        "or train longer."
    )
    if posterior.snapshot_requirements.max_used == 0:
        return None
    num_snapshots = count_snapshots(config, steps_per_epoch)
    return check_snapshot_count(posterior, num_snapshots, f"configuration (epochs={config.epochs})", advice)


def check_snapshot_count(posterior: Posterior, num_snapshots: int, training: str, advice: str) -> str | None:
    """Check a number of snapshots against the requirements of the posterior; training and advice are for the message.

    Returns:
        A message if there are fewer than half of the snapshots that the posterior can use, otherwise None.

    Raises:
        ValueError: There are too few snapshots to draw from.
    """
    required, useful = posterior.snapshot_requirements
    if num_snapshots < required:
        raise ValueError(
            f"{describe_name(posterior)} needs at least {format_count(required, 'collected snapshot')} before a "
            f"draw, and this {training} collects {num_snapshots}. {advice}"
        )
    if num_snapshots < MIN_USEFUL_SNAPSHOT_FRACTION * useful:
        return (
            f"{describe_name(posterior)} can use {format_count(useful, 'snapshot')}, and this {training} collects "
            f"{num_snapshots}: the posterior will be estimated from few snapshots. {advice}"
        )
    return None


def check_initial_weights(model: nn.Module | ModelFactory, posterior: Posterior, *, has_init: bool) -> None:
    """Refuse an ensemble of copies of one network."""
    if isinstance(model, nn.Module) and posterior.num_members > 1 and not has_init:
        raise ValueError(
            f"{type(posterior).__name__} trains {posterior.num_members} networks from fresh initial weights, and was "
            "given one network. Pass its class, or a function that builds a new one."
        )


def check_finite_weights(network: nn.Module) -> None:
    """Refuse weights that became non-finite in the last step, which the loss before it does not show.

    Raises:
        RuntimeError: A weight is not finite.
    """
    if not all(param.isfinite().all() for param in network.parameters()):
        raise RuntimeError(
            "Some weights are not finite after the last step, whose loss is not computed. Try a lower learning rate, "
            "a smaller rho, or clipping (--optimization.clip_norm 1)."
        )
