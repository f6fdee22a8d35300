"""Arrays of NumPy as the kernels take them, and memory that calls leave to those that follow."""

from __future__ import annotations

import os
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


# Memory that nobody uses, oldest first, by its id.
_free: dict[int, Array] = {}
_LEAST = 1 << 20  # bytes; smaller arrays are kept by the C library


def _most_kept() -> int:
    """512 MB, or 1/32 of the machine's memory where that is less, as in the native backend."""
    try:
        share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32
    except (AttributeError, OSError, ValueError):
        share = 0
    return min(1 << 29, share) if share > 0 else 1 << 29


_MOST = _most_kept()


class _Block:
    """The owner of memory, which gives it back when its last array is gone."""

    def __init__(self, memory: Array) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self, free: dict[int, Array] = _free, most: int = _MOST) -> None:
        if self.memory.nbytes > most // 2:
            return
        free[id(self.memory)] = self.memory
        blocks = _blocks(free)
        kept = sum(memory.nbytes for _, memory in blocks)
        for key, memory in blocks:
            if kept <= most:
                break
            kept -= memory.nbytes
            free.pop(key, None)


def _blocks(free: dict[int, Array]) -> list[tuple[int, Array]]:
    """What is there now: the collector may add to it in the middle of anything but `list(free)`."""
    found = [(key, free.get(key)) for key in list(free)]
    return [(key, memory) for key, memory in found if memory is not None]


def scratch(count: int, dtype: np.dtype[Any]) -> Array:
    """So many numbers that are not set, which no call returns.

    Fresh memory is cleared by the system as it is first touched, page by page. That took a tenth
    of the training of an LSTM of 1024 units.
    """
    size = count * dtype.itemsize
    if size < _LEAST:
        return np.empty(count, dtype)
    # With the memory itself: were it gone in the meantime, other memory could have its id.
    fits = [(m.nbytes, key, m) for key, m in _blocks(_free) if size <= m.nbytes <= 2 * size]
    memory = _free.pop(min(fits)[1], None) if fits else None
    if memory is None:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Block(memory))[:size].view(dtype)
