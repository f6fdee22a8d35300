"""Models that PyTorch exports, and models of rnnfast.torch on their way to ONNX Runtime."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import numpy as np
import pytest
from tolerance import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed")
onnx = pytest.importorskip("onnx", reason="rnnfast.onnx needs onnx")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is the oracle of rnnfast.onnx")

from onnx_models import GATES, by_runtime  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from rnnfast.onnx import Backend, export, weights  # noqa: E402

# PyTorch's own: of its exporters, of which one is called deprecated and the other new.
pytestmark = pytest.mark.filterwarnings("ignore")
FLOAT32 = 1e-5  # some steps of sums of up to 32 terms, in two libraries
adapter = pytest.mark.skipif(
    importlib.util.find_spec("rnnfast.torch") is None, reason="rnnfast.torch is not there"
)


class Tagger(torch.nn.Module):  # type: ignore[name-defined,misc]
    """A recurrent layer with others around it."""

    def __init__(self, layer: Any, hidden: int) -> None:
        super().__init__()
        self.before = torch.nn.Linear(6, 5)
        self.layer = layer
        self.after = torch.nn.Linear(hidden, 3)

    def forward(self, x: Any) -> Any:
        return self.after(self.layer(torch.tanh(self.before(x)))[0])


def exported(model: Any, x: Any, how: Any = torch.onnx.export, **kwargs: Any) -> Any:
    into = io.BytesIO()
    how(model, (x,), into, dynamo=False, input_names=["x"], output_names=["y"], **kwargs)
    return onnx.load_model_from_string(into.getvalue())


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_torch_to_rnnfast(operator: str, bidirectional: bool, batch_first: bool) -> None:
    """A model that torch.nn exports runs on our operators, and gives its weights."""
    torch.manual_seed(0)
    layer = getattr(torch.nn, operator)(
        5, 7, num_layers=2, bidirectional=bidirectional, batch_first=batch_first
    )
    model = Tagger(layer, 7 * (1 + bidirectional)).eval()
    x = torch.randn(4, 3, 6)
    proto = exported(model, x)
    with torch.no_grad():
        wanted = {"y": model(x).numpy()}
        inner = layer(torch.tanh(model.before(x)))[0].numpy()
    [got] = Backend.run_model(proto, [x.numpy()])
    assert_close({"y": got}, wanted, FLOAT32)
    y = torch.tanh(model.before(x)).detach().numpy()
    y = y.swapaxes(0, 1) if batch_first else y
    for k in range(2):
        y, _ = weights(proto, k)(y)
    y = y.swapaxes(0, 1) if batch_first else y
    assert_close({"y": y}, {"y": inner}, FLOAT32)


@adapter
@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_rnnfast_to_onnx(operator: str, bidirectional: bool) -> None:
    """A model of rnnfast.torch becomes standard nodes, and stays the model that it was."""
    import rnnfast.torch

    torch.manual_seed(0)
    kind = getattr(rnnfast.torch, operator)
    layer = kind(5, 7, num_layers=2, bidirectional=bidirectional)
    model = Tagger(layer, 7 * (1 + bidirectional)).eval()
    x = torch.randn(4, 3, 6)
    with torch.no_grad():
        wanted = {"y": model(x).numpy()}
    proto = exported(model, x, export)
    assert [n.op_type for n in proto.graph.node].count(operator) == 2
    assert {n.domain for n in proto.graph.node} == {""}
    assert_close(by_runtime(proto, {"x": x.numpy()}), wanted, FLOAT32)
    assert type(model.layer) is kind
    with torch.no_grad():
        np.testing.assert_array_equal(model(x).numpy(), wanted["y"])


@adapter
@pytest.mark.parametrize("how", ["weight_norm", "pruned"])
def test_export_with_weights_that_are_computed(how: str) -> None:
    import rnnfast.torch

    torch.manual_seed(0)
    layer = rnnfast.torch.GRU(5, 7)
    model = Tagger(layer, 7).eval()
    if how == "pruned":
        prune.random_unstructured(layer, "weight_hh_l0", 0.5)
    else:
        torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    kind = type(layer)
    x = torch.randn(4, 3, 6)
    with torch.no_grad():
        wanted = {"y": model(x).numpy()}
    proto = exported(model, x, export)
    assert [n.op_type for n in proto.graph.node].count("GRU") == 1
    assert_close(by_runtime(proto, {"x": x.numpy()}), wanted, FLOAT32)
    assert type(layer) is kind
    with torch.no_grad():
        np.testing.assert_array_equal(model(x).numpy(), wanted["y"])


@adapter
def test_a_model_that_cannot_be_exported_is_as_before() -> None:
    import rnnfast.torch

    layer = rnnfast.torch.GRU(5, 7)
    model = torch.nn.ModuleList([layer, torch.nn.Sequential(layer), rnnfast.torch.LSTM(5, 7)])
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(Exception, match="forward"):
        export(model, (torch.randn(4, 3, 5),), io.BytesIO())
    assert [type(module) for module in model.modules()] == kinds


@adapter
def test_export_takes_modules() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got 3"):
        export(3, ())
