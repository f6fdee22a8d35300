"""LSTM, GRU and RNN for onnx's ReferenceEvaluator."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from .attributes import Attributes
from .layer import Layer

Array = NDArray[Any]


class _Recurrent(OpRun):
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
        self._weights: tuple[Array | None, ...] = ()
        self._packed: Layer | None = None

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs; None for one without a name, which the evaluator would else keep under ""
        and hand to the next node as its optional inputs.
        """
        run = super().run if self._attributes is None else self._run
        found = run(*args, **kwargs)
        if "" not in self.output:
            return tuple(found)
        return tuple(
            value if name else None for name, value in zip(self.output, found, strict=False)
        )

    def _run(self, *args: Any, **attributes: Any) -> tuple[Array, ...]:
        given: list[Any] = [*args, *[None] * (8 - len(args))]
        x, w, r, b, lengths, h, c, p = given
        layer = self._layer((w, r, b, p), attributes)
        state = None
        if h is not None or c is not None:
            if layer.batch_first:
                h, c = (None if s is None else s.swapaxes(0, 1) for s in (h, c))
            state = (h, c) if layer.cell == "lstm" else h
        y, state_n = layer(x, state, lengths=lengths)
        found = state_n if type(state_n) is tuple else (state_n,)
        directions = len(found[0])
        if layer.batch_first:
            y = y.reshape(*y.shape[:2], directions, -1)
            return y, *(s.swapaxes(0, 1) for s in found)
        if directions == 1:
            return y[:, None], *found
        return y.reshape(*y.shape[:2], directions, -1).swapaxes(1, 2), *found

    def _layer(self, weights: tuple[Any, ...], given: dict[str, Any]) -> Layer:
        """Of these weights: the packed one, if they are those that it was made of."""
        if self._packed is not None and all(map(operator.is_, weights, self._weights)):
            return self._packed
        attributes = self._attributes
        if attributes is not None and all(a is None or _immutable(a) for a in weights):
            self._packed = Layer.of(attributes, *weights).pack()
            self._weights = weights
            return self._packed
        return Layer.of(self._read(given) if attributes is None else attributes, *weights)

    def _read(self, values: dict[str, Any]) -> Attributes:
        return Attributes.of(self.op_type, {name: values[name] for name in self._said})


def _immutable(array: Any) -> bool:
    """Whether nothing can change the array's values, as onnx reads them from a tensor's bytes."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return isinstance(array, bytes)


class LSTM(_Recurrent):
    """https://onnx.ai/onnx/operators/onnx__LSTM.html, by `rnnfast.lstm`."""


class GRU(_Recurrent):
    """https://onnx.ai/onnx/operators/onnx__GRU.html, by `rnnfast.gru`."""


class RNN(_Recurrent):
    """https://onnx.ai/onnx/operators/onnx__RNN.html, by `rnnfast.rnn`."""


# For `onnx.reference.ReferenceEvaluator(model, new_ops=OPS)`.
OPS: list[type[OpRun]] = [LSTM, GRU, RNN]
