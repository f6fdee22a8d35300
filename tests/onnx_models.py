"""Models of one recurrent node: drawn, built, and run by ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from helpers import Array
from onnx import helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS = {
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}
WEIGHTS = ("W", "R", "B", "P")


@dataclass
class Node:
    """An operator with its attributes, and arrays for the inputs that it gets, layout 0."""

    operator: str
    arrays: dict[str, Array]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()  # "" for one that is not wanted; () for all

    def __post_init__(self) -> None:
        self.outputs = self.outputs or OUTPUTS[self.operator]

    @property
    def feeds(self) -> dict[str, Array]:
        return {name: a for name, a in self.arrays.items() if name not in WEIGHTS}

    def proto(self, name: str = "it") -> onnx.NodeProto:
        inputs = [k if k in self.arrays else "" for k in INPUTS[self.operator]]
        while not inputs[-1]:
            inputs.pop()
        return helper.make_node(self.operator, inputs, self.outputs, name=name, **self.attributes)

    def model(self, constants: bool = True, opset: int = 22) -> onnx.ModelProto:
        """Weights are initialisers, or inputs of the graph."""

        def info(name: str, a: Array) -> Any:
            kind = helper.np_dtype_to_tensor_dtype(a.dtype)
            return helper.make_tensor_value_info(name, kind, a.shape)

        x = self.arrays["X"]
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        fed = self.feeds if constants else self.arrays
        graph = helper.make_graph(
            [self.proto()],
            "one node",
            [info(name, a) for name, a in fed.items()],
            [
                helper.make_tensor_value_info(name, kind, [None] * (4 if name == "Y" else 3))
                for name in self.outputs
                if name
            ],
            [numpy_helper.from_array(a, k) for k, a in self.arrays.items() if k not in fed],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        onnx.checker.check_model(model)
        return model

    def astype(self, dtype: Any) -> Node:
        arrays = {k: a.astype(dtype) if a.dtype.kind == "f" else a for k, a in self.arrays.items()}
        return Node(self.operator, arrays, self.attributes, self.outputs)

    def by_runtime(self) -> dict[str, Array]:
        return by_runtime(self.model(), self.feeds)

    def batch_first(self) -> Node:
        """The same with layout 1."""
        swapped = ("X", "initial_h", "initial_c")
        arrays = {k: a.swapaxes(0, 1) if k in swapped else a for k, a in self.arrays.items()}
        return Node(self.operator, arrays, {**self.attributes, "layout": 1}, self.outputs)


def by_runtime(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), how, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def draw(
    operator: str,
    T: int = 7,
    B: int = 3,
    I: int = 4,  # noqa: E741
    H: int = 5,
    *,
    direction: str = "forward",
    given: tuple[str, ...] = ("B", "initial_h", "initial_c"),
    seed: int = 0,
    dtype: Any = np.float32,
    positive: bool = False,
    **attributes: Any,
) -> Node:
    """A node with random arrays for X, W, R and what is `given`; lengths of at least 1.

    With `positive` everything that is multiplied is above zero and rows of weights sum to less
    than 1, for activations with kinks, which may be hit from either side, or without bounds.
    """
    rng = np.random.default_rng([seed, T, B, I, H])
    count, rows = 2 if direction == "bidirectional" else 1, GATES[operator] * H
    shapes = {
        "X": (T, B, I),
        "W": (count, rows, I),
        "R": (count, rows, H),
        "B": (count, 2 * rows),
        "initial_h": (count, B, H),
        "initial_c": (count, B, H),
        "P": (count, 3 * H),
    }
    arrays: dict[str, Array] = {}
    for name in INPUTS[operator]:
        if name == "sequence_lens":
            if name in given:
                arrays[name] = rng.integers(1, T + 1, B).astype(np.int32)
        elif name in ("X", "W", "R") or name in given:
            a = rng.standard_normal(shapes[name])
            if name in ("W", "R"):
                a /= shapes[name][2] ** 0.5
            if positive:
                a = abs(a) / 4 if name == "R" else abs(a) / 2
            arrays[name] = a.astype(dtype)
    return Node(operator, arrays, {"hidden_size": H, "direction": direction, **attributes})
