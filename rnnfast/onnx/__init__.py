"""ONNX's LSTM, GRU and RNN: operators for its evaluator, a backend, weights out of models, export.

    evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=rnnfast.onnx.OPS)
    rep = rnnfast.onnx.Backend.prepare(model)
    layer = rnnfast.onnx.weights("model.onnx", "lstm_1")
    rnnfast.onnx.export(torch_model, x, "model.onnx")

See docs/onnx.md. Needs the package onnx; nothing here is imported by `import rnnfast`.
"""

from .attributes import Attributes
from .backend import Backend
from .export import export
from .layer import Layer, Pass
from .model import weights
from .ops import OPS

__all__ = ["OPS", "Attributes", "Backend", "Layer", "Pass", "export", "weights"]
