"""One recurrent node as calls of rnnfast's functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import api, arrays
from ..convert import convert
from ..packed import pack
from .attributes import Attributes

Array = NDArray[Any]


class Pass(NamedTuple):
    """One call of `rnnfast.lstm`, `gru` or `rnn`.

    Attributes
    ----------
    weights : Weights, list of one pair of them, or Packed
        As the function takes them.
    options : dict
        Its other keyword arguments.
    reverse : bool
        Whether x and y are turned round, each row within its length: ONNX has layers of a reverse
        direction alone, rnnfast has not.
    """

    weights: Any
    options: dict[str, Any]
    reverse: bool


@dataclass(frozen=True)
class Layer:
    """A recurrent node with its weights; a function of x and the initial state.

    Attributes
    ----------
    cell : {"lstm", "gru", "rnn"}
        Which of rnnfast's functions it calls.
    passes : tuple of Pass
        The calls: one, or two for a bidirectional node whose directions have different
        activations, which rnnfast's layers cannot have.
    batch_first : bool
        ONNX's ``layout``: whether x and y have the batch as their first axis.
    state : array, pair of arrays or None
        The initial state that a call without one begins with, where the model holds a constant
        one.
    """

    cell: str
    passes: tuple[Pass, ...]
    batch_first: bool = False
    state: Any = None

    @classmethod
    def of(
        cls, attributes: Attributes, w: Array, r: Array, b: Array | None, p: Array | None = None
    ) -> Layer:
        """Build a layer of ONNX's W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H) and P (D, 3*H).

        Raises
        ------
        ValueError, TypeError
            For arrays that do not fit the attributes or one another.
        """
        count = 2 if attributes.direction == "bidirectional" else 1
        if r.ndim != 3 or len(r) != count:
            raise ValueError(
                f"R: expected shape (D, G*H, H) with D = {count} for direction "
                f"{attributes.direction!r}, got {r.shape}"
            )
        if attributes.hidden_size not in (None, r.shape[2]):
            raise ValueError(
                f"R: expected H = {attributes.hidden_size} as the attribute hidden_size says, "
                f"got {r.shape}"
            )
        arguments = (w, r, b) if p is None else (w, r, b, p)
        found = convert(
            arguments,
            cell=attributes.cell,
            source="onnx",
            target="torch",
            reset_after=attributes.reset_after,
        )
        options = attributes.options
        passes: tuple[Pass, ...]
        if count == 1:
            passes = (Pass(found, options[0], attributes.direction == "reverse"),)
        elif options[0] == options[1]:
            passes = (Pass(found, options[0], False),)
        else:
            passes = tuple(Pass(found[0][d], options[d], d == 1) for d in range(2))
        return cls(attributes.cell, passes, attributes.batch_first)

    @property
    def weights(self) -> Any:
        """The weights, as rnnfast's functions take them.

        Raises
        ------
        ValueError
            Where there are two passes.
        """
        return self._only().weights

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that rnnfast's function needs to do what the node does.

        Raises
        ------
        ValueError
            Where there are two passes, and for a lone reverse direction, which no option selects.
        """
        only = self._only()
        if only.reverse:
            raise ValueError(
                "options: the node has a reverse direction alone, which no option of rnnfast "
                "selects; call the layer itself, or turn x and y round"
            )
        return {**only.options, "batch_first": True} if self.batch_first else only.options

    def pack(self) -> Layer:
        """The same layer, for inference, with its weights packed once; see `rnnfast.pack`."""
        return replace(
            self,
            passes=tuple(
                p._replace(weights=pack(p.weights, cell=self.cell, **p.options))
                for p in self.passes
            ),
        )

    def __call__(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """Run the layer.

        Parameters
        ----------
        x : array (T, B, I), or (B, T, I) with batch_first
        state : array (D, B, H), for LSTM a pair (h_0, c_0) of them, or None
            None for the layer's own, or zeros.
        lengths : int array (B,) or None
            ONNX's ``sequence_lens``.

        Returns
        -------
        y, state_n
            As `rnnfast.lstm`, `gru` and `rnn` return them: y (T, B, D*H), or (B, T, D*H) with
            batch_first.

        Raises
        ------
        ValueError, TypeError, UnsupportedError
            As rnnfast's functions do.
        """
        state = self.state if state is None else state
        function = getattr(api, self.cell)
        if not self.batch_first and len(self.passes) == 1 and not self.passes[0].reverse:
            first = self.passes[0]
            y, state_n = function(x, first.weights, state, lengths=lengths, **first.options)
            return y, state_n
        data = arrays.floating("x", x)
        if data.ndim != 3:
            raise ValueError(f"x: expected shape (T, B, I) or (B, T, I), got {data.shape}")
        if self.batch_first:
            data = data.swapaxes(0, 1)
        if len(self.passes) > 1:
            for name, part in zip(("h_0", "c_0"), _parts(state), strict=False):
                if part is not None and len(part) != len(self.passes):
                    raise ValueError(f"{name}: expected shape (2, B, H), got {np.shape(part)}")
        ys: list[Array] = []
        states: list[Any] = []
        for d, (weights, options, reverse) in enumerate(self.passes):
            given = state if len(self.passes) == 1 else _direction(state, d)
            rows = _turned(data, lengths) if reverse else data
            y, state_n = function(rows, weights, given, lengths=lengths, **options)
            ys.append(_turned(y, lengths) if reverse else y)
            states.append(state_n)
        y = ys[0] if len(ys) == 1 else np.concatenate(ys, axis=-1)
        if self.batch_first:
            y = y.swapaxes(0, 1)
        # Others than NumPy take no negative strides, of which torch dies.
        y = y if isinstance(x, np.ndarray) else arrays.contiguous(y)
        return arrays.give(y, x), _joined(states, x)

    def _only(self) -> Pass:
        if len(self.passes) != 1:
            raise ValueError(
                "weights: the node's directions have different activations, which one call of "
                "rnnfast cannot have; call the layer itself, or each of its passes"
            )
        return self.passes[0]


def _turned(rows: Array, lengths: Any) -> Array:
    """Each row (of the second axis) from its last valid step to its first; twice is as before."""
    if lengths is None:
        return rows[::-1]
    ends = np.asarray(lengths)
    if ends.shape != rows.shape[1:2] or ends.dtype.kind not in "iu":
        return rows  # the function that gets them refuses these lengths
    step = np.arange(len(rows))[:, None]
    source = np.where(step < ends, ends - 1 - step, step).clip(0, len(rows) - 1)
    return np.take_along_axis(rows, source[:, :, None], axis=0)


def _parts(state: Any) -> Sequence[Any]:
    return state if isinstance(state, tuple | list) else (state,)


def _direction(state: Any, d: int) -> Any:
    """The state of one of two directions."""
    if state is None:
        return None
    if isinstance(state, tuple | list):
        return tuple(_direction(part, d) for part in state)
    return state[d : d + 1]


def _joined(states: Sequence[Any], like: Any) -> Any:
    """The states of all directions as one, of the kind of array that `like` is."""
    if isinstance(states[0], tuple):
        return tuple(_joined(parts, like) for parts in zip(*states, strict=True))
    return arrays.give(states[0] if len(states) == 1 else np.concatenate(states), like)
