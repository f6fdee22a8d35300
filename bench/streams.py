"""One step of one row at a time, carrying the state: everyone's best way to do it.

A stream is a callable that takes one step from the state that its last call left; what a program
would do once is done in its maker. All of them get the same x at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import rnnfast

from .peers import onnx_model
from .problem import Array, Problem, options
from .timing import Call


class Stream(NamedTuple):
    step: Call
    h: Callable[[], Array]  # the state that the last step left, (H,)


def plain(problem: Problem, threads: int) -> Stream:
    """rnnfast's function with packed weights; y and the state are new arrays at every call."""
    call, x, packed = _ours(problem, threads)
    state = None

    def step() -> None:
        nonlocal state
        state = call(x, packed, state)[1]

    return Stream(step, lambda: _h(state))


def in_place(problem: Problem, threads: int) -> Stream:
    """The same with out=: y and the state stay where they are, and nothing is allocated."""
    call, x, packed = _ours(problem, threads)
    arrays = _states(problem)
    state = arrays if problem.spec.info.has_c else arrays[0]
    y = np.empty_like(arrays[0])

    def step() -> None:
        call(x, packed, state, out=(y, state))

    return Stream(step, lambda: _h(state))


def chunks(problem: Problem, threads: int) -> Stream:
    """rnnfast.Stream, which has the buffers and the state."""
    _, x, packed = _ours(problem, threads)
    stream = rnnfast.Stream(packed, problem.spec.cell, **options(problem.spec))
    return Stream(lambda: stream(x), lambda: _h(stream.state))


def kernel(problem: Problem, threads: int) -> Stream:
    """The compiled function that both end in, without the checks and the dispatch above it."""
    _, x, packed = _ours(problem, threads)
    before = [*_states(problem), None][:2]
    after = [*_states(problem), None][:2]
    y = np.empty((1, problem.shape.H), np.float32)
    rows = x.reshape(1, -1)
    layers = packed.prepared
    forward = type(layers[0]).forward

    def step() -> None:
        nonlocal before, after
        forward(layers, rows, 1, 1, None, None, *before, [y], *after, "")
        before, after = after, before

    return Stream(step, lambda: _h(before[0]))


def _ours(problem: Problem, threads: int) -> tuple[Callable[..., Any], Array, Any]:
    rnnfast.set_num_threads(threads)
    spec = problem.spec
    packed = rnnfast.pack(problem.weights, cell=spec.cell, **options(spec))
    return getattr(rnnfast, spec.cell), problem.x, packed


def _states(problem: Problem) -> tuple[Array, ...]:
    """Zeros for h and, where the cell has one, c: (1, 1, H)."""
    count = 1 + problem.spec.info.has_c
    return tuple(np.zeros((1, 1, problem.shape.H), np.float32) for _ in range(count))


def _h(state: Any) -> Array:
    h = state[0] if isinstance(state, tuple) else state
    return np.asarray(h).reshape(-1)


def torch(problem: Problem, threads: int) -> Stream:
    """torch.nn.LSTM, GRU or RNN, without gradients for the rest of the process."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    shape = problem.shape
    module = getattr(torch.nn, problem.spec.cell.upper())(shape.I, shape.H)
    for parameter, array in zip(module.parameters(), problem.weights[0], strict=False):
        parameter.copy_(torch.from_numpy(array))
    x = torch.from_numpy(problem.x)
    state = None

    def step() -> None:
        nonlocal state
        state = module(x, state)[1]

    return Stream(step, lambda: _h(state))


def _session(problem: Problem, threads: int) -> Any:
    import onnxruntime  # type: ignore[import-untyped]

    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads, how.inter_op_num_threads = threads, 1
    model = onnx_model(problem, stream=True).SerializeToString()
    return onnxruntime.InferenceSession(model, how, providers=["CPUExecutionProvider"])


def onnxruntime(problem: Problem, threads: int) -> Stream:
    """A plain session.run with arrays; only the new state is asked for, for y is its h."""
    run = _session(problem, threads).run
    names = ["h", "c"][: 1 + problem.spec.info.has_c]
    feeds = {"x": problem.x, **dict(zip(names, _states(problem), strict=True))}

    def step() -> None:
        feeds.update(zip(names, run(None, feeds), strict=True))

    return Stream(step, lambda: _h(feeds["h"]))


def onnxruntime_bound(problem: Problem, threads: int) -> Stream:
    """Everything bound to memory in advance: two states, read and written in turns."""
    import onnxruntime

    session = _session(problem, threads)
    wrap = onnxruntime.OrtValue.ortvalue_from_numpy
    names = ["h", "c"][: 1 + problem.spec.info.has_c]
    x = wrap(problem.x)
    before = [wrap(array) for array in _states(problem)]
    after = [wrap(array) for array in _states(problem)]

    def bound(sources: list[Any], targets: list[Any]) -> Any:
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", x)
        for name, source, target in zip(names, sources, targets, strict=True):
            binding.bind_ortvalue_input(name, source)
            binding.bind_ortvalue_output(f"{name}0", target)
        return binding

    run = session.run_with_iobinding
    this, other = bound(before, after), bound(after, before)
    steps = 0

    def step() -> None:
        nonlocal this, other, steps
        run(this)
        this, other = other, this
        steps += 1

    return Stream(step, lambda: _h((after if steps % 2 else before)[0].numpy()))


def numba(problem: Problem, threads: int) -> Stream:
    """Plain loops compiled by Numba with fastmath, one thread; the state is updated in place."""
    from . import numba_loops

    step = getattr(numba_loops, problem.spec.cell)
    w_ih, w_hh, b_ih, b_hh = problem.weights[0][:4]
    x = problem.x.reshape(-1)
    states = [array.reshape(-1) for array in _states(problem)]
    gates = np.empty(len(w_ih), np.float32)
    extra = np.empty_like(gates) if problem.spec.cell == "gru" else None
    given = (x, w_ih, w_hh, b_ih, b_hh, *states, gates, *(() if extra is None else (extra,)))
    return Stream(lambda: step(*given), lambda: states[0])


OURS = {"kernel": kernel, "rnnfast-out": in_place, "rnnfast-stream": chunks, "rnnfast": plain}
THEIRS = {
    "torch": torch,
    "onnxruntime": onnxruntime,
    "onnxruntime-bound": onnxruntime_bound,
    "numba": numba,
}
