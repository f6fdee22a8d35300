"""The number of threads: the native module keeps it or, where there is none, this one."""

from __future__ import annotations

import os
from collections.abc import Callable

get: Callable[[], int]
put: Callable[[int], None]

_chosen = 0  # none yet


def _get() -> int:
    return _chosen or _default()


def _put(n: int) -> None:
    global _chosen
    _chosen = n


def _default() -> int:
    """As csrc/threads.cpp has it."""
    asked = _from_environment("RNNFAST_NUM_THREADS")
    if asked:
        return asked
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, able // (_from_environment("LOCAL_WORLD_SIZE") or 1))


def _from_environment(name: str) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else 0


try:
    from . import _native
except ImportError:
    get, put = _get, _put
else:
    get, put = _native.get_num_threads, _native.set_num_threads
