"""Layer normalisation of rows. The sums, and nothing else, may be reordered to use vectors."""

from __future__ import annotations

import math
from typing import Any

from ...reference.common import NORM_EPS
from .compiled import jit, jit_sum
from .lanes import part, stay_apart


@jit_sum
def _sum(row: Any) -> Any:
    total = row[0] * 0
    for j in range(len(row)):
        total += row[j]
    return total


@jit_sum
def _dot(a: Any, b: Any) -> Any:
    total = a[0] * b[0] * 0
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@jit
def normalise(a: Any, at: int, count: int, scales: Any, scale_at: int) -> None:
    """Numbers get mean 0 and variance 1; what they were multiplied with goes to scales."""
    stay_apart()
    row = part(a, at, at + count)
    kind = type(a[0])
    share = kind(1 / count)
    mean = _sum(row) * share
    for j in range(count):
        row[j] -= mean
    scale = kind(1) / kind(math.sqrt(_dot(row, row) * share + kind(NORM_EPS)))
    for j in range(count):
        row[j] *= scale
    scales[scale_at] = scale


@jit
def scale_and_shift(
    hat: Any, hat_at: int, gain: Any, shift: Any, at: int, count: int, to: Any, to_at: int
) -> None:
    """to = gain * hat + shift, where an empty shift is zero."""
    stay_apart()
    row, a = part(to, to_at, to_at + count), part(hat, hat_at, hat_at + count)
    by = part(gain, at, at + count)
    if shift.size:
        more = part(shift, at, at + count)
        for j in range(count):
            row[j] = by[j] * a[j] + more[j]
    else:
        for j in range(count):
            row[j] = by[j] * a[j]


@jit
def normalise_back(
    d: Any, at: int, hat: Any, hat_at: int, scales: Any, scale_at: int, count: int
) -> None:
    """The gradient of hat becomes that of the numbers before `normalise`."""
    stay_apart()
    row, a = part(d, at, at + count), part(hat, hat_at, hat_at + count)
    kind = type(d[0])
    share = kind(1 / count)
    mean, parallel, scale = _sum(row) * share, _dot(row, a) * share, scales[scale_at]
    for j in range(count):
        row[j] = scale * (row[j] - mean - a[j] * parallel)
