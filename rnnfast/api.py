"""lstm, gru, rnn and gated, each with its vector-Jacobian product: check, then dispatch.

Every option, shape and dtype is checked here, once, above the backends.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import arrays, batchnorm, checks, layers
from .backends import Backend, ShortTape, get
from .errors import UnsupportedError
from .noise import Between, DropConnect, OnState
from .options import QUIET, Options, activation, with_weights
from .options import parse as parse_options
from .spec import CELLS, Spec, Steps
from .weights import RUNNING, Checked, InOrder, Layer, Weights, matching, parse, rebuild

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LSTM, _GATED = Spec("lstm"), Spec("gated")
_GRU = {reset_after: Spec("gru", reset_after) for reset_after in (False, True)}
_RNN = {name: Spec("rnn", nonlinearity=name) for name in CELLS["rnn"].nonlinearities}

PRECISIONS = ("bfloat16", "int8")
_LONGEST_INT8 = 65536  # times 255 * 127 is below 2^31

Array = NDArray[Any]


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
        The variant of the cell, as `rnnfast.gru` and `rnnfast.rnn` take it.
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


def lstm(
    x: Any,
    weights: Any,
    state: tuple[Any, Any] | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    **options: Unpack[Options],
) -> tuple[Any, tuple[Any, Any]]:
    """Run a stack of LSTM layers over a batch of sequences.

    The equations are those of `torch.nn.LSTM`, gate order i f g o (see
    `rnnfast/reference/lstm.py`). T steps, B rows, I input size, H hidden size, L layers, D
    directions.

    Parameters
    ----------
    x : array (T, B, I), (B, T, I) with batch_first, or (T, I) unbatched; float32 or float64
        The input. T >= 1; B may be 0. On a CUDA device float16 and bfloat16 are taken too, and
        computed in float32: docs/cuda.md.
    weights : Weights, tuple of arrays, list with one entry per layer, or Packed
        An entry is a `rnnfast.Weights` or, for a bidirectional layer, a pair of them. Of x's
        dtype.
    state : (h_0, c_0) or None
        Arrays (L*D, B, P) and (L*D, B, H), without B if x is unbatched, or None for zeros.
    lengths : int array (B,) or None
        The number of valid steps of each row, 0 to T, in any order. Past a row's end y is zero;
        h_n and c_n are those at its end; a reverse direction starts there.
    batch_first : bool
        Whether x and y have the batch as their first axis. The state never has.
    dropout : float
        Probability of zeroing each output of every layer but the last (inverted dropout).
        Applied whenever it is not 0.
    rng : numpy.random.Generator, int or None
        Source or seed of the dropout masks.
    backend : {"auto", "native", "reference", "numba", "cuda"}
        "auto" is what RNNFAST_BACKEND names or else "native", "cuda" for arrays on a device.
    out : array like y, pair (y, state_n) of all that is returned, or None
        Where to write the results. C-contiguous, apart from every input and from one another,
        except that h_n and c_n may be h_0 and c_0 themselves, which are then updated in place.
    **options
        Variants of the cell, and what is random in training: see `rnnfast.Options`. Projection,
        peepholes and normalisation come with the weights: see `rnnfast.Weights`.

    Returns
    -------
    y : array (T, B, D*P), or as x is laid out
        The outputs of the last layer; the forward direction's P numbers come first. P is the size
        of a projection w_hr, or H where there is none.
    (h_n, c_n) : arrays (L*D, B, P) and (L*D, B, H), without B if x is unbatched
        The state at the end, layer by layer, forward before reverse.

    Raises
    ------
    ValueError
        For a wrong shape, size or name.
    TypeError
        For a wrong dtype or kind of argument.
    UnsupportedError
        For what the backend cannot do.

    Examples
    --------
    >>> weights = rnnfast.init_weights("lstm", 8, 16, num_layers=2, rng=0)
    >>> y, (h_n, c_n) = rnnfast.lstm(np.ones((5, 3, 8), np.float32), weights)
    >>> y.shape, h_n.shape, c_n.shape
    ((5, 3, 16), (2, 3, 16), (2, 3, 16))
    """
    rest = (lengths, batch_first, dropout, rng, backend, out, options)
    return _forward(_LSTM, x, weights, state, *rest)


def lstm_vjp(
    x: Any,
    weights: Any,
    state: tuple[Any, Any] | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    save: str = "all",
    checkpoint: int | None = None,
    **options: Unpack[Options],
) -> tuple[Any, tuple[Any, Any], Backward]:
    """`lstm`, and a function that back-propagates through time (BPTT).

    Parameters
    ----------
    x, weights, state, lengths, batch_first, dropout, rng, backend, out, **options
        As `rnnfast.lstm` takes them, except that `weights` may not be `Packed`. x and the weights
        must keep their values until `backward` has been called for the last time.
    save : {"all", "recompute"}
        What the forward pass keeps for `backward`, besides x and the outputs of every layer: all
        gates (LSTM: 4 H numbers for each row and step, and h and c), or h and c alone, from which
        the gates are computed again, to the same bits, in a few large products.
    checkpoint : int or None
        Keep only the state before every so many steps. `backward` runs one such segment at a
        time again, all layers of it, saving as `save` says. Not for bidirectional layers.

    Returns
    -------
    y, (h_n, c_n)
        As `rnnfast.lstm` returns them. They may be changed freely.
    backward : callable
        ``dx, dweights, (dh_0, dc_0) = backward(dy, (dh_n, dc_n))``: the gradients of a scalar
        loss, given its gradients with respect to y, h_n and c_n. Any of dy, the pair, dh_n, dc_n
        may be None, for zeros. dx is like x, dweights has exactly the structure of `weights`,
        dh_0 and dc_0 are like h_n. With ``dx=False`` or ``dstate_0=False`` None comes in place of
        dx or of the pair, and their work is left out where that is possible. It may be called any
        number of times.

    Raises
    ------
    ValueError, TypeError, UnsupportedError
        As `rnnfast.lstm` does; `backward` too.
    """
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    return _vjp(_LSTM, x, weights, state, *rest)


def gru(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """Run a stack of GRU layers over a batch of sequences.

    Gate order r z n; see `rnnfast/reference/gru.py` for the equations.

    Parameters
    ----------
    x, weights, lengths, batch_first, dropout, rng, backend, out, **options
        As `rnnfast.lstm` takes them, with three gates.
    h_0 : array (L*D, B, H), without B if x is unbatched, or None
        The initial state; None for zeros.
    reset_after : bool
        True for n = tanh(W x + b + r * (U h + b')), the form of cuDNN, `torch.nn.GRU` and Keras;
        False for n = tanh(W x + b + U (r * h) + b'), that of Cho et al. 2014.

    Returns
    -------
    y, h_n
        As `rnnfast.lstm` returns them, without c_n.

    Raises
    ------
    ValueError, TypeError, UnsupportedError
        As `rnnfast.lstm` does.
    """
    spec = _GRU[checks.flag("reset_after", reset_after)]
    return _forward(
        spec, x, weights, h_0, lengths, batch_first, dropout, rng, backend, out, options
    )


def gru_vjp(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    save: str = "all",
    checkpoint: int | None = None,
    **options: Unpack[Options],
) -> tuple[Any, Any, Backward]:
    """`gru`, and ``dx, dweights, dh_0 = backward(dy, dh_n)``; see `rnnfast.lstm_vjp`."""
    spec = _GRU[checks.flag("reset_after", reset_after)]
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    return _vjp(spec, x, weights, h_0, *rest)


def rnn(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    nonlinearity: str | tuple[Any, ...] = "tanh",
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """Run a stack of vanilla (Elman) RNN layers over a batch of sequences.

    h' = phi(W_ih x + b_ih + W_hh h + b_hh), as `torch.nn.RNN`.

    Parameters
    ----------
    x, weights, lengths, batch_first, dropout, rng, backend, out, **options
        As `rnnfast.lstm` takes them, with one gate.
    h_0 : array (L*D, B, H), without B if x is unbatched, or None
        The initial state; None for zeros.
    nonlinearity : {"tanh", "relu", "sigmoid"} or another activation of `rnnfast.Options`
        phi.

    Returns
    -------
    y, h_n
        As `rnnfast.lstm` returns them, without c_n.

    Raises
    ------
    ValueError, TypeError, UnsupportedError
        As `rnnfast.lstm` does.
    """
    spec = spec_of("rnn", True, nonlinearity)
    return _forward(
        spec, x, weights, h_0, lengths, batch_first, dropout, rng, backend, out, options
    )


def rnn_vjp(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    nonlinearity: str | tuple[Any, ...] = "tanh",
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    save: str = "all",
    checkpoint: int | None = None,
    **options: Unpack[Options],
) -> tuple[Any, Any, Backward]:
    """`rnn`, and ``dx, dweights, dh_0 = backward(dy, dh_n)``; see `rnnfast.lstm_vjp`."""
    spec = spec_of("rnn", True, nonlinearity)
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    return _vjp(spec, x, weights, h_0, *rest)


def gated(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """Run a stack of layers of the two-gate recurrence h' = f * h + i * u, all three sigmoids.

    Gate order i f c; see `rnnfast/reference/gated.py` for the equations.

    Parameters
    ----------
    x, weights, lengths, batch_first, dropout, rng, backend, out, **options
        As `rnnfast.lstm` takes them, with three gates.
    h_0 : array (L*D, B, H), without B if x is unbatched, or None
        The initial state; None for zeros.

    Returns
    -------
    y, h_n
        As `rnnfast.lstm` returns them, without c_n.

    Raises
    ------
    ValueError, TypeError, UnsupportedError
        As `rnnfast.lstm` does.
    """
    rest = (lengths, batch_first, dropout, rng, backend, out, options)
    return _forward(_GATED, x, weights, h_0, *rest)


def gated_vjp(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: np.random.Generator | int | None = None,
    backend: str = "auto",
    out: Any = None,
    save: str = "all",
    checkpoint: int | None = None,
    **options: Unpack[Options],
) -> tuple[Any, Any, Backward]:
    """`gated`, and ``dx, dweights, dh_0 = backward(dy, dh_n)``; see `rnnfast.lstm_vjp`."""
    spec = _GATED
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    return _vjp(spec, x, weights, h_0, *rest)


def _forward(
    spec: Spec,
    x: Any,
    weights: Any,
    state: Any,
    lengths: Any,
    batch_first: bool,
    dropout: float,
    rng: Any,
    backend: str,
    out: Any,
    options: Any,
) -> tuple[Any, Any]:
    # Most calls need no conversion: the backend may take the arguments as they are.
    done = rows = None
    if type(dropout) is float and dropout == 0.0 and rng is None and not options:
        rows = _steps_first(x, batch_first)
        if rows is None and batch_first is False and type(weights) is Packed:
            rows = None if arrays.is_lazy(x, state, out) else x
    if rows is None or (batch_first and out is not None):
        pass
    elif type(weights) is Packed:
        fits = weights.called is spec and backend in ("auto", weights.backend.name)
        if fits and weights.shortcut is not None:
            done = weights.shortcut(rows, state, out, lengths)
    elif out is None:
        given, places = _as_they_lie(weights)
        if isinstance(given, list | tuple):
            done = get(backend, spec).call(spec, rows, given, state, lengths, places)
    if done is not None:
        return (done[0].swapaxes(0, 1), done[1]) if batch_first else done
    rest = (lengths, batch_first, dropout, rng, backend, out, options)
    call = _Call(spec, x, weights, state, *rest)
    return call.forward()


def _as_they_lie(weights: Any) -> tuple[Any, tuple[int, ...]]:
    """Weights for the short way, and the places of their gates where these are not in our order."""
    if type(weights) is Checked:
        return weights.single, ()
    if type(weights) is InOrder:
        return weights.weights, weights.places
    return weights, ()


def short_vjp(
    spec: Spec, x: Any, weights: Any, state: Any, lengths: Any = None, backend: str = "auto"
) -> tuple[Any, Any, ShortTape] | None:
    """`Backend.call_vjp` for a call without options, of the weights as the API takes them.

    For adapters, too: x and the state may be tensors where the backend reads these.
    """
    given, places = _as_they_lie(weights)
    if not isinstance(given, list | tuple):
        return None
    return get(backend, spec).call_vjp(spec, x, given, state, lengths, places)


def _steps_first(x: Any, batch_first: Any) -> Array | None:
    """NumPy's array x with the steps first; None for anything else."""
    if type(x) is not np.ndarray:
        return None
    if batch_first is False:
        return x
    if batch_first is not True or x.ndim != 3:
        return None
    return np.ascontiguousarray(x.swapaxes(0, 1))


def _vjp(
    spec: Spec,
    x: Any,
    weights: Any,
    state: Any,
    lengths: Any,
    batch_first: bool,
    dropout: float,
    rng: Any,
    backend: str,
    out: Any,
    options: Any,
    save: str,
    checkpoint: int | None,
) -> tuple[Any, Any, Backward]:
    # As in `_forward`.
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    if (
        type(dropout) is float
        and dropout == 0.0
        and rng is None
        and not options
        and out is None
        and type(save) is str
        and save == "all"
        and checkpoint is None
        and (rows := _steps_first(x, batch_first)) is not None
    ):
        done = short_vjp(spec, rows, weights, state, lengths, backend)
        if done is not None:
            y, state_n, tape = done
            # What the caller may change before `backward`.
            kept = list(weights) if type(weights) is list else weights
            if lengths is not None:
                rest = (lengths.copy(), *rest[1:])
            if state is not None and rows.dtype == np.float64:  # which has second derivatives
                state = tuple(map(_copy, state)) if type(state) is tuple else _copy(state)
            if batch_first:
                y = y.swapaxes(0, 1)
            arguments = (spec, x, kept, state, *rest)
            return y, state_n, _ShortBackward(tape, y.shape, batch_first, arguments)
    return _Call(spec, x, weights, state, *rest).vjp()


class _Call:
    """One checked call: the arguments in the form that `layers` takes, and the way back.

    For adapters, `weights` may be `Checked`, and `lengths` may be Steps: x is then (N, I), the
    rows of a packed batch, y and their gradients likewise, and the rows of every state are in the
    order of that batch.
    """

    def __init__(
        self,
        spec: Spec,
        x: Any,
        weights: Any,
        state: Any,
        lengths: Any,
        batch_first: bool,
        dropout: float,
        rng: Any,
        backend: str,
        out: Any,
        options: Any,
        save: str = "all",
        checkpoint: int | None = None,
    ) -> None:
        spec, self.noise = parse_options(spec, options) if options else (spec, QUIET)
        self.like = x
        self.weights = list(weights) if type(weights) is list else weights
        self.batch_first = checks.flag("batch_first", batch_first)
        if isinstance(weights, Packed):
            self.packed: Packed | None = weights
            self.parsed: list[Layer] = []
            spec = with_weights(spec, weights.first)
            if weights.spec is not spec and weights.spec != spec:
                raise ValueError(
                    f"weights: packed for {weights.spec.variants()}, expected {spec.variants()}"
                )
            if self.noise.dropconnect > 0:
                raise TypeError(
                    "weights: packed weights are for inference; expected the weights themselves "
                    "for dropconnect"
                )
            if backend not in ("auto", weights.backend.name):
                raise ValueError(
                    f"backend: the weights are packed for {weights.backend.name!r}, got {backend!r}"
                )
            self.backend = weights.backend
        else:
            self.packed = None

        data = arrays.floating("x", x)
        self.steps = lengths if type(lengths) is Steps else None
        self.flat = data.ndim == 2  # neither x nor y has a batch axis
        self.unbatched = self.flat and self.steps is None  # nor has the state
        if data.ndim not in (2, 3):
            raise ValueError(
                f"x: expected shape (T, B, I), (B, T, I) with batch_first, or (T, I), "
                f"got {data.shape}"
            )
        if self.flat:
            data = data[:, None]
        elif self.batch_first:
            data = data.swapaxes(0, 1)
        self.num_steps, self.batch, features = data.shape
        if self.steps is not None:
            if not self.flat or self.steps.rows != len(data):
                raise ValueError(
                    f"x: expected shape ({self.steps.rows}, I), rows as batch_sizes counts them, "
                    f"got {arrays.take('x', x).shape}"
                )
            self.batch = self.steps.batch
        if self.num_steps == 0:
            raise ValueError(
                f"x: expected at least one time step, got shape {arrays.take('x', x).shape}"
            )

        if self.packed is not None:
            if data.dtype != self.packed.dtype:
                raise TypeError(
                    f"x: expected dtype {self.packed.dtype} as the packed weights have, "
                    f"got {data.dtype}"
                )
            arrays.take("weights", self.packed.first[0][0].w_hh)  # on the current device
            wanted = self.packed.input_size
            self.num_layers = len(self.packed.prepared)
            layer = self.packed.first[0]
        else:
            self.parsed = parse(weights, spec.info, data.dtype)
            spec = with_weights(spec, self.parsed)
            self.backend = get(backend, spec, arrays.on_device(data))
            self.num_layers = len(self.parsed)
            layer = self.parsed[0]
            wanted = layer[0].w_ih.shape[1]
        kind = type(data)
        for of_layer in self.parsed or [layer]:
            for w in of_layer:
                for array in w:
                    if type(array) is not kind and array is not None:
                        arrays.check_place("weights", array, data)
        self.spec = spec
        rows, self.outputs = layer[0].w_hh.shape
        self.hidden, self.directions = rows // len(spec.info.gates), len(layer)
        if features != wanted:
            raise ValueError(
                f"x: expected {wanted} features (I) as weights.w_ih has columns, "
                f"got shape {arrays.take('x', x).shape}"
            )
        self.dtype = data.dtype
        # Rows times everything that a layer may keep for a row, in bytes.
        per_row = max(features, 8 * self.hidden * self.directions) * self.dtype.itemsize
        if data.shape[0] * data.shape[1] * per_row > sys.maxsize:
            raise ValueError(
                f"x: shape {arrays.take('x', x).shape} with H = {self.hidden} is too large "
                f"to address; expected fewer steps or rows"
            )
        self.x = arrays.contiguous(data)
        self.state = self._state(state)
        self.lengths = None if self.steps is not None else self._lengths(lengths)
        self.save = checks.saved(save)
        self.checkpoint = self._checkpoint(checkpoint)
        self.dropout = checks.probability("dropout", dropout)
        random = dropout or rng is not None or (self.noise is not QUIET and self.noise != QUIET)
        self.rng = checks.generator(rng) if random else None
        self.y_shape = (*self.x.shape[:2], self.directions * self.outputs)
        self.given_y, self.given_state = _parts_of(out)
        self.out = None if self.given_y is None else self._out(self.given_y)
        self.state_out = self._state_out()
        # (T, B, D*H) to be written in place; out of another layout is copied to at the end.
        self.into = self.out
        if self.out is not None:
            if self.flat:
                self.into = self.out[:, None]
            elif self.batch_first:
                self.into = None

    def forward(self) -> tuple[Any, Any]:
        y, state_n, _ = self._run(save=False)
        return self._give_y(y), self._give_state_n(state_n)

    def vjp(self) -> tuple[Any, Any, Backward]:
        if self.packed is not None:
            raise TypeError(
                "weights: packed weights are for inference; expected the weights themselves"
            )
        if self.dtype == np.float64:  # the caller may change it before second derivatives
            h, c = self.state
            self.state = _copy(h), _copy(c)
        y, state_n, tape = self._run(save=True)
        assert tape is not None
        return self._give_y(y), self._give_state_n(state_n), Backward(self, tape)

    def backward(self, tape: layers.Tape, dy: Any, dstate_n: Any) -> tuple[Any, Any, Any]:
        dstate = self._dstate(dstate_n)
        dx, dweights, dinitial = layers.backward(tape, self._dy("dy", dy), dstate)
        return self._give_gradients(dx, dweights, dinitial)

    def second(
        self, tape: layers.Tape, dy: Any, dstate_n: Any, ddx: Any, ddweights: Any, ddstate: Any
    ) -> tuple[tuple[Any, Any, Any], tuple[Any, Any]]:
        """The VJP of `backward`; see `Backward.vjp`.

        With S = <dy, y> as a function of x, weights and state, `backward` gives its gradient. So
        the gradients asked for are the derivatives, along the direction (ddx, ddweights, ddstate),
        of y and of what `backward` gives: dual numbers carry them through both passes.
        """
        self._check_second()
        flat = iter(w for layer in self.parsed for w in layer)
        tangents = iter(matching("ddweights", ddweights, self.weights, flat))
        parsed = [
            tuple(
                Weights(*(_dual(a, d) for a, d in zip(w, next(tangents), strict=True)))
                for w in layer
            )
            for layer in self.parsed
        ]
        if self.dropconnect is not None:
            parsed = self.dropconnect.apply(parsed)
        initial = self._state(ddstate, "ddh_0", "ddc_0", "ddstate_0")
        h_0, c_0 = (_dual(s, d) for s, d in zip(self.state, initial, strict=True))
        stack = replace(
            tape.stack,
            dtype=np.dtype(np.complex128),
            prepared=[self.backend.prepare(self.spec, p, reuse=True) for p in parsed],
        )
        x = _dual(self.x, self._laid_out("ddx", ddx, self.x.shape))
        assert x is not None
        y, state_n, dual_tape = layers.forward(
            stack, x, (h_0, c_0), tape.how, None, (None, None), self.save, self.checkpoint
        )
        assert dual_tape is not None
        dh_n, dc_n = (_dual(d, None) for d in self._dstate(dstate_n))
        given_dy = _dual(self._dy("dy", dy), None)
        dx, dweights, dinitial = layers.backward(dual_tape, given_dy, (dh_n, dc_n))
        gradients = self._give_gradients(
            _tangent(dx),
            [Weights(*map(_tangent, w)) for w in dweights],
            (_tangent(dinitial[0]), _tangent(dinitial[1])),
        )
        of_y = arrays.give(self._layout(_tangent(y)), self.like)
        return gradients, (of_y, self._give_state(tuple(map(_tangent, state_n))))

    def _check_second(self) -> None:
        name = f"backend {self.backend.name!r}"
        if self.dtype != np.float64:
            raise UnsupportedError(
                f"x: second derivatives are for float64, got {self.dtype}; convert x, weights and "
                f"states"
            )
        for option in ("truncate", "grad_clip"):
            if getattr(self.spec, option) is not None:
                raise UnsupportedError(
                    f"{option}: {name} has no second derivatives with it, as no backend has"
                )
        if self.parsed[0][0].bn_ih is not None:
            raise UnsupportedError(
                f"bn_ih: {name} has no second derivatives with batch normalisation, as no backend "
                f"has"
            )
        if not self.backend.twice:
            raise UnsupportedError(f"{name} has no second derivatives; reference and native have")

    def _dstate(self, dstate_n: Any) -> layers.State:
        return self._state(dstate_n, "dh_n", "dc_n", "dstate_n")

    def _give_gradients(
        self, dx: Array, dweights: list[Weights], dinitial: tuple[Array | None, ...]
    ) -> tuple[Any, Any, Any]:
        if self.dropconnect is not None:
            dweights = self.dropconnect.backward(dweights)
        given = dweights
        if type(self.like) is not np.ndarray:
            given = [
                Weights(*(None if a is None else arrays.give(a, self.like) for a in w))
                for w in dweights
            ]
        return (
            arrays.give(self._layout(dx), self.like),
            rebuild(self.weights, iter(given)),
            self._give_state(dinitial),
        )

    def _run(self, save: bool) -> tuple[Array, tuple[Array | None, ...], layers.Tape | None]:
        how: layers.Ragged | Steps | None = self.steps
        if self.lengths is not None:
            how = layers.Ragged.of(self.lengths)
        stack = self._stack(how, save)
        return layers.forward(
            stack,
            self.x,
            self.state,
            how,
            self.into,
            self.state_out,
            self.save if save else None,
            self.checkpoint if save else None,
        )

    def _stack(self, how: layers.Ragged | Steps | None, save: bool) -> layers.Stack:
        """The layers, with everything drawn that is random."""
        noise, rng = self.noise, self.rng
        if how is None:
            steps = Steps(self.num_steps, self.batch)
        else:
            steps = how if isinstance(how, Steps) else how.steps
        between = on_state = None
        if self.dropout > 0 and noise.training and rng is not None:
            between = Between(
                rng, self.dropout, noise.variational, self.num_layers, steps, self.y_shape[-1]
            )
        if self.spec.recurrent_dropout or self.spec.zoneout:
            on_state = OnState(
                rng, noise, self.num_layers, self.directions, steps, self.outputs, self.hidden
            )
        parsed = self.parsed
        self.dropconnect = None
        if noise.dropconnect > 0 and rng is not None:
            self.dropconnect = DropConnect(rng, noise.dropconnect, parsed)
            parsed = self.dropconnect.apply(parsed)
        normed = None
        if self.packed is not None:
            prepared = self.packed.prepared
        elif parsed[0][0].bn_ih is not None and (save or noise.training):
            self._check_running()
            normed, prepared = parsed, [None] * len(parsed)
        else:
            again = save and self.checkpoint is not None
            plain = batchnorm.for_inference(parsed)
            prepared = [self.backend.prepare(self.spec, p, reuse=again) for p in plain]
        return layers.Stack(
            self.spec,
            self.backend,
            self.dtype,
            prepared,
            self.hidden,
            self.outputs,
            self.directions,
            between,
            on_state,
            normed,
            noise.bn_momentum if noise.training else None,
            self.x,
        )

    def _check_running(self) -> None:
        """Running statistics are written, unless they are used."""
        for k, layer in enumerate(self.parsed):
            for w in layer:
                for name in RUNNING:
                    if self.noise.training and not arrays.is_writeable(getattr(w, name)):
                        raise ValueError(
                            f"weights[{k}].{name}: expected a writable array, or training=False"
                        )
        if self.checkpoint is not None:
            raise UnsupportedError(
                "checkpoint: no backend has it with batch normalisation, whose statistics are "
                "those of all steps; save='recompute' saves memory there"
            )

    def _layout(self, array: Array) -> Array:
        """(T, B, F) as the caller lays out x and y."""
        if self.flat:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def _give_y(self, y: Array) -> Any:
        if self.out is None:
            return arrays.give(self._layout(y), self.like)
        if self.into is None:
            self.out[...] = self._layout(y)
        return self.given_y

    def _give_state_n(self, state: tuple[Array | None, ...]) -> Any:
        return self._give_state(state) if self.given_state is None else self.given_state

    def _give_state(self, state: tuple[Array | None, ...]) -> Any:
        given = [
            arrays.give(s[:, 0] if self.unbatched else s, self.like) for s in state if s is not None
        ]
        return tuple(given) if self.spec.info.has_c else given[0]

    def _state(
        self, state: Any, h: str = "h_0", c: str = "c_0", both: str = "state"
    ) -> layers.State:
        """A state or its cotangent as (h, c), each (L*D, B, P or H) or None."""
        if state is None:
            return None, None
        if not self.spec.info.has_c:
            return self._one_state(h, state, self.outputs), None
        if not isinstance(state, tuple | list) or len(state) != 2:
            got = f"{len(state)} of them" if isinstance(state, tuple) else arrays.describe(state)
            raise TypeError(f"{both}: expected a pair ({h}, {c}), got {got}")
        h_c = zip((h, c), state, (self.outputs, self.hidden), strict=True)
        first, second = (self._one_state(*one) for one in h_c)
        return first, second

    def _one_state(self, name: str, value: Any, size: int) -> Array | None:
        if value is None:
            return None
        array = arrays.floating(name, value, self.dtype)
        arrays.check_place(name, array, self.x)
        wanted = self._state_shape(size)
        if array.shape != wanted:
            raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
        return arrays.contiguous(array.reshape(wanted[0], self.batch, size))

    def _state_shape(self, size: int) -> tuple[int, ...]:
        count = self.num_layers * self.directions
        return (count, size) if self.unbatched else (count, self.batch, size)

    def _checkpoint(self, given: Any) -> int | None:
        every = checks.steps("checkpoint", given)
        if every is None:
            return None
        if self.directions == 2:
            raise UnsupportedError(
                "checkpoint: no backend has it for bidirectional layers, whose reverse direction "
                "starts at the end; save='recompute' saves memory there"
            )
        if self.spec.truncate is not None and every % self.spec.truncate:
            raise ValueError(
                f"checkpoint: expected a multiple of truncate = {self.spec.truncate}, got {every}"
            )
        return every

    def _lengths(self, lengths: Any) -> NDArray[np.int64] | None:
        if lengths is None:
            return None
        if isinstance(lengths, list | tuple):
            try:
                lengths = np.asarray(lengths)
            except ValueError:
                raise ValueError(
                    f"lengths: expected {self.batch} integers, got {lengths}"
                ) from None
        array = arrays.take("lengths", lengths)
        if arrays.on_device(array):
            raise TypeError(
                "lengths: expected integers in CPU memory, which plan the launches, got an array "
                "on a CUDA device"
            )
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"lengths: expected integers, got dtype {array.dtype}")
        if self.unbatched:
            raise ValueError("lengths: expected None for unbatched x; slice x instead")
        if array.shape != (self.batch,):
            raise ValueError(f"lengths: expected shape ({self.batch},), got {array.shape}")
        if array.size and (array.min() < 0 or array.max() > self.num_steps):
            raise ValueError(
                f"lengths: expected values from 0 to T = {self.num_steps}, "
                f"got {array.min()} to {array.max()}"
            )
        return array.astype(np.int64)

    def _out(self, out: Any) -> Array:
        array = arrays.floating("out", out, self.dtype)
        wanted = self._layout(np.broadcast_to(array.dtype.type(0), self.y_shape)).shape
        if array.shape != wanted:
            raise ValueError(f"out: expected shape {wanted}, got {array.shape}")
        self._check_written("out", array)
        for name, value in zip(("h_0", "c_0"), self.state, strict=True):
            _check_apart("out", array, name, value)
        return array

    def _state_out(self) -> layers.State:
        """Where h_n and c_n are to be written, (L*D, B, H) each; or (None, None)."""
        if self.given_state is None:
            return None, None
        given = (self.given_state,)
        if self.spec.info.has_c:
            given = self.given_state
            if not isinstance(given, tuple) or len(given) != 2:
                raise TypeError(
                    f"out: expected (y, (h_n, c_n)), got {arrays.describe(given)} in second place"
                )
        made: list[Array] = []
        sizes = (self.outputs, self.hidden)
        for name, value, size in zip(("out h_n", "out c_n"), given, sizes, strict=False):
            array = arrays.floating(name, value, self.dtype)
            wanted = self._state_shape(size)
            if array.shape != wanted:
                raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
            self._check_written(name, array)
            _check_apart(name, array, "out y", self.out)
            for other in made:
                _check_apart(name, array, "out h_n", other)
            made.append(array.reshape(wanted[0], self.batch, size))
        # An initial state that is updated in place is read after h_n is written.
        h_0, c_0 = (
            s.copy() if s is not None and any(np.may_share_memory(s, m) for m in made) else s
            for s in self.state
        )
        self.state = h_0, c_0
        return made[0], made[1] if self.spec.info.has_c else None

    def _check_written(self, name: str, array: Array) -> None:
        arrays.check_place(name, array, self.x)
        if not arrays.is_contiguous(array) or not arrays.is_writeable(array):
            raise ValueError(f"{name}: expected a C-contiguous, aligned, writable array")
        _check_apart(name, array, "x", self.x)
        for layer in self.parsed:
            for direction in layer:
                for value in direction:
                    _check_apart(name, array, "weights", value)

    def _dy(self, name: str, dy: Any) -> Array | None:
        return self._laid_out(name, dy, self.y_shape)

    def _laid_out(self, name: str, value: Any, shape: tuple[int, ...]) -> Array | None:
        """A cotangent or tangent that the caller lays out as x and y, as (T, B, F)."""
        if value is None:
            return None
        array = arrays.floating(name, value, self.dtype)
        arrays.check_place(name, array, self.x)
        steps, batch, width = shape
        if self.flat:
            wanted: tuple[int, ...] = (steps, width)
        else:
            wanted = (batch, steps, width) if self.batch_first else shape
        if array.shape != wanted:
            raise ValueError(
                f"{name}: expected shape {wanted} as {name.lstrip('d')} has, got {array.shape}"
            )
        if self.flat:
            array = array[:, None]
        elif self.batch_first:
            array = array.swapaxes(0, 1)
        return arrays.contiguous(array)


class Backward:
    """What the _vjp functions return last: BPTT through one call, any number of times."""

    def __init__(self, call: _Call, tape: layers.Tape) -> None:
        self._call = call
        self._tape = tape

    def __call__(
        self, dy: Any = None, dstate_n: Any = None, *, dx: bool = True, dstate_0: bool = True
    ) -> tuple[Any, Any, Any]:
        """Gradients of x, of the weights and of the initial state; see `rnnfast.lstm_vjp`."""
        dx, dstate_0 = checks.flag("dx", dx), checks.flag("dstate_0", dstate_0)
        of_x, dweights, of_state = self._call.backward(self._tape, dy, dstate_n)
        return of_x if dx else None, dweights, of_state if dstate_0 else None

    def vjp(self, dy: Any = None, dstate_n: Any = None) -> tuple[tuple[Any, Any, Any], Any]:
        """``backward(dy, dstate_n)``, and a function that back-propagates through it.

        Parameters
        ----------
        dy, dstate_n
            As `backward` takes them; float64.

        Returns
        -------
        dx, dweights, dstate_0
            What `backward` returns.
        double_backward : callable
            ``(gx, gweights, gstate_0), (gdy, gdstate_n) = double_backward(ddx, ddweights,
            ddstate_0)``: the gradients of a scalar, given its gradients with respect to dx,
            dweights and dstate_0, any of which may be None for zeros (so may arrays in
            ddweights). They are exact: dual numbers go through the forward and the backward pass
            (Pearlmutter 1994, "Fast exact multiplication by the Hessian").

        Raises
        ------
        UnsupportedError
            For float32, batch normalisation, truncate and grad_clip.
        """
        self._call._check_second()
        results = self(dy, dstate_n)

        def double_backward(
            ddx: Any = None, ddweights: Any = None, ddstate_0: Any = None
        ) -> tuple[tuple[Any, Any, Any], tuple[Any, Any]]:
            """See `Backward.vjp`."""
            return self._call.second(self._tape, dy, dstate_n, ddx, ddweights, ddstate_0)

        return results, double_backward


class _ShortBackward(Backward):
    """The same, through what `Backend.call_vjp` left. The arguments are checked when needed."""

    _call: _Call | None  # type: ignore[assignment]

    def __init__(
        self,
        tape: ShortTape,
        shape: tuple[int, ...],  # of y
        batch_first: bool,
        arguments: tuple[Any, ...],
    ) -> None:
        self._short = tape
        self._shape = shape
        self._batch_first = batch_first
        self._arguments = arguments
        self._call = None

    def __call__(
        self, dy: Any = None, dstate_n: Any = None, *, dx: bool = True, dstate_0: bool = True
    ) -> tuple[Any, Any, Any]:
        """See `Backward`."""
        dx, dstate_0 = checks.flag("dx", dx), checks.flag("dstate_0", dstate_0)
        done = None
        if dy is None:
            done = self._short.backward(None, dstate_n, False, dx, dstate_0)
        elif type(dy) is np.ndarray and dy.shape == self._shape:
            # The gradient of a sum is one number repeated, with strides of 0.
            rows = np.ascontiguousarray(dy.swapaxes(0, 1) if self._batch_first else dy)
            done = self._short.backward(rows, dstate_n, False, dx, dstate_0)
        if done is None:
            call = self._checked()
            h, c = call._dstate(dstate_n)
            given = (h, c) if call.spec.info.has_c else h
            done = self._short.backward(call._dy("dy", dy), given, True, dx, dstate_0)
            assert done is not None
        of_x, found, of_state = done
        if dx and self._batch_first:
            of_x = of_x.swapaxes(0, 1)
        template = self._arguments[2]
        if type(template) is InOrder:
            template = template.weights
        dweights = rebuild(template, (Weights(*w) for w in found))
        return of_x if dx else None, dweights, of_state if dstate_0 else None

    def vjp(self, dy: Any = None, dstate_n: Any = None) -> tuple[tuple[Any, Any, Any], Any]:
        """See `Backward`."""
        self._tape = self._checked().vjp()[2]._tape
        return super().vjp(dy, dstate_n)

    def _checked(self) -> _Call:
        if self._call is None:
            self._call = _Call(*self._arguments)
        return self._call


def _copy(a: Any) -> Any:
    return None if a is None else a.copy()


def _dual(value: Array | None, derivative: Array | None) -> Array | None:
    """A dual number, as complex128."""
    if value is None and derivative is None:
        return None
    like = value if value is not None else derivative
    assert like is not None
    dual = np.zeros(like.shape, np.complex128)
    if value is not None:
        dual.real = value
    if derivative is not None:
        dual.imag = derivative
    return dual


def _tangent(dual: Array | None) -> Any:
    return None if dual is None else np.ascontiguousarray(dual.imag)


def spec_of(cell: str, reset_after: bool, nonlinearity: Any) -> Spec:
    info = checks.cell(cell)
    reset_after = checks.flag("reset_after", reset_after)
    if not (reset_after or info.has_reset_after):
        raise UnsupportedError(f"reset_after: expected none for {cell}; gru can have it")
    if not info.nonlinearities and nonlinearity != "tanh":
        raise UnsupportedError(f"nonlinearity: expected none for {cell}; rnn can have it")
    if info.has_reset_after:
        return _GRU[reset_after]
    if not info.nonlinearities:
        return _LSTM if info.has_c else _GATED
    if isinstance(nonlinearity, str) and nonlinearity in _RNN:
        return _RNN[nonlinearity]
    f = activation("nonlinearity", nonlinearity)
    return _RNN[f.name] if f.name in _RNN else Spec(cell, activation=f)


def _parts_of(out: Any) -> tuple[Any, Any]:
    """out as (y, state_n), None for what is not given."""
    if not isinstance(out, tuple):
        return out, None
    if len(out) != 2 or out[0] is None or out[1] is None:
        raise TypeError(
            f"out: expected an array like y, or a pair (y, state_n) of arrays, got a tuple of "
            f"{len(out)}: {', '.join(map(arrays.describe, out))}"
        )
    return out


def _check_apart(name: str, array: Array, other: str, value: Array | None) -> None:
    if value is not None and np.may_share_memory(array, value):
        raise ValueError(f"{name}: expected memory apart from {other}'s, got an overlap")


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
