"""Bounding the memory of this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows, which has no such limit
    resource = None


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Take at most so many bytes of address space more than now, where the system can say and limit that, as Linux can.

    Args:
        more (int): Bytes.

    Raises:
        MemoryError: Within, where more is asked for; where torch asks it is a RuntimeError.
    """
    try:
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    except (AttributeError, OSError):
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (used + more, *limits) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
