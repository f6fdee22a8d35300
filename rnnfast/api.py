"""lstm, gru, rnn and gated, each with its vector-Jacobian product."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .call import Backward, forward, vjp
from .options import GATED, GRU, LSTM, Options, spec_of

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
        Applied whenever it is not 0, unless `training=False` is among the options.
    rng : numpy.random.Generator, int or None
        Source or seed of all masks: of dropout, recurrent dropout, zoneout and DropConnect. None
        draws others at each call.
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
    return forward(LSTM, x, weights, state, *rest)


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
        the gates are computed again, to the same bits, in a few large products. Of cells with
        options, and on backends other than native, it may be the initial state alone, from which
        the layer is run again.
    checkpoint : int or None
        Keep only the state before every so many steps. `backward` runs one such segment at a
        time again, all layers of it, saving as `save` says. A multiple of `truncate`, where there
        is one. Not for bidirectional layers or batch normalisation.

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
    return vjp(LSTM, x, weights, state, *rest)


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
    spec = GRU[checks.flag("reset_after", reset_after)]
    return forward(spec, x, weights, h_0, lengths, batch_first, dropout, rng, backend, out, options)


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
    spec = GRU[checks.flag("reset_after", reset_after)]
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    return vjp(spec, x, weights, h_0, *rest)


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
    return forward(spec, x, weights, h_0, lengths, batch_first, dropout, rng, backend, out, options)


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
    return vjp(spec, x, weights, h_0, *rest)


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
    return forward(GATED, x, weights, h_0, *rest)


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
    spec = GATED
    rest = (lengths, batch_first, dropout, rng, backend, out, options, save, checkpoint)
    return vjp(spec, x, weights, h_0, *rest)
