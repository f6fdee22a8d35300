"""A call as users write it, turned into calls of `rnnfast.jax.derivatives`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..arrays import describe
from ..backends.native import flexible_kernel, kernel_name
from ..call import Call
from ..errors import UnsupportedError
from ..options import spec_of
from ..packed import Packed
from ..weights import InOrder, Weights, is_entry, rearranged
from . import derivatives, stack


def run(
    cell: str,
    x: Any,
    weights: Any,
    state: Any,
    lengths: Any,
    batch_first: bool,
    dropout: float,
    rng: Any,
    save: str,
    options: Any,
    transposed: bool = False,
    reset_after: bool = True,
    nonlinearity: Any = "tanh",
) -> tuple[Any, Any]:
    """Check the arguments by their shapes and dtypes, run the layers, and lay out the results."""
    places: tuple[int, ...] = ()
    if type(weights) is InOrder:
        weights, places = weights.weights, weights.places
    if isinstance(weights, Packed):
        raise TypeError("weights: rnnfast.jax cannot use packed weights; expected the weights")
    checked = Call(
        spec_of(cell, reset_after, nonlinearity),
        _outline(x, "x"),
        _map(_outline, weights),
        _map(partial(_outline, name="state"), state),
        _known(lengths),
        batch_first,
        dropout,
        None,
        "native",
        None,
        options,
        save,
    )
    layers = [
        [Weights(*w) for w in ([entry] if is_entry(entry) else entry)]
        for entry in ([weights] if is_entry(weights) else weights)
    ]
    _refuse(checked)
    if not checked.spec.plain and places:
        layers = [[rearranged(w, places, jnp.concatenate) for w in layer] for layer in layers]
        places = ()
    transposed = checks.flag("transposed", transposed)
    noise, spec = checked.noise, checked.spec
    drop = checked.dropout if noise.training and len(layers) > 1 else 0.0
    if drop or noise.dropconnect or noise.recurrent_dropout or (noise.training and spec.zoneout):
        between, connect, on_state = jax.random.split(_key(rng), 3)
    else:
        on_state = None
    if noise.dropconnect:
        layers = _drop_connections(connect, noise.dropconnect, layers)

    rows = jnp.asarray(x)
    if checked.unbatched:
        rows = rows[:, None]
    elif checked.batch_first:
        rows = rows.swapaxes(0, 1)
    has_c = spec.info.has_c
    h, c = state if has_c and state is not None else (state, None)
    initial = [s if s is None or not checked.unbatched else jnp.expand_dims(s, 1) for s in (h, c)]
    kernel, given = flexible_kernel(spec)
    numbers = tuple(float(n) for o in given for n in (o if isinstance(o, tuple) else [o]))
    directions, gates = checked.directions, len(spec.info.gates)
    together = len(layers) if spec.plain and not drop else 1
    finals = []
    for first in range(0, len(layers), together):
        some = layers[first : first + together]
        if first and drop:
            shape = rows.shape[1:] if noise.variational else rows.shape
            rows = _drop(jax.random.fold_in(between, first), drop, shape, rows)
        plan = stack.Plan(
            kernel_name(spec) if spec.plain else None,
            kernel,
            numbers,
            gates,
            len(some),
            directions,
            has_c,
            checked.save,
            spec.plain and transposed,
            places,
        )
        at = slice(first * directions, (first + len(some)) * directions)
        masks = [None] * 3
        if spec.recurrent_dropout or spec.zoneout:
            key = None if on_state is None else jax.random.fold_in(on_state, first)
            masks = _masks(key, checked, rows)
        operands = [
            *(None if s is None else s[at] for s in initial),
            _integers(lengths),
            *masks,
            *(a for layer in some for w in layer for a in w[: plan.fields]),
        ]
        rows, *final = derivatives.run(plan, rows, *(_or_empty(a, rows.dtype) for a in operands))
        finals.append(final)
    states = [s[0] if len(s) == 1 else jnp.concatenate(s) for s in zip(*finals, strict=True)]
    if checked.unbatched:
        rows, states = rows[:, 0], [s[:, 0] if s.ndim > 1 else s for s in states]
    elif checked.batch_first:
        rows = rows.swapaxes(0, 1)
    return rows, (states[0], states[1]) if has_c else states[0]


def _outline(value: Any, name: str = "weights") -> Any:
    """Memory of the shape and dtype of an array, never touched, to be checked in its place."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return value
    try:
        np.dtype(value.dtype)
    except TypeError:
        raise TypeError(
            f"{name}: expected an array of JAX or NumPy, got {describe(value)}"
        ) from None
    if (
        isinstance(value.dtype, np.dtype)
        and jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype
    ):
        raise TypeError(
            f"{name}: {value.dtype} needs jax.config.update('jax_enable_x64', True), "
            f"without which JAX would cast it"
        )
    return np.empty(value.shape, value.dtype)


