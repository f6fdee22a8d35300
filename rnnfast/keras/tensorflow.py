"""lstm, gru and rnn on TensorFlow's tensors: callbacks from its graph into Python.

TensorFlow reaches the kernels through `tf.numpy_function`, which XLA cannot compile and a
SavedModel cannot hold. The backward pass runs the layer again, because nothing but tensors can be
kept between two callbacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import rnnfast

from ..spec import CELLS
from ..weights import Weights

Array = NDArray[Any]


class _Call(NamedTuple):
    """What of a call is no tensor. The tensors are x, the weights, the states, then the `extras`.

    The extras have no gradients.
    """

    cell: str
    fields: tuple[str, ...]  # of the weights that are given
    extras: tuple[str, ...]  # arguments of rnnfast's function: lengths, rng
    options: dict[str, Any]

    @property
    def has_c(self) -> bool:
        return CELLS[self.cell].has_c

    def forward(self, *arrays: Array) -> list[Array]:
        """y and the states."""
        arguments, how = self._arguments(arrays)
        y, state_n = getattr(rnnfast, self.cell)(*arguments, **how)
        return [y, *self._listed(state_n)]

    def backward(self, *arrays: Array) -> list[Array]:
        """Gradients of x, the weights and the states; the last arrays are those of the results."""
        count = 2 + self.has_c
        dy, *dstate_n = arrays[-count:]
        arguments, how = self._arguments(arrays[:-count])
        _, _, vjp = getattr(rnnfast, f"{self.cell}_vjp")(*arguments, **how)
        dx, dweights, dstate = vjp(dy, tuple(dstate_n) if self.has_c else dstate_n[0])
        return [dx, *(getattr(dweights, name) for name in self.fields), *self._listed(dstate)]

    def _arguments(self, arrays: tuple[Array, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, rest = arrays[0], iter(arrays[1:])
        weights = Weights(**{name: next(rest) for name in self.fields})
        state = (next(rest), next(rest)) if self.has_c else next(rest)
        how: dict[str, Any] = {name: next(rest) for name in self.extras}
        if "rng" in how:
            how["rng"] = np.random.default_rng(how["rng"])
        return (x, weights, state), {**how, **self.options}

    def _listed(self, state: Any) -> list[Any]:
        return list(state) if self.has_c else [state]


def lstm(x: Any, weights: Weights, state: tuple[Any, Any], **options: Any) -> tuple[Any, Any]:
    """`rnnfast.lstm` on tensors of TensorFlow, for weights of one direction of one layer."""
    y, *state_n = _run("lstm", x, weights, state, **options)
    return y, tuple(state_n)


def gru(x: Any, weights: Weights, h_0: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.gru` on tensors; see `lstm`."""
    y, h_n = _run("gru", x, weights, (h_0,), **options)
    return y, h_n


def rnn(x: Any, weights: Weights, h_0: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.rnn` on tensors; see `lstm`."""
    y, h_n = _run("rnn", x, weights, (h_0,), **options)
    return y, h_n


def _run(
    cell: str,
    x: Any,
    weights: Weights,
    states: tuple[Any, ...],
    *,
    lengths: Any = None,
    rng: Any = None,
    **options: Any,
) -> list[Any]:
    """y and the states."""
    given = {name: w for name, w in weights._asdict().items() if w is not None}
    extras = {name: e for name, e in (("lengths", lengths), ("rng", rng)) if e is not None}
    call = _Call(cell, tuple(given), tuple(extras), options)

    def differentiable(*tensors: Any) -> tuple[list[Any], Callable[..., list[Any]]]:
        inputs = [*tensors, *extras.values()]
        shapes = [(*x.shape[:2], states[0].shape[-1]), *(s.shape for s in states)]

        def gradients(*cotangents: Any) -> list[Any]:
            return _python(call.backward, [*inputs, *cotangents], [t.shape for t in tensors])

        return _python(call.forward, inputs, shapes), gradients

    results: list[Any] = tf.custom_gradient(differentiable)(x, *given.values(), *states)
    return results


def _python(
    function: Callable[..., list[Array]], tensors: list[Any], shapes: list[Any]
) -> list[Any]:
    """The results of a function on arrays, of the dtype of the first tensor."""
    dtypes = [tensors[0].dtype] * len(shapes)
    results: list[Any] = tf.numpy_function(function, tensors, dtypes, stateful=False)
    for result, shape in zip(results, shapes, strict=True):
        result.set_shape(shape)
    return results
