"""The native backend's manners in a process: denormals, threads, fork, exit, environment."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, Problem, assert_same_bits, problem, python, run

import rnnfast
from rnnfast.spec import Spec, all_specs

_native = pytest.importorskip("rnnfast._native", exc_type=ImportError)

SMALL = {"float32": 1e-39, "float64": 1e-310}


def scaled(p: Problem, dtype: str) -> Problem:
    """p with numbers so small that all but the largest are denormal."""
    return p.map(lambda a: a * np.asarray(SMALL[dtype], dtype))


def denormals_survive() -> bool:
    """Whether this thread calculates with denormal numbers, in scalars and in vectors."""
    return bool(
        np.float32(1e-39) * np.float32(1) != 0
        and float("1e-310") * 0.5 != 0
        and (np.full(64, 1e-39, np.float32) * np.float32(0.5)).all()
        and (np.full(64, 1e-310) * 0.5).all()
    )


def test_denormals(spec: Spec, dtype: str, isa: str) -> None:
    """They raise nothing, and the caller's treatment of denormals is as before the call."""
    p = scaled(problem(Case(spec, T=5, B=3, I=31, H=33, L=2, D=2, dtype=dtype)), dtype)
    assert (p.x != 0).any()
    assert denormals_survive()
    found = run(p, "native")
    assert all(np.isfinite(a).all() for a in found.values())
    assert denormals_survive()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, p, "native").result()
        assert pool.submit(denormals_survive).result()


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_flushed(dtype: str, isa: str, threads: int) -> None:
    """In every thread: a loop that computes with them takes 70 times as long."""
    width, kind = 96, np.dtype(dtype)
    weights = [rnnfast.Weights(np.eye(width, dtype=kind), np.zeros((width, width), kind))]
    denormal = np.full((20, 64, width), np.finfo(kind).tiny / 4, kind)
    assert denormal.all()
    rnnfast.set_num_threads(threads)
    y = rnnfast.rnn(denormal, weights, nonlinearity="relu", backend="native")[0]
    _, _, backward = rnnfast.rnn_vjp(
        np.ones_like(denormal), weights, nonlinearity="relu", backend="native"
    )
    dx, [dw], _ = backward(denormal)
    assert not y.any()
    assert not dx.any()
    assert not dw.w_ih.any()


def test_sums_over_many_rows(isa: str) -> None:
    """Gradients of biases are sums of sums: one long sum in float32 is off by a hundredth here."""
    T, B, H = 1000, 1000, 4
    weights = rnnfast.Weights(*(np.zeros(s, np.float32) for s in ((H, 1), (H, H), H, H)))
    x = np.zeros((T, B, 1), np.float32)
    y, _, backward = rnnfast.rnn_vjp(x, weights, backend="native")
    _, gradients, _ = backward(np.full_like(y, 0.1))
    wanted = float(np.float32(0.1)) * T * B
    chunk, part = 512, 128  # rows that are summed apart
    rtol = np.finfo(np.float32).eps / 2 * (part + B / part + T * B / chunk)
    np.testing.assert_allclose(gradients.b_ih, wanted, rtol)


def test_several_callers(isa: str) -> None:
    """Calls from many Python threads at once give what they give alone."""
    cases = [
        Case(spec, T=12, B=5 + k, I=31, H=65, L=2, D=2, dtype=dtype, ragged=k % 2 == 1)
        for k, spec in enumerate(all_specs())
        for dtype in ("float32", "float64")
    ]
    problems = [problem(case) for case in cases]
    wanted = [run(p, "native") for p in problems]
    with ThreadPoolExecutor(8) as pool:
        rounds = [pool.map(lambda p: run(p, "native"), problems) for _ in range(5)]
        for results in rounds:
            for found, alone in zip(results, wanted, strict=True):
                assert_same_bits(found, alone)


def test_one_problem_for_several_callers(isa: str) -> None:
    """Packed weights and a tape may be shared among threads."""
    p = problem(Case(Spec("lstm"), T=12, B=7, I=31, H=65, L=2, D=2, dtype="float32"))
    packed = rnnfast.pack(p.weights, cell="lstm", backend="native")
    y, _, backward = rnnfast.lstm_vjp(p.x, p.weights, p.state, backend="native")
    dx, _, _ = backward(p.dy, p.dstate)

    def both() -> dict[str, Array]:
        return {
            "y": rnnfast.lstm(p.x, packed, p.state, backend="native")[0],
            "dx": backward(p.dy, p.dstate)[0],
        }

    with ThreadPoolExecutor(8) as pool:
        for task in [pool.submit(both) for _ in range(40)]:
            assert_same_bits(task.result(), {"y": y, "dx": dx})


