"""Recurrent and variational dropout, zoneout, DropConnect: their masks, seen in the results.

Layers whose units are linear and apart from one another show every mask in y and in the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, assert_same_bits, forward, function, gradients, problem, run, vjp
from option_sets import SPECS, each, keywords, of, unless_unsupported, with_options
from spies import spied
from tolerance import TORCH, assert_close

import rnnfast
from rnnfast import Weights
from rnnfast.spec import Spec

RANDOM = ("recurrent_dropout", "zoneout", "dropconnect", "variational")
RATES = (0.1, 0.5, 0.75)


@pytest.fixture(params=SPECS, ids=Spec.variants)
def cell(request: pytest.FixtureRequest) -> Spec:
    found: Spec = request.param
    return found


def middling(spec: Spec, dtype: str = "float64", **sizes: Any) -> Case:
    given = {"T": 6, "B": 5, "I": 3, "H": 17, "L": 2, "D": 2, "ragged": True} | sizes
    return Case(spec, **given, dtype=dtype)


# ------------------------------------------------------------------ where masks come from


@pytest.mark.parametrize("name", RANDOM)
def test_reproducible(name: str, cell: Spec, target: str) -> None:
    """From a seed of any kind, in training and in inference; another seed gives other results."""
    p = problem(with_options(middling(cell), [name]))
    wanted = run(p, target, rng=7)
    for rng in (7, np.int64(7), np.random.default_rng(7)):
        assert_same_bits(run(p, target, rng=rng), wanted)
    outputs = forward(p, target, rng=7)
    assert_same_bits(outputs, {k: wanted[k] for k in outputs})
    assert not np.array_equal(forward(p, target, rng=8)["y"], wanted["y"])
    generator = np.random.default_rng(7)
    assert_same_bits(forward(p, target, rng=generator), outputs)
    assert not np.array_equal(forward(p, target, rng=generator)["y"], wanted["y"])
    fresh = [forward(p, target, rng=None)["y"] for _ in range(2)]
    assert not np.array_equal(*fresh)


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_masks_on_every_backend_and_in_both_dtypes(name: str, cell: Spec) -> None:
    found = []
    for backend, reason in rnnfast.backends().items():
        for dtype in ("float32", "float64") if reason is None else ():
            p = problem(with_options(middling(cell, dtype), [name]))
            with spied(backend) as seen:
                run(p, backend)
            masks = [m for call in seen.forward for layer in call.masks or [] for m in layer]
            kept = [w.w_hh != 0 for layer in seen.prepared for w in layer]
            found.append([*(None if m is None else m != 0 for m in masks), *kept])
            between = [call.x != 0 for call in seen.forward if call is not seen.forward[0]]
            found[-1] += between if name == "variational" else []
    assert len(found) >= 2
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", RANDOM)
def test_nothing_is_drawn_in_vain(name: str, cell: Spec, target: str) -> None:
    """Without training, and with a rate of 0, rng stays as it is."""
    off: dict[str, Any] = {"variational": {"dropout": 0.0}}.get(name, {name: 0.0})
    p = problem(with_options(middling(cell), [name]))
    for more in ({"training": False}, off):
        rng = np.random.default_rng(7)
        before = rng.bit_generator.state
        run(p, target, rng=rng, **more)
        assert rng.bit_generator.state == before
    plain = run(replace(p, keywords={}), target)
    assert_same_bits(run(p, target, **off), plain)
    if name != "zoneout":
        assert_same_bits(run(p, target, training=False), plain)


# ------------------------------------------------------------------ forward and backward


@each(lambda spec: [(a, b) for a in RANDOM for b in RANDOM if a <= b])
@pytest.mark.parametrize("way", [{}, {"save": "recompute"}, {"checkpoint": 4}], ids=str)
def test_backward_gets_the_masks_of_forward(
    spec: Spec, names: tuple[str, ...], way: dict[str, Any], backend: str
) -> None:
    """For every direction, layer and step, in every call of backward."""
    p = problem(with_options(middling(spec, D=1 if "checkpoint" in way else 2), set(names)))
    with spied(backend) as seen:
        _, backward = vjp(p, backend, **way)
        for _ in range(2):
            gradients(p, backward)
    if "checkpoint" in way:  # every segment goes forward again just before it goes backward
        forward_calls = seen.forward[len(seen.forward) // 3 :]
    else:
        forward_calls = seen.forward * 2
    assert len(forward_calls) == len(seen.backward) >= 2
    segment = p.weights
    for first in range(0, len(forward_calls), len(segment)):
        there = forward_calls[first : first + len(segment)]
        back = seen.backward[first : first + len(segment)]
        for call, masks in zip(there, reversed(back), strict=True):
            assert_same_masks(call.masks, masks)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("training", [False, True])
def test_masks_are_as_the_protocol_says(
    training: bool, ragged: bool, cell: Spec, dtype: str, backend: str
) -> None:
    """One layer at a time; contiguous, of one dtype, of the shapes that `Masks` names."""
    names = ["recurrent_dropout", "zoneout", *(["projection"] if cell.info.has_c else [])]
    case = with_options(middling(cell, dtype, ragged=ragged), names)
    p = problem(keywords(training=training)(case))
    with spied(backend) as seen:
        run(p, backend)
    assert len(seen.forward) == len(seen.backward) == 2
    for call in seen.forward:
        assert len(call.ys) == 1
        assert call.masks is not None
        assert len(call.masks) == 2
        rows = call.steps.rows if training else 1
        for masks in call.masks:
            shapes = [(call.steps.batch, case.outputs), (rows, case.outputs), (rows, case.H)]
            if not training:
                shapes[0] = ()
            if not cell.info.has_c:
                shapes[2] = ()
            for mask, shape in zip(masks, shapes, strict=True):
                assert (mask is None) == (shape == ())
                if mask is not None:
                    assert mask.shape == shape
                    assert mask.dtype == dtype
                    assert mask.flags.c_contiguous
                    assert mask.flags.aligned


def assert_same_masks(one: Any, other: Any) -> None:
    assert (one is None) == (other is None)
    for a, b in zip(one or [], other or [], strict=True):
        for m, n in zip(a, b, strict=True):
            np.testing.assert_array_equal(m, n)


@each(of)
@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_checkpoints_give_the_same(spec: Spec, names: str, every: int, target: str) -> None:
    """With whatever option, saved, computed again or run again segment by segment."""
    p = problem(with_options(middling(spec, D=1), [names]))
    if p.weights[0].bn_ih is not None:
        pytest.skip("batch normalisation has no checkpoints; test_bad_input has the error")
    if names == "truncate" and every == 1:
        every = 6  # a multiple of 2
    with unless_unsupported(target):
        wanted = run(p, target)
    again = run(p, target, save="recompute")
    segments = [run(p, target, checkpoint=every, save=save) for save in ("all", "recompute")]
    if target == "native":
        assert_same_bits(again, wanted)
    assert_close(again, wanted, TORCH)
    assert_same_bits(segments[0], segments[1])
    for found in segments:
        assert_close(found, wanted, TORCH)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = rnnfast.get_num_threads()
    yield rnnfast.set_num_threads
    rnnfast.set_num_threads(before)


@each(lambda spec: [*((name,) for name in of(spec)), RANDOM])
@pytest.mark.parametrize("sizes", [(7, 33, 65), (20, 1, 128)], ids=str)
def test_threads_do_not_matter(
    spec: Spec,
    names: tuple[str, ...],
    sizes: tuple[int, int, int],
    dtype: str,
    threads: Any,
) -> None:
    """The native backend's bits, of every option."""
    if "native" not in option_backends():
        pytest.skip("the native backend is not usable")
    T, B, H = sizes
    case = middling(spec, dtype, T=T, B=B, I=48, H=H, L=1, ragged=B > 1)
    p = problem(with_options(case, names))
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(run(p, "native"))
    for other in found[1:]:
        assert_same_bits(other, found[0])


