"""Checksums of the content of instances, which tell apart two objects of a class that no description can rebuild."""

import hashlib
import json
from collections.abc import Mapping
from types import MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

from flatbayes.core.networks import hash_tensors

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Those that torch keeps in every network, such as hooks and the mode."""


def hash_content(value: Any) -> str | None:
    """First 16 digits of a checksum of the attributes of an instance, those of its attributes included.

    Tensors and arrays count by their values, networks by weights and attributes but not by their mode, functions and
    classes by their names, and what cannot be read, such as a lock, by its class. None is returned if the instance
    has no attributes, or they cannot be read.
    """
    content = _describe(value, frozenset())
    return None if isinstance(content, str) else hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _describe(value: Any, outer_ids: frozenset[int]) -> Any:
    """Nested lists of plain data; of what has no content that can be read the name of its class."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if id(value) in outer_ids:
        return kind
    ids = outer_ids | {id(value)}
    try:
        match value:
            case None | bool() | int() | float() | str():
                return [kind, value]
            case MethodType():
                return [value.__qualname__, _describe(value.__self__, ids)]
            case Tensor():
                return [kind, hash_tensors([("", value)])]
            case np.ndarray() if not value.dtype.hasobject:
                checksum = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
                return [kind, str(value.dtype), value.shape, checksum]
            case nn.Module():
                own = {name: entry for name, entry in vars(value).items() if name not in _MODULE_ATTRIBUTES}
                tensors_and_parts = {**value._parameters, **value._buffers, **value._modules}
                return [kind, _describe(own | tensors_and_parts, ids)]
            case Mapping():
                entries = [[_describe(key, ids), _describe(entry, ids)] for key, entry in value.items()]
                return [kind, sorted(entries, key=json.dumps)]
            case list() | tuple():
                return [kind, [_describe(entry, ids) for entry in value]]
            case set() | frozenset():
                return [kind, sorted((_describe(entry, ids) for entry in value), key=json.dumps)]
        if hasattr(value, "__qualname__"):
            return f"{value.__module__}.{value.__qualname__}"
        reduced = value.__reduce_ex__(2)  # as for `pickle`: the class, and then its attributes and entries
        if isinstance(reduced, str):
            return [kind, reduced]
        _, arguments, state, *entries = (*reduced, None, None, None)[:5]
        arguments = arguments[1:] if arguments[:1] == (type(value),) else arguments
        parts = [
            part for part in (arguments, state, *(list(items or ()) for items in entries)) if not _is_empty(part)
        ]
        return [kind, *(_describe(part, ids) for part in parts)] if parts else kind
    except Exception:  # whatever an object of a user raises
        return kind


def _is_empty(part: Any) -> bool:
    return part is None or (isinstance(part, tuple | list | dict) and not part)
