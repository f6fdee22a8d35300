"""PyTorch models with rnnfast's layers as ONNX models with standard nodes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import arrays


def export(model: Any, args: Any, f: Any = None, *, dynamo: bool = False, **kwargs: Any) -> Any:
    """Call `torch.onnx.export` on a model with layers of `rnnfast.torch`.

    They become ONNX's LSTM, GRU and RNN, as those of torch.nn do, which stand for them meanwhile,
    with the same parameters.

    Parameters
    ----------
    model : torch.nn.Module
        It is as before when this returns; no other thread should use it meanwhile.
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

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {arrays.describe(model)}")
    with _standard(model):
        return torch.onnx.export(model, args, f, dynamo=dynamo, **kwargs)


@contextmanager
def _standard(model: Any) -> Iterator[None]:
    """Within it, layers of rnnfast.torch are those of torch.nn."""
    import torch
    from torch.nn.utils.parametrize import is_parametrized

    layers = importlib.import_module("rnnfast.torch")
    twins = {getattr(layers, name): getattr(torch.nn, name) for name in ("LSTM", "GRU", "RNN")}
    before = [(module, type(module)) for module in model.modules()]
    try:
        for module, own in before:
            if own in twins:
                module.__class__ = twins[own]
            elif is_parametrized(module) and own.__base__ in twins:
                # A class that PyTorch made for this module, with a property for each weight.
                names = own.__dict__.items()
                of_class = {k: v for k, v in names if k not in ("__dict__", "__weakref__")}
                module.__class__ = type(own.__name__, (twins[own.__base__],), of_class)
        yield
    finally:
        for module, own in before:
            module.__class__ = own
