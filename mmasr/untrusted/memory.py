"""Limit the memory of this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows, which has no such limit
    resource = None


@contextlib.contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """While active, limit the address space of this process, where the system supports it, as Linux does.

    Args:
        extra (int): Bytes that the process may take in addition to its present size.

    Raises:
        MemoryError: Inside, if more is needed; where torch allocates it, a RuntimeError.
    """
    try:
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    except (AttributeError, OSError):
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (used + extra, *limits) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
