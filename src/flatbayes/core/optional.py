"""Imports of optional packages, with an error message that names the extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_package(extra: str) -> Iterator[None]:
    """Context in which the packages of an optional extra of flatbayes are imported.

    Args:
        extra: Name of the extra in `pip install 'flatbayes[extra]'`.

    Raises:
        ImportError: A package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"This needs a package that is not installed ({error}). Install it: pip install 'flatbayes[{extra}]'"
        ) from error
