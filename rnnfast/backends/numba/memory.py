"""Arrays of NumPy as the kernels take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import Array

# For what there is not: with one axis, two and three, by dtype.
NO_ROW, NO_MATRIX, NO_STATE = (
    {np.dtype(kind): np.empty((0,) * axes, kind) for kind in (np.float32, np.float64)}
    for axes in (1, 2, 3)
)


class _Writable:
    """Memory of an array, as NumPy's array interface describes it."""

    def __init__(self, a: Array) -> None:
        self.owner = a
        self.__array_interface__ = {
            **a.__array_interface__,
            "data": (a.__array_interface__["data"][0], False),
        }


def readable(a: Array) -> Array:
    """A contiguous array as the kernels read it.

    To Numba, arrays that may not be written are of another type, for which it would compile the
    kernels again. They write into none of these.
    """
    return a if a.flags.writeable else np.asarray(_Writable(a))


def flat(a: Array) -> Array:
    """The same, with one axis."""
    return readable(a).reshape(-1)


def taken(a: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array | None:
    """The same, of anything; None where it is not such an array, or has to be copied."""
    if type(a) is not np.ndarray or a.dtype != dtype or a.shape != shape:
        return None
    flags = a.flags
    if flags.carray:  # contiguous, aligned and writeable
        return a
    return readable(a) if flags.c_contiguous and flags.aligned else None
