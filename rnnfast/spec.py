"""The cells, and the frozen description of a layer pass that every backend receives.

Letters used throughout: T time steps, B batch rows, I input size, H hidden size, L layers,
D directions (1 or 2), G gates of a cell. We are at step t: x_t is its input, h and c are the
state that step t - 1 left, and step t turns them into the next h and c.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

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


class Activation(NamedTuple):
    """A function of a gate, with the parameters that some of them have."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def number(self) -> int:
        """By which the kernels know the function."""
        return _NUMBERS[self.name]


# The functions of ONNX's recurrent operators and `linear`, with ONNX's defaults of alpha and beta.
# All are monotonic, so that a derivative follows from the value.
ACTIVATIONS = {
    f.name: f
    for f in (
        Activation("sigmoid"),
        Activation("tanh"),
        Activation("relu"),
        Activation("linear"),
        Activation("affine", 1.0, 0.0),
        Activation("leaky_relu", 0.01),
        Activation("thresholded_relu", 1.0),
        Activation("scaled_tanh", 1.0, 1.0),
        Activation("hard_sigmoid", 0.2, 0.5),
        Activation("elu", 1.0),
        Activation("softsign"),
        Activation("softplus"),
    )
}
_NUMBERS = {name: k for k, name in enumerate(ACTIVATIONS)}


@dataclass(frozen=True)
class Spec:
    """Everything that selects the mathematics of a layer pass; sizes come from the arrays.

    Where every field from `gate_activation` on has its default, the cell is a plain one.
    """

    cell: str
    reset_after: bool = True  # GRU: the reset gate acts after (cuDNN) or before (paper) w_hh
    nonlinearity: str = "tanh"  # RNN
    gate_activation: Activation | None = None  # None for the cell's own, here and below
    activation: Activation | None = None
    output_activation: Activation | None = None
    clip: float | None = None
    input_forget: bool = False
    grad_clip: float | None = None
    truncate: int | None = None
    projection: bool = False
    peepholes: bool = False
    layer_norm: bool = False
    recurrent_dropout: bool = False
    zoneout: bool = False

    def __hash__(self) -> int:
        return self._hash  # kept, because every call looks its backend up

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    def __getstate__(self) -> dict[str, Any]:  # without what is kept: hashes differ by process
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def info(self) -> Cell:
        return CELLS[self.cell]

    @cached_property
    def plain(self) -> bool:
        """Whether this is the cell as papers and frameworks have it, without any option."""
        return self == Spec(self.cell, self.reset_after, self.nonlinearity)

    @property
    def of_gates(self) -> Activation:
        return self.gate_activation or ACTIVATIONS["sigmoid"]

    @property
    def of_candidate(self) -> Activation:
        if self.activation is not None:
            return self.activation
        own = {"rnn": self.nonlinearity, "gated": "sigmoid"}
        return ACTIVATIONS[own.get(self.cell, "tanh")]

    @property
    def of_output(self) -> Activation:
        return self.output_activation or ACTIVATIONS["tanh"]

    def options(self) -> dict[str, Any]:
        """What makes the cell another than the plain one, by name."""
        plain = Spec(self.cell, self.reset_after, self.nonlinearity)
        names = [field.name for field in fields(self)]
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(plain, n)}

    def variants(self) -> str:
        """The cell with the options that apply to it, for people to read."""
        named = {}
        if self.info.has_reset_after:
            named["reset_after"] = str(self.reset_after)
        if self.info.nonlinearities and self.activation is None:
            named["nonlinearity"] = repr(self.nonlinearity)
        for name, value in self.options().items():
            named[name] = repr(value.name if isinstance(value, Activation) else value)
        listed = ", ".join(f"{k}={v}" for k, v in named.items())
        return f"{self.cell}({listed})" if listed else self.cell


def all_specs() -> list[Spec]:
    """One Spec for every cell and every variant of it."""
    specs = []
    for cell in CELLS.values():
        for reset_after in (True, False) if cell.has_reset_after else (True,):
            for nonlinearity in cell.nonlinearities or ("tanh",):
                specs.append(Spec(cell.name, reset_after, nonlinearity))
    return specs


class Masks(NamedTuple):
    """What multiplies the state of one direction of one layer; P is the size of h.

    `recurrent` multiplies h before a step where it enters a matrix product, at every step alike.
    With k from `keep_h`, h' becomes h' + k (h - h'): 1 keeps what was before the step, 0 lets the
    step happen; so with `keep_c`. They have one row for each packed row, or one for all of them.
    """

    recurrent: NDArray[Any] | None = None  # (B, P)
    keep_h: NDArray[Any] | None = None  # (N, P) or (1, P)
    keep_c: NDArray[Any] | None = None  # (N, H) or (1, H)


class Steps(NamedTuple):
    """How the rows of a packed batch fall into time steps.

    Rows are stored step after step, as in PyTorch's PackedSequence: with `batch_sizes` None every
    step has `batch` rows, else step t has `batch_sizes[t]`, which never grows, because the batch
    is sorted by falling length. Row b of a step continues row b of the one before.

    With `order`, x and y (and dx and dy) are not packed but lie in memory as (steps * batch, ...),
    maybe with more steps; row b of a step is row `order[b]` there. See `Backend.pads`.
    """

    num_steps: int
    batch: int
    batch_sizes: NDArray[np.int64] | None = None
    order: NDArray[np.int64] | None = None  # (B,)

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
        """Up to `count` steps from `first` on, of the whole batch: how many rows it has may decide
        how a backend multiplies."""
        if self.batch_sizes is None:
            return Steps(min(count, self.num_steps - first), self.batch)
        sizes = self.batch_sizes[first : first + count]
        return Steps(len(sizes), self.batch, sizes)

    @property
    def begun(self) -> int:
        """How many rows have any step."""
        return self.batch if self.batch_sizes is None else int(self.batch_sizes.max(initial=0))
