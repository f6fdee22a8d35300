"""Chunks of a sequence one after the other, with the state kept in between."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import api, arrays, checks
from .errors import UnsupportedError
from .packed import Packed, pack

Array = NDArray[Any]


class Stream:
    """Recurrent layers that read a sequence in chunks, of any length each.

    Together the chunks give what one call of `rnnfast.lstm` and so on gives for the whole
    sequence with the same packed weights, bit for bit, however it is cut. The state stands in
    buffers that are updated in place, and so does y: after the first call of the largest size no
    array is allocated on the native backend, whose kernels take working memory from a pool of their
    own. Zoneout, which needs its expectation, and other backends make arrays on their way.

    Parameters
    ----------
    weights : Weights, tuple of arrays, list with one entry per layer, or Packed
        As `rnnfast.lstm` takes them, in one direction. They are packed once, here.
    cell : {"lstm", "gru", "rnn", "gated"}
    dtype : float32, float64, "bfloat16", "int8" or None
        As `rnnfast.pack` takes it. None for weights that are packed.
    batch_first : bool
        Whether chunks and y are (B, T, I) and (B, T, F) instead of (T, B, I) and (T, B, F).
    backend : str
        As `rnnfast.pack` takes it.
    **options
        The variant of the cell, as `rnnfast.pack` takes it (see `rnnfast.Options`). Packed
        weights must have been packed with the same. `training` is always False here.

    Raises
    ------
    ValueError, TypeError
        As `rnnfast.pack` does, and for packed weights of another cell, variant or backend.
    UnsupportedError
        For bidirectional weights, whose reverse direction starts at the end of the sequence.

    Notes
    -----
    A stream has one state: let one thread at a time call it. `copy.copy` makes another one, which
    goes on from the same state by itself and shares the packed weights.

    Examples
    --------
    >>> stream = rnnfast.Stream(weights, cell="lstm")
    >>> for chunk in np.array_split(x, 7):
    ...     y = stream(chunk)  # valid until the next call
    >>> saved = stream.state  # (h, c), a copy
    """

    def __init__(
        self,
        weights: Any,
        cell: str = "lstm",
        *,
        dtype: DTypeLike | None = None,
        batch_first: bool = False,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        checks.cell(cell)
        if checks.flag("training", options.get("training", False)):
            raise ValueError("training: a stream is for inference; expected False, got True")
        options["training"] = False
        if not isinstance(weights, Packed):
            weights = pack(weights, cell=cell, dtype=dtype, backend=backend, **options)
        elif dtype is not None:
            raise TypeError(f"dtype: expected None, as the weights are packed, got {dtype!r}")
        if len(weights.first[0]) != 1:
            raise UnsupportedError(
                "weights: a stream cannot be bidirectional, because the reverse direction starts "
                "at the end of the sequence; no backend has it"
            )
        self._packed = weights
        self._shortcut = weights.shortcut
        self._batch_first = checks.flag("batch_first", batch_first)
        self._function = partial(getattr(api, cell), backend=backend, **options)
        # A call of no rows: checks that cell, options and backend are those of packed weights,
        # and tells the shapes of y and of the state.
        empty = np.empty((1, 0, weights.input_size), weights.dtype)
        y, state = self._function(empty, weights)
        self._y_width: int = y.shape[-1]
        self._has_c = isinstance(state, tuple)
        states = state if self._has_c else (state,)
        self._state_sizes = [(s.shape[0], s.shape[2]) for s in states]

        self._fresh = True  # the state is zero, and may yet get another shape
        self._states: list[Array] = []
        self._given_state: Any = None  # the same arrays, as the function takes them
        self._x = self._y = np.empty(0, weights.dtype)  # buffers that only grow
        self._out: Any = None  # y and state of the last call, for a call of the same shape

    def __copy__(self) -> Stream:
        """Another stream, which goes on from the same state with the same packed weights."""
        other = object.__new__(Stream)
        other.__dict__.update(self.__dict__)
        other._states, other._given_state, other._out = [], None, None
        other._x = other._y = np.empty(0, self._packed.dtype)
        if not self._fresh:
            other.state = self.state
        return other

    def __deepcopy__(self, memo: Any) -> Stream:
        return self.__copy__()

    def __repr__(self) -> str:
        return f"<rnnfast.Stream, {self._packed!r}>"

    def __call__(self, x: Any, *, lengths: Any = None, out: Any = None) -> Any:
        """Run the layers over the next chunk.

        Parameters
        ----------
        x : array (T, B, I), (B, T, I) with batch_first, or (T, I) unbatched
            The chunk, T >= 1. Every chunk has the same B, until `reset` or a new `state`. A chunk
            in another layout than C-contiguous (T, B, I) is copied into a buffer first.
        lengths : int array (B,) or None
            The number of steps of this chunk that each row has, for streams side by side of which
            some have less to read, or nothing, now. Past a row's end y is zero and the state
            stays. This allocates memory.
        out : array like y, or None
            Where to write y. C-contiguous and apart from x.

        Returns
        -------
        array (T, B, F), or as x is laid out
            The outputs of the last layer. Without `out` it is a view of a buffer that the next
            call writes again: copy what has to stay. For an x that is not NumPy's it is a new
            array of the same kind.

        Raises
        ------
        ValueError, TypeError, UnsupportedError
            As `rnnfast.lstm` does. The state is then what it was.
        """
        # Most calls need no conversion: the backend looks at the shapes.
        shortcut = self._shortcut
        if shortcut is not None and lengths is None and not self._batch_first:
            # The last y fits only an x of the last shape.
            given = self._out if out is None else (out, self._given_state)
            if given is not None and shortcut(x, self._given_state, given, None) is not None:
                self._fresh = False
                return given[0]
        return self._run(x, lengths, out)

    @property
    def state(self) -> Any:
        """A copy of the state: (h, c), or h of a cell without c; None where the next call begins.

        NumPy arrays (L, B, H), without B if chunks are unbatched. What is assigned is copied as
        well; it may have another B than before, and None means `reset()`.
        """
        if self._fresh:
            return None
        copies = tuple(s.copy() for s in self._states)
        return copies if self._has_c else copies[0]

    @state.setter
    def state(self, state: Any) -> None:
        if state is None:
            self.reset()
            return
        given = state if self._has_c else (state,)
        if not isinstance(given, tuple | list) or len(given) != len(self._state_sizes):
            raise TypeError(f"state: expected a pair (h, c), got {arrays.describe(given)}")
        found: list[Array] = []
        for name, value, (count, width) in zip("hc", given, self._state_sizes, strict=False):
            array = arrays.floating(f"state {name}", value, self._packed.dtype)
            batch = (found[0] if found else array).shape[1:-1]
            if array.ndim not in (2, 3) or array.shape != (count, *batch, width):
                wanted = f"({count}, {', '.join(map(str, batch)) if found else 'B'}, {width})"
                raise ValueError(f"state {name}: expected shape {wanted}, got {array.shape}")
            found.append(array)
        self._make_states(found[0].shape[1:-1])
        for kept, array in zip(self._states, found, strict=True):
            kept[...] = array
        self._fresh = False

    def reset(self, rows: Any = None) -> None:
        """Set the state to zero, of all rows or of some, which begin another sequence.

        Parameters
        ----------
        rows : int, int array, bool array (B,), or None
            The rows to reset. After None the next chunk may have any number of rows.

        Raises
        ------
        ValueError
            For rows that are not there, or any where chunks are unbatched.
        TypeError
            For anything else than integers or bools.
        """
        if rows is None:
            for state in self._states:
                state[...] = 0
            self._fresh = True
            return
        chosen = np.asarray(rows)
        bools = chosen.dtype.kind == "b"
        if chosen.size and not bools and chosen.dtype.kind not in "iu":
            raise TypeError(f"rows: expected integers, bools or None, got dtype {chosen.dtype}")
        if chosen.ndim > 1 or (bools and chosen.ndim == 0):
            raise ValueError(f"rows: expected an int or one axis, got shape {chosen.shape}")
        if not self._states:
            return  # every row is zero
        if self._states[0].ndim == 2:
            raise ValueError("rows: expected None, as the chunks are unbatched")
        batch = self._states[0].shape[1]
        if bools and len(chosen) != batch:
            raise ValueError(f"rows: expected {batch} bools, got {len(chosen)}")
        if not bools and chosen.size and not -batch <= chosen.min() <= chosen.max() < batch:
            raise ValueError(f"rows: expected rows below B = {batch}, got {rows}")
        if chosen.size:
            for state in self._states:
                state[:, chosen] = 0

    def _run(self, x: Any, lengths: Any, out: Any) -> Any:
        packed = self._packed
        data = arrays.take("x", x)
        if arrays.on_device(data):
            raise UnsupportedError("x: a stream takes arrays in CPU memory, on every backend")
        swap = self._batch_first and data.ndim == 3
        rows = data.swapaxes(0, 1) if swap else data
        features = packed.input_size
        if (
            data.ndim not in (2, 3)
            or rows.shape[0] == 0
            or rows.shape[-1] != features
            or (data.dtype != packed.dtype)
        ):
            self._function(x, packed, batch_first=self._batch_first)  # says what is wrong
        self._fit(rows.shape[1:-1], data.shape)
        if (
            not rows.flags.c_contiguous
            or not rows.flags.aligned
            or (np.may_share_memory(rows, self._y))
        ):
            self._x = _grown(self._x, rows.size)
            taken = self._x[: rows.size].reshape(rows.shape)
            taken[...] = rows
            rows = taken
        shape = (*rows.shape[:-1], self._y_width)
        size = rows.size // features * self._y_width
        into = None if out is None or not swap else self._swapped(out, shape)
        if out is None or swap:
            self._y = _grown(self._y, size)
            y = self._y[:size].reshape(shape)
        else:
            y = out
        given = (y, self._given_state)
        done = None
        if self._shortcut is not None and lengths is None:
            done = self._shortcut(rows, self._given_state, given, None)
        if done is None:
            self._function(rows, packed, self._given_state, lengths=lengths, out=given)
        self._fresh = False
        if into is not None:
            into[...] = y
        if out is not None:
            return out
        if not isinstance(x, np.ndarray):
            return arrays.give((y.swapaxes(0, 1) if swap else y).copy(), x)
        if swap:
            return y.swapaxes(0, 1)
        self._out = given
        return y

    def _fit(self, batch: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Make the state one of so many rows, or complain."""
        if self._states and self._states[0].shape[1:-1] == batch:
            return
        if not self._fresh:
            rows = self._states[0].shape[1:-1]
            wanted = f"{rows[0]} rows" if rows else "no batch axis"
            raise ValueError(
                f"x: expected {wanted} as the state of the stream has, got shape {shape}; "
                f"reset() lets it begin anew"
            )
        self._make_states(batch)

    def _make_states(self, batch: tuple[int, ...]) -> None:
        if self._states and self._states[0].shape[1:-1] == batch:
            return
        dtype = self._packed.dtype
        self._states = [np.zeros((n, *batch, width), dtype) for n, width in self._state_sizes]
        self._given_state = tuple(self._states) if self._has_c else self._states[0]
        self._out = None

    def _swapped(self, out: Any, shape: tuple[int, ...]) -> Array:
        """out (B, T, F) as (T, B, F), to be written in the end."""
        array = arrays.floating("out", out, self._packed.dtype)
        wanted = (shape[1], shape[0], shape[2])
        if array.shape != wanted:
            raise ValueError(f"out: expected shape {wanted}, got {array.shape}")
        if not array.flags.writeable:
            raise ValueError("out: expected an array that can be written, got a read-only one")
        swapped: Array = array.swapaxes(0, 1)
        return swapped


def _grown(buffer: Array, size: int) -> Array:
    return buffer if buffer.size >= size else np.empty(size, buffer.dtype)
