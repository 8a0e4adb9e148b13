"""Metadata of an artefact, `posterior.json`: typed, of bounded size, and protected by a checksum."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypeAlias, TypedDict, cast

from flatbayes.calibration.maps import is_calibration
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.data.fingerprint import FINGERPRINT_KEY
from flatbayes.prediction.layer_settings import LayerSettings, is_layer_settings

SCHEMA_VERSION = 5
"""Schema 3 adds the checksum of the metadata and the names of the parameters that were not trained; schema 4 the
names of the files with tensors, a file of its own for running statistics of draws, buffers that are not persistent,
and which buffers training updated; schema 5 the rule of
draws."""
REFERENCE_SCHEMA = 6
"""Schema of an artefact that leaves out frozen weights: those that all members share are stored with the first, and
those of a published network may be missing altogether."""
READABLE_SCHEMAS = (1, 2, 3, 4, 5, REFERENCE_SCHEMA)
"""Since schema 2 the same seed draws other networks, so statistics of draws in schema 1 are ignored."""

METADATA_FILE = "posterior.json"
TENSORS_STEM, NORM_STEM = "posterior", "norm-statistics"
OLD_TENSORS_FILE = "posterior.safetensors"
"""Tensors of schemas 1 to 3."""
TENSORS_FILE_PATTERN = re.compile(
    rf"{TENSORS_STEM}(-[0-9a-f]{{16}})?\.safetensors|{NORM_STEM}-[0-9a-f]{{16}}\.safetensors"
)

Check: TypeAlias = tuple[Callable[[Any], bool], str]
"""Whether a value is valid, and the description of a valid one."""

MAX_METADATA_BYTES = 2**24
"""Largest metadata that is read; the names of 100,000 classes take a tenth of it."""


class PosteriorMetadata(TypedDict):
    """Entries of `posterior.json`."""

    schema: int
    draw_rule: NotRequired[int]
    """Rule by which seeds select networks; 1 where it is missing, in schemas 1 to 4."""
    posterior: dict[str, Any]
    """Class path and arguments."""
    likelihood: dict[str, Any] | None
    """Class path and arguments; None if it contains user code."""
    num_data: list[int]
    """Training examples of each training run."""
    num_statistics_batches: int
    """Batches of inputs that are stored for batch-norm statistics."""
    frozen: NotRequired[list[str]]
    """Parameters that were not trained."""
    frozen_sha256: NotRequired[str]
    """Checksum of the frozen parameters, where the artefact has none of them."""
    buffers: NotRequired[list[str]]
    """Names of the buffers."""
    updated_buffers: NotRequired[list[list[str] | None]]
    """For each training run the buffers that its last epoch changed; None if that is unknown."""
    interface: NotRequired[dict[str, Any]]
    """How the network is called, and which of its outputs is used, unless it takes and returns one tensor."""
    layers: NotRequired[LayerSettings]
    """Settings of layers that predictions depend on; missing before version 0.2."""
    info: dict[str, Any]
    tensors_file: NotRequired[str]
    """Name of the file with the tensors, different for every save."""
    sha256: NotRequired[str]
    """Checksum of the file with the tensors."""
    norm_file: NotRequired[str]
    """Name of the file with the running statistics of draws, where there is one."""
    norm_sha256: NotRequired[str]
    """Checksum of that file."""
    norm_device: NotRequired[str]
    """Kind of device on which these draws were made; the CPU where it is missing."""
    checksum: NotRequired[str]
    """Checksum of all other entries."""


MAX_AXES, MAX_EXAMPLE_ELEMENTS = 64, 2**28
"""Largest numbers of axes and elements of the described shape of an example."""


def _is_text_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_shape(value: object) -> bool:
    if not isinstance(value, list) or len(value) > MAX_AXES or not all(map(_is_count, value)):
        return False
    return math.prod(value) <= MAX_EXAMPLE_ELEMENTS


def _is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_choice(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("reason"), str)


_TEXT: Check = (lambda value: isinstance(value, str), "a text")
_TEXTS: Check = (_is_text_list, "a list of texts")
_OBJECT: Check = (lambda value: isinstance(value, dict), "an object")
_OPTIONAL_OBJECT: Check = (lambda value: isinstance(value, dict | None), "an object or null")
_SHAPE: Check = (_is_shape, "a list of whole numbers, the shape of an example")

REQUIRED_ENTRIES: dict[str, Check] = {
    "posterior": _OBJECT,
    "likelihood": _OPTIONAL_OBJECT,
    "num_data": (lambda value: isinstance(value, list), "a list of whole numbers"),
    "num_statistics_batches": (_is_count, "a whole number"),
    "info": _OBJECT,
    "sha256": _TEXT,
}
"""What each entry must be, and its description."""
OPTIONAL_ENTRIES: dict[str, Check] = {
    "frozen": _TEXTS,
    "frozen_sha256": _TEXT,
    "buffers": _TEXTS,
    "updated_buffers": (
        lambda value: isinstance(value, list) and all(names is None or _is_text_list(names) for names in value),
        "a list with a list of texts or null for each training run",
    ),
    "interface": _OBJECT,
    "layers": (is_layer_settings, "an object of objects by name of the layer"),
    "norm_sha256": _TEXT,
    "norm_device": _TEXT,
}
INFO_ENTRIES: dict[str, Check] = {
    "flatbayes": _TEXT,
    "model": _OPTIONAL_OBJECT,
    "class_names": _TEXTS,
    "target_names": _TEXTS,
    "feature_names": _TEXTS,
    "input_shape": _SHAPE,
    "example_shape": _SHAPE,
    "image_values": (lambda value: value in ("stored", "scaled"), "'stored' or 'scaled'"),
    "inputs": (lambda value: value in ("converted", "floating"), "'converted' or 'floating'"),
    "csv_format": (
        lambda value: isinstance(value, dict) and _is_text_list([*value.values()]),
        "an object of texts: encoding, separator, decimal",
    ),
    "cost": (
        lambda value: isinstance(value, dict) and all(map(_is_number_or_none, value.values())),
        "an object of numbers",
    ),
    FINGERPRINT_KEY: _OBJECT,
    "channels_last": (lambda value: isinstance(value, bool), "true or false"),
    "calibration": (is_calibration, "a calibration written by flatbayes.calibrate"),
    "checks": _OBJECT,
    "members": _TEXT,
    "new_head": (lambda value: isinstance(value, bool), "true or false"),
    "radius": (_is_choice, "an object with the reason of the choice of the radius, a text"),
    "prior": (_is_choice, "an object with the reason of the choice of the prior, a text"),
    "interrupted": _TEXT,
}
"""Entries of `info` that flatbayes uses; a user may add others."""


def check_entries(entries: Mapping[str, Any], checks: Mapping[str, Check], place: str) -> None:
    """Check the entries that are there; `place` starts the message."""
    for key, (is_valid, description) in checks.items():
        if key in entries and not is_valid(entries[key]):
            raise ValueError(f"{place} {key!r} must be {description}, got {str(entries[key])[:80]!r}.")


def check_info(info: Mapping[str, Any]) -> None:
    """Check the plain data of a posterior before they are saved."""
    place = "The plain data `info` of this posterior cannot be saved: the entry"
    check_entries(replace_nonfinite(info), INFO_ENTRIES, place)


def write_metadata(folder: Path, metadata: PosteriorMetadata) -> None:
    """Write the metadata with its checksum.

    Raises:
        ValueError: It is too large to be read again.
    """
    sealed = {**metadata, "checksum": compute_metadata_checksum(metadata)}
    size = len(json.dumps(replace_nonfinite(sealed), indent=1))
    if size > MAX_METADATA_BYTES:
        raise ValueError(
            f"The metadata of this posterior would have {size} bytes, and at most {MAX_METADATA_BYTES} are read "
            "again. The large entry is `info`: take large values out of it, and keep them in a file of their own."
        )
    write_json(folder / METADATA_FILE, sealed)


def update_info(folder: Path, entries: Mapping[str, Any]) -> None:
    """Add entries to the plain data of an artefact, whose tensors stay as they are.

    Raises:
        FileNotFoundError: There is no artefact.
        ValueError: An entry that flatbayes uses has another type, or the metadata are damaged.
        OSError: They cannot be written; they stay as they were.
    """
    metadata = read_metadata(folder)
    metadata.pop("checksum", None)
    metadata["info"] = {**metadata["info"], **entries}
    check_info(metadata["info"])
    write_metadata(folder, metadata)


def read_metadata(folder: Path) -> PosteriorMetadata:
    """Read and check the metadata of an artefact.

    Raises:
        FileNotFoundError: There is no artefact.
        ValueError: The metadata is damaged, too large, or from a newer version.
    """
    if not (folder / METADATA_FILE).is_file():
        raise FileNotFoundError(f"There is no fitted posterior in {folder}: {METADATA_FILE} is missing.")
    path = resolve_artefact_file(folder, METADATA_FILE)
    size = path.stat().st_size
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"{path} is damaged: it has {size} bytes, and at most {MAX_METADATA_BYTES} are read.")
    metadata = read_json(path)
    if not isinstance(metadata, dict) or "schema" not in metadata:
        raise ValueError(f"{path} is damaged: it does not describe a fitted posterior.")
    if metadata["schema"] not in READABLE_SCHEMAS:
        info = metadata.get("info")
        version = info.get("flatbayes") if isinstance(info, dict) else None
        raise ValueError(
            f"{folder} was written in schema {str(metadata['schema'])[:20]}, and this version of flatbayes reads "
            f"schemas {READABLE_SCHEMAS}. Use the version that wrote it: {str(version)[:40]}."
        )
    if metadata["schema"] >= 4 or "checksum" in metadata:
        sealed_entries = {key: value for key, value in metadata.items() if key != "checksum"}
        if metadata.get("checksum") != compute_metadata_checksum(sealed_entries):
            raise ValueError(f"{path} is damaged: its checksum is not the one it was saved with.")
    for key, (_, description) in REQUIRED_ENTRIES.items():
        if key not in metadata:
            raise ValueError(f"{path} is damaged: its entry {key!r} is missing, {description}.")
    check_entries(metadata, REQUIRED_ENTRIES | OPTIONAL_ENTRIES, f"{path} is damaged: its entry")
    check_entries(metadata["info"], INFO_ENTRIES, f"{path} is damaged: the entry of 'info'")
    names = list_tensor_files(metadata)
    if not names or not all(isinstance(name, str) and TENSORS_FILE_PATTERN.fullmatch(name) for name in names):
        raise ValueError(f"{path} is damaged: its names of files are not those of an artefact.")
    return cast(PosteriorMetadata, metadata)


def list_tensor_files(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the files with tensors that belong to the metadata; that of the weights first."""
    if metadata["schema"] < 4:
        return [OLD_TENSORS_FILE]
    return [metadata[key] for key in ("tensors_file", "norm_file") if key in metadata]


def list_orphaned_files(folder: Path) -> list[Path]:
    """Files of tensors in a folder that its metadata does not name, left by processes that were killed.

    Another process must not be saving to the folder.
    """
    try:
        names = list_tensor_files(read_metadata(folder))
    except FileNotFoundError:
        names = []
    except (ValueError, OSError):  # damaged metadata: the files may be all that is left
        return []
    paths = [*folder.glob("*.safetensors"), folder / OLD_TENSORS_FILE]
    return [path for path in paths if TENSORS_FILE_PATTERN.fullmatch(path.name) and path.name not in names]


def resolve_artefact_file(folder: Path, name: str) -> Path:
    """Path of a file of the artefact.

    Raises:
        ValueError: It is a link out of the folder.
    """
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise ValueError(
            f"{path} is a link out of its folder, and an artefact is one folder. Copy the file itself there."
        )
    return path


def compute_metadata_checksum(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the metadata as canonical JSON: keys sorted, no spaces, ASCII."""
    text = json.dumps(replace_nonfinite(metadata), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def compute_file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
