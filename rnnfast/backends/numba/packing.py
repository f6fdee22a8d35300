"""Weights of a direction to panels, in one call of each thread that takes part."""

from __future__ import annotations

from typing import Any

from .compiled import entry, jit
from .lanes import held, part, stay_apart
from .plans import BACK, GRU_AFTER, HIDDEN, INPUTS, OUTPUTS, PROJECTION, WEIGHTS
from .products import aligned, pack_rows, panel_width
from .shared import (
    ONE,
    ZERO,
    K,
    clear,
    copy,
    equal_share,
    part_ways,
    read_team,
    section,
    set_out,
)


@entry
def pack_forward(
    plan: Any, board: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, w_hr: Any, to: Any
) -> None:
    """The panels and biases of the forward pass; empty arrays for what there is not."""
    team = read_team(plan, board)
    set_out(team)
    to = aligned(to)
    H, P, I, rows = plan[HIDDEN], plan[OUTPUTS], plan[INPUTS], plan[1] * plan[HIDDEN]  # noqa: E741
    split = plan[2] * H
    w_ih, w_hh, w_hr = held(w_ih), held(w_hh), held(w_hr)
    _pack_share(team, w_ih, ONE, I, I, rows, section(to, plan, WEIGHTS, K[0]), H)
    _pack_share(team, w_hh, ONE, P, P, split, section(to, plan, WEIGHTS, K[2]), H)
    second = section(to, plan, WEIGHTS, K[3])
    if plan[PROJECTION]:
        _pack_share(team, w_hr, ONE, H, H, P, second, P)
    elif split < rows:
        _pack_share(team, part(w_hh, split * P, rows * P), ONE, P, P, rows - split, second, H)
    if team.member == 0:
        _biases(plan, b_ih, b_hh, to)
    part_ways(team)


@jit
def _biases(plan: Any, b_ih: Any, b_hh: Any, to: Any) -> None:
    stay_apart()
    H, rows, split = plan[HIDDEN], plan[1] * plan[HIDDEN], plan[2] * plan[HIDDEN]
    bias = section(to, plan, WEIGHTS, K[1])
    if bias.size:
        # Each is written once: two threads may pack the same weights at a time.
        both = 0 if b_hh.size == 0 else split if plan[0] == GRU_AFTER else rows
        if b_ih.size:
            for j in range(both):
                bias[j] = b_ih[j] + b_hh[j]
            copy(bias, both, b_ih, both, rows - both)
        else:
            copy(bias, ZERO, b_hh, ZERO, both)
            clear(bias, ZERO, ZERO, ONE, both, rows)
    bias = section(to, plan, WEIGHTS, K[4])
    if bias.size:
        copy(bias, ZERO, b_hh, split, H)


@jit
def _pack_share(
    team: Any, w: Any, w_row: int, w_column: int, rows: int, columns: int, panels: Any, group: int
) -> None:
    """A member's panels of a matrix: of each group of columns where these are whole panels.

    So each has packed, and has in its cache, what it will multiply with.
    """
    stay_apart()
    width = panel_width(panels)
    if group % width or columns % group:
        group = columns
    count = (group + width - 1) // width
    begin, end = equal_share(team, count)
    for p in range(0, (columns + width - 1) // width, count):
        pack_rows(w, w_row, w_column, rows, columns, panels, p + begin, p + end)


@entry
def pack_backward(plan: Any, board: Any, w_ih: Any, w_hh: Any, w_hr: Any, to: Any) -> None:
    """The panels of BPTT."""
    team = read_team(plan, board)
    set_out(team)
    to = aligned(to)
    H, P, I, rows = plan[HIDDEN], plan[OUTPUTS], plan[INPUTS], plan[1] * plan[HIDDEN]  # noqa: E741
    split = plan[2] * H
    w_ih, w_hh, w_hr = held(w_ih), held(w_hh), held(w_hr)
    _pack_share(team, w_hh, P, ONE, split, P, section(to, plan, BACK, K[0]), P)
    second = section(to, plan, BACK, K[1])
    if plan[PROJECTION]:
        _pack_share(team, w_hr, H, ONE, P, H, second, H)
    elif split < rows:
        _pack_share(team, part(w_hh, split * P, rows * P), P, ONE, rows - split, P, second, P)
    _pack_share(team, w_ih, I, ONE, rows, I, section(to, plan, BACK, K[2]), I)
    part_ways(team)
