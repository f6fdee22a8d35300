"""The native kernels as functions of JAX arrays: each is one call of a handler by XLA.

The operands are a fixed list: x (T, B, I), h_0, c_0, lengths, the masks of a cell with options and
fields of every direction of every layer. What is not there is an empty array. csrc/ffi.cpp has the
shapes for plain cells, csrc/ffi_flexible.cpp those for cells with options, of which there is one
layer at a time. Results are y, h_n, and c_n, empty for a cell without c.

These functions cannot be transformed: see `rnnfast.jax.derivatives`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .. import _native
from ..errors import UnsupportedError
from ..weights import in_order, inverse

INSTALL = 'RNNFAST_JAX=ON pip install --force-reinstall --no-deps --no-cache-dir ".[jax]"'


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

    plain: str | None  # the kernel of a plain cell
    cell: str  # that of the same cell with options
    options: tuple[float, ...]
    gates: int
    layers: int
    directions: int
    has_c: bool
    save: str
    transposed: bool  # w_ih and w_hh of a plain cell are handed over as their transposes
    places: tuple[int, ...]  # of its gates in the weights, or () for our order

    def check_dual(self) -> None:
        """Refuse what changes gradients and not results: it has no derivative along a direction."""
        last = ("clip", "grad_clip", "input_forget", "truncate")
        given = dict(zip(last, self.options[-len(last) :], strict=True))
        for option in ("grad_clip", "truncate"):
            if given[option]:
                raise UnsupportedError(
                    f"{option}: rnnfast.jax has first derivatives in reverse mode (jax.grad, "
                    f"jax.vjp) with it, neither second ones nor forward mode"
                )

    @property
    def fields(self) -> int:
        """How many of `Weights` there are among the operands, for each direction."""
        return _FIELDS if self.plain is None else 4


_FIELDS = 10  # of a cell with options
_SCALES = 5  # kScales of csrc/flexible_params.hpp
MASKS = slice(4, 7)  # among the operands: recurrent, keep_h, keep_c
WEIGHTS = MASKS.stop  # where they begin
SMOOTH = (0, 1, 2)  # operands that have derivatives, as the weights do


def smooth(operands: Operands) -> list[Any]:
    """The operands that have derivatives."""
    return [*operands[: len(SMOOTH)], *operands[WEIGHTS:]]


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
        if plan.plain is not None:
            gates = _native.saved_gates(plan.plain)
            self.saved: tuple[Shape, ...] = (
                (plan.layers - 1, rows, plan.directions * hidden),
                (count, rows, gates, hidden) if plan.save == "all" else (0,),
                (count, rows, hidden),
                of_c,
            )
        else:
            slots = _native.ffi_flexible_slots(plan.cell, operands[WEIGHTS + 6].size > 0)
            masked = operands[MASKS][0].size > 0
            self.saved = (
                (count, rows, slots, hidden),
                (count, rows, _SCALES),
                (count, rows, outputs),
                (count, rows, outputs) if masked else (0,),
                of_c,
            )


def forward(plan: Plan, saving: bool, *operands: Any) -> list[Any]:
    """y (T, B, D*P), h_n and c_n (L*D, B, P or H), and what `backward` needs where it is saved."""
    sizes = _Sizes(plan, operands)
    results = (sizes.y, sizes.h, sizes.c)
    if saving:
        return _pass("forward", plan, (*results, *sizes.saved), operands)
    nothing = [(0,)] * len(sizes.saved)
    return _pass("forward", plan._replace(save=""), (*results, *nothing), operands)[:3]


def backward(
    plan: Plan,
    operands: Operands,
    saved: Operands,
    cotangents: Operands,
    wanted: Sequence[int],
) -> list[Any]:
    """The gradients of `smooth(operands)`, for cotangents of y, h_n and c_n.

    Those of x and h_0, which are the first two, may be zero where they are not `wanted`.
    """
    like = smooth(operands)
    shapes = _of_gradients(plan, operands, [a.shape for a in like])
    outer = _matrices_are_outer(plan, operands)
    if plan.plain is not None:
        for k in {0, 1}.difference(wanted):
            shapes[k] = (0,)
    if outer:
        w_hh = operands[WEIGHTS + 1]
        shapes[len(SMOOTH) :] = [(0,), (0,), w_hh.shape[:1], w_hh.shape[:1]] * (
            plan.layers * plan.directions
        )
    found = _pass("backward", plan, shapes, (*operands, *saved, *cotangents))
    if outer:
        found = _with_matrices(plan, operands, saved, found)
    return _fit(found, like)


def _matrices_are_outer(plan: Plan, operands: Operands) -> bool:
    """Whether gradients of w_ih and w_hh are the outer products of those of the biases and a row.

    That is so for one row and one step. XLA then forms their numbers where it uses them, and need
    not read them from memory: of one step that is half of what a training step moves.
    """
    x, h_0, _, lengths = operands[:4]
    by_h = plan.plain != "gru_before" or not h_0.size  # its candidate multiplies r * h
    return plan.plain is not None and by_h and x.shape[:2] == (1, 1) and not lengths.size


def _with_matrices(
    plan: Plan, operands: Operands, saved: Operands, gradients: list[Any]
) -> list[Any]:
    """The gradients, of which those of w_ih and w_hh are empty, with these."""
    found, first = list(gradients), len(SMOOTH)
    x, h_0 = operands[:2]
    for k in range(plan.layers * plan.directions):
        layer = k // plan.directions
        row = saved[0][layer - 1, 0] if layer else x[0, 0]
        w_ih, w_hh, b_ih, b_hh = range(first + 4 * k, first + 4 * k + 4)
        # Products with zeros too: the memory of w_hh is then not free before the backward pass.
        h = h_0[k, 0] if h_0.size else jnp.zeros(operands[WEIGHTS + 1].shape[1], x.dtype)
        found[w_ih], found[w_hh] = jnp.outer(found[b_ih], row), jnp.outer(found[b_hh], h)
    return found


def tangent(plan: Plan, operands: Operands, along: Mapping[int, Any]) -> list[Any]:
    """The derivatives of y, h_n and c_n along a direction, given by its parts of `smooth`."""
    sizes = _Sizes(plan, operands)
    return _dual("tangent", plan, (sizes.y, sizes.h, sizes.c), operands, along, ())


def second(
    plan: Plan, operands: Operands, along: Mapping[int, Any], cotangents: Operands
) -> list[Any]:
    """The derivatives, along a direction, of what `backward` gives for these cotangents."""
    like = _every_field(plan, smooth(operands))
    shapes = _of_gradients(plan, operands, [a.shape for a in like])
    results = _fit(_dual("second", plan, shapes, operands, along, cotangents), like)
    kept = len(SMOOTH)
    every = range(kept, len(results))
    found = (results[k] for k in every if (k - kept) % _FIELDS < plan.fields)
    return [*results[:kept], *(_moved(a, inverse(plan.places)) for a in found)]


def _moved(a: Any, places: Sequence[int]) -> Any:
    """`rnnfast.weights.in_order`, where gates are to be moved and there is such an array."""
    return in_order(a, places, jnp.concatenate) if places and a.size else a


def _of_gradients(plan: Plan, operands: Operands, like: list[Shape]) -> list[Shape]:
    """Shapes of gradients: those of a state are there even where the state is not."""
    sizes = _Sizes(plan, operands)
    return [like[0], sizes.h, sizes.c, *like[len(SMOOTH) :]]


def _fit(gradients: list[Any], like: list[Any]) -> list[Any]:
    return [
        g if g.shape == a.shape else jnp.zeros_like(a) for g, a in zip(gradients, like, strict=True)
    ]


def _pass(verb: str, plan: Plan, shapes: Sequence[Shape], operands: Operands) -> list[Any]:
    if plan.plain is None:
        more: dict[str, Any] = {"cell": plan.cell, "options": np.array(plan.options)}
        return _call(f"flexible_{verb}", plan, shapes, operands, save=plan.save, **more)
    operands = (*operands[: MASKS.start], *operands[MASKS.stop :])
    more = {
        "cell": plan.plain,
        "layers": np.int64(plan.layers),
        "transposed": plan.transposed,
        "places": np.array(plan.places or range(plan.gates)),
    }
    if not plan.transposed:
        return _call(verb, plan, shapes, operands, save=plan.save, **more)
    # The transpose of a transpose, which XLA removes. All matrices are weights.
    operands = [a.T if a.ndim == 2 else a for a in operands]
    shapes = [shape[::-1] if len(shape) == 2 else shape for shape in shapes]
    results = _call(verb, plan, shapes, operands, save=plan.save, **more)
    return [a.T if a.ndim == 2 else a for a in results]


def _dual(
    verb: str,
    plan: Plan,
    shapes: Sequence[Shape],
    operands: Operands,
    along: Mapping[int, Any],
    cotangents: Operands,
) -> list[Any]:
    nothing = jnp.zeros((0,), operands[0].dtype)
    tangents = [along.get(k, nothing) for k in range(len(smooth(operands)))]
    inputs = (
        *operands[:WEIGHTS],
        *_every_field(plan, smooth(operands))[len(SMOOTH) :],
        *_every_field(plan, tangents),
        *cotangents,
    )
    more: dict[str, Any] = {"options": np.array(plan.options), "layers": np.int64(plan.layers)}
    return _call(verb, plan, shapes, inputs, cell=plan.cell, **more)


def _every_field(plan: Plan, parts: list[Any]) -> list[Any]:
    """Parts of `smooth` as cells with options have them.

    Their gates are in our order, and there is an empty array for each field that a plain cell does
    not have.
    """
    nothing = [jnp.zeros((0,), parts[0].dtype)] * (_FIELDS - plan.fields)
    found = parts[: len(SMOOTH)]
    for first in range(len(SMOOTH), len(parts), plan.fields):
        given = (_moved(a, plan.places) for a in parts[first : first + plan.fields])
        found += [*given, *nothing]
    return found


def _call(
    target: str, plan: Plan, shapes: Sequence[Shape], inputs: Operands, **attributes: Any
) -> list[Any]:
    results = [_result(inputs[0], shape) for shape in shapes]
    call = jax.ffi.ffi_call(f"rnnfast_{target}", results)
    return list(call(*inputs, directions=np.int64(plan.directions), **attributes))


def varying(a: Any) -> frozenset[Any]:
    """The mesh axes over which an array varies, inside of shard_map."""
    kind = jax.typeof(a)
    return getattr(getattr(kind, "mat", kind), "varying", getattr(kind, "vma", frozenset()))


def _result(like: Any, shape: Shape) -> jax.ShapeDtypeStruct:
    """A result that varies over the mesh axes over which `like` does."""
    kind = jax.typeof(like)
    more: dict[str, Any] = {}
    if varying(like):
        where = NamedSharding(kind.sharding.mesh, PartitionSpec())
        if hasattr(kind, "manual_axis_type"):  # from JAX 0.10 on
            more = {"sharding": where, "manual_axis_type": kind.manual_axis_type}
        else:
            more = {"sharding": where, "vma": kind.vma}
    return jax.ShapeDtypeStruct(shape, kind.dtype, **more)
