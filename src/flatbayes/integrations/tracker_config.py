"""What a tracker needs before training: posterior, parameters and collection of snapshots; and its checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flatbayes.core.components import resolve_component
from flatbayes.core.files import atomic_write, parse_json
from flatbayes.core.parameter_selection import ParameterSelection, check_selection
from flatbayes.core.process_group import get_process_group_info
from flatbayes.flatness import Flatness
from flatbayes.posteriors import MAP, Posterior
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.config import TrainingConfig
from flatbayes.training.config_groups import CollectionConfig, PrecisionConfig
from flatbayes.training.identity import describe_name
from flatbayes.training.loader_pass import count_loader_examples
from flatbayes.training.schedules import Cyclical

TRACKER_FILE_NAME = "flatbayes.safetensors"
"""File of the tracker in the folder of a checkpoint."""


@dataclass(frozen=True)
class TrackerConfig:
    """Posterior, its parameters, and which snapshots are collected.

    Attributes:
        posterior: Takes the steps and collects snapshots.
        collection: From when on snapshots are collected, and how many per epoch.
        params: The trainable parameters that the posterior is over; the others keep their trained values.
        num_data: Number of training examples; None counts those of a pass over the data loader, from its sampler.
        num_cycles: Number of cycles of the user's learning rate, each of which ends with snapshots.

    Raises:
        ValueError: A value is out of range, or the posterior needs several training runs or all parameters.
    """

    posterior: Posterior
    collection: CollectionConfig = CollectionConfig()
    params: ParameterSelection = "all"
    num_data: int | None = None
    num_cycles: int = 1

    def __post_init__(self) -> None:
        posterior, name = self.posterior, type(self.posterior).__name__
        check_selection(self.params, "params")
        Cyclical(self.num_cycles)
        if posterior.num_members > 1:
            raise ValueError(
                f"A Trainer trains one network, and {name} needs {posterior.num_members} training runs from new "
                "initial weights. Train each member with its posterior, and join the fitted posteriors with "
                "flatbayes.integrations.join_posteriors."
            )
        samples_weights = posterior.has_weight_distribution and not posterior.uses_gradient_only
        is_joint = samples_weights or posterior.requires_stationary_loss == "while_collecting"
        if self.params != "all" and is_joint:
            raise ValueError(
                f"{name} updates all trainable weights together, so it cannot be restricted afterwards to "
                f"params={self.params!r}. Set requires_grad to False on the other weights"
                f"{', or use its own option params' if hasattr(posterior, 'params') else ''}."
            )

    def check_flatness(self, flatness: Flatness, *, has_loss_scaler: bool = False) -> None:
        """Make the check of `fit` whether posterior, flatness and precision go together."""
        if flatness.radius == "auto":
            usual = flatness.with_radius(flatness.reference_radius)
            raise ValueError(
                f"The radius of {describe_name(flatness)} is chosen by `fit`, in several trainings, and this loop "
                f"trains once: give a number, such as {describe_name(usual)}."
            )
        if flatness.needs_weight_distribution and self.params != "all":
            raise ValueError(
                f"{type(flatness).__name__} perturbs the weights by their distribution, so the posterior cannot be "
                f"restricted afterwards to params={self.params!r}. Set requires_grad to False on the other weights, "
                "or use the option params of the posterior."
            )
        precision = PrecisionConfig("16-mixed" if has_loss_scaler else "32-true")
        config = TrainingConfig(schedule=Cyclical(self.num_cycles), collection=self.collection, precision=precision)
        check_compatibility(self.posterior, flatness, config)

    def count_examples(self, loader: object, num_batches: int | None = None) -> int:
        """Number of training examples: `num_data`, or those of a pass over the loader; 1 if unknown and unused.

        Args:
            loader: The training data loader, which is not read.
            num_batches: Number of its batches that an epoch has in each process, if that may be fewer than all.

        Raises:
            ValueError: There is no `num_data`, and the loader does not tell the number.
        """
        if self.num_data is not None:
            return self.num_data
        count = count_loader_examples(loader, get_process_group_info().size, num_batches)
        if count is None and self.posterior == MAP():
            return 1
        if count is None:
            raise ValueError(
                f"The number of training examples of a {type(loader).__name__} is unknown before it is read: pass "
                "num_data, the number of labelled examples in an epoch."
            )
        return count


def make_tracker_config(
    posterior: Posterior | None,
    start_fraction: float,
    snapshots_per_epoch: int | None,
    params: ParameterSelection,
    num_data: int | None,
    num_cycles: int,
) -> TrackerConfig:
    """The configuration from the arguments of the callback and of the mixin, which explain them."""
    return TrackerConfig(
        MAP() if posterior is None else resolve_component(posterior, Posterior, "posterior"),
        CollectionConfig(start_fraction, snapshots_per_epoch),
        params,
        num_data,
        num_cycles,
    )


class TrackerState(TypedDict):
    """Checkpoint of a tracker: the training progress and the statistics of the posterior.

    `optimizer_states` has the optimizer's state of standard deviations, as `index.name`.
    """

    progress: dict[str, Any]
    statistics: dict[str, Tensor]
    updated_buffers: NotRequired[list[str] | None]
    optimizer_states: NotRequired[dict[str, Tensor]]


def save_tracker_state(path: Path, state_dict: TrackerState) -> None:
    """Write the checkpoint of a tracker as a file of tensors, with plain data in its metadata."""
    progress = dict(state_dict["progress"])
    tensors = {f"flatness_state.{name}": tensor for name, tensor in progress.pop("flatness_state").items()}
    for kind in ("statistics", "optimizer_states"):
        tensors |= {f"{kind}.{name}": tensor for name, tensor in state_dict[kind].items()}
    with atomic_write(path) as temporary:
        copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        updated_buffers = json.dumps(state_dict.get("updated_buffers"))
        save_file(copies, temporary, metadata={"progress": json.dumps(progress), "updated_buffers": updated_buffers})


def load_tracker_state(path: Path) -> TrackerState:
    """Read the checkpoint of a tracker; version 0.1 wrote `course` and `kept` for `progress` and `flatness_state`."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        progress = parse_json(metadata["progress" if "progress" in metadata else "course"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    flatness_state = _select_by_prefix(tensors, "flatness_state.") or _select_by_prefix(tensors, "kept.")
    return {
        "progress": {**progress, "flatness_state": flatness_state},
        "statistics": _select_by_prefix(tensors, "statistics."),
        "updated_buffers": parse_json(metadata.get("updated_buffers", "null")),
        "optimizer_states": _select_by_prefix(tensors, "optimizer_states."),
    }


def _select_by_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
