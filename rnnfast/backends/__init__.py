"""The backend registry: what a backend must do, which there are, and which can be used here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays import describe
from ..errors import UnsupportedError
from ..spec import Masks, Spec, Steps
from ..weights import Layer, Weights

Array = NDArray[Any]

# (x, state, out, lengths) -> what the API returns, or None where an argument is not a NumPy array
# that the kernels can read or write as it is. It makes no error and no copy: the caller then goes
# the long way through every check.
Shortcut = Callable[[Any, Any, Any, Any], "tuple[Any, Any] | None"]


class ShortTape(Protocol):
    """What `Backend.call_vjp` leaves."""

    def backward(
        self, dy: Any, dstate_n: Any, checked: bool, wants_dx: bool, wants_dh: bool
    ) -> tuple[Any, list[tuple[Any, ...]], Any] | None:
        """dx, the gradients of each layer's weights, and those of the initial state.

        None, as by a `Shortcut`. With `checked`, dy and dstate_n have been made as the kernels
        read them, with a batch axis. dx and dh_0 may be None where they are not wanted.
        """


class Backend(Protocol):
    """One object that passes layers, in one or two directions, over a packed batch.

    The layers lie one on top of the other with nothing between them: each reads the y of the one
    below. Given together, a backend may run them at the same time.

    Every array it receives is C-contiguous, of one dtype, and checked; but masks are of float32
    where that dtype, on a device, is float16 or bfloat16. N is the number of packed rows, L that of
    the layers, D that of directions, P the size of h. `prepared` has one thing for each layer, as
    `prepare` makes it. With masks there is one layer at a time.

    Arrays of complex128 hold a number and its derivative along some direction: a backend that
    differentiates twice returns, in the imaginary parts, the derivatives of its results.
    """

    name: str
    twice: bool  # whether it takes complex128

    def supports(self, spec: Spec) -> bool:
        """Whether this backend has the cell with these options."""

    def pads(self, spec: Spec, dtype: np.dtype[Any]) -> bool:
        """Whether `steps.order` may be given for all layers together.

        x and dy then have padding, which is not read, and the last y and dx are to have zeros
        there. What lies between layers is packed.
        """

    def prepare(self, spec: Spec, layer: Layer, reuse: bool, precision: str | None = None) -> Any:
        """What `forward` takes for weights, once or, with `reuse`, any number of times at once.

        With precision "bfloat16" or "int8" (and reuse, and float32) w_ih and w_hh are rounded as
        `rnnfast.reference.precision` says; there is no backward pass then.
        """

    def shortcut(self, spec: Spec, prepared: list[Any]) -> Shortcut | None:
        """For layers prepared for `reuse`: see `Shortcut`. None where there is none."""

    def call(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> tuple[Any, Any] | None:
        """As a `Shortcut`, for weights that are not prepared; None also where it has none.

        `places` are those of the gates in the weights, as `rnnfast.weights.InOrder` has them, or
        () for our order.
        """

    def call_vjp(
        self, spec: Spec, x: Any, weights: Any, state: Any, lengths: Any, places: tuple[int, ...]
    ) -> tuple[Any, Any, ShortTape] | None:
        """As `call`, with what goes back; the gradients of weights are laid out as those are."""

    def forward(
        self,
        spec: Spec,
        prepared: list[Any],
        x: Array,  # (N, I)
        steps: Steps,
        h_0: Array | None,  # (L*D, B, P); None means zeros
        c_0: Array | None,  # (L*D, B, H)
        ys: list[Array],  # (N, D*P) for each layer, written
        h_n: Array,  # (L*D, B, P), written
        c_n: Array | None,  # (L*D, B, H), written; None for a cell without c
        save: str | None,
        masks: list[Masks] | None,  # one layer's, for each direction
    ) -> Any:
        """Pass the layers forward, and return what `backward` needs.

        `save` is "all" for what makes `backward` fastest, "recompute" for h and c or less, or
        None for nothing. The bits of the gradients do not depend on it.
        """

    def backward(
        self,
        spec: Spec,
        prepared: list[Any],
        saved: Any,
        dy: Array | None,  # (N, D*P) of the last layer; None means zeros, here and below
        dh_n: Array | None,  # (L*D, B, P)
        dc_n: Array | None,  # (L*D, B, H)
        masks: list[Masks] | None,  # as in `forward`
    ) -> tuple[Array, list[Weights], Array, Array | None]:
        """dx (N, I), dweights for every direction of every layer, dh_0 (L*D, B, P) and dc_0."""


# name -> module with an object BACKEND.
_MODULES = {
    "native": "rnnfast.backends.native",
    "reference": "rnnfast.backends.reference",
    "numba": "rnnfast.backends.numba",
    "cuda": "rnnfast.backends.cuda",
}
_ON_DEVICE = ("cuda",)  # take arrays on a CUDA device; the others take those in CPU memory
NAMES = tuple(_MODULES)


@cache
def _load(name: str) -> Backend | ImportError:
    try:
        backend: Backend = importlib.import_module(_MODULES[name]).BACKEND
    except ImportError as error:
        return error
    return backend


def backends() -> dict[str, str | None]:
    """Which backends are usable.

    Returns
    -------
    dict
        Maps every backend's name to None where it can be used, or to the reason why it cannot.
    """
    status: dict[str, str | None] = {}
    for name in _MODULES:
        loaded = _load(name)
        status[name] = str(loaded) if isinstance(loaded, ImportError) else None
    return status


@cache
def supporting(spec: Spec) -> tuple[str, ...]:
    """The names of the usable backends that have this cell with these options."""
    loaded = {name: _load(name) for name in _MODULES}
    return tuple(
        name
        for name, backend in loaded.items()
        if not isinstance(backend, ImportError) and backend.supports(spec)
    )


def _from_environment() -> str:
    return os.environ.get("RNNFAST_BACKEND") or "auto"


try:  # os.environ raises and catches two errors for what is not set, in every call
    from .._native import default_backend as _default
except ImportError:
    _default = _from_environment


def get(name: str, spec: Spec, on_device: bool = False) -> Backend:
    """The backend called `name`, or the one that "auto" stands for, for this cell.

    `on_device` tells where the arrays are.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend: expected a str, got {describe(name)}")
    if name == "auto":
        name = _default()
    return _resolve(name, spec, on_device)


@cache
def _resolve(name: str, spec: Spec, on_device: bool) -> Backend:
    if name == "auto":
        # A broken native module must be seen, so auto means native and nothing else; the
        # reference is for checking, hundreds of times slower.
        name = "cuda" if on_device else "native"
    if name not in NAMES:
        raise ValueError(f"backend: expected one of auto, {', '.join(NAMES)}, got {name!r}")
    loaded = _load(name)
    if isinstance(loaded, ImportError):
        raise UnsupportedError(
            f"backend {name!r} cannot be used here: {loaded}; {', '.join(supporting(spec))} can"
        )
    if (name in _ON_DEVICE) != on_device:
        places = ("in CPU memory", "on a CUDA device")
        able = [n for n in supporting(spec) if (n in _ON_DEVICE) == on_device]
        raise UnsupportedError(
            f"backend {name!r} takes arrays {places[not on_device]}, got some "
            f"{places[on_device]}; {', '.join(able) or 'no backend here'} can"
        )
    if not loaded.supports(spec):
        raise UnsupportedError(
            f"backend {name!r} does not support {spec.variants()}; "
            f"{', '.join(supporting(spec))} can"
        )
    return loaded
