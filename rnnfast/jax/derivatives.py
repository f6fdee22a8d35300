"""A stack of layers under JAX's transformations: primitives, each the derivative of another.

With F the layers as a function of their smooth operands s (see `rnnfast.jax.stack`):

    rnnfast            F(s), and what was saved
    rnnfast_tangent    F'(s) u
    rnnfast_backward   F'(s)^T c
    rnnfast_second     (d/ds <c, F'(s) u>), symmetric in the direction and its result
    rnnfast_bend       (d/ds F'(s) u) v, which nothing computes: only its transpose is needed

Each but the first is linear in u or c, and is transposed into one of the others. That gives reverse
mode, forward mode, and every mixture of two of them but forward over forward.

Why primitives, and not `jax.custom_vjp`: vmap of that would take the derivative row by row. A
primitive is batched first (a mapped axis becomes part of the batch), then derived; and `custom_vjp`
has no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..errors import UnsupportedError
from . import stack
from .stack import WEIGHTS, Operands, Plan

# Which parts of `smooth(operands)` an operand list of tangents has.
Parts = tuple[int, ...]


def run(plan: Plan, *operands: Any) -> tuple[Any, Any, Any]:
    """y (T, B, D*P), h_n and c_n (L*D, B, P or H), with all of JAX's transformations."""
    y, h_n, c_n = _layers.bind(*_varying_alike(operands), plan=plan, saving=False)
    return y, h_n, c_n


def _primitive(name: str, function: Callable[..., list[Any]], static: Sequence[str]) -> Primitive:
    """function(*operands, **static), checked where it is run: a transpose may take its place."""

    def checked(*flat: Any, **named: Any) -> list[Any]:
        if "parts" in static:
            named["plan"].check_dual()
        return function(*flat, **named)

    made = Primitive(name)
    made.multiple_results = True
    made.def_impl(jax.jit(checked, static_argnames=static))
    mlir.register_lowering(made, mlir.lower_fun(checked, multiple_results=True), platform="cpu")
    made.def_abstract_eval(
        lambda *avals, **named: jax.make_jaxpr(partial(function, **named))(*avals).out_avals
    )
    return made


class _Given(NamedTuple):
    """The operands of a derivative: those of the layers, and the others."""

    operands: list[Any]
    saved: list[Any]
    cotangents: list[Any]
    tangents: list[Any]


def _split(flat: Operands, plan: Plan, *, saved: bool, cotangents: bool) -> _Given:
    after_operands = WEIGHTS + plan.fields * plan.layers * plan.directions
    after_saved = after_operands + (4 if plan.plain is not None else 5) * saved
    after_cotangents = after_saved + 3 * cotangents
    return _Given(
        list(flat[:after_operands]),
        list(flat[after_operands:after_saved]),
        list(flat[after_saved:after_cotangents]),
        list(flat[after_cotangents:]),
    )


def _forward(*operands: Any, plan: Plan, saving: bool) -> list[Any]:
    return stack.forward(plan, saving, *operands)


def _tangent(*flat: Any, plan: Plan, parts: Parts) -> list[Any]:
    given = _split(flat, plan, saved=True, cotangents=False)
    return stack.tangent(plan, given.operands, dict(zip(parts, given.tangents, strict=True)))


def _backward(*flat: Any, plan: Plan, wanted: Parts) -> list[Any]:
    given = _split(flat, plan, saved=True, cotangents=True)
    return stack.backward(plan, given.operands, given.saved, given.cotangents, wanted)


def _second(*flat: Any, plan: Plan, parts: Parts) -> list[Any]:
    given = _split(flat, plan, saved=False, cotangents=True)
    along = dict(zip(parts, given.tangents, strict=True))
    return stack.second(plan, given.operands, along, given.cotangents)


_layers = _primitive("rnnfast", _forward, ("plan", "saving"))
_tangents = _primitive("rnnfast_tangent", _tangent, ("plan", "parts"))
_gradients = _primitive("rnnfast_backward", _backward, ("plan", "wanted"))
_seconds = _primitive("rnnfast_second", _second, ("plan", "parts"))


def _cannot_run(*_: Any, **__: Any) -> Any:
    raise UnsupportedError(
        "rnnfast.jax has forward mode over reverse mode and the other way round; it has no forward "
        "mode over forward mode (jax.jvp of jax.jvp, jax.jacfwd of jax.jacfwd)"
    )


_bends = Primitive("rnnfast_bend")
_bends.multiple_results = True
_bends.def_impl(_cannot_run)
mlir.register_lowering(_bends, _cannot_run)


@_bends.def_abstract_eval
def _(*flat: Any, plan: Plan, along: Parts, parts: Parts) -> Any:
    operands = flat[: len(flat) - len(along) - len(parts)]
    results = jax.make_jaxpr(partial(_forward, plan=plan, saving=False))(*operands)
    return results.out_avals


