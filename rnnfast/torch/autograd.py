"""The call with its derivatives, for tensors that no compiler records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

import rnnfast

from ..spec import CELLS, Steps
from . import calls, mapped, memory, tapes
from .calls import Call, Lengths, Results


class Given(NamedTuple):
    """What of a call autograd has no business with."""

    weights: Any  # their memory as arrays, as rnnfast takes them
    lengths: Lengths
    seed: Tensor | None
    call: Call
    aliases: Sequence[Tensor]  # of the weights; they stay on this memory


def train(
    x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor], given: Given
) -> Results:
    """y, h_n and c_n with gradients."""
    return recorded(calls.run_and_keep(x, h_0, c_0, *given[:4]), x, h_0, c_0, weights, given)


def recorded(
    done: calls.Kept,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    given: Given,
) -> Results:
    """The results of `calls.run_and_keep` with gradients."""
    apply: Callable[..., Results] = _Run.apply
    return apply(x, h_0, c_0, done, given, *weights)


def transformed(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
) -> Results:
    """y, h_n and c_n where `is_transformed`."""
    apply: Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor]] = _Transformed.apply
    y, h_n, c_n, _ = apply(x, h_0, c_0, lengths, seed, call, *weights)
    return y, h_n, c_n


def gradients(
    tape: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
    of_x: bool = True,
) -> Sequence[Tensor | None]:
    """Those of x, h_0, c_0 and each of the weights, as whoever asks for them needs them.

    That of x may be None where `of_x` is False.
    """
    _refuse_dual((dy, dh_n, dc_n))
    if any(map(_is_batched, (dy, dh_n, dc_n))):
        raise rnnfast.UnsupportedError(
            "gradients for a batch of cotangents (is_grads_batched, vectorize, "
            "check_batched_grad); expected one at a time, or torch.func.vmap, vjp or jacrev"
        )
    first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
    found: Sequence[Tensor | None]
    if is_traced(x):
        dx, dh_0, dc_0, *rest = torch.ops.rnnfast.gradients(*first, weights, lengths, seed, *call)
        found = [dx, None if h_0 is None else dh_0, None if c_0 is None else dc_0, *rest]
    elif torch.is_grad_enabled() or is_transformed():
        found = _Gradients.apply(*first, lengths, seed, call, *weights)  # type: ignore[no-untyped-call]
    else:
        found = calls.gradients(*first, weights, lengths, seed, call, of_x)
    return found


def _refuse_tangents() -> NoReturn:
    raise rnnfast.UnsupportedError(
        "a tensor has a tangent, and rnnfast.torch has no forward-mode derivatives; expected "
        "backward or torch.func.vjp, or jax.jvp of rnnfast.jax"
    )


def refuse(ctx: Any, *cotangents: Any) -> Any:
    raise rnnfast.UnsupportedError(
        "these gradients of rnnfast cannot be differentiated again: there are second derivatives, "
        "but not when compiled, and no third ones"
    )


class _Run(torch.autograd.Function):
    """`calls.run_and_keep`, which has run already, with its derivative.

    A layer tries shorter ways to run it, and from in here it could not go another one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        done: calls.Kept,
        given: Given,
        *weights: Tensor,
    ) -> Results:
        y, h_n, c_n, tape = done
        # x and the weights too: the tape reads them, and a lost one is made again.
        ctx.save_for_backward(tape, x, h_0, c_0, *weights)
        ctx.given = given
        ctx.places = places(x, h_0, c_0, *weights)
        ctx.hooked = _has_hooks()
        ctx.set_materialize_grads(False)
        return y, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, x, h_0, c_0, *weights = ctx.saved_tensors
        dy, dh_n, dc_n = cotangents
        _, lengths, seed, call, aliases = ctx.given
        # Other memory that was given to a weight is no concern of the tape.
        read = weights if ctx.hooked else aliases
        tape = still_read(tape, ctx.places, x, h_0, c_0, *read)
        first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
        dx, dh_0, dc_0, *dweights = gradients(
            *first, weights, lengths, seed, call, ctx.needs_input_grad[0]
        )
        return dx, dh_0, dc_0, None, None, *dweights


class _Transformed(torch.autograd.Function):
    """The same in the form that torch.func asks for, which takes far longer to call."""

    @staticmethod
    def forward(
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        lengths: Lengths,
        seed: Tensor | None,
        call: Call,
        *weights: Tensor,
    ) -> tuple[Tensor | None, ...]:
        structure = call.structure([memory.array(w) for w in weights])
        return calls.run_and_keep(x, h_0, c_0, structure, lengths, seed, call)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _refuse_tangents()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, h_0, c_0, lengths, seed, call, *weights = inputs
        _save(ctx, (output[3], x, h_0, c_0, lengths, seed, *weights), call)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tape, x, h_0, c_0, lengths, seed, *weights = _saved(ctx)
        dy, dh_n, dc_n, _ = cotangents
        dx, dh_0, dc_0, *dweights = gradients(
            tape, dy, dh_n, dc_n, x, h_0, c_0, weights, lengths, seed, ctx.call
        )
        return dx, dh_0, dc_0, None, None, None, *dweights

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        return mapped.run(_any_way, info.batch_size, in_dims, inputs)


