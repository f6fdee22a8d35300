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

from .compiled import jit
from .lanes import arrive, arrived, give_way, held, part
from .plans import BEGIN
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
    counter: Any  # (1,) arrivals at the barrier


class Visits(NamedTuple):
    """The steps of one direction, in its order."""

    row: Any  # of the first row, in the arrays below
    count: Any  # rows


@jit
def read_team(plan: Any, counter: Any) -> Any:
    at = BEGIN
    return Team(plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4], held(counter))


@jit
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
        target = (arrive(team.counter) // team.members + 1) * team.members
        spins = 0
        while arrived(team.counter) < target:
            spins += 1
            if spins > 2000:
                give_way()


@jit
def equal_share(team: Any, count: int) -> Any:
    """A member's part of `count` things, however the members share the steps."""
    return count * team.member // team.members, count * (team.member + 1) // team.members


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