def test_python_runs_meanwhile(isa: str) -> None:
    """A long call releases the interpreter lock."""
    p = problem(Case(Spec("lstm"), T=200, B=32, I=128, H=256, dtype="float32"))
    rnnfast.lstm(p.x, p.weights, backend="native")
    with ThreadPoolExecutor(1) as pool:
        begin = time.perf_counter()
        task = pool.submit(rnnfast.lstm, p.x, p.weights, backend="native")
        longest, last = 0.0, begin
        while not task.done():
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            time.sleep(0)
        total = time.perf_counter() - begin
    assert longest < total / 2


# What the scripts below share: a problem large enough for every thread to have a part.
SCRIPT = """
import os, sys, threading
import numpy as np
import rnnfast

rng = np.random.default_rng(0)
x = rng.standard_normal((20, 16, 64), np.float32)
weights = rnnfast.init_weights("lstm", 64, 256, 2, True, rng=0)

def train():
    y, _, backward = rnnfast.lstm_vjp(x, weights, backend="native")
    dx, _, _ = backward(y)
    return y.tobytes() + dx.tobytes()
"""

FORK = (
    SCRIPT
    + """
rnnfast.set_num_threads(4)
wanted = train()
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = train() == wanted and train() == wanted
        rnnfast.set_num_threads(2)
        same = same and train() == wanted
        os._exit(0 if same else 3)
    assert train() == wanted
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
print("done")
"""
)

FORK_OF_A_FORK = (
    SCRIPT
    + """
rnnfast.set_num_threads(4)
wanted = train()
if os.fork() == 0:
    child = os.fork()
    if child == 0:
        os._exit(0 if train() == wanted else 3)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status))
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 0, status
print("done")
"""
)

FORK_DURING_A_CALL = (
    SCRIPT
    + """
rnnfast.set_num_threads(4)
wanted = train()
stop = threading.Event()

def keep_busy():
    while not stop.is_set():
        train()

busy = threading.Thread(target=keep_busy)
busy.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(0 if train() == wanted else 3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
stop.set()
busy.join()
print("done")
"""
)

MULTIPROCESSING = (
    SCRIPT
    + """
import multiprocessing
rnnfast.set_num_threads(4)
wanted = train()

def same(_):
    return train() == wanted

with multiprocessing.get_context("fork").Pool(3) as pool:
    assert all(pool.map(same, range(9)))
print("done")
"""
)

EXIT = (
    SCRIPT
    + """
rnnfast.set_num_threads(4)
train()
print("done", flush=True)
"""
)

EXIT_DURING_A_CALL = (
    SCRIPT
    + """
rnnfast.set_num_threads(4)

def forever():
    while True:
        train()

threading.Thread(target=forever, daemon=True).start()
threading.Event().wait(0.2)
print("done", flush=True)
"""
)

SCRIPTS = {
    "fork": FORK,
    "fork of a fork": FORK_OF_A_FORK,
    "fork during a call": FORK_DURING_A_CALL,
    "multiprocessing": MULTIPROCESSING,
    "exit": EXIT,
    "exit during a call": EXIT_DURING_A_CALL,
}


AFFINITY = (
    SCRIPT
    + """
import time
rnnfast.set_num_threads(4)
allowed = os.sched_getaffinity(0)
for call in range(100):
    rnnfast.lstm(x, weights, backend="native")
    assert os.sched_getaffinity(0) == allowed, call
    time.sleep(0.002 * (call % 2))  # workers fall asleep, and are woken
train()
time.sleep(0.1)  # whoever was woken last has run by now
workers = [int(thread) for thread in os.listdir("/proc/self/task")]
assert len(workers) >= 4
assert {frozenset(os.sched_getaffinity(worker)) for worker in workers} == {frozenset(allowed)}
print("done")
"""
)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system is not Linux")
def test_every_thread_may_run_where_it_might_before() -> None:
    """Also those that were kept from the processor of their caller while they woke."""
    found = python(AFFINITY, timeout=60)
    assert found.stdout == "done\n", found.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_processes(script: str) -> None:
    """Nothing hangs, crashes or complains; a forked child calculates with its own threads."""
    if "fork" in SCRIPTS[script] and not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    found = python(SCRIPTS[script], timeout=60)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "done\n"
    assert not [line for line in found.stderr.splitlines() if "fork" not in line]


def test_exit_is_quick() -> None:
    """Threads that wait do not keep the process."""
    ended = python(EXIT.replace('"done"', "__import__('time').time()"), timeout=30)
    assert time.time() - float(ended.stdout) < 5


SHOW = "from rnnfast import _native as n; print(n.get_isa(), n.get_num_threads())"


def test_the_environment_chooses_the_instruction_set() -> None:
    for name in _native.available_isas():
        found = python(SHOW, RNNFAST_ISA=name)
        assert found.stdout.split()[0] == name, found.stderr
    best = python(SHOW, RNNFAST_ISA="")
    assert best.stdout.split()[0] == _native.available_isas()[-1], best.stderr


