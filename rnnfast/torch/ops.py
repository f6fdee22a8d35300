"""The call with its derivative, in the forms that autograd, the compiler and torch.func take.

For torch.compile and torch.export there are two operators: `rnnfast::run` gives y, h_n, c_n and a
tape, `rnnfast::gradients` goes back. Otherwise an autograd.Function, which costs less, calls the
same functions of calls.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import rnnfast

from ..spec import CELLS
from . import calls
from .calls import Call

_CALL = "str cell, str fields, int directions, bool batch_first, float dropout, str options"
_INPUTS = "Tensor x, Tensor? h_0, Tensor? c_0, Tensor[] weights, Tensor? lengths, Tensor? seed"


def _run(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    cell: str,
    fields: str,
    directions: int,
    batch_first: bool,
    dropout: float,
    options: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(cell, fields, directions, batch_first, dropout, options)
    structure = call.structure([calls.array(w) for w in weights])
    if keep:
        return calls.run_and_keep(x, h_0, c_0, structure, lengths, seed, call)
    results = calls.run(x, h_0, c_0, structure, lengths, seed, call)
    return (*results, torch.empty(0, dtype=torch.uint8))


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
    cell: str,
    fields: str,
    directions: int,
    batch_first: bool,
    dropout: float,
    options: str,
) -> list[Tensor]:
    call = Call(cell, fields, directions, batch_first, dropout, options)
    first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
    found = calls.gradients(*first, weights, lengths, seed, call)
    return [d for d in found if d is not None]  # `general` refuses what has None


run_op = torch.library.custom_op(
    "rnnfast::run",
    _run,
    mutates_args=(),
    schema=f"({_INPUTS}, {_CALL}, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
gradients_op = torch.library.custom_op(
    "rnnfast::gradients",
    _gradients,
    mutates_args=(),
    schema=f"(Tensor tape, Tensor? dy, Tensor? dh_n, Tensor? dc_n, {_INPUTS}, {_CALL}) -> Tensor[]",
)


def _fake_run(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    cell: str,
    fields: str,
    directions: int,
    batch_first: bool,
    dropout: float,
    options: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(cell, fields, directions, batch_first, dropout, options)
    h_n, c_n = _fake_states(call, x, weights)
    y = _fake_sequence(call, x, directions * h_n.shape[-1])
    return y, h_n, c_n, x.new_empty(int(keep), dtype=torch.uint8)


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
    cell: str,
    fields: str,
    directions: int,
    batch_first: bool,
    dropout: float,
    options: str,
) -> list[Tensor]:
    call = Call(cell, fields, directions, batch_first, dropout, options)
    states = _fake_states(call, x, weights)
    return [
        _fake_sequence(call, x, x.shape[-1]),
        *states,
        *(w.new_empty(w.shape) for w in weights),
    ]


def _fake_states(call: Call, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Like h_n and c_n, and like their initial values."""
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
    _save(ctx, x, h_0, c_0, weights, lengths, seed, Call(*static), output[3])


def _save(
    ctx: Any,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    call: Call,
    tape: Tensor,
) -> None:
    """Keep what `_back` needs: the tape reads x and the weights, and a lost one is made again."""
    ctx.save_for_backward(tape, x, h_0, c_0, lengths, seed, *weights)
    ctx.call = call
    ctx.set_materialize_grads(False)


def _back(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None
) -> list[Tensor | None]:
    """The gradients of x, h_0, c_0 and the weights; None for a state that was None."""
    tape, x, h_0, c_0, lengths, seed, *weights = ctx.saved_tensors
    if not CELLS[ctx.call.cell].has_c:
        dc_n = None
    first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
    found: Sequence[Tensor | None]
    if is_traced(x):
        found = gradients_op(*first, weights, lengths, seed, *ctx.call)
    elif torch.is_grad_enabled() or is_transformed():
        found = _Gradients.apply(*first, lengths, seed, ctx.call, *weights)  # type: ignore[no-untyped-call]
    else:
        found = calls.gradients(*first, weights, lengths, seed, ctx.call)
    dx, dh_0, dc_0, *dweights = found
    return [dx, None if h_0 is None else dh_0, None if c_0 is None else dc_0, *dweights]