def _any_way(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    lengths: Lengths,
    seed: Tensor | None,
    call: Call,
    *weights: Tensor,
) -> Results:
    """A call below the transformation that has been taken care of."""
    if is_transformed():
        return transformed(x, h_0, c_0, weights, lengths, seed, call)
    aliases = [w.detach() for w in weights]
    given = Given(call.structure([memory.array(w) for w in weights]), lengths, seed, call, aliases)
    if needs_gradients(x, h_0, c_0, *weights):
        return train(x, h_0, c_0, weights, given)
    return calls.run(x, h_0, c_0, *given[:4])


class _Gradients(torch.autograd.Function):
    """`calls.gradients` where someone may want to go back once more."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        tape, dy, dh_n, dc_n, x, h_0, c_0, lengths, seed, call, *weights = inputs
        first = (tape, dy, dh_n, dc_n, x, h_0, c_0)
        return tuple(calls.gradients(*first, weights, lengths, seed, call))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, (*inputs[:9], *inputs[10:]), inputs[9])
        ctx.places = places(*inputs[4:7], *inputs[10:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs: tape, dy, dh_n, dc_n, x, h_0, c_0, ..., weights."""
        saved = _saved(ctx)
        saved[0] = still_read(saved[0], ctx.places, *saved[4:7], *saved[9:])
        found = _Second.apply(ctx.call, *saved, *cotangents)  # type: ignore[no-untyped-call]
        given = [None if t is None else g for t, g in zip(saved[1:7], found, strict=False)]
        return None, *given, None, None, None, *found[6:]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        return mapped.gradients(_Gradients.apply, info.batch_size, in_dims, inputs)


class _Second(torch.autograd.Function):
    """`calls.second`, from which there is no way back."""

    @staticmethod
    def forward(call: Call, *tensors: Any) -> tuple[Tensor | None, ...]:
        count = len(tensors) // 2 - 6  # 9 and the weights, then 3 and as many again
        tape, dy, dh_n, dc_n, x, h_0, c_0, lengths, seed = tensors[:9]
        ddx, ddh_0, ddc_0, *ddweights = tensors[9 + count :]
        if not CELLS[call.cell].has_c:
            ddc_0 = None
        weights = tensors[9 : 9 + count]
        first, further = (tape, dy, dh_n, dc_n, x, h_0, c_0), (ddx, ddh_0, ddc_0, ddweights)
        return tuple(calls.second(*first, weights, lengths, seed, call, *further))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(refuse)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        return mapped.each(_Second.apply, info.batch_size, in_dims, inputs)


def _save(ctx: Any, values: Sequence[Any], call: Call) -> None:
    """Keep tensors, and among them perhaps Steps, for the way back."""
    ctx.steps = {k: v for k, v in enumerate(values) if isinstance(v, Steps)}
    ctx.save_for_backward(*(None if k in ctx.steps else v for k, v in enumerate(values)))
    ctx.call = call
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> list[Any]:
    return [ctx.steps.get(k, tensor) for k, tensor in enumerate(ctx.saved_tensors)]


def places(x: Tensor, *others: Tensor | None) -> list[int] | None:
    """Where tensors lie that a tape reads.

    A hook may give others back for them, and FSDP moves them.
    """
    if is_transformed() or type(x) not in memory.PLAIN:
        return None  # torch.func takes no hooks
    return tapes.addresses(x, *others)


def _has_hooks() -> bool:
    # PyTorch without a name for this is taken to have some.
    return _top_hooks is None or _top_hooks(False) is not None


def still_read(tape: Tensor, before: list[int] | None, *tensors: Tensor | None) -> Tensor:
    """The tape; or none, where the tensors that it reads lie elsewhere.

    What it reads may have changed by then. Without a tape the call is run again.
    """
    return tape if before is None or tapes.addresses(*tensors) == before else tapes.blank()


def _is_batched(tensor: Tensor | None) -> bool:
    """Whether torch.autograd's own vmap, which knows no rules of ours, has made it."""
    return tensor is not None and _is_legacy_batched(tensor)


def needs_gradients(*tensors: Tensor | None) -> bool:
    _refuse_dual(tensors)
    if not torch.is_grad_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator costs a microsecond
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def _refuse_dual(tensors: Sequence[Tensor | None]) -> None:
    if forward_ad._current_level >= 0 and any(map(_has_tangent, tensors)):
        _refuse_tangents()


def _has_tangent(tensor: Tensor | None) -> bool:
    if tensor is None:
        return False
    _, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return tangent is not None


def is_traced(x: Tensor) -> bool:
    """Whether a compiler records what is done, or x has no memory that may be read."""
    return (
        _is_compiling()
        or _is_tracing()  # torch.jit.trace
        or (type(x) is not Tensor and type(x) is not torch.nn.Parameter)
        or x.is_meta
        or _mode_of(_PROXIES) is not None  # of make_fx
    )


def is_plain(x: Tensor) -> bool:
    """Whether rnnfast may read x as it is: nothing traces or transforms what is done."""
    return not (is_traced(x) or is_transformed())


_is_compiling = torch.compiler.is_compiling
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_mode_of: Callable[[Any], Any] = torch._C._get_dispatch_mode
_PROXIES = torch._C._TorchDispatchModeKey.PROXY
_top_hooks: Callable[[bool], Any] | None
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
_is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
# Whether torch.func transforms what is done. Not public, but what autograd.Function itself asks.
is_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