def test_the_environment_chooses_the_threads() -> None:
    for number in ("1", "3", "64"):
        assert python(SHOW, RNNFAST_NUM_THREADS=number).stdout.split()[1] == number
    by_default = int(python(SHOW, RNNFAST_NUM_THREADS="").stdout.split()[1])
    assert by_default == len(os.sched_getaffinity(0))
    for processes in ("1", "2", "64", "2000", "0", "-1", "all"):  # of torchrun, on this machine
        shared = python(SHOW, RNNFAST_NUM_THREADS="", LOCAL_WORLD_SIZE=processes)
        among = max(1, int(processes)) if processes != "all" else 1
        assert int(shared.stdout.split()[1]) == max(1, by_default // among), shared.stderr


BAD_ENVIRONMENT = [
    ("RNNFAST_ISA", "nonsense", "baseline"),
    ("RNNFAST_ISA", "AVX2", "baseline"),
    ("RNNFAST_NUM_THREADS", "0", "1 to"),
    ("RNNFAST_NUM_THREADS", "-2", "1 to"),
    ("RNNFAST_NUM_THREADS", "two", "1 to"),
    ("RNNFAST_NUM_THREADS", "2.5", "1 to"),
    ("RNNFAST_NUM_THREADS", "3x", "1 to"),
    ("RNNFAST_NUM_THREADS", "99999999999999999999", "1 to"),
]


@pytest.mark.parametrize(("variable", "value", "expected"), BAD_ENVIRONMENT)
def test_bad_environment(variable: str, value: str, expected: str) -> None:
    """An error, not a guess and no crash, that names the variable, its value and what fits."""
    code = (
        "import rnnfast\n"
        "import numpy as np\n"
        "weights = rnnfast.init_weights('lstm', 2, 3)\n"
        "rnnfast.lstm(np.zeros((1, 1, 2), 'f'), weights)\n"
    )
    environment: Any = {variable: value, "RNNFAST_BACKEND": "auto"}
    found = python(code, **environment)
    assert found.returncode == 1, found.stdout + found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert variable in last
    assert repr(value) in last
    assert expected in last


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 17, 1000, 4096])
def test_the_sum_that_benchmarks_read_with(threads: int, size: int) -> None:
    """Each number once, by whatever set and however many threads."""
    x = np.arange(size, dtype=np.float32)  # whose sums are exact
    before, count = _native.get_isa(), rnnfast.get_num_threads()
    try:
        rnnfast.set_num_threads(threads)
        for name in _native.available_isas():
            _native.set_isa(name)
            assert _native.total(x) == size * (size - 1) / 2
    finally:
        _native.set_isa(before)
        rnnfast.set_num_threads(count)


def test_bad_instruction_sets() -> None:
    before = _native.get_isa()
    for name in ("", "nonsense", "AVX2"):
        with pytest.raises(ValueError, match="expected one of"):
            _native.set_isa(name)
    assert _native.get_isa() == before


def test_weights_keep_the_instruction_set_they_were_packed_for() -> None:
    """Panels are laid out for one set; a later choice of another does not spoil them."""
    p = problem(Case(Spec("lstm"), T=4, B=3, I=31, H=33, dtype="float32"))
    before = _native.get_isa()
    try:
        for name in _native.available_isas():
            _native.set_isa(name)
            packed = rnnfast.pack(p.weights, cell="lstm", backend="native")
            wanted, _ = rnnfast.lstm(p.x, packed, p.state, backend="native")
            for other in _native.available_isas():
                _native.set_isa(other)
                found, _ = rnnfast.lstm(p.x, packed, p.state, backend="native")
                np.testing.assert_array_equal(found, wanted)
    finally:
        _native.set_isa(before)


def test_weights_in_any_form_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of microseconds has no time for the checks of the long way."""
    rng = np.random.default_rng(0)
    arrays = tuple(rng.standard_normal(s, np.float32) for s in ((28, 5), (28, 7), (28,), (28,)))
    x = rng.standard_normal((3, 2, 5), np.float32)
    y, _ = rnnfast.lstm(x.copy(order="F"), arrays, backend="native")
    monkeypatch.setattr(rnnfast.call, "Call", None)
    one = rnnfast.Weights(*arrays)
    for weights in (one, arrays, [one], [arrays]):
        assert_same_bits({"y": rnnfast.lstm(x, weights, backend="native")[0]}, {"y": y})
        found, _, backward = rnnfast.lstm_vjp(x, weights, backend="native")
        assert_same_bits({"y": found}, {"y": y})
        dweights = backward(np.ones_like(y))[1]
        assert type(dweights) is type(weights)
