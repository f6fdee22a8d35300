"""rnnfast.Stream: chunks of any length are the whole sequence, bit for bit, without allocation."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import numpy as np
import pytest
from conftest import use_isa
from helpers import Array, Case, Problem, assert_same_bits, problem, variant
from hypothesis import given
from hypothesis import strategies as st
from test_kinds import KINDS, back

import rnnfast
from rnnfast.spec import Spec

STEPS = 12
PRECISIONS = (None, "bfloat16", "int8")


def whole(p: Problem, packed: Any, x: Array, **options: Any) -> dict[str, Array]:
    """One call for the whole sequence."""
    spec = p.spec
    how = {k: v for k, v in variant(spec).items() if k != "cell"}
    y, state = getattr(rnnfast, spec.cell)(x, packed, p.state, **how, **options)
    return flat(y, state)


def flat(y: Array, state: Any) -> dict[str, Array]:
    return dict(zip("yhc", (y, *(state if isinstance(state, tuple) else (state,))), strict=False))


def unbatched(p: Problem) -> Problem:
    return p.map(lambda a: a[:, 0] if a.ndim == 3 else a)


@given(data=st.data())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_chunks_are_the_whole_sequence(
    precision: str | None, spec: Spec, dtype: str, target: str, data: st.DataObject
) -> None:
    if precision is not None:
        dtype = "float32"
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    layers, hidden = pick(1, 2, 3), pick(5, 16, 33, 64)
    layout = pick("steps", "batch first", "unbatched")
    batch = 1 if layout == "unbatched" else pick(1, 2, 7)
    case = Case(spec, T=STEPS, B=batch, I=pick(3, 20), H=hidden, L=layers, dtype=dtype,
                seed=pick(0, 1, 2))  # fmt: skip
    cuts = sorted(data.draw(st.sets(st.integers(1, STEPS - 1))))
    p = problem(case)
    if layout == "unbatched":
        p = unbatched(p)
    first = layout == "batch first"
    axis = 1 if first else 0
    x = p.x.swapaxes(0, 1).copy() if first else p.x
    packed = rnnfast.pack(p.weights, dtype=precision, backend=target, **variant(spec))
    wanted = whole(p, packed, x, batch_first=first)

    for given_weights in (packed, p.weights):
        how = {"dtype": precision} if given_weights is not packed else {}
        stream = rnnfast.Stream(
            given_weights, **variant(spec), batch_first=first, backend=target, **how
        )
        stream.state = p.state
        parts = [stream(chunk).copy() for chunk in np.split(x, cuts, axis)]
        assert_same_bits(flat(np.concatenate(parts, axis), stream.state), wanted)

        stream.state = p.state
        y = np.full_like(wanted["y"], np.nan)
        for chunk, part in zip(np.split(x, cuts, axis), np.split(y, cuts, axis), strict=True):
            out = np.full_like(part, np.nan)
            assert stream(chunk, out=out) is out
            part[...] = out
        assert_same_bits(flat(y, stream.state), wanted)


OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lstm", {"peepholes": True, "proj_size": 4}, {}),
    ("lstm", {"layer_norm": True}, {"clip": 0.8}),
    ("gru", {"layer_norm": True}, {"reset_after": False}),
    ("rnn", {"batch_norm": True}, {"nonlinearity": "softsign"}),
    ("lstm", {}, {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.5}),
    ("gru", {}, {"zoneout": 0.4}),
    ("gated", {}, {"gate_activation": ("hard_sigmoid", 0.3, 0.4), "zoneout": 0.1}),
    ("lstm", {}, {"input_forget": True, "activation": "elu"}),
]


@pytest.mark.parametrize(("cell", "made", "options"), OPTIONS, ids=[str(o) for o in OPTIONS])
def test_options(
    cell: str, made: dict[str, Any], options: dict[str, Any], dtype: str, target: str
) -> None:
    """The same bits, or the same error, as of the function without training."""
    weights = rnnfast.init_weights(cell, 3, 9, 2, dtype=dtype, rng=0, **made)
    rng = np.random.default_rng(0)
    for w in weights:
        if made.get("batch_norm"):
            w.bn_mean[...] = rng.standard_normal(9)
    x = rng.standard_normal((7, 2, 3)).astype(dtype)
    how = {**options, "training": False, "backend": target}
    try:
        y, state = getattr(rnnfast, cell)(x, weights, **how)
    except rnnfast.UnsupportedError:
        with pytest.raises(rnnfast.UnsupportedError):
            rnnfast.Stream(weights, cell, backend=target, **options)
        return
    packed = rnnfast.pack(weights, cell=cell, **how)
    for given_weights in (weights, packed):
        stream = rnnfast.Stream(given_weights, cell, backend=target, **options)
        parts = [stream(chunk).copy() for chunk in np.split(x, [1, 2, 5])]
        assert_same_bits(flat(np.concatenate(parts), stream.state), flat(y, state))


def test_save_and_restore(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=6, B=3, H=9, L=2, state="none"))
    stream = rnnfast.Stream(p.weights, **variant(spec), backend=target)
    assert stream.state is None
    y_of_first = stream(p.x[:3]).copy()
    saved = stream.state
    kept = flat(p.x, saved)
    kept = {k: v.copy() for k, v in kept.items()}
    y = stream(p.x[3:]).copy()
    assert_same_bits(flat(p.x, saved), kept)  # what was saved does not move on
    end = flat(y, stream.state)

    stream.state = saved
    assert_same_bits(flat(stream(p.x[3:]), stream.state), end)
    other = rnnfast.Stream(p.weights, **variant(spec), backend=target)
    other.state = saved
    assert_same_bits(flat(other(p.x[3:]), other.state), end)
    saved_h = saved[0] if spec.info.has_c else saved
    saved_h[...] = np.nan  # what was given is not written, nor read again
    assert_same_bits(flat(y, other.state), end)

    part = tuple(s[:, 1:] for s in other.state) if spec.info.has_c else other.state[:, 1:]
    other.state = part  # another number of rows
    assert other(p.x[:, 1:]).shape == (6, 2, 9)
    other.state = None
    assert other.state is None
    assert_same_bits({"y": other(p.x[:3])}, {"y": y_of_first})


@pytest.mark.parametrize("rows", [1, -2, [0, 2], [], np.array([True, False, True]), (2,), "all"])
def test_reset(rows: Any, spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=6, B=3, H=9, L=2, state="none"))
    stream = rnnfast.Stream(p.weights, **variant(spec), backend=target)
    stream.reset(0)
    stream(p.x[:4])
    chosen = np.zeros(3, bool)
    chosen[slice(None) if isinstance(rows, str) else list(np.atleast_1d(rows)) or []] = True
    stream.reset(None if isinstance(rows, str) else rows)
    y = stream(p.x[4:]).copy()
    new, old = (rnnfast.Stream(p.weights, **variant(spec), backend=target) for _ in range(2))
    old(p.x[:4])
    began, went_on = new(p.x[4:]), old(p.x[4:])
    assert_same_bits({"y": y}, {"y": np.where(chosen[:, None], began, went_on)})


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_one_row_is_not_a_call_without_batch(cell: str, target: str) -> None:
    p = problem(Case(Spec(cell), T=4, B=1, H=9))
    x = p.x[:, 0].copy()
    stream = rnnfast.Stream(p.weights, cell, backend=target)
    y = stream(p.x).copy()
    with pytest.raises(ValueError, match="x: expected 1 rows"):
        stream(x)
    with pytest.raises(ValueError, match="out: expected shape"):
        stream(p.x, out=np.empty((4, 9), x.dtype))
    stream.reset()
    with pytest.raises(ValueError, match="out: expected shape"):
        stream(x, out=np.empty((4, 1, 9), x.dtype))
    assert_same_bits({"y": stream(x)}, {"y": y[:, 0]})
    assert flat(y, stream.state)["h"].shape == (1, 9)
    for state in (p.state, p.state[0] if cell == "lstm" else np.zeros((1, 1, 9), x.dtype)):
        with pytest.raises((TypeError, ValueError), match=r"state|h_0"):
            getattr(rnnfast, cell)(x, p.weights, state, backend=target)


def test_reset_takes_another_batch(target: str) -> None:
    p = problem(Case(Spec("lstm"), T=4, B=3, H=9))
    stream = rnnfast.Stream(p.weights, backend=target)
    stream(p.x)
    with pytest.raises(ValueError, match=r"x: expected 3 rows .*\(4, 2, 4\).*reset"):
        stream(p.x[:, :2])
    stream.reset()
    assert stream.state is None
    other = rnnfast.Stream(p.weights, backend=target)
    with pytest.raises(ValueError, match="lengths"):
        other(p.x, lengths=[99, 1, 1])
    assert other.state is None
    other.state = stream.state
    assert_same_bits({"y": other(p.x[:, :2])}, {"y": stream(p.x[:, :2])})
    assert stream(p.x[:, :2]).shape == (4, 2, 9)
    stream.reset()
    assert stream(p.x[:, :2]).shape == (4, 2, 9)  # the short path to the kernels
    with pytest.raises(ValueError, match=r"x: expected 2 rows"):
        stream(p.x)
    stream.reset()
    assert stream(p.x[:, 0]).shape == (4, 9)
    with pytest.raises(ValueError, match=r"x: expected no batch axis .*\(4, 3, 4\)"):
        stream(p.x)
    assert stream.state[0].shape == (1, 9)


def test_rows_with_less_to_read(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=6, B=3, H=9, L=2, state="none"))
    stream = rnnfast.Stream(p.weights, **variant(spec), backend=target)
    y = stream(p.x, lengths=[2, 0, 6]).copy()
    assert not y[2:, 0].any()
    assert not y[:, 1].any()
    rest = np.zeros_like(p.x[:4])
    rest[:, 0] = p.x[2:, 0]
    again = stream(rest, lengths=np.array([4, 0, 0]))
    wanted = whole(p, p.weights, p.x, lengths=[6, 0, 6], backend=target)
    np.testing.assert_allclose(again[:, 0], wanted["y"][2:, 0], rtol=1e-12)
    got = flat(wanted["y"], stream.state)
    for name in got:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-12)


def test_output_fed_back(spec: Spec, dtype: str, target: str) -> None:
    """y as the next x: it stands in the buffer that the call writes."""
    p = problem(Case(spec, T=1, B=2, I=17, H=17, dtype=dtype, state="none"))
    fed, kept = (rnnfast.Stream(p.weights, **variant(spec), backend=target) for _ in range(2))
    y, copied = fed(p.x), kept(p.x).copy()
    for _ in range(4):
        y, copied = fed(y), kept(copied).copy()
        assert_same_bits({"y": y}, {"y": copied})


def test_any_layout_of_x(dtype: str, target: str) -> None:
    p = problem(Case(Spec("gru"), T=4, B=3, I=5, H=17, dtype=dtype, state="none"))
    strided = np.zeros((4, 6, 10), dtype)[:, ::2, ::2]
    strided[...] = p.x
    stream, other = (rnnfast.Stream(p.weights, "gru", backend=target) for _ in range(2))
    assert_same_bits({"y": stream(strided)}, {"y": other(p.x)})
    p.x.flags.writeable = False
    assert_same_bits({"y": stream(strided)}, {"y": other(p.x)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_other_kinds(kind: str, batch_first: bool, target: str) -> None:
    array, make = KINDS[kind]
    p = problem(Case(Spec("lstm"), T=4, B=3, I=5, H=17, dtype="float32"))
    stream = rnnfast.Stream(p.weights, batch_first=batch_first, backend=target)
    other = rnnfast.Stream(p.weights, batch_first=batch_first, backend=target)
    stream.state = tuple(map(make, p.state))
    other.state = p.state
    first = stream(make(p.x.swapaxes(0, 1).copy() if batch_first else p.x))
    assert isinstance(first, array)
    x = p.x.swapaxes(0, 1) if batch_first else p.x
    wanted = other(x).copy()
    assert_same_bits({"y": back(first)}, {"y": wanted})
    second = stream(make(np.ascontiguousarray(x)))
    assert_same_bits({"y": back(first)}, {"y": wanted})  # not a buffer that is written again
    again = other(x)
    assert_same_bits({"y": back(second)}, {"y": again})
    if kind == "torch":  # whose arrays can be written
        stream.reset()
        other.reset()
        out = make(np.zeros_like(again))
        assert stream(make(np.ascontiguousarray(x)), out=out) is out
        assert_same_bits({"out": back(out)}, {"out": other(x)})


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layers", [1, 2])
def test_nothing_is_allocated(
    layers: int, precision: str | None, with_out: bool, batch_first: bool, spec: Spec
) -> None:
    """After the first call of the largest size, no call takes memory of the size of an array."""
    if rnnfast.backends()["native"] is not None:
        pytest.skip("the native backend is not usable")
    batch, steps = 4, 8
    p = problem(Case(spec, T=steps, B=batch, I=256, H=256, L=layers, dtype="float32"))
    x = np.ascontiguousarray(p.x.swapaxes(0, 1)) if batch_first else p.x
    stream = rnnfast.Stream(
        p.weights, **variant(spec), dtype=precision, batch_first=batch_first, backend="native"
    )
    lengths = (8, 1, 3, 1, 8, 8, 5)
    chunks = [x[:, :n] if batch_first else x[:n] for n in lengths]
    outs = [np.empty((*c.shape[:2], 256), np.float32) if with_out else None for c in chunks]
    stream(chunks[0], out=outs[0])
    tracemalloc.start()
    try:
        for chunk, out in zip(chunks, outs, strict=True):
            stream(chunk, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The smallest array, a step of one layer's h, has 4096 bytes.
    assert peak < 3500


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("structure", "options"),
    [
        ({"proj_size": 256, "peepholes": True}, {}),
        ({"layer_norm": True}, {}),
        ({}, {"clip": 1.0, "activation": "softsign"}),
    ],
    ids=["projection", "norm", "options"],
)
def test_nothing_is_allocated_with_options(
    structure: dict[str, Any], options: dict[str, Any], layers: int
) -> None:
    if rnnfast.backends()["native"] is not None:
        pytest.skip("the native backend is not usable")
    weights = rnnfast.init_weights("lstm", 256, 300, layers, rng=0, **structure)
    stream = rnnfast.Stream(weights, backend="native", **options)
    x = np.ones((8, 4, 256), np.float32)
    stream(x)
    tracemalloc.start()
    try:
        for n in (1, 8, 3):
            stream(x[:n])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3500


def test_y_is_the_same_memory() -> None:
    p = problem(Case(Spec("lstm"), T=8, B=3, H=17))
    stream = rnnfast.Stream(p.weights)
    at = stream(p.x).ctypes.data
    for n in (1, 1, 5, 8, 8, 2):
        assert stream(p.x[:n]).ctypes.data == at


def test_bidirectional(spec: Spec, target: str) -> None:
    p = problem(Case(spec, D=2))
    packed = rnnfast.pack(p.weights, backend=target, **variant(spec))
    for weights in (p.weights, packed):
        with pytest.raises(rnnfast.UnsupportedError, match=r"weights: .*bidirectional.*reverse"):
            rnnfast.Stream(weights, **variant(spec), backend=target)


P = problem(Case(Spec("gru"), T=4, B=3, I=5, H=9))
PACKED = rnnfast.pack(P.weights, cell="gru", reset_after=False, backend="reference")

BAD_MAKER: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("cell", P.weights, {"cell": "elman"}, ValueError, r"cell: .*elman"),
    ("no cell", P.weights, {}, ValueError, r"weights\[0\]\.w_hh: .*lstm"),
    ("option", P.weights, {"cell": "gru", "reset_after": 1}, TypeError, r"reset_after: .*1"),
    ("unknown", P.weights, {"cell": "gru", "lengths": None}, TypeError, "lengths"),
    ("training", P.weights, {"cell": "gru", "training": True}, ValueError, r"training: .*True"),
    ("flag", P.weights, {"cell": "gru", "batch_first": 1}, TypeError, r"batch_first: .*1"),
    ("dtype", PACKED, {"cell": "gru", "reset_after": False, "dtype": "int8"}, TypeError,
     r"dtype: .*packed.*int8"),
    ("another variant", PACKED, {"cell": "gru"}, ValueError, r"weights: packed for gru.*False"),
    ("another cell", PACKED, {"cell": "rnn"}, ValueError, r"weights: packed for gru.*rnn"),
    ("another backend", PACKED, {"cell": "gru", "reset_after": False, "backend": "native"},
     ValueError, r"backend: .*'reference'.*'native'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "weights", "how", "error", "words"), BAD_MAKER, ids=[b[0] for b in BAD_MAKER]
)
def test_bad_makers(
    what: str, weights: Any, how: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        rnnfast.Stream(weights, **how)


BAD_CALL: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("one axis", P.x[0, 0], {}, ValueError, r"x: .*\(5,\)"),
    ("no steps", P.x[:0], {}, ValueError, r"x: .*\(0, 3, 5\)"),
    ("features", P.x[..., :4], {}, ValueError, r"x: expected 5 .*\(4, 3, 4\)"),
    ("dtype", P.x.astype("f4"), {}, TypeError, r"x: .*float64.*float32"),
    ("half, strided", P.x.astype("f2")[::2], {}, TypeError, r"x: .*float16"),
    ("a list", P.x.tolist(), {}, TypeError, r"x: .*list"),
    ("rows", P.x[:, :2], {}, ValueError, r"x: expected 3 rows .*\(4, 2, 5\)"),
    ("unbatched", P.x[:, 0], {}, ValueError, r"x: expected 3 rows .*\(4, 5\)"),
    ("lengths", P.x, {"lengths": [1, 2, 5]}, ValueError, r"lengths: .*5"),
    ("out", P.x, {"out": np.empty((4, 3, 8))}, ValueError, r"out: .*\(4, 3, 9\).*\(4, 3, 8\)"),
    ("out's dtype", P.x, {"out": np.empty((4, 3, 9), "f4")}, TypeError, r"out: .*float32"),
    ("out is x", P.x, {"out": P.x}, ValueError, r"out: "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "x", "how", "error", "words"), BAD_CALL, ids=[b[0] for b in BAD_CALL]
)
def test_bad_calls(
    what: str, x: Any, how: dict[str, Any], error: type[Exception], words: str, target: str
) -> None:
    """A bad call is named, and leaves the stream as it was."""
    stream = rnnfast.Stream(P.weights, "gru", backend=target)
    stream(P.x)
    before = stream.state
    with pytest.raises(error, match=words):
        stream(x, **how)
    assert_same_bits({"h": stream.state}, {"h": before})


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.empty((4, 3, 9)), ValueError, r"out: expected shape \(3, 4, 9\), got \(4, 3, 9\)"),
        (np.empty((3, 4, 9), "f4"), TypeError, r"out: .*float64.*float32"),
        (np.broadcast_to(np.zeros(()), (3, 4, 9)), ValueError, r"out: .*written"),
    ],
)
def test_bad_out_with_batch_first(
    out: Array, error: type[Exception], words: str, target: str
) -> None:
    stream = rnnfast.Stream(P.weights, "gru", batch_first=True, backend=target)
    with pytest.raises(error, match=words):
        stream(P.x.swapaxes(0, 1), out=out)


def test_bad_states(target: str) -> None:
    p = problem(Case(Spec("lstm"), T=4, B=3, H=9, L=2))
    stream = rnnfast.Stream(p.weights, backend=target)
    h, c = p.state
    for state, error, words in (
        (h, TypeError, r"state: expected a pair"),
        ((h,), TypeError, r"state: expected a pair"),
        ((h, None), TypeError, r"state c: .*None"),
        ((h.astype("f4"), c), TypeError, r"state h: .*float64.*float32"),
        ((h[:1], c), ValueError, r"state h: expected shape \(2, B, 9\), got \(1, 3, 9\)"),
        ((h, c[:, :2]), ValueError, r"state c: expected shape \(2, 3, 9\), got \(2, 2, 9\)"),
        ((h, c[:, 0]), ValueError, r"state c: expected shape \(2, 3, 9\), got \(2, 9\)"),
    ):
        with pytest.raises(error, match=words):
            stream.state = state
    assert stream.state is None


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (3, ValueError, r"rows: .*B = 3, got 3"),
        ([0, -4], ValueError, r"rows: .*-4"),
        ([True, False], ValueError, r"rows: expected 3 bools, got 2"),
        (True, ValueError, r"rows: .*\(\)"),
        ([[0]], ValueError, r"rows: .*\(1, 1\)"),
        (1.0, TypeError, r"rows: .*float64"),
        ("all", TypeError, r"rows: "),
    ],
)
def test_bad_rows(rows: Any, error: type[Exception], words: str, target: str) -> None:
    stream = rnnfast.Stream(P.weights, "gru", backend=target)
    stream(P.x)
    before = stream.state
    with pytest.raises(error, match=words):
        stream.reset(rows)
    assert_same_bits({"h": stream.state}, {"h": before})
    stream.reset()
    stream(P.x[:, 0])
    with pytest.raises(ValueError, match=r"rows: .*unbatched"):
        stream.reset(0)


def test_an_instruction_set_chosen_later() -> None:
    """Packed weights keep the layout of the set in use when they were packed."""
    if rnnfast.backends()["native"] is not None:
        pytest.skip("the native backend is not usable")
    stream = rnnfast.Stream(P.weights, "gru")
    wanted = stream(P.x).copy()
    stream.reset()
    with use_isa("baseline"):
        assert_same_bits({"y": stream(P.x)}, {"y": wanted})


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_goes_on_by_itself(make: Any, spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=STEPS, B=2, I=3, H=17, L=2))
    stream = rnnfast.Stream(p.weights, backend=target, **variant(spec))
    assert make(stream).state is None
    stream.state = p.state
    stream(p.x[:5])
    other = make(stream)
    wanted = stream(p.x[5:]).copy()
    got = other(p.x[5:])
    assert_same_bits({"y": got}, {"y": wanted})
    assert_same_bits(flat(got, other.state), flat(wanted, stream.state))
    stream.reset()
    assert_same_bits(flat(got, other.state), flat(wanted, make(other).state))
