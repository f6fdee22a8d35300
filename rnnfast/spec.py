"""The cells, and the frozen description of a layer pass that every backend receives.

Letters used throughout: T time steps, B batch rows, I input size, H hidden size, L layers,
D directions (1 or 2), G gates of a cell. We are at step t: x_t is its input, h and c are the
state that step t - 1 left, and step t turns them into the next h and c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cell:
    """What the code above the backends must know of a cell."""

    name: str
    gates: str  # one letter a gate, in the order of the rows of w_ih, w_hh, b_ih and b_hh
    has_c: bool  # whether the state is (h, c) or h alone
    nonlinearities: tuple[str, ...] = ()
    has_reset_after: bool = False


CELLS = {
    cell.name: cell
    for cell in (
        Cell("lstm", "ifgo", has_c=True),
        Cell("gru", "rzn", has_c=False, has_reset_after=True),
        Cell("rnn", "h", has_c=False, nonlinearities=("tanh", "relu", "sigmoid")),
        Cell("gated", "ifc", has_c=False),
    )
}


@dataclass(frozen=True)
class Spec:
    """Everything that selects the mathematics of a layer pass; sizes come from the arrays."""

    cell: str
    reset_after: bool = True  # GRU: the reset gate acts after (cuDNN) or before (paper) w_hh
    nonlinearity: str = "tanh"  # RNN

    @property
    def info(self) -> Cell:
        return CELLS[self.cell]

    def variants(self) -> str:
        """The cell with the options that apply to it, for people to read."""
        if self.info.has_reset_after:
            return f"{self.cell}(reset_after={self.reset_after})"
        if self.info.nonlinearities:
            return f"{self.cell}(nonlinearity={self.nonlinearity!r})"
        return self.cell


def all_specs() -> list[Spec]:
    """One Spec for every cell and every variant of it."""
    specs = []
    for cell in CELLS.values():
        for reset_after in (True, False) if cell.has_reset_after else (True,):
            for nonlinearity in cell.nonlinearities or ("tanh",):
                specs.append(Spec(cell.name, reset_after, nonlinearity))
    return specs


class Steps(NamedTuple):
    """How the rows of a packed batch fall into time steps.

    Rows are stored step after step, as in PyTorch's PackedSequence: with `batch_sizes` None every
    step has `batch` rows, else step t has `batch_sizes[t]`, which never grows, because the batch
    is sorted by falling length. Row b of a step continues row b of the one before.
    """

    num_steps: int
    batch: int
    batch_sizes: NDArray[np.int64] | None = None

    def sizes(self) -> list[int]:
        if self.batch_sizes is None:
            return [self.batch] * self.num_steps
        return [int(n) for n in self.batch_sizes]

    @property
    def rows(self) -> int:
        if self.batch_sizes is None:
            return self.num_steps * self.batch
        return int(self.batch_sizes.sum())

    def part(self, first: int, count: int) -> Steps:
        """Up to `count` steps from `first` on, and the rows that run then."""
        if self.batch_sizes is None:
            return Steps(min(count, self.num_steps - first), self.batch)
        sizes = self.batch_sizes[first : first + count]
        return Steps(len(sizes), int(sizes.max(initial=0)), sizes)
