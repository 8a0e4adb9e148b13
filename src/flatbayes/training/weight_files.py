"""Trained weights in files of other programs: safetensors, and what torch.save writes, read as data and never run."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "network")
"""Under which of these a checkpoint may keep the weights, beside the optimiser's state and the like."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Args:
        path: A .safetensors file, or one of torch.save: a state dict, or a mapping that has one under a usual name,
            such as a checkpoint of Lightning.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds code or no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There are no trained weights at {path}: no file, and no folder of a run.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage is answered with exceptions of any kind
        code = isinstance(error, UnpicklingError)
        why = "it is damaged, or holds more than tensors" if code else f"{type(error).__name__} {str(error)[:200]}"
        raise ValueError(
            f"{path} cannot be read as weights: {why}. Whole networks are code, and code is never run: save the "
            "weights alone, torch.save(network.state_dict(), path)."
        ) from error
    return extract_state_dict(found, str(path))


def extract_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict that a mapping is, or that it holds under a usual name.

    Args:
        content: What was read.
        source: Where it is from, for the message.

    Raises:
        ValueError: There is none.
    """
    for inner in (
        [content, *(content[name] for name in STATE_DICT_KEYS if name in content)]
        if isinstance(content, Mapping)
        else []
    ):
        if isinstance(inner, Mapping) and inner and all(isinstance(name, str) for name in inner):
            tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
            if tensors and not any(isinstance(value, Mapping) for value in inner.values()):
                return tensors
    held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(
        f"{source} holds no state dict, at the top or under one of {', '.join(STATE_DICT_KEYS)}; it holds {held[:200]}. Save "
        "the weights alone: torch.save(network.state_dict(), path)."
    )
