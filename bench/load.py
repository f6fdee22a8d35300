"""How much of the machine other processes used while something was timed.

Interleaving does not help against a busy machine: an OpenMP barrier with one thread more than
there are free cores waits for the scheduler, and the library that spins longest loses most. Such a
row shows large ratios that mean nothing, so every row says what else ran.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np

import rnnfast

_LIMIT = 0.05  # of the machine's cores; above it a row is marked
_SHARE = 0.7  # of a core, for each thread; on one core they have 0.5 to 0.65


class Load:
    """From its creation to `others`."""

    def __init__(self) -> None:
        self._start = _snapshot()

    def others(self) -> float | None:
        """Cores that other processes kept busy, on average; None where the system does not tell."""
        end = _snapshot()
        if self._start is None or end is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / wall


def is_loaded(others: float | None) -> bool:
    return others is not None and others > _LIMIT * (os.cpu_count() or 1)


def meeting_ns() -> float | None:
    """Nanoseconds in which rnnfast's threads meet, or None where there is one."""
    from rnnfast import _native

    if _native.get_num_threads() < 2:
        return None
    return min(_native.meeting_ns(2000) for _ in range(5))  # without interruptions


class Cores:
    """Whether rnnfast's threads have a core each.

    The two processors of a virtual machine may, for a second or so, be the two hardware threads of
    one core, so that two threads together calculate no faster than one.
    """

    def __init__(self) -> None:
        self._threads = rnnfast.get_num_threads()
        weights = rnnfast.init_weights("lstm", 64, 64, rng=0)
        x = np.random.default_rng(0).standard_normal((20, 32, 64), np.float32)
        self._call = partial(
            rnnfast.lstm, x, rnnfast.pack(weights, cell="lstm", backend="native"), backend="native"
        )

    def are_there(self) -> bool:
        """Whether they calculate at least 0.7 times their number as fast as one alone does."""
        if self._threads == 1:
            return True
        alone, together = (self._best(threads) for threads in (1, self._threads))
        return alone / together >= _SHARE * self._threads

    def _best(self, threads: int) -> float:
        """Seconds of rows that are divided, without a meeting: some 0.4 ms of arithmetic."""
        rnnfast.set_num_threads(threads)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._call()
            times.append(time.perf_counter() - start)
        return min(times)


def _snapshot() -> tuple[float, float, float] | None:
    """Seconds: of the clock, busy on all cores together, and busy in this process.

    Processes that it started and that have ended count as its own.
    """
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    ticks = user + nice + system + irq + softirq + steal
    return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])