def option_backends() -> list[str]:
    return [name for name, reason in rnnfast.backends().items() if reason is None]


# ------------------------------------------------------------------ what masks do


def linear(features: int, dtype: str, recurrent: float) -> Weights:
    """h' = x + recurrent * h, unit by unit."""
    eye = np.eye(features, dtype=dtype)
    return Weights(eye, np.asarray(recurrent, dtype) * eye)


def rnn(x: Array, weights: Any, target: str, **options: Any) -> Any:
    return rnnfast.rnn_vjp(x, weights, nonlinearity="linear", backend=target, **options)


def assert_share(hits: Array, rate: float, axes: tuple[int, ...]) -> None:
    """Of independent draws with this rate, within six standard deviations."""
    share = hits.mean(axis=axes)
    count = hits.size / share.size
    assert np.abs(share - rate).max() < 6 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("rate", RATES)
def test_zoneout_step_by_step(rate: float, dtype: str, target: str) -> None:
    """Each unit of each step keeps its value or does not, alone; gradients go where it came from.

    With w_hh = 0 the state of a unit is x of the last step at which it was not kept.
    """
    T, B, H = 60, 3, 40
    x = np.random.default_rng(0).uniform(1, 2, (T, B, H)).astype(dtype)
    y, h_n, backward = rnn(x, linear(H, dtype, 0.0), target, zoneout=rate, rng=5)
    before = np.concatenate([np.zeros((1, B, H), dtype), y[:-1]])
    kept = y != x
    np.testing.assert_array_equal(y, np.where(kept, before, x))
    np.testing.assert_array_equal(h_n[0], y[-1])
    for axes in ((0, 1, 2), (0,), (1, 2)):
        assert_share(kept, rate, axes)
    for lag in (1, 2):  # steps are drawn apart from one another
        assert_share(kept[lag:] & kept[:-lag], rate**2, (0, 1, 2))
    assert_share(kept[:, 1:] & kept[:, :-1], rate**2, (0, 1, 2))
    last = np.where(kept, -1, np.arange(T)[:, None, None])
    last = np.maximum.accumulate(last, axis=0)  # the step from which each state came
    for t in range(T):
        dy = np.zeros_like(x)
        dy[t] = 1
        dx, _, dh_0 = backward(dy)
        np.testing.assert_array_equal(dx, (np.arange(T)[:, None, None] == last[t]).astype(dtype))
        np.testing.assert_array_equal(dh_0[0], (last[t] == -1).astype(dtype))


