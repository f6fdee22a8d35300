"""A stack of layers as a JAX primitive: forward and backward are the native kernels, called by XLA.

The operands of the primitive are a fixed list: x (T, B, I), h_0, c_0, lengths, the masks of a cell
with options, then fields of every direction of every layer. What is not there is an empty array.
csrc/ffi.cpp has the shapes for plain cells, csrc/ffi_flexible.cpp those for cells with options, of
which there is one layer at a time. The results are y, h_n, and c_n, empty for a cell without c.

Why a primitive, and not a `custom_vjp` function alone: vmap of that would take the derivative row
by row. The primitive is batched first (a mapped axis becomes part of the batch), then derived.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from .. import _native
from ..errors import UnsupportedError

INSTALL = 'RNNFAST_JAX=ON pip install --force-reinstall --no-deps --no-cache-dir "rnnfast[jax]"'


def _check_installed() -> None:
    """Whether there are handlers, and the installed jaxlib takes them. It takes older ones."""
    if not hasattr(_native, "ffi_handlers"):
        raise ImportError(
            "rnnfast was installed without its handlers for JAX, which are compiled from the "
            f"headers of jaxlib; install it again with {INSTALL}"
        )
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    found = re.findall(r"#define XLA_FFI_API_M(?:AJOR|INOR) (\d+)", header)
    version = tuple(map(int, found))
    built = _native.ffi_version
    if version[0] != built[0] or version < built:
        raise ImportError(
            f"rnnfast's handlers for JAX were compiled for version {built} of XLA's FFI, jaxlib "
            f"has {version}; install a newer jax, or rnnfast again with --no-build-isolation"
        )


_check_installed()
for _name, _handler in _native.ffi_handlers.items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")

Operands = Sequence[Any]
Shape = tuple[int, ...]


class Plan(NamedTuple):
    """What selects the kernels; sizes come from the operands."""

    kernel: str
    options: tuple[float, ...] | None  # None for a plain cell
    gates: int
    layers: int
    directions: int
    has_c: bool
    save: str

    @property
    def target(self) -> str:
        return "rnnfast_" if self.options is None else "rnnfast_flexible_"

    @property
    def fields(self) -> int:
        """How many of `Weights` there are among the operands, for each direction."""
        return 4 if self.options is None else 10


MASKS = slice(4, 7)  # among the operands: recurrent, keep_h, keep_c
WEIGHTS = MASKS.stop  # where they begin


def run(plan: Plan, *operands: Any) -> tuple[Any, Any, Any]:
    """y (T, B, D*P), h_n and c_n (L*D, B, P or H), with all of JAX's transformations."""
    y, h_n, c_n = _stack.bind(*_varying_alike(operands), plan=plan)
    return y, h_n, c_n


class _Sizes:
    """Shapes of the results, from those of the operands."""

    def __init__(self, plan: Plan, operands: Operands) -> None:
        x, w_hh = operands[0], operands[WEIGHTS + 1]
        count = plan.layers * plan.directions
        steps, batch, _ = x.shape
        rows, outputs = w_hh.shape
        hidden = rows // plan.gates
        self.y = (steps, batch, plan.directions * outputs)
        self.h = (count, batch, outputs)
        self.c = (count, batch, hidden) if plan.has_c else (0,)
        rows = steps * batch
        of_c = (count, rows, hidden) if plan.has_c else (0,)
        if plan.options is None:
            gates = _native.ffi_saved_gates(plan.kernel)
            self.saved: tuple[Shape, ...] = (
                (plan.layers - 1, rows, plan.directions * hidden),
                (count, rows, gates, hidden) if plan.save == "all" else (0,),
                (count, rows, hidden),
                of_c,
            )
        else:
            slots = _native.ffi_flexible_slots(plan.kernel, operands[WEIGHTS + 6].size > 0)
            masked = operands[MASKS][0].size > 0
            self.saved = (
                (count, rows, slots, hidden),
                (count, rows, _SCALES),
                (count, rows, outputs),
                (count, rows, outputs) if masked else (0,),
                of_c,
            )


_SCALES = 5  # kScales of csrc/flexible_params.hpp


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _call(verb: str, plan: Plan, shapes: tuple[Shape, ...], *operands: Any) -> list[Any]:
    results = [_result(operands[0], shape) for shape in shapes]
    call = jax.ffi.ffi_call(plan.target + verb, results, vmap_method="sequential")
    if plan.options is None:
        operands = (*operands[: MASKS.start], *operands[MASKS.stop :])
        more: dict[str, Any] = {"layers": np.int64(plan.layers)}
    else:
        more = {"options": np.array(plan.options)}
    directions = np.int64(plan.directions)
    return list(call(*operands, cell=plan.kernel, directions=directions, save=plan.save, **more))


@_call.defjvp
def _no_second_derivative(*_: Any) -> Any:
    raise UnsupportedError(
        "rnnfast.jax has first derivatives in reverse mode (jax.grad, jax.vjp); "
        "it cannot be differentiated twice"
    )


def _forward(plan: Plan, *operands: Any) -> list[Any]:
    sizes = _Sizes(plan, operands)
    shapes = (sizes.y, sizes.h, sizes.c, *[(0,)] * len(sizes.saved))
    return list(_call("forward", plan._replace(save=""), shapes, *operands)[:3])


def _forward_saving(plan: Plan, *operands: Any) -> tuple[list[Any], tuple[Any, Any]]:
    sizes = _Sizes(plan, operands)
    results = _call("forward", plan, (sizes.y, sizes.h, sizes.c, *sizes.saved), *operands)
    return results[:3], (operands, results[3:])


