"""lstm, gru and rnn on TensorFlow's tensors.

Plain cells are operators where these were built, see tensorflow_ops.py. Elsewhere TensorFlow
reaches the kernels through `tf.numpy_function`: callbacks into Python, which a SavedModel cannot
hold. XLA compiles neither.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import rnnfast

from ..call import Backward
from ..options import spec_of
from ..spec import CELLS, Spec
from ..weights import InOrder, Weights
from . import tensorflow_ops

Array = NDArray[Any]


class _Call(NamedTuple):
    """What of a call is no tensor. The tensors are x, the variables, the states, then the `extras`.

    The variables are those of a Keras cell for each direction, with its bias or without. There are
    states or not. The extras have no gradients.
    """

    cell: str
    biased: tuple[bool, ...]  # for each direction
    places: tuple[int, ...]  # of the gates, as `rnnfast.weights.InOrder` has them
    starts: bool  # whether there are states
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

    def forward_and_keep(self, *arrays: Array) -> list[Array]:
        """y, the states and a tape, from which `backward` goes back."""
        y, state_n, backward = self._vjp(arrays)
        return [y, *self._listed(state_n), _record(backward)]

    def backward(self, *arrays: Array) -> list[Array]:
        """Gradients of x, the variables and the states.

        The last arrays are a tape and the gradients of the results. Where the tape is lost, or
        nothing was kept, the layer is run again.
        """
        count = 2 + self.has_c
        tape, dy, *dstate_n = arrays[-count - 1 :]
        recorded = _tapes.get(int(tape[0]))
        backward = self._vjp(arrays[: -count - 1])[2] if recorded is None else recorded.backward
        given = tuple(dstate_n) if self.has_c else dstate_n[0]
        dx, dweights, dstate = backward(dy, given, dstate_0=self.starts)
        entries = dweights[0] if len(self.biased) > 1 else dweights
        found = [dx, *(a for entry in entries for a in _keras_variables(entry))]
        return [*found, *self._listed(dstate)] if self.starts else found

    def _vjp(self, arrays: tuple[Array, ...]) -> tuple[Array, Any, Backward]:
        arguments, how = self._arguments(arrays)
        found: tuple[Array, Any, Backward] = getattr(rnnfast, f"{self.cell}_vjp")(*arguments, **how)
        return found

    def _arguments(self, arrays: tuple[Array, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, rest = arrays[0], iter(arrays[1:])
        entries = [
            _of_keras(next(rest), next(rest), next(rest) if biased else None)
            for biased in self.biased
        ]
        weights: Any = [tuple(entries)] if len(entries) > 1 else entries
        if self.places:
            weights = InOrder(weights, self.places)
        state: Any = None
        if self.starts:
            state = (next(rest), next(rest)) if self.has_c else next(rest)
        how: dict[str, Any] = {name: next(rest) for name in self.extras}
        if "rng" in how:
            how["rng"] = np.random.default_rng(how["rng"])
        return (x, weights, state), {**how, **self.options}

    def _listed(self, state: Any) -> list[Any]:
        return list(state) if self.has_c else [state]


def _of_keras(kernel: Array, recurrent_kernel: Array, bias: Array | None) -> Weights:
    """In PyTorch's layout, on the same memory."""
    biases = (None, None) if bias is None else (bias, None) if bias.ndim == 1 else tuple(bias)
    return Weights(kernel.T, recurrent_kernel.T, *biases)


def _keras_variables(w: Weights) -> list[Array]:
    """The inverse of `_of_keras`."""
    matrices = [w.w_ih.T, w.w_hh.T]
    if w.b_ih is None:
        return matrices
    return [*matrices, w.b_ih if w.b_hh is None else np.stack([w.b_ih, w.b_hh])]


class _Tape(np.ndarray[Any, np.dtype[np.int64]]):
    """A number, and the function `backward` that goes by it.

    As a tensor it travels with the others that TensorFlow keeps for the backward pass, and lives as
    long: TensorFlow holds the arrays that callbacks return. One that it copies is not found again.
    """

    backward: Backward


