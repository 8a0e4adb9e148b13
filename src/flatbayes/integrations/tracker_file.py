"""Checkpoint of a training tracker, and its file in the folder of a checkpoint of transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flatbayes.core.files import atomic_write, parse_json

TRACKER_FILE_NAME = "flatbayes.safetensors"
"""File of the tracker in the folder of a checkpoint."""


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
