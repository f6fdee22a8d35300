"""The operators that torch.compile and torch.export see.

`rnnfast::run` gives y, h_n, c_n and a tape, `rnnfast::gradients` goes back. Elsewhere the functions
of autograd.py, which cost less, call the same functions of calls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import rnnfast

from ..spec import CELLS
from . import calls, memory, tapes
from .autograd import (
    gradients,
    is_traced,
    needs_gradients,
    refuse,
    transformed,
)
from .calls import Call, Lengths, Results

_CALL = (
    "str cell, str fields, int directions, bool batch_first, float dropout, str options, str places"
)
_INPUTS = "Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? lengths, Tensor? seed"


def _run(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    *static: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *fields, keep = static
    call = Call(*fields)
    structure = call.structure([memory.array(w) for w in weights])
    if keep:
        y, h_n, c_n, tape = calls.run_and_keep(x, h_0, c_0, structure, lengths, seed, call)
        tape = tapes.placed(tape, x, h_0, c_0, *weights)
    else:
        y, h_n, c_n = calls.run(x, h_0, c_0, structure, lengths, seed, call)
        tape = tapes.blank()
    return y, h_n, y.new_empty(0) if c_n is None else c_n, tape


def _gradients(
    tape: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    *static: Any,
) -> list[Tensor]:
    call = Call(*static)
    first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
    dx, dh_0, dc_0, *dweights = calls.gradients(*first, weights, lengths, seed, call)
    states = [x.new_empty(0) if d is None else d for d in (dh_0, dc_0)]
    # As the fake ones are laid out.
    of_weights = [None if d is None else d.contiguous() for d in dweights]
    return [d for d in (dx, *states, *of_weights) if d is not None]  # see `general`


# On a device they make graphs of their own, and cannot be a part of the compiler's.
_unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
_TAGS: dict[str, Any] = {} if _unsafe is None else {"tags": (_unsafe,)}

run_op = torch.library.custom_op(
    "rnnfast::run",
    _run,
    mutates_args=(),
    **_TAGS,
    schema=f"({_INPUTS}, {_CALL}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
gradients_op = torch.library.custom_op(
    "rnnfast::gradients",
    _gradients,
    mutates_args=(),
    **_TAGS,
    schema=f"(Tensor tape, Tensor? dy, Tensor? dh_n, Tensor? dc_n, {_INPUTS}, {_CALL}) -> Tensor[]",
)


def _fake_run(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    *static: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *fields, keep = static
    call = Call(*fields)
    h_n, c_n = _fake_states(call, x, weights)
    y = _fake_sequence(call, x, call.directions * h_n.shape[-1])
    return y, h_n, c_n, tapes.blank(int(keep))


def _fake_gradients(
    tape: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    *static: Any,
) -> list[Tensor]:
    call = Call(*static)
    return [
        _fake_sequence(call, x, x.shape[-1]),
        *(x.new_empty(0 if s is None else s.shape) for s in (h_0, c_0)),
        *(w.new_empty(w.shape) for w in weights),
    ]


def _fake_states(call: Call, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Like h_n and c_n."""
    names = call.names(len(weights))
    w_hh = weights[names[0].index("w_hh")]
    info = CELLS[call.cell]
    batch = [] if x.dim() == 2 else [x.shape[0 if call.batch_first else 1]]
    h_n = x.new_empty([len(names), *batch, w_hh.shape[1]])
    hidden = w_hh.shape[0] // len(info.gates)
    return h_n, x.new_empty([len(names), *batch, hidden] if info.has_c else 0)


def _fake_sequence(call: Call, x: Tensor, width: int) -> Tensor:
    """Like y or dx, which lie in memory with the time as first axis."""
    if x.dim() == 3 and call.batch_first:
        batch, steps, _ = x.shape
        return x.new_empty([steps, batch, width]).transpose(0, 1)
    return x.new_empty([*x.shape[:-1], width])


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, h_0, c_0, weights, lengths, seed, *static, _ = inputs
    ctx.save_for_backward(output[3], x, h_0, c_0, lengths, seed, *weights)
    ctx.call = Call(*static)
    ctx.set_materialize_grads(False)


def _back_op(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: Any
) -> tuple[Any, ...]:
    tape, x, h_0, c_0, lengths, seed, *weights = ctx.saved_tensors
    if not CELLS[ctx.call.cell].has_c:
        dc_n = None
    first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
    dx, dh_0, dc_0, *dweights = gradients(*first, weights, lengths, seed, ctx.call)
    return dx, dh_0, dc_0, dweights, *[None] * 10


run_op.register_fake(_fake_run)
run_op.register_autograd(_back_op, setup_context=_set_up)
gradients_op.register_fake(_fake_gradients)
gradients_op.register_autograd(refuse)


def general(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
) -> Results:
    """y, h_n and c_n, where x is not `autograd.is_plain`."""
    if not is_traced(x):
        return transformed(x, h_0, c_0, weights, lengths, seed, call)
    if "bn_mean" in call.fields:
        raise rnnfast.UnsupportedError(
            "bn_mean, bn_var: a compiled call cannot write running statistics; call it uncompiled"
        )
    # A program of torch.export or torch.jit.trace is for inference: it keeps nothing, and its
    # gradients run it again.
    whole = _is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    keep = needs_gradients(x, h_0, c_0, *weights) and not whole
    y, h_n, c_n, _ = run_op(x, h_0, c_0, weights, lengths, seed, *call, keep)
    return y, h_n, c_n


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # since PyTorch 2.7
    return exporting is not None and bool(exporting())
