"""clip_grad_norm against torch.nn.utils.clip_grad_norm_, and where float32 would overflow."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, flatten_weights, problem, vjp
from hypothesis import given
from hypothesis import strategies as st

import rnnfast
from rnnfast.spec import Spec

SHAPES = st.lists(st.sampled_from([(), (0,), (1,), (7, 3), (1000,), (2, 3, 4)]), max_size=4)
POWERS = (1.0, 1.5, 2.0, 3.0, math.inf)


def drawn(shapes: list[tuple[int, ...]], dtype: str, scale: float, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s) * scale).astype(dtype) for s in shapes]


def torch_clipped(arrays: list[Array], *arguments: Any) -> tuple[float, list[Array]]:
    """The norm and the clipped arrays, as PyTorch has them in float64."""
    torch = pytest.importorskip("torch")
    tensors = [torch.zeros(a.shape, dtype=torch.float64) for a in arrays]
    for tensor, a in zip(tensors, arrays, strict=True):
        tensor.grad = torch.from_numpy(a.astype(np.float64))
    full = [t for t in tensors if t.numel()]  # PyTorch has no inf-norm of nothing
    norm = float(torch.nn.utils.clip_grad_norm_(full, *arguments))
    return norm, [t.grad.numpy() for t in tensors]


@given(
    shapes=SHAPES,
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    max_norm=st.sampled_from([0.0, 1e-3, 1.0, 1e9]),
    power=st.sampled_from(POWERS),
    seed=st.integers(0, 100),
)
def test_against_torch(
    shapes: list[tuple[int, ...]],
    scale: float,
    max_norm: float,
    power: float,
    seed: int,
    dtype: str,
) -> None:
    arrays = drawn(shapes, dtype, scale, seed)
    norm, wanted = torch_clipped(arrays, max_norm, power)
    assert rnnfast.clip_grad_norm(arrays, max_norm, power) == pytest.approx(norm, rel=1e-12, abs=0)
    # Computed in float64 and rounded once, where anything is changed at all.
    rtol = float(1e-12 + np.finfo(dtype).eps / 2)
    for got, right in zip(arrays, wanted, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, right, rtol=rtol, atol=0)


def test_structures(spec: Spec, backend: str) -> None:
    """What `backward` returns, inside of anything else; the arrays themselves are changed."""
    p = problem(Case(spec, L=2, D=2, dtype="float32", bias="ih"))
    dx, dweights, dstate = vjp(p, backend)[1](p.dy, p.dstate)
    flat = [dx, *flatten_weights(dweights).values(), *(dstate if spec.info.has_c else [dstate])]
    before = [a.copy() for a in flat]
    given = {"x": dx, "recurrent": [dweights, None], "state": dstate, 3: (), "none": None}
    norm = rnnfast.clip_grad_norm(given, 0.5)
    whole = np.concatenate([a.ravel().astype(np.float64) for a in before])
    assert norm == pytest.approx(np.linalg.norm(whole), rel=1e-12)
    assert norm > 0.5
    for got, old in zip(flat, before, strict=True):
        np.testing.assert_allclose(got, old * (0.5 / norm), rtol=3e-6)
    assert rnnfast.clip_grad_norm(given, 0.5) == pytest.approx(0.5, rel=4e-6)


def test_below_the_limit_nothing_changes(dtype: str) -> None:
    arrays = drawn([(100,)], dtype, 1.0, 0)
    before = arrays[0].copy()
    for limit in (1e3, math.inf):
        norm = rnnfast.clip_grad_norm(arrays, limit)
        assert norm == pytest.approx(np.linalg.norm(before), rel=1e-6)
        assert arrays[0].tobytes() == before.tobytes()
    assert rnnfast.clip_grad_norm([], 1.0) == 0
    assert rnnfast.clip_grad_norm(None, 1.0) == 0


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("float32", 1e30), ("float32", 1e-30), ("float64", 1e300), ("float64", 1e-200)],
)
def test_no_overflow(dtype: str, scale: float, power: float) -> None:
    ones = drawn([(50, 3), (7,)], "float64", 1.0, 0)
    unit = np.linalg.norm(np.concatenate([a.ravel() for a in ones]), power)
    arrays = [(a * scale).astype(dtype) for a in ones]
    norm = rnnfast.clip_grad_norm(arrays, 1.0, power)
    rtol = float(4 * np.finfo(dtype).eps)
    assert norm == pytest.approx(unit * scale, rel=rtol, abs=0)
    if scale > 1:
        for got, one in zip(arrays, ones, strict=True):
            np.testing.assert_allclose(got, one / unit, rtol=2 * rtol)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("power", POWERS)
def test_not_finite(bad: float, power: float, dtype: str) -> None:
    arrays = drawn([(5,), (3,), (4,)], dtype, 1.0, 0)
    arrays[1][1] = bad
    before = [a.copy() for a in arrays]
    with pytest.raises(ValueError, match=r"gradients: expected a finite norm.*(nan|inf)"):
        rnnfast.clip_grad_norm(arrays, 1.0, power, error_if_nonfinite=True)
    for got, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(got, old)
    norm, wanted = torch_clipped(before, 1.0, power)
    np.testing.assert_equal(rnnfast.clip_grad_norm(arrays, 1.0, power), norm)
    for got, right in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(got, right.astype(dtype))


def test_a_norm_beyond_all_numbers() -> None:
    """Of a power so small that the root of the sum overflows."""
    arrays = [np.ones(10_000)]
    assert rnnfast.clip_grad_norm(arrays, math.inf, 0.01) == math.inf
    assert rnnfast.clip_grad_norm(arrays, 10**400) == pytest.approx(100)
    with pytest.raises(ValueError, match="finite norm"):
        rnnfast.clip_grad_norm(arrays, 1.0, 0.01, error_if_nonfinite=True)
    np.testing.assert_array_equal(arrays[0], 1.0)


def test_nan_beside_inf() -> None:
    for pair in ([math.nan, math.inf], [math.inf, math.nan]):
        assert math.isnan(rnnfast.clip_grad_norm([np.array([v]) for v in pair], 1.0))


def test_the_same_array_twice() -> None:
    g = np.array([3.0, 4.0])
    assert rnnfast.clip_grad_norm([g, {"again": g}], 1.0) == 5
    np.testing.assert_allclose(g, [0.6, 0.8], rtol=1e-6)


def test_any_layout(dtype: str) -> None:
    whole = np.ones((6, 8), dtype)
    assert rnnfast.clip_grad_norm(whole[::2, ::-2].T, 1e-3) == pytest.approx(12**0.5)
    assert (whole == 1).sum() == 36


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.full((4,), 2.0)
    other = np.full(9, 2, np.float32)
    assert rnnfast.clip_grad_norm([tensor, other], 1.0) == pytest.approx(52**0.5)
    np.testing.assert_allclose(tensor.numpy(), 2 / 52**0.5, rtol=1e-6)


def test_jax_arrays_cannot_be_written() -> None:
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        pytest.skip("jax is not installed")
    with pytest.raises(ValueError, match=r"gradients\[0\]: .*read-only"):
        rnnfast.clip_grad_norm([jax.numpy.ones(3)], 1.0)


READ_ONLY = np.ones(3)
READ_ONLY.flags.writeable = False

BAD: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("a number", (1.0, 1.0), TypeError, r"gradients: .*1\.0"),
    ("integers", ([np.ones(3), np.ones(3, int)], 1.0), TypeError, r"gradients\[1\]: .*int"),
    ("half", ({"a": (np.ones(3, "f2"),)}, 1.0), TypeError, r"gradients\['a'\]\[0\]: .*float16"),
    ("a field", (rnnfast.Weights(np.ones(3), "w"), 1.0), TypeError, r"gradients\.w_hh: .*'w'"),
    ("read-only", ([np.ones(3), READ_ONLY], 1.0), ValueError, r"gradients\[1\]: .*read-only"),
    ("negative", (np.ones(3), -1.0), ValueError, r"max_norm: .*-1"),
    ("NaN", (np.ones(3), math.nan), ValueError, r"max_norm: .*nan"),
    ("text", (np.ones(3), "1"), TypeError, r"max_norm: .*'1'"),
    ("p = 0", (np.ones(3), 1.0, 0), ValueError, r"norm_type: .*0"),
    ("p < 0", (np.ones(3), 1.0, -math.inf), ValueError, r"norm_type: .*-inf"),
    ("p is text", (np.ones(3), 1.0, "inf"), TypeError, r"norm_type: .*'inf'"),
    ("no flag", (np.ones(3), 1.0, 2.0, 1), TypeError, r"error_if_nonfinite: .*1"),
]


@pytest.mark.parametrize(("what", "given", "error", "words"), BAD, ids=[b[0] for b in BAD])
def test_bad_arguments(
    what: str, given: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        rnnfast.clip_grad_norm(*given)
    first = given[0][0] if isinstance(given[0], list) else np.ones(3)
    assert (first == 1).all()
