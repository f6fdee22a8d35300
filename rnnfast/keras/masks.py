"""Masks: Keras skips masked steps wherever they are, the kernels end each row at its length.

The steps that a mask keeps are moved to the front of their row, in order, and the outputs back to
where their inputs came from. Where they stand at the front already, nothing is moved.
"""

from __future__ import annotations

from typing import Any

import keras

ops = keras.ops


class Unmasked:
    """Every step of every row counts."""

    lengths = None

    def __init__(self, go_backwards: bool) -> None:
        self.go_backwards = go_backwards

    def pack(self, x: Any) -> Any:
        """The steps (B, T, I) in the order in which they are run."""
        return ops.flip(x, axis=1) if self.go_backwards else x

    def unpack(self, y: Any, h_n: Any, before: Any) -> Any:
        """The outputs (B, T, H) as Keras has them: in the order in which steps are run.

        `before` (B, H) is the output of masked steps before the first that counts, or None.
        """
        return y

    def last(self, h_n: Any, before: Any) -> Any:
        """The output of the last step (B, H)."""
        return h_n


class Masked:
    """Only the steps where the mask is true count. Others repeat the output before them.

    Parameters
    ----------
    mask : bool tensor (B, T)
    go_backwards : bool
    zero_output : bool
        Whether the output of every masked step is zero instead.
    """

    def __init__(self, mask: Any, go_backwards: bool, zero_output: bool) -> None:
        self.mask = ops.flip(mask, axis=1) if go_backwards else mask
        self.go_backwards = go_backwards
        self.zero_output = zero_output
        self.lengths = ops.sum(ops.cast(mask, "int32"), axis=1)
        self.in_front = None  # backwards a row that ends early starts late: never
        if not go_backwards:
            self.in_front = ops.all(ops.logical_or(mask[:, :-1], ops.logical_not(mask[:, 1:])))

    def pack(self, x: Any) -> Any:
        """See `Unmasked`."""
        if self.in_front is None:
            return self._to_front(x)
        return ops.cond(self.in_front, lambda: x, lambda: self._to_front(x))

    def unpack(self, y: Any, h_n: Any, before: Any) -> Any:
        """See `Unmasked`."""
        if self.in_front is None:
            return self._from_front(y, before)
        return ops.cond(
            self.in_front,
            lambda: self._filled(y, h_n, before),
            lambda: self._from_front(y, before),
        )

    def last(self, h_n: Any, before: Any) -> Any:
        """See `Unmasked`."""
        if self.zero_output:
            return ops.where(self.mask[:, -1:], h_n, ops.zeros_like(h_n))
        return ops.where(self.lengths[:, None] > 0, h_n, before)

    def _to_front(self, x: Any) -> Any:
        count = ops.shape(self.mask)[1]
        step = ops.arange(count, dtype="int32")
        order = ops.argsort(ops.where(self.mask, step, step + count), axis=1)  # no two are equal
        order = ops.cast(order, "int32")
        return _take(x, count - 1 - order if self.go_backwards else order)

    def _from_front(self, y: Any, before: Any) -> Any:
        made = ops.cumsum(ops.cast(self.mask, "int32"), axis=1)
        spread = _take(y, ops.maximum(made - 1, 0))
        if self.zero_output:
            return ops.where(self.mask[:, :, None], spread, ops.zeros_like(spread))
        return ops.where(made[:, :, None] > 0, spread, before[:, None])

    def _filled(self, y: Any, h_n: Any, before: Any) -> Any:
        """y, which is zero past the end of a row, with the last output there."""
        if self.zero_output:
            return y
        return ops.where(self.mask[:, :, None], y, self.last(h_n, before)[:, None])


def _take(x: Any, steps: Any) -> Any:
    """x[b, steps[b, t]] for x (B, T, F) and steps (B, T)."""
    if x.shape[0] == 0:
        return x
    batch, count = ops.shape(steps)[0], ops.shape(steps)[1]
    first = ops.arange(batch, dtype="int32")[:, None] * count
    return ops.take(ops.reshape(x, (-1, x.shape[-1])), steps + first, axis=0)
