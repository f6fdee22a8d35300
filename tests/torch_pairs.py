"""Layers of torch.nn and their twins of rnnfast, with the same weights, and how to compare them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import rnnfast.torch

torch.set_num_threads(1)  # whose threads would spin beside those of rnnfast

NAMES = ("LSTM", "GRU", "RNN")
RTOL = 1e-11  # in float64, relative to the largest number of an array


def pair(name: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A layer of torch.nn and one of rnnfast.torch."""
    options = {"dtype": torch.float64, **options}
    theirs = getattr(torch.nn, name)(*sizes, **options)
    ours = getattr(rnnfast.torch, name)(*sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def flat(value: Any) -> list[Tensor]:
    """The tensors of a result or of hx; those of a PackedSequence are its data."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [t for v in value for t in flat(v)]


def close(ours: Any, theirs: Any, rtol: float = RTOL) -> None:
    """Each tensor within rtol of the other's largest number; same shape and dtype."""
    got, wanted = flat(ours), flat(theirs)
    assert len(got) == len(wanted)
    for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.shape == b.shape, k
        assert a.dtype == b.dtype, k
        scale = b.detach().abs().max().item() if b.numel() else 0
        worst = (a.detach() - b.detach()).abs().max().item() if b.numel() else 0
        assert worst <= rtol * scale, f"{k}: off by {worst:.2g} of {scale:.2g}"


def trained(module: Any, x: Any, hx: Any, seed: int = 0) -> tuple[Any, list[Tensor]]:
    """What a module returns, and the gradients of x, hx and its parameters.

    The loss takes in every output with random numbers of its own.
    """
    results = module(x, hx)
    outputs = flat(results)
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in outputs
    ]
    loss = sum(((t * w).sum() for t, w in zip(outputs, weights, strict=True)), torch.zeros(()))
    inputs = [t for t in (*flat(x), *flat(hx)) if t.requires_grad]
    return results, list(torch.autograd.grad(loss, [*inputs, *module.parameters()]))


def same_training(ours: Any, theirs: Any, x: Any, hx: Any = None, rtol: float = RTOL) -> None:
    """Results and gradients of both modules agree, and so do those without gradients."""
    wanted, gradients = trained(theirs, x, hx)
    got, own = trained(ours, x, hx)
    close(got, wanted, rtol)
    close(own, gradients, rtol)
    with torch.no_grad():
        for _ in range(3):  # packed from the second time on
            close(ours(x, hx), wanted, rtol)
