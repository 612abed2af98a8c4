"""How the C library's heap treats memory that was freed."""

from haversack.devices import _native as native

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h
_KEPT_BYTES = 2**31 - 1  # mallopt takes an int
_GROWTH_BYTES = 256 * 1024 * 1024


def give_back_freed_memory() -> None:
    """Give what was freed back to the system, from every arena of the heap. The C library keeps it
    otherwise: 60 MiB after the vocabulary of 262,144 tokens was read and freed. Does nothing where
    the heap is not glibc's."""
    native.malloc_trim()


def keep_freed_memory() -> bool:
    """Keep freed memory for the next allocation rather than give it back to the system.

    For programs that free and take large arrays all the time: each array of 32 MiB or more would
    otherwise come as fresh pages, every one of them a fault (a training step took 1.4 times as
    long). False where the heap is not glibc's and stays as it is.
    """
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEPT_BYTES, _M_TOP_PAD: _GROWTH_BYTES}
    return all([native.mallopt(parameter, value) for parameter, value in settings.items()])