def _backward(plan: Plan, kept: tuple[Any, Any], cotangents: Any) -> tuple[Any, ...]:
    operands, saved = kept
    x, h_0, c_0 = operands[:3]
    sizes = _Sizes(plan, operands)
    shapes = (x.shape, sizes.h, sizes.c, *(w.shape for w in operands[WEIGHTS:]))
    dx, dh_0, dc_0, *dweights = _call("backward", plan, shapes, *operands, *saved, *cotangents)
    dh_0, dc_0 = (
        d if primal.ndim > 1 else jnp.zeros_like(primal) for d, primal in ((dh_0, h_0), (dc_0, c_0))
    )
    return dx, dh_0, dc_0, *[None] * (WEIGHTS - 3), *dweights


_derivable = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_derivable.defvjp(_forward_saving, _backward)


def _implementation(*operands: Any, plan: Plan) -> Any:
    return _derivable(plan, *operands)


_stack = Primitive("rnnfast")
_stack.multiple_results = True
_stack.def_impl(jax.jit(_implementation, static_argnames="plan"))
mlir.register_lowering(
    _stack, mlir.lower_fun(_implementation, multiple_results=True), platform="cpu"
)


@_stack.def_abstract_eval
def _abstract(*avals: Any, plan: Plan) -> Any:
    return jax.make_jaxpr(partial(_forward, plan))(*avals).out_avals


def _jvp(primals: Operands, tangents: Operands, *, plan: Plan) -> Any:
    """Only to be transposed, as `custom_vjp` does; forward mode is refused there."""
    return jax.jvp(partial(_derivable, plan), tuple(primals), tuple(map(_some, primals, tangents)))


def _some(primal: Any, tangent: Any) -> Any:
    if not isinstance(tangent, ad.Zero):
        return tangent
    if jnp.issubdtype(primal.dtype, jnp.floating):
        return jnp.zeros_like(primal)
    return np.zeros(primal.shape, jax.dtypes.float0)


ad.primitive_jvps[_stack] = _jvp


def _batch(operands: Operands, axes: Sequence[int | None], *, plan: Plan) -> Any:
    """vmap: a mapped axis of x, state and lengths joins B; mapped weights are run in turn."""
    size = next(a.shape[k] for a, k in zip(operands, axes, strict=True) if k is not None)
    if any(k is not None for k in axes[WEIGHTS:]):
        return _in_turn(operands, axes, plan), (0, 0, 0)
    folded = [
        _fold(a, k, place, size)
        for a, k, place in zip(operands, axes, (1, 1, 1, 0, 1, 2, 2), strict=False)
    ]
    y, h_n, c_n = run(plan, *folded, *operands[WEIGHTS:])

    def unfold(a: Any) -> Any:
        return a.reshape(a.shape[0], size, a.shape[1] // size, a.shape[2])

    if not plan.has_c:
        return (unfold(y), unfold(h_n), c_n), (1, 1, None)
    return (unfold(y), unfold(h_n), unfold(c_n)), (1, 1, 1)


def _in_turn(operands: Operands, axes: Sequence[int | None], plan: Plan) -> Any:
    pairs = list(zip(operands, axes, strict=True))
    mapped = [jnp.moveaxis(a, k, 0) for a, k in pairs if k is not None]

    def one(parts: list[Any]) -> Any:
        part = iter(parts)
        return run(plan, *(a if k is None else next(part) for a, k in pairs))

    return jax.lax.map(one, mapped)


def _fold(a: Any, axis: int | None, place: int, size: int) -> Any:
    """a with the mapped axis, or copies of a, merged into the axis `place`."""
    if axis is None:
        if a.shape == (0,) or (a.ndim == 4 and a.shape[1:3] == (1, 1)):  # one row for all
            return a
        a = jnp.broadcast_to(jnp.expand_dims(a, place), (*a.shape[:place], size, *a.shape[place:]))
    else:
        a = jnp.moveaxis(a, axis, place)
    return a.reshape(*a.shape[:place], size * a.shape[place + 1], *a.shape[place + 2 :])


batching.primitive_batchers[_stack] = _batch


def _varying_alike(operands: Operands) -> list[Any]:
    """Inside of shard_map: every operand varies over the mesh axes over which any of them does.

    The transpose of that sums the gradients of the weights over the devices.
    """
    varying = [_axes(a) for a in operands]
    every = frozenset().union(*varying)
    return [
        _cast(a, tuple(every - own)) if every - own else a
        for a, own in zip(operands, varying, strict=True)
    ]


def _cast(a: Any, axes: tuple[Any, ...]) -> Any:
    if hasattr(jax.lax, "pcast"):  # from JAX 0.9 on
        return jax.lax.pcast(a, axes, to="varying")
    return jax.lax.pvary(a, axes)


def _axes(a: Any) -> frozenset[Any]:
    kind = jax.typeof(a)
    return getattr(getattr(kind, "mat", kind), "varying", getattr(kind, "vma", frozenset()))


def _result(like: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """A result that varies over the mesh axes over which `like` does."""
    kind = jax.typeof(like)
    more: dict[str, Any] = {}
    if _axes(like):
        where = NamedSharding(kind.sharding.mesh, PartitionSpec())
        if hasattr(kind, "manual_axis_type"):  # from JAX 0.10 on
            more = {"sharding": where, "manual_axis_type": kind.manual_axis_type}
        else:
            more = {"sharding": where, "vma": kind.vma}
    return jax.ShapeDtypeStruct(shape, kind.dtype, **more)
