"""How many cores there are for computing."""

import os

import psutil


def usable_cores() -> int:
    """Physical cores this process may run on: two threads of one core do not compute faster."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return max(1, min(physical, len(os.sched_getaffinity(0))))
    return physical
