"""Timing of competing callables, interleaved.

On a shared, noisy machine a number on its own means little, so competitors take turns: a round has
one block of calls of each, in shuffled order, and ratios are taken within rounds. A block begins
with a pause, because worker threads of the competitor before may still spin and take a core, and
with a call that is not counted, which brings data and code back into the caches.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

PAUSE = 0.06  # seconds before a block; a worker of ONNX Runtime 1.32 spins for 40 ms after a call
BLOCK = 0.01  # seconds that the counted calls of a block last, at least
MIN_ROUNDS = 3
PATIENCE = 5.0  # seconds for blocks that do not count

Call = Callable[[], Any]


class Spread(NamedTuple):
    """The median and the quartiles around it."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Any) -> Spread:
        return cls(*(float(q) for q in np.quantile(values, (0.5, 0.25, 0.75))))


@dataclass
class Timing:
    """Nanoseconds of every counted call of one competitor, one list for each round."""

    rounds: list[list[int]]
    unready: int = 0  # blocks that count although the machine was not ready

    def milliseconds(self) -> Spread:
        return Spread.of(np.concatenate(self.rounds) / 1e6)

    def milliseconds_at(self, quantile: float) -> float:
        return float(np.quantile(np.concatenate(self.rounds), quantile) / 1e6)

    def calls(self) -> int:
        return sum(map(len, self.rounds))

    def over(self, other: Timing) -> Spread:
        """How many times longer than `other`: the ratio of the medians of each round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return Spread.of([np.median(mine) / np.median(its) for mine, its in pairs])


def interleave(
    calls: Mapping[str, Call],
    budget: float,
    *,
    ready: Callable[[], bool] = lambda: True,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Time callables in turns for about `budget` seconds, and at least MIN_ROUNDS rounds.

    A block before or after which the machine is not `ready` is done again, until PATIENCE has gone
    into such.
    """
    end = clock() + budget * 1e9
    wasted = 0.0
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(BLOCK * 1e9 / max(1, _usual(call, clock))))
    timings = {name: Timing([]) for name in calls}
    order, rng = list(calls), random.Random(seed)
    rounds = 0
    while rounds < MIN_ROUNDS or clock() < end:
        rng.shuffle(order)
        for name in order:
            while True:
                start = clock()
                times, was_ready = _block(calls[name], repeats[name], ready, clock, sleep)
                if was_ready or wasted >= PATIENCE * 1e9:
                    break
                wasted += clock() - start
                end += clock() - start
            timings[name].rounds.append(times)
            timings[name].unready += not was_ready
        rounds += 1
    return timings


def _block(
    call: Call,
    repeats: int,
    ready: Callable[[], bool],
    clock: Callable[[], int],
    sleep: Callable[[float], None],
) -> tuple[list[int], bool]:
    """Times of a competitor's calls, and whether the machine was ready all the time."""
    before = ready()
    sleep(PAUSE)
    call()
    times = [_time(call, clock) for _ in range(repeats)]
    return times, before and ready()


def _usual(call: Call, clock: Callable[[], int]) -> float:
    """The median of calls that last as long as a block: one alone may wait for a thread to wake."""
    end = clock() + BLOCK * 1e9
    times = [_time(call, clock)]
    while clock() < end:
        times.append(_time(call, clock))
    return float(np.median(times))


def _time(call: Call, clock: Callable[[], int]) -> int:
    start = clock()
    call()
    return clock() - start
