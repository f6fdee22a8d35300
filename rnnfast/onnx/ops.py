"""LSTM, GRU and RNN for onnx's ReferenceEvaluator."""

from __future__ import annotations

from typing import Any, ClassVar

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

    inputs: ClassVar[tuple[str, ...]]

    def __init__(self, onnx_node: Any, run_params: dict[str, Any], schema: Any = None) -> None:
        super().__init__(onnx_node, run_params, schema)
        self._attributes: Attributes | None = None
        self._weights: tuple[Array | None, ...] = ()
        self._packed: Layer | None = None

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs; None for one without a name, which the evaluator would else keep under ""
        and hand to the next node as its optional inputs.
        """
        found = super().run(*args, **kwargs)  # type: ignore[no-untyped-call]
        return tuple(
            value if name else None for name, value in zip(self.output, found, strict=False)
        )

    def _run(self, *args: Any, **attributes: Any) -> tuple[Array, ...]:
        given = dict(zip(self.inputs, args, strict=False))
        weights = tuple(given.get(name) for name in ("W", "R", "B", "P"))
        layer = self._layer(weights, attributes)
        states = [given.get(name) for name in ("initial_h", "initial_c") if name in self.inputs]
        if layer.batch_first:
            states = [None if s is None else s.swapaxes(0, 1) for s in states]
        y, state_n = layer(
            given["X"],
            tuple(states) if len(states) > 1 else states[0],
            lengths=given.get("sequence_lens"),
        )
        found = state_n if isinstance(state_n, tuple) else (state_n,)
        directions = len(found[0])
        y = y.reshape(*y.shape[:2], directions, y.shape[2] // directions)
        if layer.batch_first:
            return y, *(s.swapaxes(0, 1) for s in found)
        return y.swapaxes(1, 2), *found

    def _layer(self, weights: tuple[Array | None, ...], given: dict[str, Any]) -> Layer:
        same = zip(weights, self._weights, strict=False)
        if self._packed is not None and all(a is b for a, b in same):
            return self._packed
        attributes = self._attributes
        if attributes is None or self.has_linked_attribute:
            # Without defaults: the schema's for RNN's activations are always two.
            said = {a.name: given[a.name] for a in self.onnx_node.attribute}
            attributes = self._attributes = Attributes.of(self.op_type, said)
        w, r, b, p = weights
        assert w is not None
        assert r is not None
        layer = Layer.of(attributes, w, r, b, p)
        if not self.has_linked_attribute and all(a is None or _immutable(a) for a in weights):
            layer = self._packed = layer.pack()
            self._weights = weights
        return layer


def _immutable(array: Any) -> bool:
    """Whether nothing can change the array's values, as onnx reads them from a tensor's bytes."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return isinstance(array, bytes)


class LSTM(_Recurrent):
    """https://onnx.ai/onnx/operators/onnx__LSTM.html, by `rnnfast.lstm`."""

    inputs = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class GRU(_Recurrent):
    """https://onnx.ai/onnx/operators/onnx__GRU.html, by `rnnfast.gru`."""

    inputs = ("X", "W", "R", "B", "sequence_lens", "initial_h")


class RNN(_Recurrent):
    """https://onnx.ai/onnx/operators/onnx__RNN.html, by `rnnfast.rnn`."""

    inputs = ("X", "W", "R", "B", "sequence_lens", "initial_h")


# For `onnx.reference.ReferenceEvaluator(model, new_ops=OPS)`.
OPS: list[type[OpRun]] = [LSTM, GRU, RNN]
