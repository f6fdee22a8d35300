"""Threads of Python for compiled functions that release the GIL.

Numba's own parallel regions are not used: two of its three threading layers end the process where
it has forked or where two threads call at once, each costs a second compilation, and its number
of threads is another one than rnnfast's.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from .. import Array

NOBODY: Array = np.zeros(1, np.int64)  # the counter of a pass that no other thread takes part in
# Multiplications that are not worth a second thread: 0.2 ms, and one takes 0.05 to 0.2 to wake.
SMALL = 8_000_000
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


def _where() -> Callable[[], int]:
    """What tells the processor that this thread runs on; -1 where the system does not say."""
    try:
        found: Any = ctypes.PyDLL(None).sched_getcpu  # which keeps the GIL
    except (AttributeError, OSError, TypeError):
        return lambda: -1
    return found  # type: ignore[no-any-return]


_processor = _where()


def _leave(processor: int) -> None:
    """Let this thread go on elsewhere: Linux likes to wake a thread beside the one that wakes it,
    where the two then take turns for milliseconds."""
    with suppress(OSError):  # where that is not permitted
        allowed = os.sched_getaffinity(0)
        others = allowed - {processor}
        if others:
            os.sched_setaffinity(0, others)
            os.sched_setaffinity(0, allowed)


class _Worker:
    """A thread that waits for a task. Two bare locks wake and answer it in a third of the time of a
    ThreadPoolExecutor (0.04 for 0.13 ms), which is what the passes of small layers take."""

    def __init__(self) -> None:
        self.begin, self.end = _thread.allocate_lock(), _thread.allocate_lock()
        self.begin.acquire()
        self.end.acquire()
        self.task: Task | None = None
        self.caller = -1  # the processor of the thread that gave the task
        self.error: BaseException | None = None
        threading.Thread(target=self._serve, name="rnnfast-numba", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.begin.acquire()
            assert self.task is not None
            function, arguments = self.task
            if self.caller >= 0 and _processor() == self.caller:
                _leave(self.caller)
            try:
                function(*arguments)
            except BaseException as error:
                self.error = error
            self.task = None
            del function, arguments
            self.end.release()

    def start(self, task: Task, caller: int) -> None:
        self.task, self.caller = task, caller
        self.begin.release()

    def finish(self) -> BaseException | None:
        self.end.acquire()
        error, self.error = self.error, None
        return error


class _Pool:
    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.workers: list[_Worker] = []

    def several(self, count: int) -> list[_Worker]:
        while len(self.workers) < count:
            self.workers.append(_Worker())
        return self.workers[:count]


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
    workers, processor = _pool.several(len(tasks) - 1), _processor()
    for worker, task in zip(workers, tasks[1:], strict=True):
        worker.start(task, processor)
    function, arguments = tasks[0]
    errors: list[BaseException | None] = []
    try:
        function(*arguments)
    finally:
        try:
            errors.extend(worker.finish() for worker in workers)
        except BaseException:  # an interrupt: they may be at work still, and are left to it
            _pool.workers = []
            raise
    for error in errors:
        if error is not None:
            raise error
