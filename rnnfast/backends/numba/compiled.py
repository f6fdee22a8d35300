"""Numba's decorators as the kernels use them. None compiles anything before the first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core import extending

F = TypeVar("F", bound=Callable[..., Any])

_INNER = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def jit(function: F) -> F:
    """A function that compiled ones call, and that returns no array.

    It does not count references: each of its arguments would cost two calls for that.
    """
    made: F = numba.njit(_nrt=False, **_INNER)(function)
    return made


def jit_sum(function: F) -> F:
    """The same, where additions may be reordered: in a way fixed when it is compiled."""
    made: F = numba.njit(_nrt=False, fastmath={"reassoc"}, **_INNER)(function)
    return made


def view(function: F) -> F:
    """A function that compiled ones call, and that returns parts of arrays."""
    made: F = numba.njit(inline="always", **_INNER)(function)
    return made


def entry(function: F) -> F:
    """A function that Python calls, without the GIL; compiled once, and kept on disk."""
    how: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
    try:
        made: F = numba.njit(cache=True, **how)(function)
    except RuntimeError:  # neither beside the sources nor in a folder of the user
        made = numba.njit(**how)(function)
    return made


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that writes LLVM's code; called without its first argument."""
    return extending.intrinsic(function)


def overload(stub: Any) -> Callable[[F], F]:
    """A function that chooses, by types, what `stub` is."""

    def decorate(function: F) -> F:
        made: F = extending.overload(stub)(function)
        return made

    return decorate
