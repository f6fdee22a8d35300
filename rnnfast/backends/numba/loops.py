"""The time loops of cells with options: a forward pass of one direction over some steps, and BPTT.

Every cell and option goes through them; what differs is chosen row by row, outside the loops over
units. Equations: rnnfast/reference/<cell>.py. For the rest see `shared.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .compiled import entry, jit, view
from .functions import activate, activate_back
from .lanes import held, part, stay_apart
from .norms import normalise, normalise_back, scale_and_shift
from .plans import (
    BACK,
    FIRST_ROW,
    GATED,
    GRADIENTS,
    GRU_AFTER,
    GRU_BEFORE,
    INPUTS,
    LSTM,
    RNN,
    ROWS,
    RUNNING,
    TAPE,
    WEIGHTS,
    WHOLE,
)
from .products import aligned, multiply, panel_width, product_rows
from .shared import (
    ONE,
    TWO,
    UNITS,
    ZERO,
    K,
    Visits,
    add,
    clear,
    copy,
    equal_share,
    meet,
    meet_all,
    panel_count,
    part_ways,
    read_team,
    section,
    set_out,
    share,
    turned,
)


class Options(NamedTuple):
    """What selects the mathematics. A function is (its number, alpha, beta)."""

    cell: int
    gates: int  # G
    first: int  # gates of the first product of a step, which come first
    gate: tuple[float, float, float]
    candidate: tuple[float, float, float]
    output: tuple[float, float, float]
    clip: float  # 0 for none
    grad_clip: float  # 0 for none
    input_forget: int
    norm: int
    projection: int


class Sizes(NamedTuple):
    hidden: int  # H
    outputs: int  # P
    directions: int
    direction: int


class Recurrent(NamedTuple):
    """Weights of the loop. Where there are none, arrays are empty: so everywhere below."""

    first: Any  # panels of the first product
    second: Any  # of the second: of n (GRU), or the projection
    bias: Any  # (H) of the second product
    w_peep: Any  # (3, H)
    gain: Any  # (G, H) ln_hh
    shift: Any  # (G, H) b_hh where there is a gain
    c_gain: Any  # (H)
    c_shift: Any  # (H)


class Masks(NamedTuple):
    recurrent: Any  # (B, P)
    keep_h: Any  # (n, P) or (P)
    keep_c: Any  # (n, H) or (H)


class Tape(NamedTuple):
    """What a pass leaves: n rows, those of the steps given."""

    gates: Any  # (n, G, H) in: the x part with biases, out: the values of the gates
    extra: Any  # (n, H) LSTM: v = output activation; GRU: the recurrent part q of n, or r * h
    h_before: Any  # (n, P)
    operand: Any  # the same, or with the mask of recurrent dropout
    c_before: Any  # (n, H)
    c_step: Any  # (n, H) c before zoneout, for peepholes
    hats: Any  # (n, G, H) the recurrent part, normalised
    c_hats: Any  # (n, H)
    scales: Any  # (n, 3) of two groups of gates, and of c


class Running(NamedTuple):
    """What the steps hand on, and room to work."""

    h: Any  # (B, P)
    c: Any  # (B, H)
    step: Any  # (B, P) h before zoneout
    raw: Any  # (B, G, H) the recurrent part before normalisation
    work: Any  # (B, H)


class Gradients(NamedTuple):
    dh: Any  # (B, P) in and out
    dc: Any  # (B, H)
    step: Any  # (B, P), or (N, P) with projection: of h before zoneout
    of_m: Any  # (B, H) of what is projected; the same as `step` without
    work: Any  # (B, H)
    kept: Any  # (B, H) of c, what zoneout passes on
    product: Any  # (B, P) with recurrent dropout: gradient of the masked h
    d: Any  # (N, G or G + 1, H) of the arguments of the gates; GRU_AFTER: then of q
    d_norm: Any  # (N, G, H) of the recurrent part before its normalisation
    du: Any  # (N, H) of the normalised c


@jit
def _options(plan: Any, floats: Any) -> Any:
    return Options(
        plan[0],
        plan[1],
        plan[2],
        (plan[3], floats[0], floats[1]),
        (plan[4], floats[2], floats[3]),
        (plan[5], floats[4], floats[5]),
        floats[6],
        floats[7],
        plan[6],
        plan[7],
        plan[8],
    )


@jit
def _sizes(plan: Any) -> Any:
    return Sizes(plan[10], plan[11], plan[13], plan[14])


@view
def _recurrent(a: Any, plan: Any, first: Any, second: Any) -> Any:
    at = WEIGHTS
    return Recurrent(
        first,
        second,
        section(a, plan, at, K[4]),
        section(a, plan, at, K[5]),
        section(a, plan, at, K[6]),
        section(a, plan, at, K[7]),
        section(a, plan, at, K[8]),
        section(a, plan, at, K[9]),
    )


@view
def _tape(a: Any, plan: Any) -> Any:
    at = TAPE
    return Tape(
        section(a, plan, at, K[0]),
        section(a, plan, at, K[1]),
        section(a, plan, at, K[2]),
        section(a, plan, at, K[3]),
        section(a, plan, at, K[4]),
        section(a, plan, at, K[5]),
        section(a, plan, at, K[6]),
        section(a, plan, at, K[7]),
        section(a, plan, at, K[8]),
    )


@jit
def _copy_times(to: Any, to_at: int, source: Any, at: int, by: Any, by_at: int, count: int) -> None:
    a = part(to, to_at, to_at + count)
    b = part(source, at, at + count)
    c = part(by, by_at, by_at + count)
    for j in range(count):
        a[j] = b[j] * c[j]


@jit
def _subtract(to: Any, to_at: int, source: Any, at: int, count: int) -> None:
    a = part(to, to_at, to_at + count)
    b = part(source, at, at + count)
    for j in range(count):
        a[j] -= b[j]


@jit
def _add_times(to: Any, to_at: int, source: Any, at: int, by: Any, by_at: int, count: int) -> None:
    a = part(to, to_at, to_at + count)
    b = part(source, at, at + count)
    c = part(by, by_at, by_at + count)
    for j in range(count):
        a[j] += b[j] * c[j]


@jit
def _keep(k: Any, k_at: int, before: Any, before_at: int, after: Any, at: int, count: int) -> None:
    """after = k before + (1 - k) after: exactly one of them where k is 0 or 1"""
    a = part(after, at, at + count)
    b = part(before, before_at, before_at + count)
    kept = part(k, k_at, k_at + count)
    one = type(k[0])(1)
    for j in range(count):
        a[j] = kept[j] * b[j] + (one - kept[j]) * a[j]


@jit
def _mask_at(mask: Any, row: int, width: int) -> int:
    """Where a row of a mask begins, which may be one row for all."""
    return 0 if mask.size == width else row * width


# ------------------------------------------------------------------------------------ forward


@jit
def _lstm_gates(
    o: Any, w: Any, m: Any, t: Any, s: Any, H: int, r: int, b: int, u: int, n: int
) -> None:
    at, c_at = r * 4 * H + u, b * H + u
    a = t.gates
    if t.c_before.size:
        copy(t.c_before, r * H + u, s.c, c_at, n)
    if w.w_peep.size:
        _add_times(a, at, w.w_peep, u, s.c, c_at, n)
        _add_times(a, at + H, w.w_peep, H + u, s.c, c_at, n)
    if n == H and not o.input_forget:
        activate(o.gate, o.clip, a, at, 2 * H)
    else:
        activate(o.gate, o.clip, a, at, n)
        if not o.input_forget:
            activate(o.gate, o.clip, a, at + H, n)
    activate(o.candidate, o.clip, a, at + 2 * H, n)
    i, f = part(a, at, at + n), part(a, at + H, at + H + n)
    if o.input_forget:
        one = type(i[0])(1)
        for j in range(n):
            f[j] = one - i[j]
    g = part(a, at + 2 * H, at + 2 * H + n)
    c = part(s.c, c_at, c_at + n)
    c_next = part(s.work, c_at, c_at + n)
    for j in range(n):
        c_next[j] = f[j] * c[j] + i[j] * g[j]
    if w.w_peep.size:
        _add_times(a, at + 3 * H, w.w_peep, 2 * H + u, s.work, c_at, n)
        if t.c_step.size:
            copy(t.c_step, r * H + u, s.work, c_at, n)
    activate(o.gate, o.clip, a, at + 3 * H, n)
    if w.c_gain.size:
        copy(t.c_hats, r * H, s.work, c_at, H)
        normalise(t.c_hats, r * H, H, t.scales, r * 3 + 2)
        scale_and_shift(t.c_hats, r * H, w.c_gain, w.c_shift, ZERO, H, t.extra, r * H)
    else:
        copy(t.extra, r * H + u, s.work, c_at, n)
    activate(o.output, 0.0, t.extra, r * H + u, n)
    if m.keep_c.size:
        _keep(m.keep_c, _mask_at(m.keep_c, r, H) + u, s.c, c_at, s.work, c_at, n)
    copy(s.c, c_at, s.work, c_at, n)
    to = s.work if o.projection else s.step
    _copy_times(to, c_at, a, at + 3 * H, t.extra, r * H + u, n)


@jit
def _gru_gates(o: Any, t: Any, H: int, r: int, u: int, n: int) -> None:
    """r and z, and r h where it acts before the product."""
    at = r * 3 * H + u
    if n == H:
        activate(o.gate, o.clip, t.gates, at, 2 * H)
    else:
        activate(o.gate, o.clip, t.gates, at, n)
        activate(o.gate, o.clip, t.gates, at + H, n)
    if o.cell == GRU_BEFORE:
        _copy_times(t.extra, r * H + u, t.gates, at, t.operand, r * H + u, n)


@jit
def _gru_candidate(o: Any, t: Any, s: Any, H: int, r: int, b: int, u: int, n: int) -> None:
    at = r * 3 * H + u
    if o.cell == GRU_AFTER:
        _add_times(t.gates, at + 2 * H, t.gates, at, t.extra, r * H + u, n)
    activate(o.candidate, o.clip, t.gates, at + 2 * H, n)
    z, new = part(t.gates, at + H, at + H + n), part(t.gates, at + 2 * H, at + 2 * H + n)
    h, step = part(s.h, b * H + u, b * H + u + n), part(s.step, b * H + u, b * H + u + n)
    one = type(z[0])(1)
    for j in range(n):
        step[j] = (one - z[j]) * new[j] + z[j] * h[j]


@jit
def _gated_step(o: Any, t: Any, s: Any, H: int, r: int, b: int, u: int, n: int) -> None:
    at = r * 3 * H + u
    activate(o.gate, o.clip, t.gates, at, n)
    activate(o.gate, o.clip, t.gates, at + H, n)
    activate(o.candidate, o.clip, t.gates, at + 2 * H, n)
    i, f = part(t.gates, at, at + n), part(t.gates, at + H, at + H + n)
    v = part(t.gates, at + 2 * H, at + 2 * H + n)
    h, step = part(s.h, b * H + u, b * H + u + n), part(s.step, b * H + u, b * H + u + n)
    for j in range(n):
        step[j] = f[j] * h[j] + i[j] * v[j]


@jit
def _add_normed(
    o: Any, w: Any, t: Any, raw: Any, raw_at: int, H: int, r: int, gate: int, gates: int, group: int
) -> None:
    """The recurrent part of some gates of a row, normalised, joins the x part."""
    stay_apart()
    hat_at = (r * o.gates + gate) * H
    copy(t.hats, hat_at, raw, raw_at, gates * H)
    normalise(t.hats, hat_at, gates * H, t.scales, r * 3 + group)
    scale_and_shift(t.hats, hat_at, w.gain, w.shift, gate * H, gates * H, raw, raw_at)
    if not (o.cell == GRU_AFTER and group == 1):
        add(t.gates, hat_at, raw, raw_at, gates * H)


@jit
def _finish(
    z: Any, steps: Any, m: Any, t: Any, s: Any, y: Any, y_at: int, i: int, b: int, u: int, n: int
) -> None:
    """From h of the step to everything that h goes to."""
    P = z.outputs
    r, at = steps.row[i] + b, b * P + u
    if m.keep_h.size:
        _keep(m.keep_h, _mask_at(m.keep_h, r, P) + u, s.h, at, s.step, at, n)
    copy(s.h, at, s.step, at, n)
    copy(y, y_at + (r * z.directions + z.direction) * P + u, s.step, at, n)


@jit
def _begin(steps: Any, m: Any, t: Any, s: Any, P: int, i: int, b: int, u: int, n: int) -> None:
    """h of a row, as a step is to read it."""
    at = (steps.row[i] + b) * P + u
    copy(t.h_before, at, s.h, b * P + u, n)
    if m.recurrent.size:
        _copy_times(t.operand, at, s.h, b * P + u, m.recurrent, b * P + u, n)


@entry
def forward(
    plan: Any, board: Any, floats: Any, visits_row: Any, visits_count: Any, x: Any, weights: Any,
    recurrent_mask: Any, keep_h: Any, keep_c: Any, tape: Any, h: Any, c: Any, y: Any,
) -> None:  # fmt: skip
    """Run the steps of a plan."""
    o, z, team = _options(plan, floats), _sizes(plan), read_team(plan, board)
    set_out(team)
    steps = Visits(held(visits_row), held(visits_count))
    weights, tape = aligned(weights), aligned(tape)
    first, second = section(weights, plan, WEIGHTS, K[2]), section(weights, plan, WEIGHTS, K[3])
    w, t = _recurrent(weights, plan, first, second), _tape(tape, plan)
    m = Masks(held(recurrent_mask), held(keep_h), held(keep_c))
    s = Running(
        held(h), held(c), section(tape, plan, RUNNING, K[0]), section(tape, plan, RUNNING, K[1]),
        section(tape, plan, RUNNING, K[2]),
    )  # fmt: skip
    H, P, G, I = z.hidden, z.outputs, o.gates, plan[INPUTS]  # noqa: E741
    if plan[WHOLE]:
        r0, r1 = equal_share(team, plan[ROWS])
        product_rows(
            t.gates, G * H, G * H, section(weights, plan, WEIGHTS, K[1]), held(x),
            plan[FIRST_ROW] * I, I, ONE, section(weights, plan, WEIGHTS, K[0]), I, r0, r1,
        )  # fmt: skip
        meet_all(team)
    y, y_at = held(y), plan[FIRST_ROW] * z.directions * P
    u0, u1 = share(team, H, UNITS)
    v0, v1 = share(team, P, UNITS)
    q0, q1 = share(team, panel_count(o.first * H, w.first), ONE)
    second_columns = P if o.projection else H
    s0, s1 = share(team, panel_count(second_columns, w.second), ONE)
    width = panel_width(w.first)
    visits = len(steps.row)
    if visits:
        for b in range(team.begin, min(team.end, steps.count[0])):
            _begin(steps, m, t, s, P, ZERO, b, v0, v1 - v0)
        meet(team)
    for i in range(visits):
        f0, f1 = turned(q0, q1, i)
        g0, g1 = turned(s0, s1, i)
        row, rows = steps.row[i], min(team.end, steps.count[i]) - team.begin
        begin = team.begin
        r = row + begin
        if rows > 0:
            if o.norm:
                clear(s.raw, begin * G * H, G * H, rows, ZERO, o.first * H)
                multiply(
                    s.raw,
                    begin * G * H,
                    G * H,
                    o.first * H,
                    rows,
                    t.operand,
                    r * P,
                    P,
                    ONE,
                    w.first,
                    P,
                    f0,
                    f1,
                )
            else:
                multiply(
                    t.gates,
                    r * G * H,
                    G * H,
                    o.first * H,
                    rows,
                    t.operand,
                    r * P,
                    P,
                    ONE,
                    w.first,
                    P,
                    f0,
                    f1,
                )
            if o.cell == GRU_AFTER:
                for k in range(r, r + rows):
                    clear(t.extra, k * H, ZERO, ONE, s0 * width, min(H, s1 * width))
                    if w.bias.size:
                        columns = min(H, s1 * width) - s0 * width
                        add(t.extra, k * H + s0 * width, w.bias, s0 * width, columns)
                multiply(t.extra, r * H, H, H, rows, t.operand, r * P, P, ONE, w.second, P, g0, g1)
        meet(team)
        for b in range(begin, begin + rows):
            r = row + b
            if o.norm:
                _add_normed(o, w, t, s.raw, b * G * H, H, r, ZERO, o.first, ZERO)
                if o.cell == GRU_AFTER:
                    _add_normed(o, w, t, t.extra, r * H, H, r, TWO, ONE, ONE)
            if o.cell == LSTM:
                _lstm_gates(o, w, m, t, s, H, r, b, u0, u1 - u0)
            elif o.cell == RNN:
                activate(o.candidate, o.clip, t.gates, r * H + u0, u1 - u0)
                copy(s.step, b * H + u0, t.gates, r * H + u0, u1 - u0)
            elif o.cell == GATED:
                _gated_step(o, t, s, H, r, b, u0, u1 - u0)
            else:
                _gru_gates(o, t, H, r, u0, u1 - u0)
                if o.cell == GRU_AFTER:
                    _gru_candidate(o, t, s, H, r, b, u0, u1 - u0)
        if o.cell == GRU_BEFORE:
            meet(team)
            r = row + begin
            if rows > 0 and o.norm:
                clear(s.raw, begin * G * H, G * H, rows, 2 * H, 3 * H)
                multiply(
                    s.raw,
                    begin * G * H + 2 * H,
                    G * H,
                    H,
                    rows,
                    t.extra,
                    r * H,
                    H,
                    ONE,
                    w.second,
                    H,
                    g0,
                    g1,
                )
            elif rows > 0:
                multiply(
                    t.gates,
                    r * G * H + 2 * H,
                    G * H,
                    H,
                    rows,
                    t.extra,
                    r * H,
                    H,
                    ONE,
                    w.second,
                    H,
                    g0,
                    g1,
                )
            meet(team)
            for b in range(begin, begin + rows):
                if o.norm:
                    _add_normed(o, w, t, s.raw, b * G * H + 2 * H, H, row + b, TWO, ONE, ONE)
                _gru_candidate(o, t, s, H, row + b, b, u0, u1 - u0)
        elif o.projection:
            meet(team)
            if rows > 0:
                clear(s.step, begin * P, P, rows, s0 * width, min(P, s1 * width))
                multiply(
                    s.step, begin * P, P, P, rows, s.work, begin * H, H, ONE, w.second, H, g0, g1
                )
            meet(team)
        for b in range(begin, begin + rows):
            _finish(z, steps, m, t, s, y, y_at, i, b, v0, v1 - v0)
        if i + 1 < visits:
            for b in range(begin, min(team.end, steps.count[i + 1])):
                _begin(steps, m, t, s, P, i + 1, b, v0, v1 - v0)
        meet(team)
    part_ways(team)


# ----------------------------------------------------------------------------------- backward


@jit
def _gather(z: Any, m: Any, g: Any, dy: Any, r: int, b: int, at: int, u: int, n: int) -> None:
    """The gradient of h as the cell made it, and in g.dh what zoneout passes on."""
    P = z.outputs
    dh = part(g.dh, b * P + u, b * P + u + n)
    step = part(g.step, at + u, at + u + n)
    if dy.size:
        dy_at = (r * z.directions + z.direction) * P + u
        d = part(dy, dy_at, dy_at + n)
        for j in range(n):
            step[j] = dh[j] + d[j]
    else:
        for j in range(n):
            step[j] = dh[j]
    if m.keep_h.size:
        k_at = _mask_at(m.keep_h, r, P) + u
        k = part(m.keep_h, k_at, k_at + n)
        for j in range(n):
            dh[j] = step[j] * k[j]
            step[j] -= dh[j]
    else:
        for j in range(n):
            dh[j] = 0


@jit
def _lstm_back(
    o: Any, w: Any, m: Any, t: Any, g: Any, H: int, r: int, b: int, u: int, n: int
) -> None:
    at, c_at, one = r * 4 * H + u, b * H + u, r * H + u
    d, a, most = g.d, t.gates, o.grad_clip
    _copy_times(d, at + 3 * H, g.of_m, c_at, t.extra, one, n)
    activate_back(o.gate, o.clip, most, a, at + 3 * H, d, at + 3 * H, n)
    _copy_times(g.work, c_at, g.of_m, c_at, a, at + 3 * H, n)
    activate_back(o.output, 0.0, 0.0, t.extra, one, g.work, c_at, n)
    if w.c_gain.size:
        copy(g.du, r * H, g.work, b * H, H)
        _copy_times(g.work, b * H, g.du, r * H, w.c_gain, ZERO, H)
        normalise_back(g.work, b * H, t.c_hats, r * H, t.scales, r * 3 + 2, H)
    if m.keep_c.size:
        _copy_times(g.kept, c_at, g.dc, c_at, m.keep_c, _mask_at(m.keep_c, r, H) + u, n)
        _subtract(g.dc, c_at, g.kept, c_at, n)
    add(g.work, c_at, g.dc, c_at, n)
    if w.w_peep.size:
        _add_times(g.work, c_at, d, at + 3 * H, w.w_peep, 2 * H + u, n)
    _copy_times(d, at, g.work, c_at, a, at + 2 * H, n)
    _copy_times(d, at + H, g.work, c_at, t.c_before, one, n)
    if o.input_forget:
        _subtract(d, at, d, at + H, n)
        clear(d, at + H, ZERO, ONE, ZERO, n)
    else:
        activate_back(o.gate, o.clip, most, a, at + H, d, at + H, n)
    activate_back(o.gate, o.clip, most, a, at, d, at, n)
    _copy_times(d, at + 2 * H, g.work, c_at, a, at, n)
    activate_back(o.candidate, o.clip, most, a, at + 2 * H, d, at + 2 * H, n)
    _copy_times(g.dc, c_at, g.work, c_at, a, at + H, n)
    if m.keep_c.size:
        add(g.dc, c_at, g.kept, c_at, n)
    if w.w_peep.size:
        _add_times(g.dc, c_at, d, at, w.w_peep, u, n)
        _add_times(g.dc, c_at, d, at + H, w.w_peep, H + u, n)


@jit
def _gru_back(o: Any, t: Any, g: Any, H: int, r: int, b: int, u: int, n: int) -> None:
    """All of z and n; r too where it acts after the product, and the gradient of q."""
    row = 4 * H if o.cell == GRU_AFTER else 3 * H
    at, a_at, h_at, one = r * row + u, r * 3 * H + u, b * H + u, r * H + u
    d, most = g.d, o.grad_clip
    dh, h = part(g.step, h_at, h_at + n), part(t.h_before, one, one + n)
    z, new = part(t.gates, a_at + H, a_at + H + n), part(t.gates, a_at + 2 * H, a_at + 2 * H + n)
    dz, dn = part(d, at + H, at + H + n), part(d, at + 2 * H, at + 2 * H + n)
    for j in range(n):
        dz[j] = dh[j] * (h[j] - new[j])
    whole = type(z[0])(1)
    for j in range(n):
        dn[j] = dh[j] * (whole - z[j])
    _add_times(g.dh, h_at, g.step, h_at, t.gates, a_at + H, n)
    activate_back(o.gate, o.clip, most, t.gates, a_at + H, d, at + H, n)
    activate_back(o.candidate, o.clip, most, t.gates, a_at + 2 * H, d, at + 2 * H, n)
    if o.cell == GRU_AFTER:
        _copy_times(d, at, d, at + 2 * H, t.extra, one, n)
        activate_back(o.gate, o.clip, most, t.gates, a_at, d, at, n)
        _copy_times(d, at + 3 * H, d, at + 2 * H, t.gates, a_at, n)


@jit
def _gru_reset_back(o: Any, m: Any, t: Any, g: Any, H: int, r: int, b: int, u: int, n: int) -> None:
    """r where it acts before the product, given the gradient of r h in g.work."""
    at, h_at, one = r * 3 * H + u, b * H + u, r * H + u
    _copy_times(g.d, at, g.work, h_at, t.operand, one, n)
    activate_back(o.gate, o.clip, o.grad_clip, t.gates, at, g.d, at, n)
    _copy_times(g.work, h_at, g.work, h_at, t.gates, at, n)
    if m.recurrent.size:
        _copy_times(g.work, h_at, g.work, h_at, m.recurrent, h_at, n)
    add(g.dh, h_at, g.work, h_at, n)


@jit
def _gated_back(o: Any, t: Any, g: Any, H: int, r: int, b: int, u: int, n: int) -> None:
    at, h_at, most = r * 3 * H + u, b * H + u, o.grad_clip
    a, d = t.gates, g.d
    _copy_times(d, at, g.step, h_at, a, at + 2 * H, n)
    _copy_times(d, at + H, g.step, h_at, t.h_before, r * H + u, n)
    _copy_times(d, at + 2 * H, g.step, h_at, a, at, n)
    _add_times(g.dh, h_at, g.step, h_at, a, at + H, n)
    activate_back(o.gate, o.clip, most, a, at, d, at, n)
    activate_back(o.gate, o.clip, most, a, at + H, d, at + H, n)
    activate_back(o.candidate, o.clip, most, a, at + 2 * H, d, at + 2 * H, n)


@jit
def _normed_back(
    o: Any, w: Any, t: Any, g: Any, H: int, r: int, source: int, gate: int, gates: int, group: int
) -> None:
    """The gradient of some gates' recurrent part, from after its normalisation to before."""
    stay_apart()
    at, count = (r * o.gates + gate) * H, gates * H
    _copy_times(g.d_norm, at, g.d, source, w.gain, gate * H, count)
    normalise_back(g.d_norm, at, t.hats, at, t.scales, r * 3 + group, count)


