"""The grid engine: all steps of a layer, of both directions, in one cooperative launch.

A block holds w_hh for its units in shared memory; grid.cu has the kernels. What comes before
and after the steps is what it is for the alternating engine, and so are the arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cupy
import numpy as np

from ...spec import Spec
from .. import Array
from .launch import Limits, divided, launch_together, of_grid
from .parameters import BACKWARD_STEP
from .sequences import launch

if TYPE_CHECKING:
    from .engine import Pass

_ROWS = 8  # of the batch at a time, where there are so many
# Of a block, by the way to make products: a warp takes four columns of w_hh at a time, and a tile
# of tensor cores has those of eight units.
_FEWEST_UNITS = {"Lanes<1>": 4, f"Lanes<{_ROWS}>": 4, "TensorCores": 8}
WAYS = tuple(_FEWEST_UNITS)
_PARTS = 8192  # bytes: TensorCores::kBytes


class Plan(NamedTuple):
    """How a layer is divided among blocks."""

    directions: int  # in one launch
    units: int  # of a block
    rows: int  # of a block
    unit_blocks: int
    row_blocks: int
    shared: int  # bytes of a block
    products: str  # how they are made: one of WAYS


def plan(
    spec: Spec, dtype: np.dtype[Any], hidden: int, batch: int, directions: int, on: Limits
) -> Plan | None:
    """None where w_hh does not fit into the shared memory of the device, or for a cell with what
    grid.cu does not have.

    Both directions in one launch where they fit, each with half of the multiprocessors; else one
    after the other.
    """
    if spec.layer_norm or spec.projection:
        return None
    narrow = dtype.itemsize == 2
    one_row = batch == 1
    way = WAYS[2] if narrow and on.tensor_cores else WAYS[not one_row]
    at_a_time = 1 if way == WAYS[0] else _ROWS
    for together in (directions, 1):
        blocks = on.blocks // together
        if blocks == 0:
            continue
        units = min(hidden, max(_FEWEST_UNITS[way], divided(hidden, blocks)))
        unit_blocks = divided(hidden, units)
        shared = _shared(way, units, len(spec.info.gates), hidden, dtype.itemsize)
        if shared > on.shared:
            continue
        rows = divided(divided(batch, blocks // unit_blocks), at_a_time) * at_a_time
        row_blocks = divided(batch, rows)
        return Plan(together, units, rows, unit_blocks, row_blocks, shared, way)
    return None


def _shared(way: str, units: int, gates: int, hidden: int, itemsize: int) -> int:
    """The bytes of a block: rows of H numbers forward, of gates * H backward."""
    if way != "TensorCores":
        return units * gates * hidden * itemsize
    forward, backward = (divided(length, 16) * 16 + 8 for length in (hidden, gates * hidden))
    return _PARTS + units * max(gates * forward, backward) * itemsize


def run(passes: Sequence[Pass], plan: Plan) -> None:
    for first in range(0, len(passes), plan.directions):
        _launch(passes[first : first + plan.directions], plan)


def _launch(passes: Sequence[Pass], plan: Plan) -> None:
    backward = passes[0].struct is BACKWARD_STEP
    arrived = cupy.zeros((len(passes), plan.row_blocks), np.uint64)
    own: list[dict[str, Array]] = []
    for k, p in enumerate(passes):
        own.append({"arrived": arrived[k]})
        if not backward:
            exchange = own[k]["exchange"] = cupy.empty((2, p.steps.batch, p.hidden), p.dtype)
            exchange[...] = p.array("operand" if "operand" in p.arrays else "h")
    one = launch(passes, of_grid(plan.products), plan.units, plan.rows, own)
    grid = plan.unit_blocks, plan.row_blocks, len(passes)
    name = "backward_steps" if backward else "forward_steps"
    launch_together(one.options, name, grid, plan.shared, one.parameters)
