"""Signatures of functions whose annotations may name types that are imported for type checkers only.

Python 3.14 evaluates annotations when they are read, so that reading one of these raises `NameError`.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations


def read_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a class or function; types that are not imported stand in it as forward references.

    Raises:
        TypeError: It cannot be called.
        ValueError: It has no signature, such as some functions in C.
    """
    if sys.version_info >= (3, 14):
        return inspect.signature(function, annotation_format=Format.FORWARDREF)
    return inspect.signature(function)


def write_annotations_as_text(target: Callable[..., Any]) -> None:
    """Replace annotations that cannot be evaluated, of a function, or of a class, its bases and their `__init__`.

    They become text, as `from __future__ import annotations` makes them, which a parser can read one by one.
    """
    if sys.version_info >= (3, 14):
        bases = target.__mro__[:-1] if isinstance(target, type) else ()
        for owner in (target, *bases, *(vars(base)["__init__"] for base in bases if "__init__" in vars(base))):
            try:
                get_annotations(owner)
            except NameError:
                with suppress(AttributeError, TypeError):  # a class in C
                    owner.__annotations__ = get_annotations(owner, format=Format.STRING)