@entry
def backward(
    plan: Any, board: Any, visits_row: Any, visits_count: Any, floats: Any, cut: Any,
    weights: Any, back: Any, recurrent_mask: Any, keep_h: Any, keep_c: Any, tape: Any, dy: Any,
    dh: Any, dc: Any, room: Any,
) -> None:  # fmt: skip
    """BPTT through the steps of a plan."""
    o, z, team = _options(plan, floats), _sizes(plan), read_team(plan, board)
    set_out(team)
    weights, back = aligned(weights), aligned(back)
    tape, room = aligned(tape), aligned(room)
    first, second = section(back, plan, BACK, K[0]), section(back, plan, BACK, K[1])
    at = GRADIENTS
    g = Gradients(
        held(dh),
        held(dc),
        section(room, plan, at, K[0]),
        section(room, plan, at, K[1]),
        section(room, plan, at, K[2]),
        section(room, plan, at, K[3]),
        section(room, plan, at, K[4]),
        section(room, plan, at, K[5]),
        section(room, plan, at, K[6]),
        section(room, plan, at, K[7]),
    )
    t, w = _tape(tape, plan), _recurrent(weights, plan, first, second)
    m = Masks(held(recurrent_mask), held(keep_h), held(keep_c))
    steps, cut, dy = Visits(held(visits_row), held(visits_count)), held(cut), held(dy)
    H, P, G = z.hidden, z.outputs, o.gates
    D = G + 1 if o.cell == GRU_AFTER else G
    u0, u1 = share(team, H, UNITS)
    v0, v1 = share(team, P, UNITS)
    q0, q1 = share(team, panel_count(P, w.first), ONE)
    s0, s1 = share(team, panel_count(H, w.second), ONE)
    width = panel_width(w.first)
    n, begin = u1 - u0, team.begin
    into = g.product if m.recurrent.size else g.dh
    for i in range(len(steps.row) - 1, -1, -1):
        f0, f1 = turned(q0, q1, i)
        g0, g1 = turned(s0, s1, i)
        row, rows = steps.row[i], min(team.end, steps.count[i]) - begin
        r = row + begin
        for b in range(begin, begin + rows):
            at = (row + b) * P if o.projection else b * P
            _gather(z, m, g, dy, row + b, b, at, v0, v1 - v0)
        if o.projection:
            meet(team)
            if rows > 0:
                clear(g.of_m, begin * H, H, rows, s0 * width, min(H, s1 * width))
                multiply(g.of_m, begin * H, H, H, rows, g.step, r * P, P, ONE, w.second, P, g0, g1)
            meet(team)
        for b in range(begin, begin + rows):
            r = row + b
            if o.cell == LSTM:
                _lstm_back(o, w, m, t, g, H, r, b, u0, n)
            elif o.cell == RNN:
                copy(g.d, r * H + u0, g.step, b * H + u0, n)
                activate_back(
                    o.candidate, o.clip, o.grad_clip, t.gates, r * H + u0, g.d, r * H + u0, n
                )
            elif o.cell == GATED:
                _gated_back(o, t, g, H, r, b, u0, n)
            else:
                _gru_back(o, t, g, H, r, b, u0, n)
            if o.norm:
                if o.cell != GRU_BEFORE:
                    _normed_back(o, w, t, g, H, r, r * D * H, ZERO, o.first, ZERO)
                if o.cell == GRU_BEFORE:
                    _normed_back(o, w, t, g, H, r, (r * D + 2) * H, TWO, ONE, ONE)
                elif o.cell == GRU_AFTER:
                    _normed_back(o, w, t, g, H, r, (r * D + 3) * H, TWO, ONE, ONE)
        meet(team)
        r = row + begin
        d, d_row = (g.d_norm, G * H) if o.norm else (g.d, D * H)
        if o.cell == GRU_BEFORE:
            if rows > 0:
                clear(g.work, begin * H, H, rows, s0 * width, min(H, s1 * width))
                multiply(
                    g.work, begin * H, H, H, rows,
                    d, r * d_row + 2 * H, d_row, ONE, w.second, H, g0, g1,
                )  # fmt: skip
            meet(team)
            for b in range(begin, begin + rows):
                _gru_reset_back(o, m, t, g, H, row + b, b, u0, n)
                if o.norm:
                    _normed_back(o, w, t, g, H, row + b, (row + b) * D * H, ZERO, TWO, ZERO)
            meet(team)
        if rows > 0:
            if m.recurrent.size:
                clear(into, begin * P, P, rows, q0 * width, min(P, q1 * width))
            multiply(
                into, begin * P, P, P, rows,
                d, r * d_row, d_row, ONE, w.first, o.first * H, f0, f1,
            )  # fmt: skip
            if o.cell == GRU_AFTER:
                slot = 2 if o.norm else 3
                multiply(
                    into, begin * P, P, P, rows,
                    d, r * d_row + slot * H, d_row, ONE, w.second, H, g0, g1,
                )  # fmt: skip
        meet(team)
        if m.recurrent.size:
            for b in range(begin, begin + rows):
                at = b * P + v0
                _add_times(g.dh, at, g.product, at, m.recurrent, at, v1 - v0)
        if cut[i]:
            for b in range(begin, min(begin + rows, steps.count[i - 1])):
                clear(g.dh, b * P, ZERO, ONE, v0, v1)
                if o.cell == LSTM:
                    clear(g.dc, b * H, ZERO, ONE, u0, u1)
    part_ways(team)