def _given(tangents: Sequence[Any]) -> tuple[Parts, list[Any]]:
    """The tangents that are not zero, and which they are."""
    found = [(k, t) for k, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    return tuple(k for k, _ in found), [t for _, t in found]


def _zero(a: Any) -> Any:
    return ad.Zero(jax.typeof(a).to_tangent_aval())


def _sum(results: list[list[Any]], like: Sequence[Any]) -> list[Any]:
    if not results:
        return [_zero(a) for a in like]
    return [sum(parts[1:], parts[0]) for parts in zip(*results, strict=True)]


def _or_empty(cotangents: Sequence[Any], dtype: Any) -> list[Any]:
    nothing = jnp.zeros((0,), dtype)
    return [nothing if isinstance(c, ad.Zero) else c for c in cotangents]


def _jvp_layers(primals: Operands, tangents: Operands, *, plan: Plan, saving: bool) -> Any:
    results = _layers.bind(*primals, plan=plan, saving=True)
    parts, along = _given(stack.smooth(tangents))
    of_results = []
    if parts:
        of_results = [_tangents.bind(*primals, *results[3:], *along, plan=plan, parts=parts)]
    results = results if saving else results[:3]
    of_saved = [_zero(a) for a in results[3:]]
    return results, [*_sum(of_results, results[:3]), *of_saved]


def _jvp_tangents(primals: Operands, tangents: Operands, *, plan: Plan, parts: Parts) -> Any:
    results = _tangents.bind(*primals, plan=plan, parts=parts)
    given = _split(primals, plan, saved=True, cotangents=False)
    of = _split(tangents, plan, saved=True, cotangents=False)
    terms = []
    own, along = _given(of.tangents)
    if own:
        flat = (*given.operands, *given.saved, *along)
        terms.append(_tangents.bind(*flat, plan=plan, parts=tuple(parts[k] for k in own)))
    of_operands, along = _given(stack.smooth(of.operands))
    if of_operands:
        flat = (*given.operands, *given.tangents, *along)
        terms.append(_bends.bind(*flat, plan=plan, along=parts, parts=of_operands))
    return results, _sum(terms, results)


def _jvp_gradients(primals: Operands, tangents: Operands, *, plan: Plan, wanted: Parts) -> Any:
    results = _gradients.bind(*primals, plan=plan, wanted=wanted)
    given = _split(primals, plan, saved=True, cotangents=True)
    of = _split(tangents, plan, saved=True, cotangents=True)
    terms = []
    if _given(of.cotangents)[0]:
        own = _or_empty(of.cotangents, results[0].dtype)
        flat = (*given.operands, *given.saved, *own)
        terms.append(_gradients.bind(*flat, plan=plan, wanted=wanted))
    parts, along = _given(stack.smooth(of.operands))
    if parts:
        flat = (*given.operands, *given.cotangents, *along)
        terms.append(_seconds.bind(*flat, plan=plan, parts=parts))
    return results, _sum(terms, results)


def _jvp_seconds(primals: Operands, tangents: Operands, *, plan: Plan, parts: Parts) -> Any:
    given = _split(primals, plan, saved=False, cotangents=True)
    of = _split(tangents, plan, saved=False, cotangents=True)
    if _given([*stack.smooth(of.operands), *of.cotangents])[0]:
        _no_third_derivative()
    results = _seconds.bind(*primals, plan=plan, parts=parts)
    own, along = _given(of.tangents)
    flat = (*given.operands, *given.cotangents, *along)
    return results, _seconds.bind(*flat, plan=plan, parts=tuple(parts[k] for k in own))


def _no_third_derivative(*_: Any, **__: Any) -> Any:
    raise UnsupportedError(
        "rnnfast.jax has first and second derivatives; it cannot be differentiated three times"
    )


ad.primitive_jvps[_layers] = _jvp_layers
ad.primitive_jvps[_tangents] = _jvp_tangents
ad.primitive_jvps[_gradients] = _jvp_gradients
ad.primitive_jvps[_seconds] = _jvp_seconds
ad.primitive_jvps[_bends] = _no_third_derivative


def _unknown(flat: Operands, first: int, found: Sequence[Any]) -> list[Any]:
    """Cotangents of `flat`: what was found for those from `first` on, where they are wanted."""
    wanted = [ad.is_undefined_primal(a) for a in flat[first:]]
    return [None] * first + [c if w else None for c, w in zip(found, wanted, strict=True)]


def _transpose_tangents(cotangents: Operands, *flat: Any, plan: Plan, parts: Parts) -> list[Any]:
    given = _split(flat, plan, saved=True, cotangents=False)
    own = _or_empty(cotangents, given.operands[0].dtype)
    flat_back = (*given.operands, *given.saved, *own)
    wanted = tuple(k for k in (0, 1) if k in parts)
    found = _gradients.bind(*flat_back, plan=plan, wanted=wanted)
    return _unknown(flat, len(flat) - len(parts), [found[k] for k in parts])


def _transpose_gradients(cotangents: Operands, *flat: Any, plan: Plan, wanted: Parts) -> list[Any]:
    given = _split(flat, plan, saved=True, cotangents=True)
    parts, along = _given(cotangents)
    found = _tangents.bind(*given.operands, *given.saved, *along, plan=plan, parts=parts)
    return _unknown(flat, len(flat) - len(found), found)


def _transpose_seconds(cotangents: Operands, *flat: Any, plan: Plan, parts: Parts) -> list[Any]:
    given = _split(flat, plan, saved=False, cotangents=True)
    own, along = _given(cotangents)
    found = _seconds.bind(*given.operands, *given.cotangents, *along, plan=plan, parts=own)
    return _unknown(flat, len(flat) - len(parts), [found[k] for k in parts])


def _transpose_bends(
    cotangents: Operands, *flat: Any, plan: Plan, along: Parts, parts: Parts
) -> list[Any]:
    """Of v, where u is known; each is the direction that the derivative of a gradient is along."""
    first = len(flat) - len(along) - len(parts)
    operands, known = flat[:first], flat[first : first + len(along)]
    if any(map(ad.is_undefined_primal, known)):
        _no_third_derivative()
    own = _or_empty(cotangents, operands[0].dtype)
    found = _seconds.bind(*operands, *own, *known, plan=plan, parts=along)
    return _unknown(flat, first + len(along), [found[k] for k in parts])


ad.primitive_transposes[_tangents] = _transpose_tangents
ad.primitive_transposes[_gradients] = _transpose_gradients
ad.primitive_transposes[_seconds] = _transpose_seconds
ad.primitive_transposes[_bends] = _transpose_bends


def _batch(operands: Operands, axes: Sequence[int | None], *, plan: Plan, saving: bool) -> Any:
    """vmap: a mapped axis of x, state and lengths joins B; mapped weights are run in turn."""
    if saving or any(k is not None for k in axes[WEIGHTS:]):
        return _in_turn(_layers, operands, axes, plan=plan, saving=saving)
    size = next(a.shape[k] for a, k in zip(operands, axes, strict=True) if k is not None)
    folded = [
        _fold(a, k, place, size)
        for a, k, place in zip(operands, axes, (1, 1, 1, 0, 1, 2, 2), strict=False)
    ]
    y, h_n, c_n = run(plan, *folded, *operands[WEIGHTS:])
    of_x = [n for k, n in enumerate(operands[0].shape) if k != axes[0]]
    rows = of_x[1]

    def unfold(a: Any) -> Any:
        return a.reshape(a.shape[0], size, rows, a.shape[2])

    if not plan.has_c:
        return (unfold(y), unfold(h_n), c_n), (1, 1, None)
    return (unfold(y), unfold(h_n), unfold(c_n)), (1, 1, 1)


def _in_turn(
    primitive: Primitive, operands: Operands, axes: Sequence[int | None], **named: Any
) -> Any:
    pairs = list(zip(operands, axes, strict=True))
    mapped = [jnp.moveaxis(a, k, 0) for a, k in pairs if k is not None]

    def one(parts: list[Any]) -> Any:
        part = iter(parts)
        return primitive.bind(*(a if k is None else next(part) for a, k in pairs), **named)

    results = jax.lax.map(one, mapped)
    return results, [0] * len(results)


def _fold(a: Any, axis: int | None, place: int, size: int) -> Any:
    """a with the mapped axis, or copies of a, merged into the axis `place`."""
    if axis is None:
        if a.shape == (0,) or (a.ndim == 4 and a.shape[1:3] == (1, 1)):  # one row for all
            return a
        a = jnp.broadcast_to(jnp.expand_dims(a, place), (*a.shape[:place], size, *a.shape[place:]))
    else:
        a = jnp.moveaxis(a, axis, place)
    return a.reshape(*a.shape[:place], size * a.shape[place + 1], *a.shape[place + 2 :])


batching.primitive_batchers[_layers] = _batch
for _each in (_tangents, _gradients, _seconds):
    batching.primitive_batchers[_each] = partial(_in_turn, _each)
batching.primitive_batchers[_bends] = _cannot_run


def _varying_alike(operands: Operands) -> list[Any]:
    """Inside of shard_map: every operand varies over the mesh axes over which any of them does.

    The transpose of that sums the gradients of the weights over the devices.
    """
    varying = [stack.varying(a) for a in operands]
    every = frozenset().union(*varying)
    return [
        _cast(a, tuple(every - own)) if every - own else a
        for a, own in zip(operands, varying, strict=True)
    ]


def _cast(a: Any, axes: tuple[Any, ...]) -> Any:
    if hasattr(jax.lax, "pcast"):  # from JAX 0.9 on
        return jax.lax.pcast(a, axes, to="varying")
    return jax.lax.pvary(a, axes)
