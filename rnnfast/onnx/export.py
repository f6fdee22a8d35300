"""PyTorch models with rnnfast's layers as ONNX models with standard nodes."""

from __future__ import annotations

import copy
import importlib
from typing import Any

from .. import arrays


def export(model: Any, args: Any, f: Any = None, *, dynamo: bool = False, **kwargs: Any) -> Any:
    """Call `torch.onnx.export` on a model with layers of `rnnfast.torch`.

    They become ONNX's LSTM, GRU and RNN, as those of torch.nn do: a copy of the model, in which
    torch.nn's layers stand for rnnfast's, with the same parameters, is what is exported.

    Parameters
    ----------
    model : torch.nn.Module
        It stays as it is.
    args, f, **kwargs
        As `torch.onnx.export` takes them.
    dynamo : bool
        Which of PyTorch's exporters; the one of torch.export needs the package onnxscript.

    Returns
    -------
    None or torch.onnx.ONNXProgram
        What `torch.onnx.export` returns.

    Raises
    ------
    TypeError
        If `model` is not a torch.nn.Module.
    """
    import torch

    layers = importlib.import_module("rnnfast.torch")
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {arrays.describe(model)}")
    standard = {getattr(layers, name): getattr(torch.nn, name) for name in ("LSTM", "GRU", "RNN")}
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if type(module) in standard:
            module.__class__ = standard[type(module)]
    return torch.onnx.export(copied, args, f, dynamo=dynamo, **kwargs)
