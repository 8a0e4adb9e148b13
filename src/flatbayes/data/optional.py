"""Optional packages: imported where they are needed, and a missing one says how to get it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_package(extra: str) -> Iterator[None]:
    """Inside, packages of this extra of flatbayes are imported.

    Args:
        extra: Name of the extra, as pip knows it.

    Raises:
        ImportError: One of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"This needs a package that is not installed ({error}). Install it: pip install 'flatbayes[{extra}]'"
        ) from error