_tapes: weakref.WeakValueDictionary[int, _Tape] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
_ALIGNED = 64  # bytes; what is not, TensorFlow copies


def _record(backward: Backward) -> Array:
    tape = _Tape(2 * _ALIGNED // 8, np.int64)
    first = -tape.ctypes.data % _ALIGNED // 8
    tape[first] = number = next(_numbers)
    tape.backward = backward
    _tapes[number] = tape
    aligned: Array = tape[first : first + 1]
    return aligned


def lstm(x: Any, weights: Any, state: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.lstm` on tensors of TensorFlow, for one layer.

    Its weights are as `rnnfast.keras.translation.weights_of` leaves them on tensorflow.
    """
    y, *state_n = _run("lstm", x, weights, state or (), **options)
    return y, tuple(state_n)


def gru(x: Any, weights: Any, h_0: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.gru` on tensors; see `lstm`."""
    y, h_n = _run("gru", x, weights, () if h_0 is None else (h_0,), **options)
    return y, h_n


def rnn(x: Any, weights: Any, h_0: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.rnn` on tensors; see `lstm`."""
    y, h_n = _run("rnn", x, weights, () if h_0 is None else (h_0,), **options)
    return y, h_n


def _run(
    cell: str,
    x: Any,
    weights: Any,
    states: tuple[Any, ...],
    *,
    lengths: Any = None,
    rng: Any = None,
    keep: bool = False,
    **options: Any,
) -> list[Any]:
    """y and the states. `keep` what gradients need, or run the layer again for them."""
    places = ()
    if isinstance(weights, InOrder):
        weights, places = weights.weights, weights.places
    entries = weights if isinstance(weights[0], Weights) else weights[0]
    spec = _plain(cell, options) if rng is None else None
    if spec is not None and x.dtype in (tf.float32, tf.float64) and tensorflow_ops.has(spec):
        return tensorflow_ops.run(spec, x, entries, places, states, lengths, keep)
    biased = tuple(w.b_ih is not None for w in entries)
    # Of variables too, which tf.custom_gradient would take for its own.
    given = [tf.convert_to_tensor(a) for w in entries for a in w[:3] if a is not None]
    extras = {name: e for name, e in (("lengths", lengths), ("rng", rng)) if e is not None}
    call = _Call(cell, biased, places, bool(states), tuple(extras), options)
    hidden, dtype = entries[0].w_hh.shape[0], x.dtype
    state_n = ((len(entries), x.shape[0], hidden), dtype)
    kinds = [((*x.shape[:2], len(entries) * hidden), dtype), *[state_n] * (1 + call.has_c)]

    def differentiable(*tensors: Any) -> tuple[list[Any], Callable[..., list[Any]]]:
        inputs = [*tensors, *extras.values()]
        if keep:
            *results, tape = _python(call.forward_and_keep, inputs, [*kinds, ((1,), tf.int64)])
        else:
            results, tape = _python(call.forward, inputs, kinds), tf.zeros(1, tf.int64)

        def gradients(*cotangents: Any) -> list[Any]:
            wanted = [(t.shape, t.dtype) for t in tensors]
            return _python(call.backward, [*inputs, tape, *cotangents], wanted)

        return results, tensorflow_ops.once(tensors, gradients)

    found: list[Any] = tf.custom_gradient(differentiable)(x, *given, *states)
    return found


def _plain(cell: str, options: dict[str, Any]) -> Spec | None:
    """The cell of a call whose options are only its variant."""
    if not options.keys() <= {"batch_first", "reset_after", "nonlinearity"}:
        return None
    return spec_of(cell, options.get("reset_after", True), options.get("nonlinearity", "tanh"))


def _python(
    function: Callable[..., list[Array]], tensors: list[Any], kinds: list[tuple[Any, Any]]
) -> list[Any]:
    """The results of a function on arrays, of these shapes and dtypes."""
    dtypes = [dtype for _, dtype in kinds]
    results: list[Any] = tf.numpy_function(function, tensors, dtypes, stateful=False)
    for result, (shape, _) in zip(results, kinds, strict=True):
        result.set_shape(shape)
    return results
