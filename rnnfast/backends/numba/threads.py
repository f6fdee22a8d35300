"""Threads of Python for compiled functions that release the GIL.

Numba's own parallel regions are not used: two of its three threading layers end the process where
it has forked or where two threads call at once, each costs a second compilation, and its number
of threads is another one than rnnfast's.

Two things make a hand-over slow: to wake a thread that sleeps (0.05 to 0.2 ms), and to wait for
the GIL, which is to sleep as well. So what `run_passes` runs hands over in compiled code. A worker
that has done its part stays there for some 0.1 ms, without the GIL, and watches a number that the
caller raises as its next pass begins: once it has let go of the GIL itself. The caller watches one
that workers raise, and has the GIL again before they ask for it. See `shared.py`.
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

from ...threads import get as wanted
from .. import Array
from .plans import BEGUN, BOARD, FAILED, LINE, MOST, ROLE, STAYING
from .shared import stay_for_next

# Multiplications that are worth a second thread: while it is awake, and if it has to be woken.
LEAST, SMALL = 1_500_000, 8_000_000
STEP = 90_000  # multiplications of one step that are worth dividing its units
NOBODY: Array = np.zeros(BOARD, np.int64)  # the board of a pass that no other thread takes part in
Task = tuple[Callable[..., Any], tuple[Any, ...]]


def _where() -> Callable[[], int]:
    """What tells the processor that this thread runs on; -1 where the system does not say."""
    try:
        found: Any = ctypes.PyDLL(None).sched_getcpu  # which keeps the GIL
    except (AttributeError, OSError, TypeError):
        return lambda: -1
    return found  # type: ignore[no-any-return]


_processor = _where()


class _Worker:
    """A thread that waits for a task. Two bare locks wake and answer it in a third of the time of a
    ThreadPoolExecutor (0.04 for 0.13 ms), which is what the passes of small layers take."""

    def __init__(self, board: Array, number: int) -> None:
        self.begin, self.end = _thread.allocate_lock(), _thread.allocate_lock()
        self.begin.acquire()
        self.end.acquire()
        self.board, self.number = board, number
        self.staying = board[STAYING + number * LINE :][:1]  # whether it could start at once
        self.task: Task | None = None
        self.answers = False  # whether it tells the end of the task by the lock
        self.allowed: set[int] | None = None  # processors, while it is kept from the caller's
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="rnnfast-numba", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            self.begin.acquire()
            if self.allowed is not None:
                with suppress(OSError):
                    os.sched_setaffinity(0, self.allowed)
                self.allowed = None
            task, self.task = self.task, None
            if task is None:
                with suppress(Exception):  # of its compilation: the worker goes on without
                    stay_for_next(self.board, self.number)
                continue
            function, arguments = task
            answers = self.answers
            try:
                function(*arguments)
            except BaseException as error:
                self.error = error
                self.board[FAILED] = 1  # nobody may wait for it
            del task, function, arguments
            if answers:
                self.end.release()

    def start(self, task: Task | None, processor: int, answers: bool) -> None:
        """Begin a task or, without one, wake up for what may follow."""
        if not self.staying[0]:
            self._keep_from(processor)
        self.answers, self.task = answers, task
        if self.begin.locked():
            self.begin.release()

    def _keep_from(self, processor: int) -> None:
        """Until it runs. Linux likes to wake a thread beside the one that wakes it, where the two
        then take turns for milliseconds."""
        if processor < 0 or self.allowed is not None or not self._thread.native_id:
            return
        with suppress(OSError):  # where that is not permitted
            allowed = os.sched_getaffinity(self._thread.native_id)
            others = allowed - {processor}
            if others:  # twice, for an interrupt in between and for a worker that runs by then
                self.allowed = allowed
                os.sched_setaffinity(self._thread.native_id, others)
                self.allowed = allowed

    def finish(self) -> BaseException | None:
        self.end.acquire()
        return self.failed()

    def failed(self) -> BaseException | None:
        error, self.error = self.error, None
        return error


class _Pool:
    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.leave()

    def leave(self) -> None:
        """Have others in future."""
        self.workers: list[_Worker] = []
        self.board: Array = np.zeros(BOARD, np.int64)

    def several(self, count: int) -> list[_Worker]:
        if not self.workers:
            # A worker that stays has a call's arrays until the next one, which takes others. The C
            # library returns so much free memory to the system at each call, whose pages cost more
            # than the packing of weights, unless it was once given back a block as large as this.
            np.empty(1 << 24, np.uint8)
        while len(self.workers) < count:
            self.workers.append(_Worker(self.board, len(self.workers)))
        return self.workers[:count]

    def are_ready(self, count: int, wait: bool) -> bool:
        """Whether there are so many and, where nobody would wait for them, all are awake.

        Those who are not are woken for what may follow.
        """
        try:
            workers = self.several(count)
        except RuntimeError:  # the system has no more threads
            return False
        asleep = [] if wait else [worker for worker in workers if not worker.staying[0]]
        for worker in asleep:
            worker.start(None, _processor(), False)
        return not asleep


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    # The child has none of the threads.
    os.register_at_fork(after_in_child=lambda: _pool.__init__())  # type: ignore[misc]


@contextmanager
def several(work: int) -> Iterator[int]:
    """How many tasks a call of so many multiplications may `run` at once.

    1 while another thread's call has the others, and where they would have to be woken for little.
    """
    count = min(wanted(), MOST) if work > LEAST else 1
    if count == 1 or not _pool.busy.acquire(blocking=False):
        yield 1
        return
    try:
        yield count if _pool.are_ready(count - 1, work > SMALL) else 1
    finally:
        _pool.busy.release()


def worth(work: int) -> bool:
    """Whether a call that is `SMALL` may run in several threads."""
    if work <= LEAST:  # most calls, which have no time for what follows
        return False
    with several(work) as count:
        return count > 1


def divisible(step: int, batch: int, members: int = 0) -> bool:
    """Whether so many members, or all that may be, can share the steps of one direction: its rows
    or, where these are few, its units, if a step, of so many multiplications a row, is worth it."""
    return batch >= 4 * (members or wanted()) or step * batch >= STEP


def run(tasks: list[Task]) -> None:
    """Run every task, all at the same time; the first one in this thread."""
    if len(tasks) == 1:
        function, arguments = tasks[0]
        function(*arguments)
        return
    workers, processor = _pool.several(len(tasks) - 1), _processor()
    try:
        for worker, task in zip(workers, tasks[1:], strict=True):
            worker.start(task, processor, True)
        _pool.board[BEGUN] += 1  # for those who stay
    except BaseException:  # an interrupt, as below
        _pool.leave()
        raise
    function, arguments = tasks[0]
    errors: list[BaseException | None] = []
    try:
        function(*arguments)
    finally:
        try:
            errors.extend(worker.finish() for worker in workers)
        except BaseException:  # an interrupt: they may be at work still, and are left to it
            _pool.leave()
            raise
    _raise(errors)


def run_passes(passes: list[Task]) -> None:
    """The same for compiled functions whose first arguments are a plan's numbers and a board.

    The numbers say nothing of roles yet, and the board is the one of nobody.
    """
    if len(passes) == 1:
        function, arguments = passes[0]
        function(*arguments)
        return
    workers, processor, board = _pool.several(len(passes) - 1), _processor(), _pool.board
    board[FAILED:STAYING] = 0
    tasks: list[Task] = []
    for k, (function, (numbers, _, *others)) in enumerate(passes):
        own = numbers.copy()
        own[ROLE] = -k or len(workers)
        tasks.append((function, (own, board, *others)))
    try:
        for worker, task in zip(workers, tasks[1:], strict=True):
            worker.start(task, processor, False)
        function, arguments = tasks[0]
        function(*arguments)
    except BaseException:  # an interrupt, as above
        board[FAILED] = 1
        _pool.leave()
        raise
    errors = [worker.failed() for worker in workers]
    if any(errors):  # others may still be at work for this pass
        _pool.leave()
    _raise(errors)


def _raise(errors: list[BaseException | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
