"""lstm, gru and rnn on TensorFlow's tensors: callbacks from its graph into Python.

TensorFlow reaches the kernels through `tf.numpy_function`, which XLA cannot compile and a
SavedModel cannot hold.
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

from ..api import Backward
from ..spec import CELLS
from ..weights import Weights

Array = NDArray[Any]


class _Call(NamedTuple):
    """What of a call is no tensor. The tensors are x, the weights, the states, then the `extras`.

    The extras have no gradients.
    """

    cell: str
    fields: tuple[tuple[str, ...], ...]  # of the weights that are given, for each direction
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
        """Gradients of x, the weights and the states.

        The last arrays are a tape and the gradients of the results. Where the tape is lost, or
        nothing was kept, the layer is run again.
        """
        count = 2 + self.has_c
        tape, dy, *dstate_n = arrays[-count - 1 :]
        recorded = _tapes.get(int(tape[0]))
        backward = self._vjp(arrays[: -count - 1])[2] if recorded is None else recorded.backward
        dx, dweights, dstate = backward(dy, tuple(dstate_n) if self.has_c else dstate_n[0])
        pairs = zip(dweights[0] if len(self.fields) > 1 else dweights, self.fields, strict=True)
        dgiven = [getattr(w, name) for w, names in pairs for name in names]
        return [dx, *dgiven, *self._listed(dstate)]

    def _vjp(self, arrays: tuple[Array, ...]) -> tuple[Array, Any, Backward]:
        arguments, how = self._arguments(arrays)
        found: tuple[Array, Any, Backward] = getattr(rnnfast, f"{self.cell}_vjp")(*arguments, **how)
        return found

    def _arguments(self, arrays: tuple[Array, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, rest = arrays[0], iter(arrays[1:])
        entries = [Weights(**{name: next(rest) for name in names}) for names in self.fields]
        weights = [tuple(entries)] if len(entries) > 1 else entries
        state = (next(rest), next(rest)) if self.has_c else next(rest)
        how: dict[str, Any] = {name: next(rest) for name in self.extras}
        if "rng" in how:
            how["rng"] = np.random.default_rng(how["rng"])
        return (x, weights, state), {**how, **self.options}

    def _listed(self, state: Any) -> list[Any]:
        return list(state) if self.has_c else [state]


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


def lstm(x: Any, weights: list[Any], state: tuple[Any, Any], **options: Any) -> tuple[Any, Any]:
    """`rnnfast.lstm` on tensors of TensorFlow, for the weights of one layer in a list."""
    y, *state_n = _run("lstm", x, weights, state, **options)
    return y, tuple(state_n)


def gru(x: Any, weights: list[Any], h_0: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.gru` on tensors; see `lstm`."""
    y, h_n = _run("gru", x, weights, (h_0,), **options)
    return y, h_n


def rnn(x: Any, weights: list[Any], h_0: Any, **options: Any) -> tuple[Any, Any]:
    """`rnnfast.rnn` on tensors; see `lstm`."""
    y, h_n = _run("rnn", x, weights, (h_0,), **options)
    return y, h_n


def _run(
    cell: str,
    x: Any,
    weights: list[Any],
    states: tuple[Any, ...],
    *,
    lengths: Any = None,
    rng: Any = None,
    keep: bool = False,
    **options: Any,
) -> list[Any]:
    """y and the states. `keep` what gradients need, or run the layer again for them."""
    entries = weights if isinstance(weights[0], Weights) else weights[0]
    fields = tuple(tuple(k for k, a in w._asdict().items() if a is not None) for w in entries)
    # Of variables too, which tf.custom_gradient would take for its own.
    given = [tf.convert_to_tensor(a) for w in entries for a in w if a is not None]
    extras = {name: e for name, e in (("lengths", lengths), ("rng", rng)) if e is not None}
    call = _Call(cell, fields, tuple(extras), options)
    width = len(entries) * states[0].shape[-1]

    kinds = [((*x.shape[:2], width), x.dtype), *((s.shape, x.dtype) for s in states)]

    def differentiable(*tensors: Any) -> tuple[list[Any], Callable[..., list[Any]]]:
        inputs = [*tensors, *extras.values()]
        if keep:
            *results, tape = _python(call.forward_and_keep, inputs, [*kinds, ((1,), tf.int64)])
        else:
            results, tape = _python(call.forward, inputs, kinds), tf.zeros(1, tf.int64)

        def gradients(*cotangents: Any) -> list[Any]:
            wanted = [(t.shape, t.dtype) for t in tensors]
            return _python(call.backward, [*inputs, tape, *cotangents], wanted)

        return results, gradients

    found: list[Any] = tf.custom_gradient(differentiable)(x, *given, *states)
    return found


def _python(
    function: Callable[..., list[Array]], tensors: list[Any], kinds: list[tuple[Any, Any]]
) -> list[Any]:
    """The results of a function on arrays, of these shapes and dtypes."""
    dtypes = [dtype for _, dtype in kinds]
    results: list[Any] = tf.numpy_function(function, tensors, dtypes, stateful=False)
    for result, (shape, _) in zip(results, kinds, strict=True):
        result.set_shape(shape)
    return results
