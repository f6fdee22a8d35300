"""What is special to the backend numba: its functions, threads, cache, and manners in a process.

That its results are right is tested where all backends are.
"""

from __future__ import annotations

import gc
import importlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from helpers import (
    BIASES,
    Array,
    Case,
    assert_same_bits,
    forward,
    gradients,
    problem,
    python,
    run,
    variant,
    vjp,
)

import rnnfast
from rnnfast.spec import Spec

pytest.importorskip("numba")

# As rnnfast/backends/numba/functions.py states them, in units in the last place.
MAX_ULP = {
    "sigmoid": {"float32": 2.5, "float64": 2.0},
    "tanh": {"float32": 2.6, "float64": 2.3},
}


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = rnnfast.get_num_threads()
    yield
    rnnfast.set_num_threads(before)


# ---------------------------------------------------------------------------------- functions


def applied(name: str, x: Array) -> Array:
    """A function by way of a cell of 67 equal units: vectors, and what is left of them."""
    one, zero = np.ones((67, 1), x.dtype), np.zeros((67, 67), x.dtype)
    weights = rnnfast.Weights(one, zero)
    y, _ = rnnfast.rnn(x[None, :, None], weights, nonlinearity=name, backend="numba")
    assert_same_bits({"units": y}, {"units": np.repeat(y[..., :1], 67, axis=-1)})
    found: Array = y[0, :, 0]
    return found


def truth(name: str, x: Array) -> Array:
    """The function with more digits than x has."""
    if x.dtype == np.float32:
        wide = x.astype(np.float64)
        e = np.exp(-np.abs(wide))
        return np.tanh(wide) if name == "tanh" else np.where(wide >= 0, 1, e) / (1 + e)
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(120):
        if name == "tanh":
            return np.array([mpmath.tanh(float(v)) for v in x])
        return np.array([1 / (1 + mpmath.exp(-float(v))) for v in x])


