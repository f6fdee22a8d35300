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
    asked = _number_from("RNNFAST_NUM_THREADS")
    if asked:
        return asked
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, able // (_number_from("LOCAL_WORLD_SIZE") or 1))


def _number_from(name: str) -> int:
    """What a variable of the environment says; 0 where it says nothing."""
    given = os.environ.get(name, "")
    if not given:
        return 0
    if not given.isdecimal() or not 1 <= int(given) <= MOST:
        raise ValueError(f"{name}: expected a number from 1 to {MOST}, got {given!r}")
    return int(given)


try:
    from . import _native
except ImportError:
    get, put = _get, _put
else:
    get, put = _native.get_num_threads, _native.set_num_threads