# ------------------------------------------------------------------- the normalised x part


@entry
def normalise_inputs(
    gates: Any, hats: Any, scales: Any, gain: Any, shift: Any, G: int, H: int, first: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    """Rows of W_ih x become gain * normed + shift, in groups of `first` gates and what is left."""
    for r in range(begin, end):
        gate = 0
        while gate < G:
            count = (first if gate == 0 else G - first) * H
            at = (r * G + gate) * H
            copy(hats, at, gates, at, count)
            normalise(hats, at, count, scales, r * 2 + (1 if gate else 0))
            scale_and_shift(hats, at, gain, shift, gate * H, count, gates, at)
            gate += first if gate == 0 else G


@entry
def normalise_inputs_back(
    d: Any, d_row: int, hats: Any, scales: Any, gain: Any, G: int, H: int, first: int, to: Any,
    begin: int, end: int,
) -> None:  # fmt: skip
    """to (n, G, H) = the gradient of W_ih x, given that of the normalised."""
    for r in range(begin, end):
        gate = 0
        while gate < G:
            count = (first if gate == 0 else G - first) * H
            at = (r * G + gate) * H
            _copy_times(to, at, d, r * d_row + gate * H, gain, gate * H, count)
            normalise_back(to, at, hats, at, scales, r * 2 + (1 if gate else 0), count)
            gate += first if gate == 0 else G
