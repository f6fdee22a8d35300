"""Weights in the layout of a backend's kernels, prepared once for many calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from . import arrays, batchnorm
from .backends import Backend, get
from .options import QUIET, Options, spec_of, with_weights
from .options import parse as parse_options
from .spec import Spec
from .weights import Layer, Weights, parse

if TYPE_CHECKING:
    from typing_extensions import Unpack

PRECISIONS = ("bfloat16", "int8")
_LONGEST_INT8 = 65536  # times 255 * 127 is below 2^31


class Packed:
    """Weights prepared once for many inference calls. Made by `rnnfast.pack`; opaque."""

    __slots__ = (
        "backend",
        "called",
        "dtype",
        "first",
        "hidden",
        "input_size",
        "precision",
        "prepared",
        "shortcut",
        "spec",
    )

    def __init__(
        self,
        spec: Spec,
        backend: Backend,
        parsed: list[Layer],
        precision: str | None,
        called: Spec | None,
    ) -> None:
        first = parsed[0][0]
        self.spec = spec
        self.called = called  # the spec of a call without options that fits, the object itself
        self.backend = backend
        self.precision = precision
        self.dtype: np.dtype[Any] = first.w_hh.dtype
        self.input_size: int = first.w_ih.shape[1]
        self.hidden: int = first.w_hh.shape[0] // len(spec.info.gates)
        self.first = parsed[:1]  # the first layer, for its structure
        self.prepared = [
            backend.prepare(spec, layer, reuse=True, precision=precision) for layer in parsed
        ]
        # The short way does not know of masks.
        masked = spec.zoneout or spec.recurrent_dropout
        self.shortcut = None if masked else backend.shortcut(spec, self.prepared)

    def __copy__(self) -> Packed:
        return self  # nobody can change it

    def __deepcopy__(self, memo: Any) -> Packed:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "packed weights cannot be pickled, as they are laid out for this processor; pickle the "
            "weights, and call rnnfast.pack where they are used"
        )

    def __repr__(self) -> str:
        return (
            f"<rnnfast.Packed {self.spec.variants()}, {len(self.prepared)} layer(s), "
            f"{len(self.first[0])} direction(s), I={self.input_size}, H={self.hidden}, "
            f"{self.precision or self.dtype}, backend {self.backend.name!r}>"
        )


def pack(
    weights: Any,
    *,
    cell: str,
    dtype: DTypeLike | None = None,
    reset_after: bool = True,
    nonlinearity: str | tuple[Any, ...] = "tanh",
    backend: str = "auto",
    **options: Unpack[Options],
) -> Packed:
    """Prepare weights once, for many calls of `lstm`, `gru`, `rnn` or `gated`.

    The values are copied into the layout that the backend's kernels read; later changes of the
    arrays have no effect. The result is for inference: the _vjp functions refuse it, and batch
    normalisation is packed with its running statistics, whatever `training` says.

    Parameters
    ----------
    weights : Weights, tuple of arrays, or list with one entry per layer
        As `rnnfast.lstm` takes them.
    cell : {"lstm", "gru", "rnn", "gated"}
    dtype : float32, float64, "bfloat16", "int8" or None
        Convert the weights to this dtype, which x must then have; None keeps theirs. With
        "bfloat16" and "int8" x has float32, and so have states and results: w_ih and w_hh alone
        are stored in 16 or 8 bits (int8 with one scale for each of their rows, symmetric), which
        is faster where memory is the limit, and less exact. The native backend rounds what they
        are multiplied with in the same way, row by row: x and h to int8 (where a row that is not
        finite gives NaN), and to bfloat16 where it uses AVX512-BF16 or AMX. docs/performance.md has
        errors and speeds.
    reset_after, nonlinearity
        The variant of the cell, as `rnnfast.gru` and `rnnfast.rnn` take it; other cells do not
        read it.
    backend : str
        The backend whose layout it is.
    **options
        As the calls have them: see `rnnfast.Options`.

    Returns
    -------
    Packed
        Accepted in place of `weights`.

    Raises
    ------
    ValueError, TypeError
        For weights that do not fit the cell, or rows of int8 longer than 65536.
    UnsupportedError
        For a dtype or a cell that the backend does not have.
    """
    spec = called = spec_of(cell, reset_after, nonlinearity)
    noise = QUIET
    if options:
        spec, noise = parse_options(spec, dict(options))
    if noise.dropconnect > 0:
        raise TypeError("dropconnect: packed weights are for inference; expected 0")
    parsed = parse(weights, spec.info, None)
    spec = with_weights(spec, parsed)
    parsed = batchnorm.for_inference(parsed)
    precision = _precision(dtype)
    if precision is not None:
        kind = np.dtype(np.float32)
        longest = max(a.shape[1] for layer in parsed for w in layer for a in w[:2])
        if precision == "int8" and longest > _LONGEST_INT8:
            raise ValueError(
                f"weights: expected rows of at most {_LONGEST_INT8} numbers for int8, whose sums "
                f"have 32 bits, got {longest}"
            )
    else:
        kind = parsed[0][0].w_hh.dtype if dtype is None else arrays.dtype("dtype", dtype)
    copied = [
        tuple(Weights(*(None if a is None else a.astype(kind) for a in w)) for w in layer)
        for layer in parsed
    ]
    on_device = arrays.on_device(copied[0][0].w_hh)
    chosen = get(backend, spec, on_device)
    return Packed(spec, chosen, copied, precision, None if options else called)


def _precision(dtype: Any) -> str | None:
    """Of a packing in fewer bits than float32; None for any other dtype."""
    if isinstance(dtype, str) and dtype in PRECISIONS:
        return dtype
    try:
        kind = None if dtype is None else np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind == np.int8:
        return "int8"
    if kind is not None and kind not in arrays.FLOATS:
        raise TypeError(
            f"dtype: expected float32, float64, 'bfloat16', 'int8' or None, got {dtype!r}"
        )
    return None
