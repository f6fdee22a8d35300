"""Plain layers as operators of TensorFlow's graph, without a callback into Python.

csrc/tensorflow_ops.cpp has the operators. They are there where rnnfast was built beside a
TensorFlow, as ``RNNFAST_TENSORFLOW=ON`` demands.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from ..backends import get
from ..errors import UnsupportedError
from ..spec import Spec
from ..weights import Weights

try:
    from .. import _native
    from ..backends.native import kernel_name
except ImportError:  # the other backends do without
    _native = None  # type: ignore[assignment]


def _load() -> Any:
    if _native is None:
        return None
    path = Path(_native.__file__).with_name("_tensorflow_ops.so")
    if not path.exists():
        return None
    try:
        operators = tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        warnings.warn(
            f"rnnfast's operators were built for another TensorFlow, so it calls back into Python: "
            f"{error}; install rnnfast again with RNNFAST_TENSORFLOW=ON",
            stacklevel=2,
        )
        return None
    connect = ctypes.CDLL(str(path)).rnnfast_connect
    connect.argtypes, connect.restype = [ctypes.c_void_p], None
    connect(_native.flat_pass())
    return operators


_OPERATORS = _load()


def has(spec: Spec) -> bool:
    """Whether there are operators for a cell, and the native backend is to run it."""
    return _OPERATORS is not None and spec.plain and get("auto", spec).name == "native"


def run(
    spec: Spec,
    x: Any,
    entries: tuple[Weights, ...],
    places: tuple[int, ...],
    states: tuple[Any, ...],
    lengths: Any,
    keep: bool,
) -> list[Any]:
    """y (B, T, D*H) and the states (D, B, H) of one layer, with gradients.

    x is (B, T, I). The weights of each direction are Keras' variables: w_ih (I, G*H), w_hh (H, G*H)
    and their bias, (G*H,) or (2, G*H), as b_ih. With `keep` the forward pass keeps what gradients
    need; else it is run again for them.
    """
    name, count, has_c = kernel_name(spec), len(entries), spec.info.has_c
    hidden = entries[0].w_hh.shape[0]
    how: dict[str, Any] = {
        "cell": name,
        "directions": count,
        "units": hidden,
        "slots": _native.saved_gates(name),
        "has_c": has_c,
        "places": list(places),
    }
    nothing = tf.zeros([0], x.dtype)
    if lengths is None:
        ends = tf.zeros([0], tf.int32)
    else:
        ends = tf.convert_to_tensor(lengths)
        ends = ends if ends.dtype in (tf.int32, tf.int64) else tf.cast(ends, tf.int64)
    # Of variables too, which tf.custom_gradient would take for its own.
    given = [tf.convert_to_tensor(a) for w in entries for a in w[:3] if a is not None]
    biases = [0 if w.b_ih is None else len(w.b_ih.shape) for w in entries]  # their axes

    def differentiable(*tensors: Any) -> tuple[list[Any], Callable[..., list[Any]]]:
        rows, rest = _swapped(tensors[0]), iter(tensors[1:])
        weights: list[Any] = []
        for axes in biases:
            weights += [next(rest), next(rest)]
            if axes == 2:
                weights += tf.unstack(next(rest))
            else:
                weights += [next(rest) if axes else nothing, nothing]
        inputs = [rows, *_two([*rest], nothing), ends, weights]
        y, h_n, c_n, *saved = _OPERATORS.rnnfast_forward(*inputs, keep=keep, **how)

        def gradients(dy: Any, *dstate_n: Any) -> list[Any]:
            kept = saved
            if not keep:
                kept = _OPERATORS.rnnfast_forward(*inputs, keep=True, **how)[3:]
            dx, dh_0, dc_0, dweights = _OPERATORS.rnnfast_backward(
                *inputs, *kept, _swapped(dy), *_two([*dstate_n], nothing), keep=True, **how
            )
            found = [_swapped(dx)]
            for k, axes in enumerate(biases):
                w_ih, w_hh, b_ih, b_hh = dweights[4 * k : 4 * k + 4]
                found += [w_ih, w_hh]
                if axes:
                    found.append(b_ih if axes == 1 else tf.stack([b_ih, b_hh]))
            return found + [dh_0, dc_0][: len(states)]

        results = [_swapped(y), h_n, c_n] if has_c else [_swapped(y), h_n]
        results[0].set_shape((*x.shape[:2], count * hidden))
        for state in results[1:]:
            state.set_shape((count, x.shape[0], hidden))
        return results, once(tensors, gradients)

    found: list[Any] = tf.custom_gradient(differentiable)(x, *given, *states)
    return found


def once(tensors: Sequence[Any], gradients: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Gradients of a function of these tensors that say that they have none themselves.

    TensorFlow would give none in silence, or not find those of an operator.
    """

    def refused(*cotangents: Any) -> list[Any]:
        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def run(*given: Any) -> tuple[list[Any], Callable[..., Any]]:
            return gradients(*given[len(tensors) :]), _refuse

        found: list[Any] = run(*tensors, *cotangents)
        return found

    return refused


def _refuse(*_: Any) -> Any:
    raise UnsupportedError(
        "gradients of rnnfast's layers cannot be differentiated again on tensorflow; expected one "
        "GradientTape, Keras' own layers, or KERAS_BACKEND=torch or jax"
    )


def _swapped(tensor: Any) -> Any:
    return tf.transpose(tensor, (1, 0, 2))


def _two(tensors: list[Any], nothing: Any) -> list[Any]:
    return [*tensors, nothing, nothing][:2]
