"""`rnnfast.lstm`, `gru`, `rnn` and `gated` for JAX arrays, under all of JAX's transformations.

jit, grad, vmap, checkpoint, scan and shard_map, on the CPU: XLA calls the native kernels itself.
`rnnfast.jax.linen` and `rnnfast.jax.nnx` have layers for Flax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import Options
from .call import run

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["gated", "gru", "lstm", "rnn"]


def lstm(
    x: Any,
    weights: Any,
    state: tuple[Any, Any] | None = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: Any = None,
    save: str = "all",
    transposed: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, tuple[Any, Any]]:
    """Run a stack of LSTM layers over a batch of sequences: `rnnfast.lstm` for JAX.

    Shapes, weights and equations are those of `rnnfast.lstm`; T steps, B rows, I input size, H
    hidden size, P projection size or else H, L layers, D directions. Errors are raised when the
    call is traced.

    Parameters
    ----------
    x : array (T, B, I), (B, T, I) with batch_first, or (T, I) unbatched; float32 or float64
        The input. float64 needs ``jax.config.update("jax_enable_x64", True)``.
    weights : Weights, tuple of arrays, or list with one entry per layer
        As `rnnfast.lstm` takes them: a pytree, so that its gradient has the same structure.
    state : (h_0, c_0) or None
        Arrays (L*D, B, P) and (L*D, B, H), without B if x is unbatched, or None for zeros.
    lengths : int array (B,) or None
        The number of valid steps of each row, 0 to T. It may be traced.
    batch_first : bool
        Whether x and y have the batch as their first axis. The state never has.
    dropout : float
        Probability of zeroing each output of every layer but the last; needs `rng`. A Python
        number, not a traced one.
    rng : JAX PRNG key or None
        Key of everything that is random.
    save : {"all", "recompute"}
        What the forward pass keeps for the backward pass, as `rnnfast.lstm_vjp` has it.
    transposed : bool
        Whether w_ih and w_hh are transposes of arrays (I, 4*H) and (P, 4*H), as Keras and Flax
        hold their kernels. No result depends on it: XLA reads those arrays where they lie, which
        it would copy else. Cells with options copy them anyway.
    **options
        See `rnnfast.Options`; batch normalisation is not there.

    Returns
    -------
    y : array (T, B, D*P), or as x is laid out
    (h_n, c_n) : arrays (L*D, B, P) and (L*D, B, H), without B if x is unbatched

    Raises
    ------
    ValueError, TypeError, UnsupportedError
        As `rnnfast.lstm` does. Traced lengths out of range raise jax.errors.JaxRuntimeError when
        the call is run.

    Examples
    --------
    >>> weights = rnnfast.init_weights("lstm", 8, 16, rng=0)
    >>> y, (h_n, c_n) = jax.jit(rnnfast.jax.lstm)(jnp.ones((5, 3, 8)), weights)
    >>> y.shape, h_n.shape
    ((5, 3, 16), (1, 3, 16))
    """
    rest = (lengths, batch_first, dropout, rng, save, options, transposed)
    return run("lstm", x, weights, state, *rest)


def gru(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: Any = None,
    save: str = "all",
    transposed: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """`rnnfast.gru` for JAX: ``y, h_n``. The other arguments are as in `rnnfast.jax.lstm`."""
    rest = (lengths, batch_first, dropout, rng, save, options, transposed)
    return run("gru", x, weights, h_0, *rest, reset_after=reset_after)


def rnn(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    nonlinearity: str | tuple[Any, ...] = "tanh",
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: Any = None,
    save: str = "all",
    transposed: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """`rnnfast.rnn` for JAX: ``y, h_n``. The other arguments are as in `rnnfast.jax.lstm`."""
    rest = (lengths, batch_first, dropout, rng, save, options, transposed)
    return run("rnn", x, weights, h_0, *rest, nonlinearity=nonlinearity)


def gated(
    x: Any,
    weights: Any,
    h_0: Any = None,
    *,
    lengths: Any = None,
    batch_first: bool = False,
    dropout: float = 0.0,
    rng: Any = None,
    save: str = "all",
    transposed: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, Any]:
    """`rnnfast.gated` for JAX: ``y, h_n``. The other arguments are as in `rnnfast.jax.lstm`."""
    rest = (lengths, batch_first, dropout, rng, save, options, transposed)
    return run("gated", x, weights, h_0, *rest)
