"""The cluster engine: all steps of a small layer in one launch, w_hh in registers.

cluster.cu has the kernels. What comes before and after the steps is what it is for the alternating
engine; the state goes in and out with the launch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...arrays import computed
from ...spec import Spec
from .launch import Limits, divided, launch_clusters, of_cluster
from .parameters import BACKWARD_STEP
from .sequences import launch

if TYPE_CHECKING:
    from .engine import Pass

_THREADS = 256
_MOST_NUMBERS = 128  # of w_hh in the registers of a thread
# For `_cost`, in cycles of a multiprocessor: what blocks take to tell each other the state, and a
# unit beside its sums. Estimates, after times of divisions on an H100 (docs/cuda.md).
_ALONE, _TOGETHER, _EACH_BLOCK, _UNIT = 60, 250, 15, 400


class Plan(NamedTuple):
    """How a pass is divided among blocks."""

    blocks: int  # of a cluster
    units: int  # of a block
    row_blocks: int  # clusters of a direction
    rows: int  # of a block
    shared: int  # bytes of a block
    division: str  # the class of cluster.cu


def able(spec: Spec, dtype: np.dtype[Any], on: Limits) -> bool:
    """Whether cluster.cu has the cell with its options."""
    two_products = spec.cell == "gru" and not spec.reset_after
    plain = not spec.layer_norm and not spec.projection and not two_products
    return on.clusters > 0 and plain and computed(dtype) == np.float32


@cache
def plan(
    spec: Spec,
    dtype: np.dtype[Any],
    hidden: int,
    batch: int,
    directions: int,
    equal: bool,
    backward: bool,
    on: Limits,
) -> Plan | None:
    """The division that should take the least time; None where w_hh fits into no cluster, or for a
    cell with what cluster.cu does not have.

    `equal`: whether all steps have all rows.
    """
    if not able(spec, dtype, on):
        return None
    found = [
        (_cost(spec, one, directions, backward, on), one.blocks, one)
        for one in _plans(spec, dtype, hidden, batch, equal, backward, on)
    ]
    return min(found)[-1] if found else None


def _plans(
    spec: Spec,
    dtype: np.dtype[Any],
    hidden: int,
    batch: int,
    equal: bool,
    backward: bool,
    on: Limits,
) -> Iterator[Plan]:
    gates = len(spec.info.gates)
    length = hidden * (1 if not backward or gates == 1 else 4)
    sums = 1 if backward else gates
    for numbers, units_of_thread in itertools.product((8, 16, 32), (1, 2, 4, 8)):
        lanes = _power_of_two(divided(length, numbers))
        units = _THREADS // lanes * units_of_thread if lanes <= 32 else 0
        if units == 0 or numbers * units_of_thread * sums > _MOST_NUMBERS:
            continue
        blocks = divided(hidden, units)
        if blocks > on.clusters:
            continue
        for rows in (1, 2, 4, 8, 12, 16):
            at_a_time = min(4, rows)
            shared = _shared(spec, dtype, hidden, rows, lanes * numbers, backward)
            if shared > on.shared or (rows > 1 and rows - at_a_time >= batch):
                break
            numbers_of = (
                *(blocks, at_a_time, units_of_thread, lanes, numbers),
                *(hidden, rows, int(batch % rows == 0), int(equal)),
            )
            division = f"Division<{','.join(map(str, numbers_of))}>"
            yield Plan(blocks, units, divided(batch, rows), rows, shared, division)


def _cost(spec: Spec, plan: Plan, directions: int, backward: bool, on: Limits) -> float:
    """About how many cycles a step takes."""
    _, at_a_time, units, lanes, numbers, *_ = division_of(plan)
    sums = 1 if backward else len(spec.info.gates)
    columns = units * sums
    products = max(columns, 4) * numbers * at_a_time * 2 * 1.4
    added_up = columns * at_a_time * 8 if lanes > 1 else 0
    group = products + added_up + _UNIT * max(1, at_a_time * units // lanes)
    exchange = _ALONE if plan.blocks == 1 else _TOGETHER + _EACH_BLOCK * plan.blocks
    at_once = max(1, int(on.blocks * (0.9 if plan.blocks > 2 else 1)) // plan.blocks)
    waves = divided(plan.row_blocks * directions, at_once)
    return waves * (exchange + plan.rows // at_a_time * group)


def division_of(plan: Plan) -> tuple[int, ...]:
    """The numbers of `Division`."""
    return tuple(map(int, plan.division[len("Division<") : -1].split(",")))


def _shared(
    spec: Spec, dtype: np.dtype[Any], hidden: int, rows: int, length: int, backward: bool
) -> int:
    """The bytes of a block: the pieces of cluster.cu."""
    gates, has_c = len(spec.info.gates), int(spec.info.has_c)
    row = rows * hidden * 4
    pieces = [16, 2 * rows * length * 4, row, has_c * row]
    if not backward:
        return _total([*pieces, 2 * gates * row, *[gates * hidden * dtype.itemsize] * 2])
    of_gru, reads_h = int(spec.cell == "gru"), int(spec.cell in ("gru", "gated"))
    reads_dy = int(dtype.itemsize == 4)
    counts = (gates, has_c, has_c, reads_h, of_gru, reads_dy)
    return _total([*pieces, *(2 * count * row for count in counts)])


def _total(pieces: list[int]) -> int:
    return sum(divided(size, 16) * 16 for size in pieces)


def _power_of_two(count: int) -> int:
    """The least that is not below it."""
    return 1 << (count - 1).bit_length()


def run(passes: Sequence[Pass], plan: Plan) -> None:
    one = launch(passes, of_cluster(plan.division), plan.units, plan.rows)
    name = "backward_steps" if passes[0].struct is BACKWARD_STEP else "forward_steps"
    grid = plan.blocks, plan.row_blocks, len(passes)
    launch_clusters(one.options, name, grid, plan.shared, one.parameters)
