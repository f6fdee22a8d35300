"""One step of one row, forward and back, for cells without options.

There each number of the weights is used once, so that they are read where they lie: to pack them
would take longer than the products. The sums are those of `plain.py`, in the same order.
"""

from __future__ import annotations

from typing import Any

from . import units
from .cells import update, update_back
from .compiled import entry, jit, view
from .lanes import held, part
from .plans import GRU_AFTER, GRU_BEFORE
from .products import multiply_in_place, multiply_transposed
from .shared import ONE, ZERO, add, clear, copy


@view
def _sections(cell: int, tape: Any, rows: int, H: int) -> Any:
    """The gates, then what `units.py` calls v, q or rh, h and c before the step.

    The last two are empty where the tape is short, as it is without a backward pass.
    """
    tape = held(tape)
    end = rows + H
    return (
        part(tape, ZERO, rows),
        part(tape, rows, end),
        part(tape, end, min(tape.size, end + H)),
        part(tape, min(tape.size, end + H), tape.size),
    )


@entry
def forward(
    cell: int, fresh: bool, x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, tape: Any, h: Any,
    c: Any, y: Any,
) -> None:  # fmt: skip
    """h and c run in place; `fresh` says that h is zero, which then takes no part in products."""
    rows, H, I = w_hh.shape[0], w_hh.shape[1], w_ih.shape[1]  # noqa: E741
    split = 2 * H if cell in (GRU_AFTER, GRU_BEFORE) else rows
    x, w_ih, w_hh, h, c, y = held(x), held(w_ih), held(w_hh), held(h), held(c), held(y)
    a, extra, h_before, c_before = _sections(cell, tape, rows, H)
    if b_ih.size:
        copy(a, ZERO, b_ih, ZERO, rows)
    else:
        clear(a, ZERO, ZERO, ONE, ZERO, rows)
    if b_hh.size:
        add(a, ZERO, b_hh, ZERO, split if cell == GRU_AFTER else rows)
    multiply_transposed(a, ZERO, rows, x, ZERO, w_ih, ZERO, I)
    if not fresh:
        multiply_transposed(a, ZERO, split, h, ZERO, w_hh, ZERO, H)
    if cell == GRU_AFTER:
        if b_hh.size:
            copy(extra, ZERO, b_hh, split, H)
        else:
            clear(extra, ZERO, ZERO, ONE, ZERO, H)
        if not fresh:
            multiply_transposed(extra, ZERO, H, h, ZERO, w_hh, split * H, H)
    update(cell, H, H, a, ZERO, extra, ZERO, h, c, ZERO, y, ZERO, h_before, c_before)
    if cell == GRU_BEFORE:
        if not fresh:
            multiply_transposed(a, split, H, extra, ZERO, w_hh, split * H, H)
        units.gru_before(H, a, H, a, split, h, ZERO, y, ZERO, h_before, ZERO)


@jit
def _outer(to: Any, at: int, d: Any, d_at: int, rows: int, b: Any, columns: int) -> None:
    """to = d b^T; no product is -0, as none is that a sum begins with 0."""
    zero = to.dtype.type(0)
    for r in range(rows):
        factor = d[d_at + r]
        row = part(to, at + r * columns, at + (r + 1) * columns)
        for j in range(columns):
            row[j] = factor * b[j] + zero


@entry
def backward(
    cell: int, fresh: bool, x: Any, w_ih: Any, w_hh: Any, tape: Any, room: Any, dy: Any, dh: Any,
    dc: Any, dx: Any, dw_ih: Any, dw_hh: Any, db_ih: Any, db_hh: Any,
) -> None:  # fmt: skip
    """dh and dc run in place; `room` is for the gradients of all arguments, and H numbers more."""
    rows, H, I = w_hh.shape[0], w_hh.shape[1], w_ih.shape[1]  # noqa: E741
    split = 2 * H if cell in (GRU_AFTER, GRU_BEFORE) else rows
    rest, last = rows - split, rows if cell == GRU_AFTER else split  # of W_hh, and in d
    w_ih, w_hh, dy, dh, dc, dx = held(w_ih), held(w_hh), held(dy), held(dh), held(dc), held(dx)
    dw_ih, dw_hh = held(dw_ih), held(dw_hh)
    a, extra, h_before, c_before = _sections(cell, tape, rows, H)
    d, work = part(room, ZERO, room.size - H), part(room, room.size - H, room.size)
    update_back(
        cell, H, H, dh, dc, ZERO, a, ZERO, extra, ZERO, h_before, c_before, d, ZERO, dy, ZERO
    )
    if cell == GRU_BEFORE:
        clear(work, ZERO, ZERO, ONE, ZERO, H)
        multiply_in_place(work, ZERO, H, d, split, w_hh, split * H, H)
        units.gru_reset_back(H, dh, ZERO, work, ZERO, a, ZERO, h_before, ZERO, d, ZERO)
    multiply_in_place(dh, ZERO, H, d, ZERO, w_hh, ZERO, split)
    if cell == GRU_AFTER:
        multiply_in_place(dh, ZERO, H, d, last, w_hh, split * H, H)
    clear(dx, ZERO, ZERO, ONE, ZERO, I)
    multiply_in_place(dx, ZERO, I, d, ZERO, w_ih, ZERO, rows)
    _outer(dw_ih, ZERO, d, ZERO, rows, held(x), I)
    if fresh:
        clear(dw_hh, ZERO, ZERO, ONE, ZERO, rows * H)
    else:
        _outer(dw_hh, ZERO, d, ZERO, split, h_before, H)
        second = extra if cell == GRU_BEFORE else h_before
        _outer(dw_hh, split * H, d, last, rest, second, H)
    if db_ih.size:
        clear(db_ih, ZERO, ZERO, ONE, ZERO, rows)
        add(db_ih, ZERO, d, ZERO, rows)
    if db_hh.size:
        clear(db_hh, ZERO, ZERO, ONE, ZERO, rows)
        add(db_hh, ZERO, d, ZERO, split)
        add(db_hh, split, d, last, rest)
