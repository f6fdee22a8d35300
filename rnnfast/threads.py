"""The number of threads: the native module keeps it or, where there is none, this one."""

from __future__ import annotations

import os
from collections.abc import Callable

get: Callable[[], int]
put: Callable[[int], None]

MOST = 1024
_chosen = 0  # none yet


def _get() -> int:
    return _chosen or _default()


def _put(n: int) -> None:
    global _chosen
    _chosen = n


def _default() -> int:
    """As csrc/threads.cpp has it."""
    asked = os.environ.get("RNNFAST_NUM_THREADS", "")
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= MOST:
            raise ValueError(
                f"RNNFAST_NUM_THREADS: expected a number from 1 to {MOST}, got {asked!r}"
            )
        return int(asked)
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, able // max(1, int(processes) if processes.isdecimal() else 1))


try:
    from . import _native
except ImportError:
    get, put = _get, _put
else:
    get, put = _native.get_num_threads, _native.set_num_threads
