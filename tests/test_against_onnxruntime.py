"""Every usable backend's forward pass against ONNX Runtime, in float32.

ONNX orders the gates i o f c (LSTM) and z r h (GRU), and its LSTM and RNN are those of rnnfast.
With linear_before_reset=0 its GRU is the one that torch does not have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, Problem, forward, problem, without_empty_rows
from tolerance import allowed, assert_close

from rnnfast import Weights
from rnnfast.spec import Spec, all_specs

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

# For each gate of ONNX, in its order, the place of that gate in rnnfast's.
ORDER = {"lstm": [0, 3, 1, 2], "gru": [1, 0, 2], "rnn": [0]}
IN_ONNX = [s for s in all_specs() if s.cell in ORDER]


def reordered(spec: Spec, a: Array) -> Array:
    return np.concatenate([np.split(a, len(ORDER[spec.cell]))[k] for k in ORDER[spec.cell]])


def attributes(spec: Spec, direction_count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"direction": "bidirectional" if direction_count == 2 else "forward"}
    if spec.cell == "gru":
        found["linear_before_reset"] = int(spec.reset_after)
    if spec.cell == "rnn":
        found["activations"] = [spec.nonlinearity.capitalize()] * direction_count
    return found


def run_onnx(p: Problem) -> dict[str, Array]:
    """y, h_n and perhaps c_n of one layer."""
    entry = p.weights[0]
    layer = [entry] if isinstance(entry, Weights) else list(entry)
    w_ih, w_hh, b_ih, b_hh = (
        np.stack([reordered(p.spec, w[field]) for w in layer]) for field in range(4)
    )
    feeds = {
        "X": p.x,
        "W": w_ih,
        "R": w_hh,
        "B": np.concatenate([b_ih, b_hh], axis=1),
        "sequence_lens": None if p.lengths is None else p.lengths.astype(np.int32),
        "initial_h": p.h_0,
    }
    if p.spec.info.has_c:
        feeds["initial_c"] = p.c_0
    states = ["h_n", "c_n"][: 1 + p.spec.info.has_c]
    node = onnx.helper.make_node(
        p.spec.cell.upper(),
        [name if value is not None else "" for name, value in feeds.items()],
        ["y", *states],
        hidden_size=w_hh.shape[-1],
        **attributes(p.spec, len(layer)),
    )
    feeds = {name: value for name, value in feeds.items() if value is not None}
    graph = onnx.helper.make_graph(
        [node],
        "one layer",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in ("y", *states)
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y, *state_n = session.run(None, feeds)
    steps, directions, batch, hidden = y.shape
    y = y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * hidden)
    return {"y": y} | dict(zip(states, state_n, strict=True))


@pytest.mark.parametrize("spec", IN_ONNX, ids=Spec.variants)
@pytest.mark.parametrize("direction_count", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths"])
def test_forward(spec: Spec, direction_count: int, ragged: bool, target: str) -> None:
    case = Case(spec, T=7, B=5, I=6, H=17, D=direction_count, dtype="float32", ragged=ragged)
    p = without_empty_rows(problem(case))
    # Both sides round: twice what one may be off.
    assert_close(forward(p, target), run_onnx(p), 2 * allowed(case))
