"""The time loops of cells without options, forward and back: a product, then `units.py`.

Equations: rnnfast/reference/<cell>.py. For the rest see `shared.py`.
"""

from __future__ import annotations

from typing import Any

from . import units
from .cells import update, update_back
from .compiled import entry, jit
from .lanes import held, part, stay_apart
from .plans import (
    BACK,
    DIRECTION,
    DIRECTIONS,
    FIRST_ROW,
    GRADIENTS,
    GRU_AFTER,
    GRU_BEFORE,
    HIDDEN,
    INPUTS,
    ROWS,
    TAPE,
    WEIGHTS,
    WHOLE,
)
from .products import (
    add_rows,
    aligned,
    multiply,
    pack_all,
    panel_width,
    product_block,
    product_rows,
)
from .shared import (
    ONE,
    UNITS,
    ZERO,
    K,
    clear,
    copy,
    equal_share,
    meet,
    meet_all,
    meets,
    panel_count,
    part_ways,
    read_team,
    section,
    set_out,
    share,
    turned,
)


@entry
def forward(
    plan: Any, board: Any, visits_row: Any, visits_count: Any, begun: int, x: Any, weights: Any,
    tape: Any, h: Any, c: Any, y: Any,
) -> bool:  # fmt: skip
    """Run the steps of a plan; with WHOLE the product with x too.

    Of h, rows from `begun` on are zero: at their first step they take no part in products. False,
    and nothing is done, where an array that is written meets another one.
    """
    cell, G, H, I = plan[0], plan[1], plan[HIDDEN], plan[INPUTS]  # noqa: E741
    D, split = plan[DIRECTIONS], plan[2] * H
    team = read_team(plan, board)
    weights, tape = aligned(weights), aligned(tape)
    x, h, c, y, starts, counts = (
        held(x), held(h), held(c), held(y), held(visits_row), held(visits_count)
    )  # fmt: skip
    if meets(x, h) or meets(x, c) or meets(x, y) or meets(h, c) or meets(h, y) or meets(c, y):
        return False
    set_out(team)
    first, second = section(weights, plan, WEIGHTS, K[2]), section(weights, plan, WEIGHTS, K[3])
    bias = section(weights, plan, WEIGHTS, K[4])
    a, extra = section(tape, plan, TAPE, K[0]), section(tape, plan, TAPE, K[1])
    h_before, c_before = section(tape, plan, TAPE, K[2]), section(tape, plan, TAPE, K[4])
    width = panel_width(first)
    own = H % width == 0  # who makes the gates of a unit goes on with it
    u, u1 = share(team, H, width if own else UNITS)
    if plan[WHOLE]:
        by_x, of_x = section(weights, plan, WEIGHTS, K[0]), section(weights, plan, WEIGHTS, K[1])
        x_at, N = plan[FIRST_ROW] * I, plan[ROWS]
        if own and team.units:
            for column in range(u, G * H, H):
                p0, p1 = column // width, (column + u1 - u) // width
                product_block(a, G * H, G * H, of_x, x, x_at, I, ONE, by_x, I, ZERO, N, p0, p1)
        else:
            r0, r1 = equal_share(team, N)
            product_rows(a, G * H, G * H, of_x, x, x_at, I, ONE, by_x, I, r0, r1)
            meet_all(team)
    gates, (q0, q1) = plan[2], share(team, panel_count(split, first), ONE)
    s0, s1 = share(team, panel_count(H, second), ONE)
    n, s_at, s_columns = u1 - u, s0 * width, min(H, s1 * width) - s0 * width
    begin, y_at = team.begin, (plan[FIRST_ROW] * D + plan[DIRECTION]) * H
    # Members that go on with their own units, of rows that all steps have, find the units of others
    # in y, and meet once a step: what they read there is not written again.
    direct = own and len(starts) > 0 and counts[0] == counts[len(counts) - 1]
    for i in range(len(starts)):
        f0, f1 = turned(q0, q1, i)
        g0, g1 = turned(s0, s1, i)
        row, rows = starts[i] + begin, min(team.end, counts[i]) - begin
        old = min(begun - begin, rows)
        begun = max(begun, counts[i])
        before, at_before, row_before = h, begin * H, H
        if direct and i:
            before, at_before, row_before = y, y_at + (starts[i - 1] + begin) * D * H, D * H
        if old > 0 and own and team.units:
            for gate in range(gates):
                column = u + (gates - 1 - gate if i % 2 else gate) * H
                p0, p1 = turned(column // width, (column + n) // width, i)
                multiply(
                    a, row * G * H, G * H, split, old, before, at_before, row_before, ONE,
                    first, H, p0, p1,
                )  # fmt: skip
        elif old > 0:
            multiply(
                a, row * G * H, G * H, split, old, before, at_before, row_before, ONE,
                first, H, f0, f1,
            )  # fmt: skip
        if rows > 0 and cell == GRU_AFTER:
            for r in range(row, row + rows):
                if bias.size:
                    copy(extra, r * H + s_at, bias, s_at, s_columns)
                else:
                    clear(extra, r * H, ZERO, ONE, s_at, s_at + s_columns)
            if old > 0:
                multiply(
                    extra, row * H, H, H, old, before, at_before, row_before, ONE,
                    second, H, g0, g1,
                )  # fmt: skip
        if not direct or i == 0:
            meet(team)
        for k in range(rows):
            r = row + k
            at, one, h_at, to = r * G * H + u, r * H + u, (begin + k) * H + u, y_at + r * D * H + u
            update(cell, n, H, a, at, extra, one, h, c, h_at, y, to, h_before, c_before)
        if cell == GRU_BEFORE:
            meet(team)
            if old > 0:
                multiply(
                    a, (row * G + 2) * H, G * H, H, old, extra, row * H, H, ONE, second, H, g0, g1
                )
            if not own:
                meet(team)
            for k in range(rows):
                r = row + k
                at, to = r * G * H + u, y_at + r * D * H + u
                units.gru_before(
                    n, a, at + H, a, at + 2 * H, h, (begin + k) * H + u, y, to,
                    h_before, r * H + u,
                )  # fmt: skip
        meet(team)
    part_ways(team)
    return True


@entry
def backward(
    plan: Any, board: Any, visits_row: Any, visits_count: Any, back: Any, tape: Any, dy: Any,
    dh: Any, dc: Any, room: Any, x: Any, dx: Any, dw_ih: Any, dw_hh: Any, db_ih: Any, db_hh: Any,
) -> None:  # fmt: skip
    """BPTT through the steps of a plan; with WHOLE the gradients of x and the weights too."""
    cell, G, H = plan[0], plan[1], plan[HIDDEN]
    D, split = plan[DIRECTIONS], plan[2] * H
    slots = G + 1 if cell == GRU_AFTER else G
    team = read_team(plan, board)
    set_out(team)
    back, tape, room = aligned(back), aligned(tape), aligned(room)
    dh, dc, dy, starts, counts = held(dh), held(dc), held(dy), held(visits_row), held(visits_count)
    first, second = section(back, plan, BACK, K[0]), section(back, plan, BACK, K[1])
    a, extra = section(tape, plan, TAPE, K[0]), section(tape, plan, TAPE, K[1])
    h_before, c_before = section(tape, plan, TAPE, K[2]), section(tape, plan, TAPE, K[4])
    work, d = section(room, plan, GRADIENTS, K[2]), section(room, plan, GRADIENTS, K[5])
    width = panel_width(first)
    own = H % width == 0  # dh of a unit stays with one member
    u, u1 = share(team, H, width if own else UNITS)
    q0, q1 = share(team, panel_count(H, first), ONE)
    s0, s1 = share(team, panel_count(H, second), ONE)
    n, begin, y_at = u1 - u, team.begin, plan[DIRECTION] * H + u
    for i in range(len(starts) - 1, -1, -1):
        f0, f1 = turned(q0, q1, i)
        g0, g1 = turned(s0, s1, i)
        row, rows = starts[i] + begin, min(team.end, counts[i]) - begin
        for k in range(rows):
            r = row + k
            at, one, h_at, of = r * G * H + u, r * H + u, (begin + k) * H + u, y_at + r * D * H
            to = r * slots * H + u
            update_back(
                cell, n, H, dh, dc, h_at, a, at, extra, one, h_before, c_before, d, to, dy, of
            )
        meet(team)
        d_at, d_row = row * slots * H, slots * H
        if cell == GRU_BEFORE:
            if rows > 0:
                clear(work, begin * H, H, rows, s0 * width, min(H, s1 * width))
                multiply(
                    work, begin * H, H, H, rows, d, d_at + 2 * H, d_row, ONE, second, H, g0, g1
                )
            if not own:
                meet(team)
            for k in range(rows):
                r, h_at = row + k, (begin + k) * H + u
                at = r * G * H + u
                units.gru_reset_back(n, dh, h_at, work, h_at, a, at, h_before, r * H + u, d, at)
            meet(team)
        if rows > 0:
            multiply(dh, begin * H, H, H, rows, d, d_at, d_row, ONE, first, split, f0, f1)
            if cell == GRU_AFTER:
                multiply(dh, begin * H, H, H, rows, d, d_at + 3 * H, d_row, ONE, second, H, g0, g1)
        if not own:
            meet(team)
    if plan[WHOLE]:
        by_input = section(back, plan, BACK, K[2])
        _gradients(
            team, plan, d, h_before, extra, section(room, plan, GRADIENTS, K[8]), held(x), by_input,
            held(dx), held(dw_ih), held(dw_hh), held(db_ih), held(db_hh),
        )  # fmt: skip
    part_ways(team)


@jit
def _gradients(
    team: Any, plan: Any, d: Any, h_before: Any, extra: Any, panels: Any, x: Any, by_input: Any,
    dx: Any, dw_ih: Any, dw_hh: Any, db_ih: Any, db_hh: Any,
) -> None:  # fmt: skip
    """Those of x and of the weights: rows of each product are divided among the members."""
    stay_apart()
    cell, G, H, I, N = plan[0], plan[1], plan[HIDDEN], plan[INPUTS], plan[ROWS]  # noqa: E741
    slots, split = G + 1 if cell == GRU_AFTER else G, plan[2] * H
    row, none, rest = slots * H, part(x, ZERO, ZERO), G * H - split
    meet_all(team)
    if team.member == 0:
        pack_all(x, I, ONE, N, I, panels)
    if team.units:  # so that nobody reads all panels
        p0, p1 = equal_share(team, panel_count(I, by_input))
        product_block(dx, I, I, none, d, ZERO, row, ONE, by_input, G * H, ZERO, N, p0, p1)
    else:
        r0, r1 = equal_share(team, N)
        product_rows(dx, I, I, none, d, ZERO, row, ONE, by_input, G * H, r0, r1)
    g0, g1 = equal_share(team, G * H)
    if db_ih.size:
        add_rows(part(db_ih, g0, g1), d, g0, row, g1 - g0, N)
    meet_all(team)
    product_rows(dw_ih, I, I, none, d, ZERO, ONE, row, panels, N, g0, g1)
    meet_all(team)
    if team.member == 0:
        pack_all(h_before, H, ONE, N, H, panels)
    q0, q1 = equal_share(team, split)
    if db_hh.size:
        add_rows(part(db_hh, q0, q1), d, q0, row, q1 - q0, N)
    meet_all(team)
    product_rows(dw_hh, H, H, none, d, ZERO, ONE, row, panels, N, q0, q1)
    if rest == 0:
        return
    if cell == GRU_BEFORE:
        meet_all(team)
        if team.member == 0:
            pack_all(extra, H, ONE, N, H, panels)
        meet_all(team)
    last = (slots - 1) * H
    s0, s1 = equal_share(team, rest)
    to = part(dw_hh, split * H, G * H * H)
    product_rows(to, H, H, none, d, last, ONE, row, panels, N, s0, s1)
    if db_hh.size:
        add_rows(part(db_hh, split + s0, split + s1), d, last + s0, row, s1 - s0, N)