@pytest.mark.parametrize("rate", RATES)
def test_recurrent_dropout_step_by_step(rate: float, dtype: str, target: str) -> None:
    """One mask for all steps of a row, another for each row, layer and direction."""
    T, B, H = 5, 60, 40
    x = np.zeros((T, B, H), dtype)
    x[0] = 1
    layer = linear(H, dtype, 1.0)
    y, _, backward = rnn(x, layer, target, recurrent_dropout=rate, rng=5)
    mask = y[1]  # 1 went through w_hh once
    assert set(np.unique(mask)) == {0, dtype_of(1 / (1 - rate), dtype)}
    for t in range(T):
        np.testing.assert_allclose(y[t], mask**t, rtol=1e-6)
    for axes in ((0, 1), (0,), (1,)):
        assert_share(mask == 0, rate, axes)
    for t in range(T):
        dy = np.zeros_like(x)
        dy[t] = 1
        dx, _, dh_0 = backward(dy)
        for s in range(T):
            wanted = mask ** (t - s) if s <= t else 0 * mask
            np.testing.assert_allclose(dx[s], wanted, rtol=1e-6)
        np.testing.assert_allclose(dh_0[0], mask ** (t + 1), rtol=1e-6)


def dtype_of(value: float, dtype: str) -> Any:
    return np.dtype(dtype).type(value)


def test_recurrent_dropout_of_layers_and_directions(target: str) -> None:
    """No two of them have the same mask."""
    B, H = 20, 30
    weights = rnnfast.init_weights("lstm", H, H, 2, True, dtype=np.float64, rng=0)
    x = np.ones((3, B, H))
    with spied(target) as seen:
        rnnfast.lstm(x, weights, recurrent_dropout=0.5, zoneout=0.5, rng=0, backend=target)
    masks = [m for call in seen.forward for m in call.masks or []]
    assert len(masks) == 4
    drawn = [a[:B].astype(bool) for m in masks for a in m if a is not None]
    assert len(drawn) == 12
    for k, one in enumerate(drawn):
        for other in drawn[:k]:
            assert_share(one & other, 0.25, (0, 1))


