"""Threads of Python for compiled functions that release the GIL.

Numba's own parallel regions are not used: two of its three threading layers end the process where
it has forked or where two threads call at once, each costs a second compilation, and its number
of threads is another one than rnnfast's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import Array

NOBODY: Array = np.zeros(1, np.int64)  # the counter of a pass that no other thread takes part in
SMALL = 2_000_000  # multiplications that are not worth a second thread
Task = tuple[Callable[..., Any], tuple[Any, ...]]


def wanted() -> int:
    """What `rnnfast.set_num_threads` says, or its default where there is no native module."""
    try:
        from ... import _native
    except ImportError:
        given = os.environ.get("RNNFAST_NUM_THREADS", "")
        if given.isdecimal() and int(given) > 0:
            return int(given)
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    return int(_native.get_num_threads())


class _Pool:
    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.size = 0
        self.workers: ThreadPoolExecutor | None = None

    def grown(self, size: int) -> ThreadPoolExecutor:
        if self.workers is None or size > self.size:
            if self.workers is not None:
                self.workers.shutdown(wait=False)
            self.workers = ThreadPoolExecutor(size, thread_name_prefix="rnnfast-numba")
            self.size = size
        return self.workers


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    # The child has none of the threads.
    os.register_at_fork(after_in_child=lambda: _pool.__init__())  # type: ignore[misc]


@contextmanager
def several() -> Iterator[int]:
    """How many tasks a call may `run` at once; 1 while another thread's call has the others."""
    count = wanted()
    if count == 1 or not _pool.busy.acquire(blocking=False):
        yield 1
        return
    try:
        yield count
    finally:
        _pool.busy.release()


def run(tasks: list[Task]) -> None:
    """Run every task, all at the same time; the first one in this thread."""
    if len(tasks) == 1:
        function, arguments = tasks[0]
        function(*arguments)
        return
    workers = _pool.grown(len(tasks) - 1)
    others = [workers.submit(function, *arguments) for function, arguments in tasks[1:]]
    try:
        function, arguments = tasks[0]
        function(*arguments)
    finally:
        wait(others)
    for other in others:
        other.result()
