"""rnnfast.jax beside the same layers written with lax.scan, both under jit, as a table of ratios.

The scan has the input product of all steps before its loop, as good JAX code does. A process is
bound to as many processors as it may have threads, because XLA takes their number from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import rnnfast
from rnnfast.spec import Spec

from . import report
from .peers import Contender, Peer
from .problem import CELLS, DEFAULT_CELLS, MODES, Array, Mode, Problem, flat, named, options
from .rows import Row, row
from .shapes import Shape, select
from .suite import Suite
from .table import shape_name

# (x, weights, state) -> (y, state)
Layers = Callable[[Any, Any, Any], tuple[Any, Any]]


class _Jax(Peer):
    needs = ("jax",)

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return shape.D == 1 and not shape.ragged

    def layers(self, spec: Spec) -> Layers:
        raise NotImplementedError

    def make(self, problem: Problem, threads: int) -> Contender:
        import jax

        rnnfast.set_num_threads(threads)
        layers = self.layers(problem.spec)
        inputs = jax.device_put((problem.x, problem.weights, problem.state))
        if problem.mode == "forward":
            forward = jax.jit(layers)
            return Contender(
                lambda: jax.block_until_ready(forward(*inputs)),
                lambda got: named(*jax.tree.map(np.asarray, got)),
            )

        @jax.jit
        def train(x: Any, weights: Any, state: Any, dy: Any) -> Any:
            def call(x: Any, weights: Any) -> Any:
                return layers(x, weights, state)

            (y, state_n), back = jax.vjp(call, x, weights)
            return y, state_n, back((dy, jax.tree.map(jax.numpy.zeros_like, state_n)))

        dy = jax.device_put(problem.dy)

        def results(got: Any) -> dict[str, Array]:
            y, state_n, (dx, dweights) = jax.tree.map(np.asarray, got)
            return named(y, state_n, [dx, *flat(dweights)])

        return Contender(lambda: jax.block_until_ready(train(*inputs, dy)), results)


class Adapter(_Jax):
    name = "rnnfast"

    def layers(self, spec: Spec) -> Layers:
        import rnnfast.jax

        return partial(getattr(rnnfast.jax, spec.cell), **options(spec))


class Scan(_Jax):
    name = "lax.scan"

    def layers(self, spec: Spec) -> Layers:
        return partial(_scan, spec)


def _scan(spec: Spec, x: Any, weights: Any, state: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    has_c = spec.info.has_c
    zeros = jnp.zeros((len(weights), x.shape[1], weights[0].w_hh.shape[1]), x.dtype)
    given = (zeros,) * (1 + has_c) if state is None else state if has_c else (state,)
    finals = []
    for k, w in enumerate(weights):
        step = partial(_step, spec, w)
        final, x = jax.lax.scan(step, tuple(s[k] for s in given), x @ w.w_ih.T + w.b_ih)
        finals.append(final)
    last = tuple(jnp.stack(parts) for parts in zip(*finals, strict=True))
    return x, last if has_c else last[0]


def _step(spec: Spec, w: Any, state: tuple[Any, ...], a: Any) -> tuple[tuple[Any, ...], Any]:
    """One step, from a = W_ih x + b_ih; see docs/equations.md."""
    import jax
    import jax.numpy as jnp

    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh
    h = state[0]
    if spec.cell == "gru" and not spec.reset_after:
        size = h.shape[1]
        rz = sigmoid(a[:, : 2 * size] + h @ w.w_hh[: 2 * size].T + w.b_hh[: 2 * size])
        r, z = jnp.split(rz, 2, axis=1)
        n = tanh(a[:, 2 * size :] + (r * h) @ w.w_hh[2 * size :].T + w.b_hh[2 * size :])
        h = n + z * (h - n)
        return (h,), h
    u = h @ w.w_hh.T + w.b_hh
    if spec.cell == "lstm":
        i, f, g, o = jnp.split(a + u, 4, axis=1)
        c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h
    if spec.cell == "gru":
        (ar, az, an), (ur, uz, un) = jnp.split(a, 3, axis=1), jnp.split(u, 3, axis=1)
        n = tanh(an + sigmoid(ar + ur) * un)
        h = n + sigmoid(az + uz) * (h - n)
    elif spec.cell == "gated":
        i, f, g = jnp.split(sigmoid(a + u), 3, axis=1)
        h = f * h + i * g
    else:
        functions = {"tanh": tanh, "relu": jax.nn.relu, "sigmoid": sigmoid}
        h = functions[spec.nonlinearity](a + u)
    return (h,), h


OURS: tuple[Peer, ...] = (Adapter(),)
THEIRS: tuple[Peer, ...] = (Scan(),)


def _arguments(add: Any) -> None:
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS)
    add("--shapes", nargs="+", type=shape_name, metavar="SHAPE", help="as of the table")
    add("--modes", nargs="+", choices=MODES, default=MODES)


def _missing() -> bool:
    return importlib.util.find_spec("jax") is None


def _rows(chosen: argparse.Namespace) -> Iterator[Row]:
    if _missing():
        return
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, processors[: chosen.worker])
    for cell in chosen.cells:
        for shape in select(chosen.shapes or ["quick" if chosen.quick else "table"]):
            if not OURS[0].supports(CELLS[cell], shape, "forward"):
                continue
            for mode in chosen.modes:
                families = [peer.name for peer in THEIRS]
                yield row(cell, shape, mode, chosen.worker, families, chosen.budget, (OURS, THEIRS))


def _header() -> list[str]:
    left_out = ["nothing is timed, because jax is not installed"] * _missing()
    return left_out + report.row_header()


def _summary(rows: list[Row]) -> list[str]:
    ratio = "ratio: time of lax.scan / time of rnnfast.jax; above 1 rnnfast.jax is faster."
    return ["", *report.mean_lines(rows), "", ratio]


main = Suite(
    name="jax",
    about=__doc__,
    rows=_rows,
    header=_header,
    lines=report.row_lines,
    arguments=_arguments,
    summary=_summary,
    more=lambda rows: {"means": report.means(rows)},
    budget=8.0,
).main
