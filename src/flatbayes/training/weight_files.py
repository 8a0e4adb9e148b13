"""Read trained weights from files: safetensors, and pickles of torch.save, which are read without running code."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

MAX_EXPANSION, MAX_PICKLE_BYTES = 20, 2**27
"""Largest size of the entries of a file of torch.save, by its own, and of the pickle with the names of tensors."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "network")
"""Keys under which checkpoints keep the weights, beside the optimizer's state."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name.

    The file is a .safetensors file, or one of torch.save: a state dict, or a mapping with one under a key of
    `STATE_DICT_KEYS`, such as a checkpoint of Lightning.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds code or no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no trained weights at {path}: no file, and no folder of a run.{advise_on_folder(path)}"
        )
    _check_archive(path)
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise exceptions of many kinds
        is_code = isinstance(error, UnpicklingError)
        reason = (
            "it is damaged, or holds more than tensors" if is_code else f"{type(error).__name__} {str(error)[:200]}"
        )
        raise ValueError(
            f"{path} cannot be read as weights: {reason}. Whole networks are code, and code is never run: save the "
            "weights alone, torch.save(network.state_dict(), path)."
        ) from error
    return extract_state_dict(content, str(path))


def advise_on_folder(path: Path) -> str:
    """Sentence for a message on a folder that is given in place of a file of weights; empty for another path."""
    if (path / "adapter_config.json").is_file():
        return (
            " The folder has adapters of PEFT: load them, PeftModel.from_pretrained(network, folder, "
            "is_trainable=True), and give the result as the model."
        )
    files = [file for file in sorted(path.glob("*")) if file.suffix.lower() in WEIGHT_SUFFIXES]
    if len(files) == 1:
        return f" The folder has a file {files[0].name}: give its path."
    if files:
        return f" The folder has weights in {len(files)} files: give one with all, or load them and give the network."
    return ""


def _check_archive(path: Path) -> None:
    """Refuse a file of torch.save that expands: torch writes it uncompressed.

    Raises:
        ValueError: Its entries are larger than the file, or its pickle is larger than names of weights need.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return  # torch.load says that the file is damaged
    size = path.stat().st_size
    if sum(entry.file_size for entry in entries) > MAX_EXPANSION * size:
        raise ValueError(
            f"{path} expands to more than {MAX_EXPANSION} times its size, which weights of torch.save never do. Save "
            "them again."
        )
    pickles = [entry.file_size for entry in entries if entry.filename.endswith(".pkl")]
    if max(pickles, default=0) > MAX_PICKLE_BYTES:
        raise ValueError(
            f"{path} describes its weights in {max(pickles)} bytes, and at most {MAX_PICKLE_BYTES} are read. Save "
            "the weights alone: torch.save(network.state_dict(), path)."
        )


def extract_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict that a mapping is, or that it holds under a key of `STATE_DICT_KEYS`.

    Raises:
        ValueError: There is no state dict.
    """
    is_mapping = isinstance(content, Mapping)
    for inner in [content, *(content[key] for key in STATE_DICT_KEYS if key in content)] if is_mapping else []:
        if isinstance(inner, Mapping) and inner and all(isinstance(name, str) for name in inner):
            tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
            if tensors and not any(isinstance(value, Mapping) for value in inner.values()):
                return tensors
    summary = ", ".join(map(str, list(content)[:8])) if is_mapping else type(content).__name__
    raise ValueError(
        f"{source} holds no state dict, at the top or under one of {', '.join(STATE_DICT_KEYS)}; it holds "
        f"{summary[:200]}. Save the weights alone: torch.save(network.state_dict(), path)."
    )