@pytest.mark.parametrize("name", MAX_ULP)
def test_errors_of_functions(name: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    count, edge = (100_000, 87) if dtype == "float32" else (3000, 700)
    log2 = np.log(2) * (rng.integers(-edge, edge, count // 4) + 0.5)  # where the argument jumps
    signed = rng.choice([-1, 1], count) * 10 ** rng.uniform(-8, np.log10(edge), count)
    x = np.concatenate([rng.uniform(-25, 25, count), log2, signed]).astype(dtype)
    found, exact = applied(name, x), truth(name, x)
    errors = [
        abs(float((e - type(e)(float(f))) / type(e)(float(np.spacing(np.abs(f))))))
        for f, e in zip(found, exact, strict=True)
    ]
    assert max(errors) <= MAX_ULP[name][dtype]


@pytest.mark.parametrize("name", MAX_ULP)
def test_ends_of_functions(name: str, dtype: str) -> None:
    big = np.finfo(dtype).max
    x = np.array([-np.inf, -big, -1000, -0.0, 0.0, 1000, big, np.inf, np.nan], dtype)
    low, middle = (0, 0.5) if name == "sigmoid" else (-1, 0)
    wanted = np.array([low] * 3 + [middle] * 2 + [1] * 3 + [np.nan])
    np.testing.assert_allclose(applied(name, x), wanted, atol=1e-37, rtol=0)


# ------------------------------------------------------------------------------------ threads

# Rows are divided, or units; of 128 units, whole panels.
SHAPES = [(7, 33, 65), (25, 130, 17), (30, 1, 520), (6, 3, 1025), (9, 2, 128)]


@pytest.fixture
def always_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small a pass is."""
    for module in ("", ".short", ".threads"):
        monkeypatch.setattr(importlib.import_module("rnnfast.backends.numba" + module), "SMALL", 0)
    for module in ("", ".threads"):
        monkeypatch.setattr(importlib.import_module("rnnfast.backends.numba" + module), "LEAST", 0)
    monkeypatch.setattr(importlib.import_module("rnnfast.backends.numba.threads"), "STEP", 0)
    monkeypatch.setattr(importlib.import_module("rnnfast.backends.numba"), "_PANELS", 0)


@pytest.mark.usefixtures("always_divided")
@pytest.mark.parametrize(("T", "B", "H"), SHAPES)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_threads_do_not_matter(
    T: int, B: int, H: int, D: int, ragged: bool, spec: Spec, dtype: str
) -> None:
    p = problem(Case(spec, T=T, B=B, I=48, H=H, D=D, dtype=dtype, ragged=ragged))
    rnnfast.set_num_threads(1)
    wanted = run(p, "numba")
    for threads in (2, 3, 5):
        rnnfast.set_num_threads(threads)
        assert_same_bits(run(p, "numba"), wanted)
    assert_same_bits(run(p, "numba", save="recompute"), wanted)
    outputs = forward(p, "numba")
    assert_same_bits(outputs, {name: wanted[name] for name in outputs})


@pytest.mark.usefixtures("always_divided")
def test_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call waits for its workers, which may be at work still."""
    threads = importlib.import_module("rnnfast.backends.numba.threads")
    p = problem(Case(Spec("gru"), T=20, B=2, I=48, H=128, dtype="float32"))
    rnnfast.set_num_threads(3)
    wanted = run(p, "numba")

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    def some() -> None:
        threads.run([(lambda: None, ()), (lambda: None, ())])

    for where, call in ("failed", lambda: run(p, "numba")), ("finish", some):
        with monkeypatch.context() as patch:
            patch.setattr(threads._Worker, where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                call()
        assert_same_bits(run(p, "numba"), wanted)


def test_an_error_of_a_worker_is_raised() -> None:
    threads = importlib.import_module("rnnfast.backends.numba.threads")

    def wrong() -> None:
        raise ValueError("in a worker")

    for _ in range(2):
        with pytest.raises(ValueError, match="in a worker"):
            threads.run([(lambda: None, ()), (wrong, ())])
    threads.run([(lambda: None, ()), (lambda: None, ())])


@pytest.mark.usefixtures("always_divided")
def test_nobody_waits_for_a_member_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a barrier within a step, or at the end of a pass."""
    numba = importlib.import_module("rnnfast.backends.numba")
    plain = importlib.import_module("rnnfast.backends.numba.plain").forward
    rnnfast.set_num_threads(2)

    def fails(numbers: Any, *others: Any) -> Any:
        if numbers[numba.plans.ROLE] < 0:
            raise MemoryError("in a worker")
        return plain(numbers, *others)

    for B in (1, 64):
        p = problem(Case(Spec("lstm"), T=20, B=B, I=48, H=128, dtype="float32"))
        wanted = run(p, "numba")
        with monkeypatch.context() as patch:
            patch.setattr(numba.plain, "forward", fails)
            with pytest.raises(MemoryError, match="in a worker"):
                run(p, "numba")
        assert_same_bits(run(p, "numba"), wanted)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_workers_may_use_every_processor() -> None:
    """Who wakes one that sleeps keeps it from its own processor, until it runs."""
    threads = importlib.import_module("rnnfast.backends.numba.threads")
    rnnfast.set_num_threads(2)
    for _ in range(5):
        time.sleep(0.01)
        threads.run([(lambda: None, ()), (lambda: None, ())])
    allowed = os.sched_getaffinity(0)
    for worker in threads._pool.workers:
        assert os.sched_getaffinity(worker._thread.native_id) == allowed


def test_a_sleeping_worker_is_woken_for_the_calls_to_come() -> None:
    """A short call does not wait for it."""
    threads = importlib.import_module("rnnfast.backends.numba.threads")
    rnnfast.set_num_threads(2)
    threads.run([(lambda: None, ()), (lambda: None, ())])
    time.sleep(0.05)
    with threads.several(threads.SMALL + 1) as count:
        assert count == 2
    assert not threads.worth(threads.LEAST)
    assert not threads.worth(threads.SMALL)
    [worker] = threads._pool.workers[:1]
    end = time.monotonic() + 30  # a machine that is busy lets it run late
    while not worker.staying[0]:
        assert time.monotonic() < end, "it never woke"
        time.sleep(0.0001)
        threads.worth(threads.SMALL)


COUNT = """
import threading
import numpy as np
import rnnfast
rnnfast.set_num_threads(4)
def train(T, B, H):
    weights = rnnfast.init_weights("rnn", 48, H, rng=0)
    x = np.ones((T, B, 48), np.float32)
    y, _, backward = rnnfast.rnn_vjp(x, weights, backend="numba")
    backward(y)
    return threading.active_count() - 1
"""


def test_threads_are_used_where_it_pays() -> None:
    found = python(COUNT + "print(train(10, 2, 32), train(50, 32, 256), train(50, 1, 1025))")
    assert found.stdout.split() == ["0", "3", "3"], found.stderr


def test_calls_from_several_threads(dtype: str) -> None:
    p = problem(Case(Spec("lstm"), T=20, B=3, I=48, H=530, D=2, dtype=dtype))
    rnnfast.set_num_threads(3)
    wanted = run(p, "numba")
    found: list[dict[str, Any]] = []
    callers = [threading.Thread(target=lambda: found.append(run(p, "numba"))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == len(callers)
    for results in found:
        assert_same_bits(results, wanted)


def test_memory_is_left_to_later_calls(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Work arrays of any size here: never one of results, and no more than is allowed."""
    memory = import_module("rnnfast.backends.numba.memory")
    p = problem(Case(Spec("lstm"), T=3, B=2, I=300, H=300, L=2, D=2, dtype=dtype))
    rnnfast.set_num_threads(1)
    wanted = run(p, "numba")
    monkeypatch.setattr(memory, "_LEAST", 0)
    memory._free.clear()
    kept = [run(p, "numba") for _ in range(3)]
    gc.collect()
    free = list(memory._free.values())
    assert 0 < sum(block.nbytes for block in free) <= memory._MOST
    run(p, "numba")
    gc.collect()
    assert {id(block) for block in memory._free.values()} == {id(block) for block in free}
    for block in free:
        block[...] = 255  # NaN
    for results in (*kept, run(p, "numba")):
        assert_same_bits(results, wanted)


def test_memory_that_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = import_module("rnnfast.backends.numba.memory")
    monkeypatch.setattr(memory, "_free", {})
    monkeypatch.setattr(memory._Block.__del__, "__defaults__", (memory._free, 10_000))
    monkeypatch.setattr(memory, "_LEAST", 0)
    byte = np.dtype(np.uint8)
    for size in (3000, 4000, 5000, 6000):
        memory.scratch(size, byte)  # 6000 is more than half
    assert [block.nbytes for block in memory._free.values()] == [4000, 5000]
    a = memory.scratch(3900, byte)
    b = memory.scratch(3900, byte)
    assert not np.may_share_memory(a, b)
    assert memory._free == {}
    half = a[100:]
    del a, b
    assert [block.nbytes for block in memory._free.values()] == [5000]
    del half
    assert sorted(block.nbytes for block in memory._free.values()) == [4000, 5000]


def test_memory_that_is_gone_is_not_mistaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the choice of a block and its use another thread drops it, and frees a smaller one,
    which may have its id."""
    memory = import_module("rnnfast.backends.numba.memory")
    monkeypatch.setattr(memory, "_LEAST", 0)
    byte, blocks = np.dtype(np.uint8), memory._blocks
    monkeypatch.setattr(memory, "_free", {})

    def meanwhile(free: dict[int, Array]) -> Any:
        found = blocks(free)
        yield from found
        keys = [key for key, _ in found]
        del found
        free.clear()
        made = [np.empty(100, np.uint8) for _ in range(50)]
        free.update((id(a), a) for a in made if id(a) in keys)

    for _ in range(20):
        memory._free[id(a)] = (a := np.empty(5000, np.uint8))
        del a
        monkeypatch.setattr(memory, "_blocks", meanwhile)
        assert len(memory.scratch(4000, byte)) == 4000
        monkeypatch.setattr(memory, "_blocks", blocks)


FORK = """
import os
before = train(50, 1, 1025)
child = os.fork()
if child == 0:
    os._exit(10 + train(50, 1, 1025))
print(before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    found = python("import warnings; warnings.simplefilter('ignore')" + COUNT + FORK)
    assert found.stdout.split() == ["3", "13"], found.stderr


@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("state", ["both", "none"])
@pytest.mark.parametrize("rows", range(1, 8))
def test_parts_do_not_matter(
    rows: int, state: str, D: int, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long inference call; two directions may have different numbers of them."""
    p = problem(Case(spec, T=3, B=4, H=5, D=D, state=state, dtype="float32", ragged=True))
    p = replace(p, lengths=np.array([1, 3, 2, 1]))
    wanted = forward(p, "numba")
    gates = len(spec.info.gates)
    module = import_module("rnnfast.backends.numba")
    monkeypatch.setattr(module, "_CHUNK", rows * gates * 5 * 4)
    assert_same_bits(forward(p, "numba"), wanted)


# -------------------------------------------------------------------------- the short ways


@pytest.mark.parametrize("H", [1, 5, 33, 70])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("L", "state"), [(1, "both"), (1, "none"), (2, "both"), (1, "c")])
def test_weights_read_where_they_lie(
    H: int, bias: str, L: int, state: str, spec: Spec, dtype: str
) -> None:
    """One step of one row has the bits of packed weights, forward and back."""
    case = Case(spec, T=1, B=1, I=H + 3, H=H, L=L, bias=bias, state=state, dtype=dtype)
    p = problem(case)
    long = run(p, "numba", save="recompute")
    assert_same_bits(run(p, "numba"), long)
    for cotangents in ("h", "c"):
        p = problem(replace(case, cotangents=cotangents))
        assert_same_bits(run(p, "numba"), run(p, "numba", save="recompute"))
    outputs = {name: a for name, a in long.items() if name in ("y", "h_n", "c_n")}
    assert_same_bits(forward(p, "numba"), outputs)
    packed = rnnfast.pack(p.weights, backend="numba", **variant(spec))
    assert_same_bits(forward(p, "numba", weights=packed), outputs)
    more = replace(p, x=np.concatenate([p.x, p.x]))
    assert_same_bits({"y": forward(more, "numba")["y"][:1]}, {"y": outputs["y"]})


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("T", "B", "L"), [(3, 1, 1), (1, 2, 1), (3, 2, 2)])
def test_short_calls(T: int, B: int, L: int, bias: str, spec: Spec, dtype: str) -> None:
    """Weights that are packed in the call give what packed ones do, and back what the rest does."""
    p = problem(Case(spec, T=T, B=B, I=7, H=9, L=L, bias=bias, dtype=dtype))
    long = run(p, "numba", save="recompute")
    _, backward = vjp(p, "numba")
    for _ in range(2):
        assert_same_bits(gradients(p, backward), {k: v for k, v in long.items() if k[0] == "d"})
    packed = rnnfast.pack(p.weights, backend="numba", **variant(spec))
    assert_same_bits(forward(p, "numba"), forward(p, "numba", weights=packed))


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(("L", "D"), [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("T", [1, 4, 400])
def test_no_state_is_a_state_of_zeros(
    T: int, L: int, D: int, ragged: bool, spec: Spec, dtype: str
) -> None:
    """Where the product with it is left out: at the first step of each row."""
    B, H = (300, 17) if T == 400 else (5, 7)  # many rows are worked on in parts
    p = problem(Case(spec, T=T, B=B, H=H, L=L, D=D, dtype=dtype, state="none", ragged=ragged))
    zeros = problem(Case(spec, T=T, B=B, H=H, L=L, D=D, dtype=dtype, ragged=ragged))
    assert zeros.h_0 is not None
    h_0, c_0 = np.zeros_like(zeros.h_0), None if zeros.c_0 is None else np.zeros_like(zeros.c_0)
    p_zeros = replace(p, h_0=h_0, c_0=c_0)
    assert_same_bits(forward(p, "numba"), forward(p_zeros, "numba"))
    if T < 400:
        assert_same_bits(run(p, "numba"), run(p_zeros, "numba"))
        assert_same_bits(run(p, "numba", save="recompute"), run(p_zeros, "numba"))


def test_weights_in_any_form_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(Spec("lstm"), T=1, B=1, dtype="float32", state="none"))
    one = p.weights[0]
    arrays = tuple(one[:4])
    y = forward(p, "numba")["y"]
    with pytest.raises(TypeError, match="two layers or two directions"):
        rnnfast.lstm(p.x, (one,), backend="numba")
    monkeypatch.setattr("rnnfast.call.Call", None)
    for weights in (one, arrays, [one], [arrays]):
        assert_same_bits({"y": forward(p, "numba", weights=weights)["y"]}, {"y": y})
        found, _, backward = rnnfast.lstm_vjp(p.x, weights, backend="numba")
        assert_same_bits({"y": found}, {"y": y})
        assert type(backward(y)[1]) is type(weights)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("L", [1, 2])
def test_a_stream_takes_the_short_way(
    L: int, rank: int, spec: Spec, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(Case(spec, T=6, B=1, I=9, H=9, L=L, dtype=dtype, state="none"))
    wanted = forward(p, "numba")
    stream = rnnfast.Stream(p.weights, backend="numba", **variant(spec))
    monkeypatch.setattr("rnnfast.call.Call", None)
    xs = p.x if rank == 3 else p.x[:, 0]
    ys = [stream(x).copy() for x in np.split(xs, [1, 2, 3, 5])]
    y = np.concatenate(ys)
    assert_same_bits({"y": y if rank == 3 else y[:, None]}, {"y": wanted["y"]})


def test_a_stream_reads_what_it_wrote(dtype: str) -> None:
    """y of a call, in the stream's buffer, as x of the next one."""
    p = problem(Case(Spec("lstm"), T=1, B=1, I=9, H=9, dtype=dtype))
    stream = rnnfast.Stream(p.weights, backend="numba")
    y, state = rnnfast.lstm(p.x, p.weights, backend="numba")
    found = stream(p.x)
    for _ in range(3):
        y, state = rnnfast.lstm(y, p.weights, state, backend="numba")
        found = stream(found)
    assert_same_bits({"y": found}, {"y": y})


@pytest.mark.parametrize("L", [1, 2])
def test_results_that_meet_are_refused(L: int) -> None:
    p = problem(Case(Spec("lstm"), T=1, B=2, I=5, H=5, L=L, dtype="float32"))
    packed = rnnfast.pack(p.weights, cell="lstm", backend="numba")
    rnnfast.lstm(p.x, packed)
    room = np.zeros(100, np.float32)
    x, y = room[:10].reshape(1, 2, 5), room[5:15].reshape(1, 2, 5)
    h, c = (a.copy() for a in p.state)
    with pytest.raises(ValueError, match="overlap"):
        rnnfast.lstm(x, packed, (h, c), out=(y, (h, c)))
    for state, out in (
        ((h, c), (p.x, (h, c))),
        ((h, c), (y, (h, h))),
        (None, (h[:1], (h, c))),
        ((h, c), h[:1]),
    ):
        with pytest.raises(ValueError, match="overlap"):
            rnnfast.lstm(p.x, packed, state, out=out)
    for a, b in zip((h, c), p.state, strict=True):
        assert_same_bits({"state": a}, {"state": b})


@pytest.mark.parametrize("given", ["y", "both", "new state"])
def test_buffers_without_copies(
    given: str, spec: Spec, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all forms that `out` may have."""
    p = problem(Case(spec, T=2, B=2, H=9, dtype=dtype))
    packed = rnnfast.pack(p.weights, backend="numba", **variant(spec))
    states = [a.copy() for a in (p.h_0, p.c_0) if a is not None]
    state = tuple(states) if spec.info.has_c else states[0]
    if given == "new state":
        p = replace(p, h_0=None, c_0=None)
    wanted = forward(p, "numba")
    y = np.full_like(wanted["y"], np.nan)
    monkeypatch.setattr("rnnfast.call.Call", None)
    if given == "y":
        found = forward(p, "numba", weights=packed, out=y)
    elif given == "both":
        p = replace(p, h_0=states[0], c_0=states[-1])
        found = forward(p, "numba", weights=packed, out=(y, state))
    else:
        for a in states:
            a[...] = np.nan
        found = forward(p, "numba", weights=packed, out=(y, state))
    assert found["y"] is y
    assert_same_bits(found, wanted)


# ------------------------------------------------------------------- compiling, being there

CACHED = """
import numpy as np
import rnnfast
weights = rnnfast.init_weights("gru", 3, 5, rng=0)
y, _, backward = rnnfast.gru_vjp(np.ones((2, 1, 3), np.float32), weights, backend="numba")
backward(y)
from rnnfast.backends.numba import packing, plain
for function in (packing.pack_forward, packing.pack_backward, plain.forward, plain.backward):
    print(function.stats.cache_hits and not function.stats.cache_misses)
"""


def test_what_was_compiled_is_found_again() -> None:
    run(problem(Case(Spec("gru"), dtype="float32")), "numba")
    found = python(CACHED)
    assert found.stdout.split() == ["True"] * 4, found.stdout + found.stderr


@pytest.mark.parametrize("spec", [Spec("lstm"), Spec("gru", False)], ids=Spec.variants)
def test_read_only_arrays_compile_nothing(spec: Spec) -> None:
    def locked(a: Array) -> Array:
        a = a.copy()
        a.flags.writeable = False
        return a

    for case in (
        Case(spec, dtype="float32", D=2, ragged=True),
        Case(spec, dtype="float32"),
        Case(spec, dtype="float32", T=1, B=1),
    ):
        p = problem(case)
        wanted = run(p, "numba")
        before = compilations()
        assert_same_bits(run(p.map(locked), "numba"), wanted)
        assert_same_bits({"y": forward(p.map(locked), "numba")["y"]}, {"y": wanted["y"]})
        assert compilations() == before


def compilations() -> list[int]:
    """How often each function that Python calls has been compiled."""
    from rnnfast.backends.numba import packing, plain, step

    functions = [packing.pack_forward, packing.pack_backward, plain.forward, plain.backward]
    return [len(function.signatures) for function in (*functions, step.forward, step.backward)]


@pytest.mark.parametrize("D", [1, 2])
def test_all_calls_share_a_compilation(D: int, spec: Spec) -> None:
    """Long, short, in threads or not, with buffers or without: one for each dtype."""
    for T, B, H in ((1, 1, 5), (3, 2, 5), (40, 2, 170), (40, 1, 500)):
        p = problem(Case(spec, T=T, B=B, I=9, H=H, D=D, dtype="float32"))
        for threads in (1, 2):
            rnnfast.set_num_threads(threads)
            wanted = run(p, "numba")
            run(replace(p, h_0=None, c_0=None), "numba")
            packed = rnnfast.pack(p.weights, backend="numba", **variant(spec))
            out = np.empty_like(wanted["y"])
            forward(p, "numba", weights=packed, out=out)
            assert_same_bits({"y": out}, {"y": wanted["y"]})
    assert max(compilations()) <= 2


MISSING = """
import sys
sys.modules["numba"] = None
import numpy as np
import rnnfast
weights, x = rnnfast.init_weights("rnn", 3, 5, rng=0), np.ones((2, 1, 3), np.float32)
rnnfast.rnn(x, weights, backend="reference")
print(rnnfast.backends()["numba"])
try:
    rnnfast.rnn(x, weights, backend="numba")
except rnnfast.UnsupportedError as error:
    print(error)
"""


def test_numba_may_be_missing() -> None:
    found = python(MISSING)
    reason, error = found.stdout.splitlines()
    assert "rnnfast[numba]" in reason
    assert reason in error
    assert "reference can" in error


def test_numba_is_loaded_when_it_is_asked_for() -> None:
    code = """
import sys
import numpy as np
import rnnfast
weights, x = rnnfast.init_weights("rnn", 3, 5, rng=0), np.ones((2, 1, 3), np.float32)
rnnfast.rnn(x, weights, backend="reference")
print("numba" in sys.modules)
sys.modules["scipy"] = None
rnnfast.rnn(x, weights, backend="numba")
print("numba" in sys.modules)
"""
    found = python(code)
    assert found.stdout.split() == ["False", "True"], found.stderr


def test_no_second_derivatives() -> None:
    p = problem(Case(Spec("lstm")))
    _, _, backward = rnnfast.lstm_vjp(p.x, p.weights, backend="numba")
    with pytest.raises(rnnfast.UnsupportedError, match="numba"):
        backward.vjp(p.dy)


@pytest.mark.parametrize("number", ["0", "1025", "many", "-1"])
def test_a_wrong_number_of_threads_without_the_native_module(number: str) -> None:
    code = """if True:
        import sys
        sys.modules["rnnfast._native"] = None
        import rnnfast
        rnnfast.get_num_threads()
    """
    done = python(code, RNNFAST_NUM_THREADS=number)
    assert f"RNNFAST_NUM_THREADS: expected a number from 1 to 1024, got '{number}'" in done.stderr


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"RNNFAST_NUM_THREADS": "3"}, 3),
        ({"LOCAL_WORLD_SIZE": "2000"}, 1),
        ({"LOCAL_WORLD_SIZE": "0"}, len(os.sched_getaffinity(0))),
        ({"LOCAL_WORLD_SIZE": "all"}, len(os.sched_getaffinity(0))),
    ],
    ids=str,
)
def test_threads_without_the_native_module(environment: dict[str, str], wanted: int) -> None:
    """For machines where it cannot be built."""
    code = """if True:
        import sys
        sys.modules["rnnfast._native"] = None
        import numpy as np, rnnfast
        from rnnfast.backends.numba.threads import wanted
        before = rnnfast.get_num_threads()
        rnnfast.set_num_threads(2)
        print(before, rnnfast.get_num_threads(), wanted())
    """
    done = python(code, **{"RNNFAST_NUM_THREADS": "", "LOCAL_WORLD_SIZE": "", **environment})
    assert done.stdout.split() == [str(wanted), "2", "2"], done.stderr