def _map(change: Any, value: Any) -> Any:
    """`change` of every array of a structure of lists and tuples."""
    if isinstance(value, Weights):
        return Weights(*(_map(change, v) for v in value))
    if isinstance(value, list | tuple):  # NamedTuples of others too
        return (list if isinstance(value, list) else tuple)([_map(change, v) for v in value])
    return change(value)


def _known(lengths: Any) -> Any:
    """lengths for the check of their values, or zeros where those are not known yet."""
    if isinstance(lengths, jax.core.Tracer):
        return np.zeros(lengths.shape, lengths.dtype)
    return np.asarray(lengths) if isinstance(lengths, jax.Array) else lengths


def _integers(lengths: Any) -> Any:
    """lengths in 32 bits, or 64 where they have them."""
    if lengths is None:
        return jnp.zeros((0,), jnp.int32)
    lengths = jnp.asarray(lengths)
    return lengths.astype(jnp.int64 if lengths.dtype.itemsize == 8 else jnp.int32)


def _or_empty(array: Any, dtype: Any) -> Any:
    return jnp.zeros((0,), dtype) if array is None else jnp.asarray(array)


def _refuse(checked: Call) -> None:
    """What the native kernels have and the handlers do not."""
    if checked.parsed[0][0].bn_ih is not None:
        raise UnsupportedError(
            "weights.bn_ih: rnnfast.jax has no batch normalisation, whose running statistics are "
            "written into bn_mean and bn_var; expected None"
        )


def _masks(key: Any, checked: Call, rows: Any) -> list[Any]:
    """Those of one layer, for all directions; see `rnnfast.spec.Masks`."""
    noise, count, dtype = checked.noise, checked.directions, rows.dtype
    steps, batch, _ = rows.shape

    def keep(k: int, rate: float, width: int) -> Any:
        if rate == 0:
            return None
        if not noise.training:  # the expectation
            return jnp.full((count, 1, 1, width), rate, dtype)
        shape = (count, steps, batch, width)
        return jax.random.bernoulli(jax.random.fold_in(key, k), rate, shape).astype(dtype)

    recurrent = None
    if noise.recurrent_dropout:
        ones = jnp.ones((count, batch, checked.outputs), dtype)
        recurrent = _drop(jax.random.fold_in(key, 0), noise.recurrent_dropout, ones.shape, ones)
    return [
        recurrent,
        keep(1, noise.zoneout_h, checked.outputs),
        keep(2, noise.zoneout_c, checked.hidden),
    ]


def _key(rng: Any) -> Any:
    kind = getattr(rng, "dtype", None)
    if kind is None or not (
        jnp.issubdtype(kind, jax.dtypes.prng_key) or (kind == jnp.uint32 and rng.ndim == 1)
    ):
        raise TypeError(
            f"rng: expected a JAX PRNG key for dropout, as jax.random.key makes, "
            f"got {describe(rng)}"
        )
    return rng


def _drop(key: Any, rate: float, shape: tuple[int, ...], a: Any) -> Any:
    """Inverted dropout of a, with one mask of this shape."""
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    scale = 1 / (1 - rate) if rate < 1 else 0.0
    return jnp.where(kept, a * jnp.asarray(scale, a.dtype), jnp.zeros((), a.dtype))


def _drop_connections(key: Any, rate: float, layers: list[list[Weights]]) -> list[list[Weights]]:
    return [
        [
            w._replace(w_hh=_drop(jax.random.fold_in(key, 2 * k + d), rate, w.w_hh.shape, w.w_hh))
            for d, w in enumerate(layer)
        ]
        for k, layer in enumerate(layers)
    ]
