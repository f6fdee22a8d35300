"""The steps of one direction in its order, as the kernels are told them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...spec import Steps
from .. import Array


class Visits(NamedTuple):
    """Every step in the order of one direction; rows count from that of the whole batch."""

    row: Array
    size: Array
    cut: Array  # whether gradients stop on the way to the visit before


def visits_of(steps: Steps, reverse: bool, truncate: int | None) -> Visits:
    if steps.batch_sizes is None:
        return _of_all(steps.num_steps, steps.batch, reverse, truncate)
    return _of(np.ascontiguousarray(steps.batch_sizes), reverse, truncate)


@lru_cache(maxsize=32)
def _of_all(steps: int, batch: int, reverse: bool, truncate: int | None) -> Visits:
    return _of(np.full(steps, batch, np.int64), reverse, truncate)


def _of(count: Array, reverse: bool, truncate: int | None) -> Visits:
    row = np.cumsum(count) - count
    cut = np.zeros(len(count), np.uint8)
    if truncate is not None:
        cut[truncate::truncate] = 1
        if reverse:  # there it is on the way from t - 1 to t
            cut[:-1] = cut[1:]
            cut[-1:] = 0
    order = slice(None, None, -1 if reverse else 1)
    return Visits(*(np.ascontiguousarray(a[order]) for a in (row, count, cut)))


def chunks(visits: Visits, most: int) -> list[tuple[int, int]]:
    """Visits in groups of about so many rows."""
    found, begin, rows = [], 0, 0
    for i, n in enumerate(visits.size):
        rows += n
        if rows >= most:
            found.append((begin, i + 1))
            begin, rows = i + 1, 0
    return [*found, (begin, len(visits.size))] if rows else found
