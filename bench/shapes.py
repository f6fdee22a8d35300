"""The sizes that are timed, once for everything that times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One size. Letters as in `rnnfast.spec`: T steps, B rows, I inputs, H units, L layers."""

    kind: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    D: int = 1
    ragged: bool = False  # rows of random lengths, half of T on average

    def __str__(self) -> str:
        extra = f" L={self.L}" * (self.L > 1) + " both ways" * (self.D > 1)
        return f"{self.T},{self.B},{self.I},{self.H}{extra}{' ragged' * self.ragged}"

    @property
    def steps(self) -> float:
        """Of a row, on average."""
        return (1 + self.T) / 2 if self.ragged else self.T

    @property
    def quick(self) -> bool:
        """Whether a call takes some milliseconds at the most."""
        return self.T * self.B * self.H * (self.I + self.H) * self.L * self.D < 2e7


# The shapes over which targets and geometric means are stated.
TABLE = (
    Shape("streaming", 1, 1, 256, 256),
    Shape("small", 100, 1, 32, 32),
    Shape("narrow", 100, 1, 256, 256),
    Shape("wide", 100, 1, 1024, 1024),
    Shape("medium", 35, 20, 650, 650),
    Shape("medium", 100, 32, 256, 256),
    Shape("large", 128, 64, 512, 512),
    Shape("large", 50, 64, 1024, 1024),
    Shape("medium", 500, 16, 128, 128),
)
EXTRA = (
    Shape("streaming", 1, 1, 16, 16),
    Shape("streaming", 1, 1, 64, 64),
    Shape("streaming", 1, 1, 512, 512),
    Shape("streaming", 1, 1, 1024, 1024),
    Shape("ragged", 50, 16, 64, 64, ragged=True),
    Shape("ragged", 100, 32, 256, 256, ragged=True),
    Shape("ragged", 128, 64, 512, 512, ragged=True),
    Shape("bidirectional", 100, 1, 64, 64, D=2),
    Shape("bidirectional", 100, 1, 256, 256, D=2),
    Shape("bidirectional", 100, 32, 256, 256, D=2),
    Shape("multilayer", 100, 1, 64, 64, L=3),
    Shape("multilayer", 35, 20, 650, 650, L=2),
    Shape("multilayer", 100, 16, 128, 128, L=2, D=2),
)
ALL = (*TABLE, *EXTRA)


def select(names: Iterable[str]) -> list[Shape]:
    """The shapes that are named by group (table, extra, all, quick), kind, index, or T,B,I,H."""
    groups = {"table": TABLE, "extra": EXTRA, "all": ALL, "quick": [s for s in ALL if s.quick]}
    chosen: dict[Shape, None] = {}  # ordered, each once
    for name in names:
        found = groups.get(name) or [s for s in ALL if s.kind == name]
        if name.isdecimal() and int(name) < len(ALL):
            found = [ALL[int(name)]]
        elif name.count(",") == 3:
            found = [_parse(name)]
        if not found:
            kinds = ", ".join(dict.fromkeys([*groups, *(s.kind for s in ALL)]))
            raise ValueError(
                f"shapes: expected one of {kinds}, an index below {len(ALL)} or T,B,I,H, "
                f"got {name!r}"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _parse(name: str) -> Shape:
    try:
        T, B, I, H = (int(part) for part in name.split(","))  # noqa: E741
        if min(T, B, I, H) >= 1:
            return Shape("custom", T, B, I, H)
    except ValueError:
        pass
    raise ValueError(f"shapes: expected four sizes of at least 1, got {name!r}")
