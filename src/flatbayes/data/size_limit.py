"""Bound on the memory that data may take once they are read: small files can stand for very large tables and images.

Sizes are computed from metadata and headers, before memory is allocated.
"""

import math
import os
from contextlib import suppress
from pathlib import Path

VARIABLE = "FLATBAYES_MAX_DATA_GB"
"""Environment variable with the bound in gigabytes (10^9 bytes)."""
SHARE_OF_MEMORY = 0.5
"""Bound without the variable, as a share of the memory that this process may still take."""
UNMEASURED_BYTES = 2**24
"""Size that is allowed without a measurement of the memory, which takes as long as the decoding of a small image."""
CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(num_bytes: float, description: str, remedy: str = "") -> None:
    """Refuse data that would take more memory than the bound.

    Args:
        num_bytes: Size of the data once they are read.
        description: What they are, for the message.
        remedy: What the user can do, other than to raise the bound.

    Raises:
        ValueError: They are larger than the bound.
    """
    if num_bytes <= UNMEASURED_BYTES and not os.environ.get(VARIABLE):
        return
    limit = get_memory_limit()
    if num_bytes > limit:
        source = "set by" if os.environ.get(VARIABLE) else "half of the memory of this process; for another, set"
        raise ValueError(
            f"{description} would take {format_bytes(num_bytes)} of memory once read, and at most "
            f"{format_bytes(limit)} are allowed ({source} the environment variable {VARIABLE})."
            f"{' ' if remedy else ''}{remedy}"
        )


def get_memory_limit() -> float:
    """Bytes that data may take: those of FLATBAYES_MAX_DATA_GB, or else half of the memory of this process.

    Raises:
        ValueError: The variable is no positive number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return SHARE_OF_MEMORY * _measure_memory()
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes > 0:
        raise ValueError(
            f"The environment variable {VARIABLE} is a number of gigabytes above 0, such as 64, got {text!r}."
        )
    return gigabytes * 1e9


def format_bytes(num_bytes: float) -> str:
    """A size in the unit that suits it.

    >>> format_bytes(2_500_000_000), format_bytes(3e6)
    ('2.5 GB', '3 MB')
    """
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _measure_memory() -> float:
    """Physical memory in bytes, or less if this process is limited; infinite where the platform does not say."""
    limits = [math.inf]
    with suppress(AttributeError, ValueError, OSError):  # Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in CGROUP_FILES:
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(float(Path(name).read_text(encoding="ascii")))
    with suppress(ImportError, OSError):
        import resource  # Unix

        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        if allowed != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limits.append(max(0, allowed - pages * resource.getpagesize()))
    return min(limit for limit in limits if limit >= 0)
