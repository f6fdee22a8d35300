"""lstm, gru and rnn on TensorFlow's tensors: callbacks from its graph into Python.

TensorFlow reaches the kernels through `tf.numpy_function`, which XLA cannot compile and a
SavedModel cannot hold. The backward pass runs the layer again, because nothing but tensors can be
kept between two callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import rnnfast

from ..spec import CELLS
from ..weights import Weights

Array = NDArray[Any]


def _function(cell: str) -> Callable[..., Any]:
    has_c = CELLS[cell].has_c

    def function(
        x: Any, weights: Weights, state: Any, *, lengths: Any, **options: Any
    ) -> tuple[Any, Any]:
        states = tuple(state) if has_c else (state,)
        fields = [name for name, w in zip(weights._fields, weights, strict=True) if w is not None]
        ends = [] if lengths is None else [lengths]

        def arguments(arrays: tuple[Array, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            x, *rest = arrays
            given = Weights(**dict(zip(fields, rest, strict=False)))
            start = rest[len(fields) : len(fields) + len(states)]
            after = rest[len(fields) + len(states) :]
            how = {"lengths": after[0] if ends else None, **options}
            return (x, given, tuple(start) if has_c else start[0]), how

        def forward(*arrays: Array) -> list[Array]:
            taken, how = arguments(arrays)
            y, state_n = getattr(rnnfast, cell)(*taken, **how)
            return [y, *(state_n if has_c else (state_n,))]

        def backward(*arrays: Array) -> list[Array]:
            *arrays_, dy, dh_n, dc_n = arrays if has_c else (*arrays, None)
            taken, how = arguments(tuple(arrays_))
            _, _, vjp = getattr(rnnfast, f"{cell}_vjp")(*taken, **how)
            dx, dweights, dstate = vjp(dy, (dh_n, dc_n) if has_c else dh_n)
            found = [getattr(dweights, name) for name in fields]
            return [dx, *found, *(dstate if has_c else (dstate,))]

        @tf.custom_gradient
        def call(*tensors: Any) -> tuple[Any, Callable[..., Any]]:
            x, h_0 = tensors[0], tensors[1 + len(fields)]
            shapes = [(*x.shape[:2], h_0.shape[-1]), *(s.shape for s in states)]
            outputs = _call(forward, [*tensors, *ends], x.dtype, shapes)

            def gradients(*cotangents: Any) -> list[Any]:
                given = [*tensors, *ends, *cotangents]
                return _call(backward, given, x.dtype, [t.shape for t in tensors])

            return outputs, gradients

        y, *state_n = call(x, *(w for w in weights if w is not None), *states)
        return y, tuple(state_n) if has_c else state_n[0]

    return function


def _call(function: Any, tensors: list[Any], dtype: Any, shapes: list[Any]) -> list[Any]:
    results = tf.numpy_function(function, tensors, [dtype] * len(shapes), stateful=False)
    for result, shape in zip(results, shapes, strict=True):
        result.set_shape(shape)
    return results


lstm, gru, rnn = map(_function, ("lstm", "gru", "rnn"))
