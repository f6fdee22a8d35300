"""How much of the machine other processes used while something was timed.

Interleaving does not help against a busy machine: an OpenMP barrier with one thread more than
there are free cores waits for the scheduler, and the library that spins longest loses most. Such a
row shows large ratios that mean nothing, so every row says what else ran.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_LIMIT = 0.05  # of the machine's cores; above it a row is marked


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
