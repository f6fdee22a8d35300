"""Converted weights run in ONNX Runtime, PyTorch and, for Keras and cuDNN, their equations."""

import itertools
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import rnnfast
from rnnfast import Weights
from rnnfast.convert import convert
from rnnfast.spec import CELLS, Spec, all_specs

T, B, IN, H = 5, 3, 4, 6
SPECS = [spec for spec in all_specs() if spec.cell != "gated"]
FORMATS = ("torch", "keras", "onnx", "cudnn")

each_spec = pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
each_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def draw(spec, num_layers=1, bidirectional=False, bias=True, dtype=np.float64):
    """Large weights, so that two swapped gates change the result."""
    weights = rnnfast.init_weights(
        spec.cell, IN, H, num_layers, bidirectional, bias=bias, dtype=dtype, rng=0
    )
    for array in leaves(weights):
        array *= 3
    return weights


def leaves(weights):
    if isinstance(weights, tuple | list):
        return [leaf for part in weights for leaf in leaves(part)]
    return [] if weights is None else [weights]


def run(spec, x, weights):
    """y of the reference."""
    options = {}
    if spec.info.has_reset_after:
        options["reset_after"] = spec.reset_after
    if spec.info.nonlinearities:
        options["nonlinearity"] = spec.nonlinearity
    return getattr(rnnfast, spec.cell)(x, weights, backend="reference", **options)[0]


def to(spec, weights, target, source="torch"):
    return convert(
        weights, cell=spec.cell, source=source, target=target, reset_after=spec.reset_after
    )


