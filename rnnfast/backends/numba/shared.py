"""What the time loops have in common: who does what, which steps there are, parts of rows.

All arrays are flat. Rows of the batch that fall to other members of a team are independent of this
one's; with `Team.units` a member has all rows but some units of each, and the members meet at a
barrier.

The state runs in place: h and c begin as the initial state, rows that have not started keep it,
and rows that have ended keep theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .compiled import entry, jit, view
from .lanes import arrive, arrived, give_way, held, part
from .plans import BARRIER, BEGIN, BEGUN, DONE, FAILED, LINE, ROLE, STAYING
from .products import panel_width

UNITS = np.intp(16)  # a member's share is a multiple of this
# A Python int would have a type, and a compilation, of its own.
K = tuple(map(np.intp, range(11)))
ZERO, ONE, TWO = K[:3]


class Team(NamedTuple):
    """One member's part: rows begin to end - 1 or, with `units`, a share of the units."""

    begin: int
    end: int
    units: int
    member: int
    members: int
    role: int  # how many workers the caller has; of worker k -1 - k; 0 of who is alone
    arrivals: Any  # (1,) at the barrier, and so on: see `plans.BOARD`
    begun: Any
    failed: Any
    done: Any
    staying: Any


class Visits(NamedTuple):
    """The steps of one direction, in its order."""

    row: Any  # of the first row, in the arrays below
    count: Any  # rows


@view
def read_team(plan: Any, board: Any) -> Any:
    at, role, board = BEGIN, plan[ROLE], held(board)
    return Team(
        plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], role,
        _place(board, plan[BARRIER]), _place(board, BEGUN), _place(board, FAILED),
        _place(board, DONE), _place(board, STAYING + max(0, -1 - role) * LINE),
    )  # fmt: skip


@view
def _place(board: Any, at: int) -> Any:
    return part(board, at, at + 1)


@jit
def set_out(team: Any) -> None:
    """Where a pass begins: workers that have stayed for it take up their parts."""
    if team.role > 0:
        arrive(team.begun)


@jit
def part_ways(team: Any) -> None:
    """Where a pass ends: the caller waits for its workers, and they for the next."""
    if team.role > 0:
        _wait(team.done, team.role, team.failed)
    elif team.role < 0:
        before = arrived(team.begun)
        team.staying[0] = 1
        arrive(team.done)
        _stay(team.begun, before, 300)
        team.staying[0] = 0


@entry
def stay_for_next(board: Any, worker: int) -> None:
    """What a worker does that was woken for a pass to come: after the one without it."""
    begun, staying = _place(held(board), BEGUN), _place(held(board), STAYING + worker * LINE)
    staying[0] = 1
    _stay(begun, arrived(begun), 3000)
    staying[0] = 0


@jit
def _stay(begun: Any, before: int, looks: int) -> None:
    """Until another pass begins, but no longer than so often some 0.4 us."""
    for _ in range(looks):
        for _ in range(100):
            if arrived(begun) != before:
                return
        give_way()


@jit
def _wait(count: Any, least: int, failed: Any) -> None:
    looks = 0
    while arrived(count) < least and not arrived(failed):
        looks += 1
        if looks > 2000:
            give_way()


@view
def section(a: Any, plan: Any, at: int, k: int) -> Any:
    return part(a, plan[at + 2 * k], plan[at + 2 * k + 1])


@jit
def meet(team: Any) -> None:
    """Where members have units of the same rows."""
    if team.units:
        meet_all(team)


@jit
def meet_all(team: Any) -> None:
    if team.members > 1:
        rounds = arrive(team.arrivals) // team.members
        _wait(team.arrivals, (rounds + 1) * team.members, team.failed)


@jit
def equal_share(team: Any, count: int) -> Any:
    """A member's part of `count` things, however the members share the steps."""
    return count * team.member // team.members, count * (team.member + 1) // team.members


@jit
def turned(begin: int, end: int, visit: int) -> Any:
    """Panels begin to end - 1 as `multiply` takes them: at odd visits from the other side."""
    return (end, begin) if visit % 2 else (begin, end)


@jit
def share(team: Any, count: int, multiple: int) -> Any:
    """A member's part of `count` units or panels."""
    if not team.units:
        return 0, count
    blocks = (count + multiple - 1) // multiple
    begin = blocks * team.member // team.members * multiple
    end = blocks * (team.member + 1) // team.members * multiple
    return min(begin, count), min(end, count)


@jit
def meets(a: Any, b: Any) -> Any:
    """Whether two arrays have memory in common."""
    a_at, b_at, size = a.ctypes.data, b.ctypes.data, a.itemsize
    there = a.size > 0 and b.size > 0
    return there and a_at < b_at + b.size * size and b_at < a_at + a.size * size


@jit
def copy(to: Any, to_at: int, source: Any, at: int, count: int) -> None:
    a = part(to, to_at, to_at + count)
    b = part(source, at, at + count)
    for j in range(count):
        a[j] = b[j]


@jit
def add(to: Any, to_at: int, source: Any, at: int, count: int) -> None:
    a = part(to, to_at, to_at + count)
    b = part(source, at, at + count)
    for j in range(count):
        a[j] += b[j]


@jit
def clear(c: Any, at: int, row: int, rows: int, begin: int, end: int) -> None:
    for r in range(rows):
        numbers = part(c, at + r * row + begin, at + r * row + end)
        for j in range(end - begin):
            numbers[j] = 0


@jit
def panel_count(columns: int, panels: Any) -> Any:
    width = panel_width(panels)
    return (columns + width - 1) // width