@pytest.mark.parametrize("rate", RATES)
def test_dropconnect_step_by_step(rate: float, dtype: str, target: str) -> None:
    """One mask of w_hh for the whole call; its gradient is dropped and scaled as it is."""
    H, T = 40, 3
    rng = np.random.default_rng(0)
    w = Weights(np.eye(H, dtype=dtype), rng.uniform(0.1, 0.2, (H, H)).astype(dtype))
    x = np.zeros((T, H, H), dtype)
    x[0] = np.eye(H)  # row b starts from unit b alone
    y, _, backward = rnn(x, w, target, dropconnect=rate, rng=5)
    dropped = y[1].T == 0
    scale = dtype_of(1 / (1 - rate), dtype)
    used = np.where(dropped, 0, w.w_hh * scale)
    np.testing.assert_allclose(y[1].T, used, rtol=1e-6)
    np.testing.assert_allclose(y[2].T, used @ used, rtol=1e-5, atol=1e-6)
    for axes in ((0, 1), (0,), (1,)):
        assert_share(dropped, rate, axes)
    dy = rng.uniform(1, 2, y.shape).astype(dtype)
    dx, dweights, _ = backward(dy)
    into = [dy[2]]
    for t in (1, 0):
        into.insert(0, dy[t] + into[0] @ used)
    np.testing.assert_allclose(dx, np.stack(into), rtol=1e-5)
    wanted = (into[1].T @ y[0] + into[2].T @ y[1]) * np.where(dropped, 0, scale)
    np.testing.assert_allclose(dweights.w_hh, wanted, rtol=1e-5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_variational_dropout_step_by_step(rate: float, ragged: bool, target: str) -> None:
    """Between layers, one mask for all steps of a row."""
    T, B, H = 6, 50, 40
    lengths = np.random.default_rng(1).integers(1, T + 1, B) if ragged else np.full(B, T)
    lengths[0] = T
    options = {"dropout": rate, "variational": True, "rng": 5, "lengths": lengths}
    layers = [linear(H, "float64", 0.0)] * 2
    y, _, backward = rnn(np.ones((T, B, H)), layers, target, **options)
    mask = y[0]
    assert set(np.unique(mask)) == {0, 1 / (1 - rate)}
    valid = (np.arange(T)[:, None] < lengths)[..., None]
    np.testing.assert_array_equal(y, np.where(valid, mask, 0))
    for axes in ((0, 1), (0,), (1,)):
        assert_share(mask == 0, rate, axes)
    dx, *_ = backward(np.ones_like(y))
    np.testing.assert_array_equal(dx, y)


# ------------------------------------------------------------------ expectations and extremes


@pytest.mark.parametrize("rates", [(0.3, 0.2), (0.3, 0.0), (0.0, 0.2), 0.4], ids=str)
def test_expectation_of_zoneout(rates: Any, cell: Spec, target: str) -> None:
    """Without training: h' = (1 - z) h' + z h, and so for c, step by step."""
    p = problem(middling(cell, L=1, D=1, ragged=False))
    z_h, z_c = rates if isinstance(rates, tuple) else (rates, rates)
    found = forward(p, target, zoneout=rates, training=False, rng=0)
    h, c = p.h_0, p.c_0
    for t in range(len(p.x)):
        step = forward(replace(p, x=p.x[t : t + 1], h_0=h, c_0=c), "reference")
        h = (1 - z_h) * step["h_n"] + z_h * h
        c = (1 - z_c) * step["c_n"] + z_c * c if c is not None else None
        np.testing.assert_allclose(found["y"][t], h[0], rtol=1e-10, atol=1e-12)
    if c is not None:
        np.testing.assert_allclose(found["c_n"], c, rtol=1e-10, atol=1e-12)


def test_zoneout_is_its_expectation_on_average(target: str) -> None:
    """The mean of many draws, for one step, which is linear in the mask."""
    B, H = 4000, 8
    w = rnnfast.init_weights("lstm", 3, H, dtype=np.float64, rng=0)
    x, h, c = np.ones((1, B, 3)), np.full((1, B, H), 0.5), np.full((1, B, H), -0.5)
    options: dict[str, Any] = {"zoneout": (0.3, 0.2), "backend": target, "rng": 0}
    _, (h_n, c_n) = rnnfast.lstm(x, w, (h, c), **options)
    _, (h_mean, c_mean) = rnnfast.lstm(x, w, (h, c), training=False, **options)
    for drawn, mean in ((h_n, h_mean), (c_n, c_mean)):
        spread = drawn.std(axis=1)
        assert (spread > 0).all()
        assert (np.abs(drawn.mean(axis=1) - mean[:, 0]) < 6 * spread / np.sqrt(B)).all()


def test_everything_is_kept_with_zoneout_1(cell: Spec, target: str) -> None:
    p = problem(middling(cell))
    found = run(p, target, zoneout=1.0, rng=0)
    kept = {"h_n": p.h_0} | ({} if p.c_0 is None else {"c_n": p.c_0})
    assert_same_bits({name: found[name] for name in kept}, kept)
    assert not any(a.any() for name, a in found.items() if name.startswith("dw"))
    assert not found["dx"].any()


@pytest.mark.parametrize("name", ["recurrent_dropout", "dropconnect"])
def test_nothing_comes_back_with_rate_1(name: str, cell: Spec, target: str) -> None:
    """Every step is as if w_hh were zero."""
    p = problem(middling(cell))
    found = forward(p, target, rng=0, **{name: 1.0})
    zero = [tuple(w._replace(w_hh=0 * w.w_hh) for w in pair) for pair in p.weights]
    assert_close(found, forward(replace(p, weights=zero), target), TORCH)


def test_zoneout_of_c_does_not_matter_without_c(target: str) -> None:
    for spec in SPECS:
        if not spec.info.has_c:
            p = problem(middling(spec))
            wanted = run(p, target, zoneout=(0.3, 0.0), rng=0)
            assert_same_bits(run(p, target, zoneout=(0.3, 0.9), rng=0), wanted)
            assert_same_bits(run(p, target, zoneout=(0.0, 0.9), rng=0), run(p, target))


# ------------------------------------------------------------------ packed weights


PACKED_WITHOUT = {"dropconnect"}  # is for training alone


@each(lambda spec: sorted(set(of(spec)) - PACKED_WITHOUT))
@pytest.mark.parametrize("layers", [1, 2])
def test_packed_is_unpacked(spec: Spec, names: str, layers: int, dtype: str, target: str) -> None:
    """Packed weights, made with the same options, give the same bits; `out` is written."""
    case = with_options(middling(spec, dtype, L=layers), [names])
    if "bn_ih" in case.fields:
        case = keywords(training=False)(case)  # packed weights take running statistics
    p = problem(case)
    own = {k: v for k, v in p.keywords.items() if k not in ("rng", "dropout")}
    variant: Any = {"cell": spec.cell, **function(spec).keywords}  # type: ignore[attr-defined]
    with unless_unsupported(target):
        packed = rnnfast.pack(p.weights, backend=target, **{**variant, **own})
    wanted = forward(p, target)
    found = forward(p, target, weights=packed)
    assert_same_bits(found, wanted)
    y, *states = (np.full_like(wanted[k], np.nan) for k in wanted if not k.startswith("new"))
    state = tuple(states) if spec.info.has_c else states[0]
    for weights in (packed, p.weights):
        given = forward(p, target, weights=weights, out=(y, state))
        assert given["y"] is y
        assert_same_bits(given, wanted)


def test_both_probabilities_of_zoneout_are_checked() -> None:
    weights = rnnfast.init_weights("gru", 2, 3, rng=0)
    with pytest.raises(ValueError, match="zoneout"):
        rnnfast.gru(np.ones((4, 1, 2), np.float32), weights, zoneout=(0.1, 7), rng=0)
