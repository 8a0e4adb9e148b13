"""`posterior.json`, the half of an artefact that people can read: sealed by a checksum, and of bounded size."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatbayes.core.files import read_json, replace_nonfinite, write_json

SCHEMA_VERSION, READABLE_SCHEMAS = 3, (1, 2, 3)
"""Schema 3 seals the description, and says which parameters were not trained. The same seed draws other networks than
in schema 1, so the statistics of its draws are not taken."""

TENSORS_FILE, METADATA_FILE = "posterior.safetensors", "posterior.json"

MAX_METADATA_BYTES = 2**24
"""Largest description that is read: names of 100,000 classes are a tenth of it."""

FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "posterior": dict,
    "likelihood": (dict, type(None)),
    "num_data": list,
    "num_statistics_batches": int,
    "info": dict,
    "sha256": str,
}
"""What each entry is."""


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write the description with its seal.

    Raises:
        ValueError: It is too large to be read again.
    """
    sealed = {**metadata, "checksum": compute_metadata_checksum(metadata)}
    size = len(json.dumps(replace_nonfinite(sealed), indent=1))
    if size > MAX_METADATA_BYTES:
        raise ValueError(
            f"The description of this posterior would have {size} bytes, and at most {MAX_METADATA_BYTES} are read again. "
            "What is large in it is `info`: take that out, and keep it in a file of its own."
        )
    write_json(folder / METADATA_FILE, sealed)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The description of an artefact, whole and of a schema that this version reads.

    Raises:
        FileNotFoundError: There is no artefact.
        ValueError: It is damaged, too large, or from a newer version.
    """
    for name in (METADATA_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"There is no fitted posterior in {folder}: {name} is missing.")
    path = resolve_artefact_file(folder, METADATA_FILE)
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ValueError(
            f"{path} is damaged: it has {path.stat().st_size} bytes, and at most {MAX_METADATA_BYTES} are read."
        )
    found = read_json(path)
    if not isinstance(found, dict) or "schema" not in found:
        raise ValueError(f"{path} is damaged: it does not describe a fitted posterior.")
    if found["schema"] not in READABLE_SCHEMAS:
        info = found.get("info")
        named = info.get("flatbayes") if isinstance(info, dict) else None
        raise ValueError(
            f"{folder} was written in schema {str(found['schema'])[:20]}, and this version of flatbayes reads "
            f"schemas {READABLE_SCHEMAS}. Use the version that it names: {str(named)[:40]}."
        )
    if found["schema"] >= SCHEMA_VERSION or "checksum" in found:
        rest = {key: value for key, value in found.items() if key != "checksum"}
        if found.get("checksum") != compute_metadata_checksum(rest):
            raise ValueError(f"{path} is damaged: its checksum is not the one it was saved with.")
    for key, kind in FIELD_TYPES.items():
        if key not in found or not isinstance(found[key], kind) or isinstance(found[key], bool):
            raise ValueError(f"{path} is damaged: its entry {key!r} is missing, or of another kind.")
    return found


def resolve_artefact_file(folder: Path, name: str) -> Path:
    """The path of a file of the artefact, if that is where it lies.

    Raises:
        ValueError: It is a link to somewhere else.
    """
    path = folder / name
    if path.resolve().parent != folder.resolve():
        raise ValueError(
            f"{path} is a link out of its folder, and an artefact is one folder. Copy the file itself there."
        )
    return path


def compute_metadata_checksum(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the description in canonical form: keys sorted, no spaces, ASCII."""
    text = json.dumps(replace_nonfinite(metadata), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def compute_file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
