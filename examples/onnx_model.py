"""The recurrent nodes of an ONNX model: listed, and run by rnnfast.

    python -m examples.onnx_model MODEL.onnx
    python -m examples.onnx_model MODEL.onnx --node lstm_1 --steps 100 --batch 4
    python -m examples.onnx_model                  a model of its own, random weights from a seed

Every LSTM, GRU and RNN node is listed with its sizes, then one is run on random inputs, as the
function that `rnnfast.onnx.weights` makes of it. Where ONNX Runtime is installed and the model is
this program's own, the whole model runs in both, and the largest difference is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import rnnfast
import rnnfast.onnx


def own_model(seed: int) -> onnx.ModelProto:
    """A bidirectional LSTM (32 inputs, 2 x 48 units) and a GRU (64 units) on top of it."""
    rng = np.random.default_rng(seed)
    [lstm] = rnnfast.init_weights("lstm", 32, 48, bidirectional=True, rng=rng)
    [gru] = rnnfast.init_weights("gru", 96, 64, rng=rng)
    [lstm_arrays] = rnnfast.convert([lstm], cell="lstm", source="torch", target="onnx")
    gru_arrays = rnnfast.convert(gru, cell="gru", source="torch", target="onnx")
    arrays = {f"lstm.{k}": a for k, a in zip("WRB", lstm_arrays, strict=True)}
    arrays |= {f"gru.{k}": a for k, a in zip("WRB", gru_arrays, strict=True)}
    arrays["shape"] = np.array([0, 0, -1])
    lstm_inputs, gru_inputs = ([f"{name}.{k}" for k in "WRB"] for name in ("lstm", "gru"))
    nodes = [
        helper.make_node(
            "LSTM",
            ["x", *lstm_inputs],
            ["lstm.y"],
            name="lstm",
            hidden_size=48,
            direction="bidirectional",
        ),
        helper.make_node("Transpose", ["lstm.y"], ["swapped"], perm=(0, 2, 1, 3)),
        helper.make_node("Reshape", ["swapped", "shape"], ["features"]),
        helper.make_node(
            "GRU",
            ["features", *gru_inputs],
            ["y"],
            name="gru",
            hidden_size=64,
            linear_before_reset=1,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "B", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", 1, "B", 64])],
        [numpy_helper.from_array(a, name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def recurrent(model: onnx.ModelProto) -> list[Any]:
    return [n for n in model.graph.node if n.op_type in ("LSTM", "GRU", "RNN")]


def sizes(layer: rnnfast.onnx.Layer) -> tuple[int, int, np.dtype[Any]]:
    """I, H and the dtype of a layer."""
    first = layer.passes[0].weights
    while not isinstance(first, rnnfast.Weights):
        first = first[0]
    return first.w_ih.shape[1], first.w_hh.shape[1], first.w_ih.dtype


def compare(model: onnx.ModelProto, x: Any) -> None:
    """The whole model by rnnfast and by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    [wanted] = session.run(None, {"x": x})
    [got] = rnnfast.onnx.Backend.run_model(model, {"x": x})
    print(f"largest difference to ONNX Runtime: {np.abs(got - wanted).max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="an ONNX file; default: one of its own")
    parser.add_argument("--node", help="the name of the node to run; default: the first")
    parser.add_argument("--steps", type=int, default=50, help="T")
    parser.add_argument("--batch", type=int, default=8, help="B")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    if options.model is None:
        print(f"no model given: one with random weights is made from seed {options.seed}")
        model = own_model(options.seed)
    else:
        model = onnx.load(options.model)
    nodes = recurrent(model)
    if not nodes:
        parser.error(f"{options.model} has no LSTM, GRU or RNN node in its main graph")
    for node in nodes:
        layer = rnnfast.onnx.weights(model, node)
        features, hidden, dtype = sizes(layer)
        print(f"{node.op_type:<5}{node.name or '(no name)':<20} I={features} H={hidden} {dtype}")

    layer = rnnfast.onnx.weights(model, options.node or 0)
    features, _, dtype = sizes(layer)
    shape = (options.steps, options.batch, features)
    if layer.batch_first:
        shape = (options.batch, options.steps, features)
    x = np.random.default_rng(options.seed).standard_normal(shape).astype(dtype)
    packed = layer.pack()
    packed(x)
    start = time.perf_counter()
    y, _ = packed(x)
    print(
        f"{layer.cell}: x {x.shape} to y {y.shape} in {(time.perf_counter() - start) * 1e3:.2f} ms"
    )
    if options.model is None and importlib.util.find_spec("onnxruntime") is not None:
        compare(model, x)


if __name__ == "__main__":
    main()
