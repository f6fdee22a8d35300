"""replace_: the layers of an existing model, swapped in place."""

from __future__ import annotations

import torch

from .modules import GRU, LSTM, RNN

_OURS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.LSTM: LSTM,
    torch.nn.GRU: GRU,
    torch.nn.RNN: RNN,
}


def replace_(model: torch.nn.Module) -> int:
    """Make every LSTM, GRU and RNN layer of a model one of rnnfast's, in place.

    The layers stay the objects that they are, with their parameters, hooks, training mode and
    whoever else refers to them, an optimizer or a DistributedDataParallel; only their class
    changes. The model may itself be such a layer.

    Parameters
    ----------
    model : torch.nn.Module
        Subclasses of torch.nn.LSTM, GRU and RNN, which may compute something else, stay as they
        are.

    Returns
    -------
    int
        How many layers were swapped.

    Raises
    ------
    TypeError
        If `model` is not a torch.nn.Module.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LSTM(8, 16))
    >>> rnnfast.torch.replace_(model)
    1
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [module for module in model.modules() if type(module) in _OURS]
    for module in found:
        module.__class__ = _OURS[type(module)]
    return len(found)