@each_spec
@each_bias
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "two ways"])
def test_onnx_runtime(spec, bias, bidirectional):
    weights = draw(spec, bidirectional=bidirectional, bias=bias, dtype=np.float32)
    [arrays] = to(spec, weights, "onnx")
    attributes = {
        "hidden_size": H,
        "direction": "bidirectional" if bidirectional else "forward",
    }
    if spec.cell == "gru":
        attributes["linear_before_reset"] = int(spec.reset_after)
    if spec.cell == "rnn":
        attributes["activations"] = [spec.nonlinearity.capitalize()] * (1 + bidirectional)
    given = {name: a for name, a in zip("WRB", arrays, strict=True) if a is not None}
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node(spec.cell.upper(), ["x", *given], ["y"], **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [onnx.helper.make_tensor_value_info("x", kind, [T, B, IN])],
        [onnx.helper.make_tensor_value_info("y", kind, [T, 1 + bidirectional, B, H])],
        [onnx.numpy_helper.from_array(a, name) for name, a in given.items()],
    )
    opset = onnx.helper.make_opsetid("", 14)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    x = np.random.default_rng(1).normal(size=(T, B, IN)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    [y] = session.run(None, {"x": x})  # (T, D, B, H)
    expected = run(spec, x, weights)
    np.testing.assert_allclose(
        y.swapaxes(1, 2).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


PHI = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "sigmoid": sigmoid}


def keras_layer(spec, x, kernel, recurrent, bias=None):
    """The layers of Keras 3, written from its documentation."""
    h, c, y = np.zeros((B, H)), np.zeros((B, H)), []
    if bias is None:
        bias = np.zeros((2, 3 * H) if spec.cell == "gru" and spec.reset_after else 1)
    for x_t in x:
        if spec.cell == "lstm":
            i, f, g, o = np.split(x_t @ kernel + h @ recurrent + bias, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif spec.cell == "rnn":
            h = PHI[spec.nonlinearity](x_t @ kernel + bias + h @ recurrent)
        else:
            if spec.reset_after:
                x_z, x_r, x_h = np.split(x_t @ kernel + bias[0], 3, axis=1)
                h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
                z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
                candidate = np.tanh(x_h + r * h_h)
            else:
                x_z, x_r, x_h = np.split(x_t @ kernel + bias, 3, axis=1)
                u_z, u_r, u_h = np.split(recurrent, 3, axis=1)
                z, r = sigmoid(x_z + h @ u_z), sigmoid(x_r + h @ u_r)
                candidate = np.tanh(x_h + (r * h) @ u_h)
            h = z * h + (1 - z) * candidate
        y.append(h)
    return np.stack(y)


@each_spec
@each_bias
def test_keras_equations(spec, bias):
    weights = draw(spec, bias=bias)
    [arrays] = to(spec, weights, "keras")
    x = np.random.default_rng(1).normal(size=(T, B, IN))
    np.testing.assert_allclose(keras_layer(spec, x, *arrays), run(spec, x, weights), atol=1e-12)
    assert len(arrays) == 2 + bias
    if bias:
        two = spec.cell == "gru" and spec.reset_after
        assert arrays[2].shape == ((2, 3 * H) if two else (len(spec.info.gates) * H,))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_cudnn_equations(cell):
    """linLayerID as the reference of cudnnGetRNNWeightParams numbers the gates."""
    weights = draw(Spec(cell))
    [(w, b)] = convert(weights, cell=cell, source="torch", target="cudnn")
    gates = len(w) // 2
    x, h, c, y = np.random.default_rng(1).normal(size=(T, B, IN)), np.zeros((B, H)), 0, []
    for x_t in x:
        on_x = [x_t @ w[k].T + b[k] for k in range(gates)]
        on_h = [h @ w[k].T + b[k] for k in range(gates, 2 * gates)]
        if cell == "lstm":
            i, f, g, o = (p + q for p, q in zip(on_x, on_h, strict=True))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif cell == "gru":
            r, z = sigmoid(on_x[0] + on_h[0]), sigmoid(on_x[1] + on_h[1])
            h = (1 - z) * np.tanh(on_x[2] + r * on_h[2]) + z * h
        else:
            h = np.tanh(on_x[0] + on_h[0])
        y.append(h)
    np.testing.assert_allclose(y, run(Spec(cell), x, weights), atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@each_bias
def test_torch_modules(cell, bias):
    """Tensors in, tensors out; cuDNN's blocks stacked are PyTorch's parameters, by their names."""
    torch.manual_seed(0)
    module = getattr(torch.nn, cell.upper())(
        IN, H, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64
    ).requires_grad_(False)
    directions = [Weights(*parameters) for parameters in module.all_weights]
    weights = list(zip(directions[::2], directions[1::2], strict=True))
    cudnn = convert(weights, cell=cell, source="torch", target="cudnn")
    gates = len(CELLS[cell].gates)
    for layer, pair in enumerate(cudnn):
        for suffix, (matrices, biases) in zip(("", "_reverse"), pair, strict=True):
            for kind, blocks in (("weight", matrices), ("bias", biases)):
                for side, part in (("ih", blocks[:gates]), ("hh", blocks[gates:])):
                    name = f"{kind}_{side}_l{layer}{suffix}"
                    assert (name in module._flat_weights_names) == bool(part)
                    if part:
                        assert torch.equal(torch.cat(part), getattr(module, name))
    back = convert(cudnn, cell=cell, source="cudnn", target="torch")
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves(back))
    x = torch.randn(T, B, IN, dtype=torch.float64)
    torch.testing.assert_close(run(Spec(cell), x, back), module(x)[0], rtol=0, atol=1e-12)


def same(a, b):
    """Equal structure and bits."""
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a is b if a is None or b is None else np.array_equal(a, b)


@each_spec
@each_bias
@pytest.mark.parametrize(("source", "target"), list(itertools.product(FORMATS, FORMATS)))
def test_round_trip(spec, bias, source, target):
    weights = draw(spec, num_layers=2, bidirectional=True, bias=bias)
    if "cudnn" in (source, target) and not spec.reset_after:
        with pytest.raises(ValueError, match="reset_after"):
            to(spec, weights, target, source)
        return
    start = to(spec, weights, source)
    back = to(spec, to(spec, start, target, source), source, target)
    merged = bias and not (spec.cell == "gru" and spec.reset_after)
    if merged and "keras" in (source, target):
        # One bias is left, in zeros or None where a format has a second.
        back, start = (to(spec, w, "keras", source) for w in (back, start))
    assert same(back, start)
    assert not any(np.shares_memory(a, b) for a, b in zip(leaves(back), leaves(start), strict=True))
    single = to(spec, draw(spec, bias=bias)[0], source)
    assert not isinstance(single, list)
    assert same([single], to(spec, draw(spec, bias=bias), source))


def test_biases():
    """Which biases merge, which stay apart, and where zeros stand for one that is missing."""
    spec = Spec("lstm")
    [w] = draw(spec)
    merged = to(spec, to(spec, w, "keras"), "torch", "keras")
    np.testing.assert_array_equal(merged.b_ih, w.b_ih + w.b_hh)
    assert merged.b_hh is None
    half = w._replace(b_ih=None)
    assert same(to(spec, to(spec, half, "cudnn"), "torch", "cudnn"), half)
    assert to(spec, half, "cudnn")[1][:4] == [None] * 4
    onnx_half = to(spec, to(spec, half, "onnx"), "torch", "onnx")
    assert not onnx_half.b_ih.any()
    gru = Spec("gru")
    [w] = draw(gru)
    assert same(to(gru, to(gru, w, "keras"), "torch", "keras"), w)


def test_structures():
    """Keras' lists of arrays are entries; one ONNX triple can be a layer of two directions."""
    spec = Spec("lstm")
    [entry] = to(spec, draw(spec), "keras")
    assert same(to(spec, list(entry), "torch", "keras"), to(spec, entry, "torch", "keras"))
    pair = draw(spec, bidirectional=True)
    [triple] = to(spec, pair, "onnx")
    assert triple[0].shape == (2, 4 * H, IN)
    assert same(to(spec, triple, "torch", "onnx"), pair)
    gated = draw(Spec("gated"))
    assert same(to(Spec("gated"), gated, "torch"), gated)


def test_peepholes_in_onnx():
    """P has the order i o f; w_peep has i f o."""
    spec = Spec("lstm")
    one, other = draw(spec, bidirectional=True)[0]
    peep = np.arange(3.0 * H).reshape(3, H)
    pair = [(one._replace(w_peep=peep), other._replace(w_peep=-peep))]
    [entry] = to(spec, pair, "onnx")
    i, f, o = peep
    np.testing.assert_array_equal(entry[3][0], np.concatenate([i, o, f]))
    assert same(to(spec, entry, "torch", "onnx"), pair)
    assert len(to(spec, (*entry[:2], None, entry[3]), "onnx", "onnx")) == 4


@pytest.mark.parametrize("target", ["keras", "onnx", "cudnn"])
def test_weights_without_a_place(target):
    """A projection and, but in ONNX, peepholes are refused, not lost."""
    spec = Spec("lstm")
    [w] = draw(spec)
    lost = [w._replace(w_peep=np.ones((3, H)))] if target != "onnx" else []
    [projected] = rnnfast.init_weights("lstm", IN, H, proj_size=2, rng=0)
    for weights in [*lost, projected]:
        with pytest.raises(
            rnnfast.UnsupportedError, match=r"weights: expected no w_\w+ for target"
        ):
            to(spec, weights, target)
    assert same(to(spec, projected, "torch"), projected)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


KERAS = (zeros(IN, 4 * H), zeros(H, 4 * H), zeros(4 * H))
ONNX = (zeros(1, 4 * H, IN), zeros(1, 4 * H, H), zeros(1, 8 * H))
CUDNN = ([zeros(H, IN)] * 4 + [zeros(H, H)] * 4, [zeros(H)] * 8)


@pytest.mark.parametrize(
    ("weights", "options", "error", "message"),
    [
        (KERAS, {"cell": "lstn"}, ValueError, "cell: expected one of lstm, gru, rnn, gated"),
        (KERAS, {"source": "tf"}, ValueError, "source: expected one of torch, keras, onnx, cudnn"),
        (KERAS, {"target": None}, ValueError, "target: expected one of torch"),
        (KERAS, {"cell": "gated"}, ValueError, "source: expected torch for cell 'gated'"),
        (KERAS, {"reset_after": 1}, TypeError, "reset_after: expected a bool, got 1"),
        (None, {}, TypeError, "weights: expected (kernel, recurrent_kernel, bias)"),
        ([], {}, TypeError, "weights: expected (kernel"),
        ((KERAS, KERAS), {}, TypeError, "weights: expected (kernel"),
        ([KERAS, zeros(2)], {}, TypeError, "weights[1]: expected (kernel"),
        ([(KERAS, 3.0)], {}, TypeError, "weights[0]"),
        ([KERAS[:1]], {}, ValueError, "weights[0]: expected (kernel"),
        ([KERAS, KERAS], {}, ValueError, "weights[1]: expected input size 6"),
        ([(KERAS, KERAS), KERAS], {}, ValueError, "weights[1]: expected 2 direction(s)"),
        (KERAS, {"cell": "gru"}, ValueError, "weights.recurrent_kernel: expected shape (6, 18)"),
        ((zeros(4 * H, IN), *KERAS[1:]), {}, ValueError, "weights.kernel: expected shape (I, 24)"),
        ((*KERAS[:2], zeros(2, H)), {}, ValueError, "weights.bias: expected shape (24,)"),
        ((*KERAS[:2], zeros(24, dtype=np.float64)), {}, TypeError, "weights.bias: expected dtype"),
        ((zeros(IN, 24, dtype=int), *KERAS[1:]), {}, TypeError, "weights.kernel: expected dtype"),
        ((None, *KERAS[1:]), {}, TypeError, "weights.kernel: expected a NumPy array"),
        ((*ONNX[:2], zeros(1, 24)), {"source": "onnx"}, ValueError, "weights.B: expected shape"),
        ((ONNX[0], zeros(3, 24, 6)), {"source": "onnx"}, ValueError, "weights.R: expected 1 or 2"),
        ([(ONNX, ONNX)], {"source": "onnx"}, TypeError, "weights[0]: expected (W, R, B)"),
        (([], []), {"source": "cudnn"}, TypeError, "weights: expected a tuple of two lists"),
        ((CUDNN[0][:7], []), {"source": "cudnn"}, ValueError, "weights[0]: expected 8 matrices"),
        ((CUDNN[0], CUDNN[1][:4]), {"source": "cudnn"}, ValueError, "weights[1]: expected 8 bias"),
        ((CUDNN[0][::-1], []), {"source": "cudnn"}, ValueError, "weights[0][4]: expected shape"),
        (Weights(*ONNX[:2]), {"source": "torch"}, ValueError, "weights.w_hh: expected shape"),
    ],
)
def test_errors(weights, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        convert(weights, **{"cell": "lstm", "source": "keras", "target": "torch"} | options)