def _back_op(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
    dx, dh_0, dc_0, *dweights = _back(ctx, *cotangents[:3])
    return dx, dh_0, dc_0, dweights, *[None] * 9


def _refuse(ctx: Any, *cotangents: Any) -> Any:
    raise rnnfast.UnsupportedError(
        "these gradients of rnnfast cannot be differentiated again: there are second derivatives, "
        "but not when compiled, and no third ones"
    )


run_op.register_fake(_fake_run)
run_op.register_autograd(_back_op, setup_context=_set_up)
gradients_op.register_fake(_fake_gradients)
gradients_op.register_autograd(_refuse)


class _Run(torch.autograd.Function):
    """`calls.run_and_keep` with its derivative, for tensors that nothing traces."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        lengths: Tensor | None,
        seed: Tensor | None,
        call: Call,
        structure: list[Any],
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, h_n, c_n, tape = calls.run_and_keep(x, h_0, c_0, structure, lengths, seed, call)
        _save(ctx, x, h_0, c_0, weights, lengths, seed, call, tape)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        dx, dh_0, dc_0, *dweights = _back(ctx, *cotangents)
        return dx, dh_0, dc_0, None, None, None, None, *dweights


class _Transformed(torch.autograd.Function):
    """The same in the form that torch.func asks for, which takes far longer to call."""

    @staticmethod
    def forward(
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        lengths: Tensor | None,
        seed: Tensor | None,
        call: Call,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        structure = call.structure([calls.array(w) for w in weights])
        return calls.run_and_keep(x, h_0, c_0, structure, lengths, seed, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, h_0, c_0, lengths, seed, call, *weights = inputs
        _save(ctx, x, h_0, c_0, weights, lengths, seed, call, output[3])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        dx, dh_0, dc_0, *dweights = _back(ctx, *cotangents[:3])
        return dx, dh_0, dc_0, None, None, None, *dweights


class _Gradients(torch.autograd.Function):
    """`calls.gradients` where someone may want to go back once more."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        tape, dy, dh_n, dc_n, x, h_0, c_0, lengths, seed, call, *weights = inputs
        return tuple(
            calls.gradients(tape, dy, dh_n, dc_n, x, h_0, c_0, weights, lengths, seed, call)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:9], *inputs[10:])
        ctx.call = inputs[9]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs: tape, dy, dh_n, dc_n, x, h_0, c_0, ..., weights."""
        saved = ctx.saved_tensors
        found = _Second.apply(ctx.call, *saved, *cotangents)  # type: ignore[no-untyped-call]
        given = [None if t is None else g for t, g in zip(saved[1:7], found, strict=False)]
        return None, *given, None, None, None, *found[6:]


class _Second(torch.autograd.Function):
    """`calls.second`, from which there is no way back."""

    @staticmethod
    def forward(call: Call, *tensors: Any) -> tuple[Tensor | None, ...]:
        count = len(tensors) // 2 - 6  # 9 and the weights, then 3 and as many again
        tape, dy, dh_n, dc_n, x, h_0, c_0, lengths, seed, *weights = tensors[: 9 + count]
        ddx, ddh_0, ddc_0, *ddweights = tensors[9 + count :]
        if not CELLS[call.cell].has_c:
            ddc_0 = None
        back = (tape, dy, dh_n, dc_n)
        further = (ddx, ddh_0, ddc_0, ddweights)
        return tuple(calls.second(*back, x, h_0, c_0, weights, lengths, seed, call, *further))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(_refuse)


def general(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    call: Call,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and c_n, where `is_traced` or `is_transformed`."""
    if not is_traced(x):
        apply: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = _Transformed.apply
        y, h_n, c_n, _ = apply(x, h_0, c_0, lengths, seed, call, *weights)
        return y, h_n, c_n
    if "bn_mean" in call.fields:
        raise rnnfast.UnsupportedError(
            "bn_mean, bn_var: a compiled call cannot write running statistics; call it uncompiled"
        )
    # An exported program is for inference: it keeps nothing, and its gradients run it again.
    keep = needs_gradients(x, h_0, c_0, *weights) and not _is_exporting()
    y, h_n, c_n, _ = run_op(x, h_0, c_0, weights, lengths, seed, *call, keep)
    return y, h_n, c_n


def train(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    call: Call,
    structure: list[Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and c_n with gradients. `structure` has the memory of the weights as arrays."""
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Run.apply
    return apply(x, h_0, c_0, lengths, seed, call, structure, *weights)


def needs_gradients(*tensors: Tensor | None) -> bool:
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator costs a microsecond
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def is_traced(x: Tensor) -> bool:
    """Whether a compiler records what is done, or x has no memory that may be read."""
    return (
        torch.compiler.is_compiling()
        or (type(x) is not Tensor and type(x) is not torch.nn.Parameter)
        or x.is_meta
    )


# Whether torch.func transforms what is done. Not public, but what autograd.Function itself asks.
is_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active


def _is_exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # since PyTorch 2.7
    return exporting is not None and bool(exporting())
