"""Memory that is freed and wanted again a moment later."""

from functools import cache

LARGEST_TOLD_BYTES = 32 * 1024 * 1024 - 64 * 1024
"""Below glibc's DEFAULT_MMAP_THRESHOLD_MAX on 64 bits; see mallopt(3)."""


@cache
def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MB of freed memory in this process, instead of giving it back after every piece of rows.

    glibc takes the size of a large block that is freed as its threshold from then on. Without this a third of the system time of a plan goes
    into pages that are given back and taken again. Other allocators take no notice; the block itself is never touched, so it costs nothing.
    """
    bytes(LARGEST_TOLD_BYTES)
