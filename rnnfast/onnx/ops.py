"""LSTM, GRU and RNN for onnx's ReferenceEvaluator."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from .attributes import Attributes
from .layer import Layer

Array = NDArray[Any]


class Prepared:
    """A recurrent node whose weights never change: a function of its other inputs.

    Parameters
    ----------
    layer : Layer
        It is packed here.
    named : sequence of bool
        For each of the node's outputs whether it has a name.
    """

    def __init__(self, layer: Layer, named: Sequence[bool]) -> None:
        self._layer = layer.pack()
        self._named = named
        self._pairs = layer.cell == "lstm"
        first, *others = self._layer.passes
        direct = not (others or first.reverse or layer.batch_first)
        self._shortcut = first.weights.shortcut if direct else None
        self._usual = direct and all(named) and len(first.weights.first[0]) == 1

    def __call__(
        self, x: Any, lengths: Any = None, h: Any = None, c: Any = None
    ) -> tuple[Array | None, ...]:
        """The outputs as ONNX has them; None for one without a name."""
        done = None
        if self._shortcut is not None and lengths is None and type(x) is np.ndarray and x.ndim == 3:
            done = self._shortcut(x, (h, c) if self._pairs else h, None, None)
            if done is not None and self._usual:  # as below, with nothing to find out
                y, states = done
                return (y[:, None], *states) if self._pairs else (y[:, None], states)
        if done is None:
            done = _called(self._layer, x, lengths, h, c)
        return _outputs(self._layer, self._named, *done)


class Recurrent(OpRun):
    """What the three operators share: inputs and outputs of ONNX around a `Layer`.

    Everything of https://onnx.ai/onnx/operators/ is there, for float and double, in the equations
    of ONNX Runtime where that document leaves a choice (see docs/onnx.md). A row of
    ``sequence_lens`` 0 keeps its initial state; ONNX Runtime returns zeros there. Weights that
    cannot change, the initialisers of a model, are packed at the first run.
    """

    def __init__(self, onnx_node: Any, run_params: dict[str, Any], schema: Any = None) -> None:
        super().__init__(onnx_node, run_params, schema)
        # What the node says itself: the schema's default of RNN's activations is always for two
        # directions. In a function an attribute may be the caller's, and known only in a run.
        self._said = [a.name for a in onnx_node.attribute]
        self._attributes = None if self.has_linked_attribute else self._read(vars(self))
        self._named = [bool(name) for name in onnx_node.output]
        self._weights: tuple[Any, ...] = ()
        self._prepared: Prepared | None = None

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs; None for one without a name, which the evaluator would else keep under ""
        and hand to the next node as its optional inputs.
        """
        if self._attributes is not None:
            return self._run(*args)
        run: Any = super().run  # which wants an array for every output
        found = run(*args, **kwargs)
        return tuple(a if name else None for name, a in zip(self._named, found, strict=False))

    def prepared(self, w: Any, r: Any, b: Any = None, p: Any = None) -> Prepared:
        """The node with these weights, which must never change."""
        assert self._attributes is not None
        return Prepared(Layer.of(self._attributes, w, r, b, p), self._named)

    def _run(self, *args: Any, **attributes: Any) -> tuple[Any, ...]:
        x, w, r, b, lengths, h, c, p = args + (None,) * (8 - len(args))
        weights = w, r, b, p
        if self._prepared is not None and all(map(operator.is_, weights, self._weights)):
            return self._prepared(x, lengths, h, c)
        if self._attributes is None:
            layer = Layer.of(self._read(attributes), *weights)
            return _outputs(layer, (True,) * 3, *_called(layer, x, lengths, h, c))
        if all(a is None or _immutable(a) for a in weights):
            self._prepared, self._weights = self.prepared(*weights), weights
            return self._prepared(x, lengths, h, c)
        layer = Layer.of(self._attributes, *weights)
        return _outputs(layer, self._named, *_called(layer, x, lengths, h, c))

    def _read(self, values: dict[str, Any]) -> Attributes:
        return Attributes.of(self.op_type, {name: values[name] for name in self._said})


def _called(layer: Layer, x: Any, lengths: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """What rnnfast's function gives."""
    if np.ndim(x) != 3:
        raise ValueError(f"X: expected shape (T, B, I), with layout 1 (B, T, I), got {np.shape(x)}")
    if h is None and c is None:
        return layer(x, lengths=lengths)
    if layer.batch_first:
        h, c = (None if s is None else s.swapaxes(0, 1) for s in (h, c))
    return layer(x, (h, c) if layer.cell == "lstm" else h, lengths=lengths)


def _outputs(
    layer: Layer, named: Sequence[bool], y: Array, state_n: Any
) -> tuple[Array | None, ...]:
    """What rnnfast's function gives as ONNX has it: Y has an axis for the directions."""
    states = state_n if type(state_n) is tuple else (state_n,)
    directions = len(states[0])
    if layer.batch_first:
        states = tuple(s.swapaxes(0, 1) for s in states)
    if not named[0]:
        found = [None, *states]
    elif directions == 1:
        found = [y[:, :, None] if layer.batch_first else y[:, None], *states]
    else:
        y = y.reshape(*y.shape[:2], directions, y.shape[2] // directions)
        found = [y if layer.batch_first else y.swapaxes(1, 2), *states]
    return tuple([a if name else None for name, a in zip(named, found, strict=False)])


def _immutable(array: Any) -> bool:
    """Whether nothing can change the array's values, as onnx reads them from a tensor's bytes."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return isinstance(array, bytes)


class LSTM(Recurrent):
    """https://onnx.ai/onnx/operators/onnx__LSTM.html, by `rnnfast.lstm`."""


class GRU(Recurrent):
    """https://onnx.ai/onnx/operators/onnx__GRU.html, by `rnnfast.gru`."""


class RNN(Recurrent):
    """https://onnx.ai/onnx/operators/onnx__RNN.html, by `rnnfast.rnn`."""


# For `onnx.reference.ReferenceEvaluator(model, new_ops=OPS)`.
OPS: list[type[OpRun]] = [LSTM, GRU, RNN]
