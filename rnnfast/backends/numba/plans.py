"""What one pass of one direction of a layer is told: integers, and where its arrays begin.

Numba takes a call's arguments one by one, at some 0.1 us for an array and more for a tuple. So that
a short call is short, numbers come in one array, and arrays that belong together are parts of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...spec import Spec
from .products import ALIGNED, panel_size

LSTM, GRU_AFTER, GRU_BEFORE, RNN, GATED = range(5)
RNN_RELU, RNN_SIGMOID = 5, 6  # for `plain.py`; elsewhere the activation is an option
_KINDS = {"lstm": LSTM, "rnn": RNN, "gated": GATED}
_FIRST = {LSTM: 4, RNN: 1, GATED: 3, GRU_AFTER: 2, GRU_BEFORE: 2, RNN_RELU: 1, RNN_SIGMOID: 1}
_RNN_OF = {"tanh": RNN, "relu": RNN_RELU, "sigmoid": RNN_SIGMOID}

# Places in `Plan.numbers`, after the options and sizes; a part has two, begin and end.
PROJECTION, HIDDEN, OUTPUTS, INPUTS, DIRECTIONS, DIRECTION = 8, 10, 11, 12, 13, 14
BEGIN, ROLE, BARRIER, FIRST_ROW, ROWS, WHOLE = 15, 20, 21, 22, 23, 24
WEIGHTS, BACK, TAPE, RUNNING, GRADIENTS = map(np.intp, (25, 45, 51, 73, 79))

# Places on a board, where the members of a pass meet: numbers that all of them see, on cache lines
# of their own. Passes that have begun, ever; whether a member failed; workers that have done their
# part; arrivals at the barriers of two teams; and for each worker, whether it stays for a pass.
BEGUN, FAILED, DONE, BARRIERS, STAYING, LINE = 0, 8, 16, (32, 48), 64, 8
MOST = 1024  # members of a pass
BOARD = STAYING + MOST * LINE


class Shape(NamedTuple):
    """Sizes of a layer and what of the weights there is."""

    hidden: int
    outputs: int
    inputs: int
    directions: int
    itemsize: int
    b_ih: bool
    b_hh: bool
    ln_c: bool
    ln_c_shift: bool


class Extent(NamedTuple):
    """What a call is about."""

    rows: int
    batch: int
    save: bool
    masks: tuple[bool, bool, bool]


@dataclass(frozen=True, eq=False)
class Plan:
    numbers: NDArray[np.int64]
    floats: NDArray[np.float64]
    cell: int
    gates: int
    first: int
    plain: bool
    # How many numbers the arrays have that parts are of.
    weights: int
    back: int
    tape: int
    room: int

    def part(self, array: NDArray[Any], section: int, k: int) -> NDArray[Any]:
        """A part as the kernels find it."""
        skipped = -array.ctypes.data % ALIGNED // array.itemsize
        at = section + 2 * k
        return array[skipped + self.numbers[at] : skipped + self.numbers[at + 1]]


class _Layout:
    def __init__(self, itemsize: int) -> None:
        self.unit = ALIGNED // itemsize
        self.size = 0
        self.places: list[int] = []

    def add(self, *sizes: int) -> None:
        for size in sizes:
            self.places += [self.size, self.size + size]
            self.size += -(-size // self.unit) * self.unit

    def again(self, k: int) -> None:
        """A part that is the same as an earlier one."""
        self.places += self.places[2 * k : 2 * k + 2]

    @property
    def room(self) -> int:
        return self.size + self.unit


def cell_of(spec: Spec) -> int:
    if spec.cell == "gru":
        return GRU_AFTER if spec.reset_after else GRU_BEFORE
    if spec.cell == "rnn" and spec.plain:
        return _RNN_OF[spec.nonlinearity]
    return _KINDS[spec.cell]


@lru_cache(maxsize=256)
def make(spec: Spec, shape: Shape, direction: int, extent: Extent) -> Plan:
    H, P, I, D, itemsize, b_ih, b_hh, ln_c, ln_c_shift = shape  # noqa: E741
    n, batch, save, (recurrent, _, keep_c) = extent
    cell = cell_of(spec)
    G, first, norm = len(spec.info.gates), _FIRST[cell], spec.layer_norm
    plain = spec.plain
    rest = G - first

    def panels(rows: int, columns: int) -> int:
        return panel_size(rows, columns, itemsize)

    weights = _Layout(itemsize)
    weights.add(
        panels(I, G * H),
        0 if norm or not (b_ih or b_hh) else G * H,
        panels(P, first * H),
        panels(H, P) if spec.projection else panels(P, rest * H) if rest else 0,
        H if cell == GRU_AFTER and not norm and b_hh else 0,
        3 * H * spec.peepholes,
        G * H * norm,
        G * H * (norm and b_hh),
        H * ln_c,
        H * ln_c_shift,
    )
    back = _Layout(itemsize)
    back.add(
        panels(first * H, P),
        panels(P, H) if spec.projection else panels(rest * H, P) if rest else 0,
        panels(G * H, I),
    )
    tape = _Layout(itemsize)
    gru = cell in (GRU_AFTER, GRU_BEFORE)
    tape.add(n * G * H, n * H * (gru or (cell == LSTM and (save or not plain))))
    tape.add(n * P * (save or not plain))
    if recurrent:
        tape.add(n * P)
    else:
        tape.again(2)
    tape.add(
        n * H * (save and cell == LSTM),
        n * H * (save and spec.peepholes),
        n * G * H * norm,
        n * H * ln_c,
        n * 3 * norm,
        n * G * H * norm,
        n * 2 * norm,
        batch * P * (not plain),  # RUNNING
        batch * G * H * norm,
        batch * H * (not plain),
    )
    room = _Layout(itemsize)
    if save:
        room.add((n if spec.projection else batch) * P)
        if spec.projection:
            room.add(batch * H)
        else:
            room.again(0)
        room.add(
            batch * H,
            batch * H * keep_c,
            batch * P * recurrent,
            n * (G + (cell == GRU_AFTER)) * H,
            n * G * H * norm,
            n * H * ln_c,
            max(panels(n, I), panels(n, H)) * plain,
        )
    functions = [spec.of_gates, spec.of_candidate, spec.of_output]
    numbers = [
        *(cell, G, first, *(f.number for f in functions)),
        *(spec.input_forget, norm, spec.projection, plain),
        *(H, P, I, D, direction),
        *(0, batch, 0, 0, 1, 0, BARRIERS[0]),
        *(0, n, int(not norm)),
        *weights.places, *back.places, *tape.places, *room.places,
    ]  # fmt: skip
    floats = [*(v for f in functions for v in f[1:]), spec.clip or 0, spec.grad_clip or 0]
    return Plan(
        np.array(numbers, np.int64),
        np.array(floats, np.float64),
        cell,
        G,
        first,
        plain,
        weights.room,
        back.room,
        tape.room,
        room.room,
    )
