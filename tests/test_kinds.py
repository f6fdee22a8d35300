"""Arrays of other libraries: taken without a copy, and returned as the same kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers import Array, Case, Problem, assert_same_bits, forward, problem, run

import rnnfast
from rnnfast.backends import get
from rnnfast.spec import Spec


class Foreign:
    """The least that DLPack and the array API ask of an array, and no method of NumPy's."""

    def __init__(self, array: Array, device: int = 1) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __array_namespace__(self) -> Any:
        return ForeignNamespace


class ForeignNamespace:
    made: ClassVar[list[Foreign]] = []

    @classmethod
    def from_dlpack(cls, value: Any) -> Foreign:
        return Foreign(np.from_dlpack(value))


def kinds() -> dict[str, tuple[type, Callable[[Array], Any]]]:
    """Of each library that is installed: its kind of array, and how it is made of NumPy's."""
    found: dict[str, tuple[type, Callable[[Array], Any]]] = {"foreign": (Foreign, Foreign)}
    try:
        torch = importlib.import_module("torch")
        found["torch"] = (torch.Tensor, torch.from_numpy)
    except ImportError:
        pass
    try:
        jax = importlib.import_module("jax")
        found["jax"] = (jax.Array, jax.numpy.asarray)
    except ImportError:
        pass
    return found


KINDS = kinds()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def of_kind(p: Problem, make: Callable[[Array], Any]) -> Problem:
    return p.map(make)


def back(value: Any) -> Array:
    return np.from_dlpack(value)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_same_kind_out(kind: str, batch_first: bool, ragged: bool, spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=4, B=4, I=3, H=17, L=2, D=2, dtype="float32", ragged=ragged))
    array, make = KINDS[kind]
    results = run(of_kind(p, make), target, batch_first=batch_first)
    assert all(isinstance(value, array) for value in results.values())
    wanted = run(p, target, batch_first=batch_first)
    assert_same_bits({k: back(v) for k, v in results.items()}, wanted)


def test_unbatched(kind: str, target: str) -> None:
    p = problem(Case(Spec("rnn"), T=4, B=1, I=3, H=17, dtype="float32"))
    p = replace(p, x=p.x[:, 0], h_0=p.h_0[:, 0])
    array, make = KINDS[kind]
    results = forward(of_kind(p, make), target)
    assert all(isinstance(value, array) for value in results.values())
    assert_same_bits({k: back(v) for k, v in results.items()}, forward(p, target))


def test_x_decides_the_kind(kind: str, target: str) -> None:
    """Weights and states of another kind are taken all the same."""
    p = problem(Case(Spec("lstm"), dtype="float32"))
    array, make = KINDS[kind]
    foreign = of_kind(p, make)
    assert_same_bits(run(replace(foreign, x=p.x), target), run(p, target))
    results = run(replace(p, x=foreign.x), target)
    assert all(isinstance(value, array) for value in results.values())


def test_nothing_is_copied(kind: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend is handed the caller's own memory."""
    seen: list[int] = []
    backend = type(get(target, Spec("lstm")))
    original = backend.forward

    def spy(self: Any, spec: Any, prepared: Any, x: Array, *rest: Any) -> Any:
        seen.append(x.ctypes.data)
        return original(self, spec, prepared, x, *rest)

    monkeypatch.setattr(backend, "forward", spy)
    p = of_kind(problem(Case(Spec("lstm"), dtype="float32")), KINDS[kind][1])
    forward(p, target)
    assert seen == [back(p.x).ctypes.data]


@pytest.mark.skipif("torch" not in KINDS, reason="torch is not installed")
@pytest.mark.parametrize("batch_first", [False, True])
def test_out_of_another_kind(batch_first: bool, target: str) -> None:
    p = problem(Case(Spec("lstm"), T=3, B=3, H=5, dtype="float32"))
    make = KINDS["torch"][1]
    out = make(np.zeros((3, 3, 5), np.float32))
    results = forward(of_kind(p, make), target, out=out, batch_first=batch_first)
    assert results["y"] is out
    assert_same_bits({"y": back(out)}, {"y": forward(p, target, batch_first=batch_first)["y"]})


@pytest.mark.skipif("torch" not in KINDS, reason="torch is not installed")
def test_tensors_that_cannot_be_viewed(target: str) -> None:
    torch = importlib.import_module("torch")
    p = of_kind(problem(Case(Spec("lstm"), dtype="float32")), torch.from_numpy)
    tracked = p.x.clone().requires_grad_()
    for name, value, words in (
        ("x", tracked, r"x: .*torch\.Tensor.*grad"),
        ("x", p.x.to(torch.float16), r"x: .*float32.*float16"),
        ("x", p.x.to(torch.bfloat16), r"x: .*torch\.Tensor"),
        ("x", p.x.to(torch.int64), r"x: .*float32.*int64"),
        ("h_0", p.h_0.double(), r"h_0: .*float32.*float64"),
        ("x", p.x.to_sparse(), r"x: .*torch\.Tensor"),
        ("x", torch.zeros(p.x.shape, device="meta"), r"x: "),
    ):
        with pytest.raises((TypeError, rnnfast.UnsupportedError), match=words):
            forward(replace(p, **{name: value}), target)


@pytest.mark.skipif("torch" not in KINDS, reason="torch is not installed")
@pytest.mark.parametrize("packed", [False, True])
def test_tensors_that_are_not_their_memory(packed: bool, target: str) -> None:
    """A gradient is wanted, the sign stands apart, or there are no numbers at all."""
    torch = importlib.import_module("torch")
    p = of_kind(problem(Case(Spec("lstm"), dtype="float32")), torch.from_numpy)
    weights = rnnfast.pack(p.weights, cell="lstm", backend=target) if packed else p.weights
    call = partial(rnnfast.lstm, weights=weights, backend=target)
    y = call(p.x, state=p.state)[0]
    negated = torch._neg_view(-p.x)
    assert torch.equal(negated, p.x)
    assert torch.equal(call(negated.resolve_neg(), state=p.state)[0], y)
    h, c = p.state
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("x: .*resolve_neg", {"x": negated}),
        ("x: .*grad", {"x": p.x.clone().requires_grad_()}),
        ("x: .*no memory", {"x": torch._efficientzerotensor(p.x.shape)}),
        ("c_0: .*resolve_neg", {"x": p.x, "state": (h, torch._neg_view(-c))}),
        ("h_0: .*grad", {"x": p.x, "state": (h.clone().requires_grad_(), c)}),
        ("out: .*resolve_neg", {"x": p.x, "out": torch._neg_view(torch.zeros_like(y))}),
        ("out: .*grad", {"x": p.x, "out": torch.zeros_like(y, requires_grad=True)}),
    ]
    for words, given in wrong:
        with pytest.raises(TypeError, match=words):
            call(**given)
    with pytest.raises(TypeError, match=r"x: .*resolve_neg"):
        rnnfast.Stream(p.weights, backend=target)(negated)


def test_arrays_on_a_device(target: str) -> None:
    """An array that DLPack says is not in the memory of the CPU."""
    p = problem(Case(Spec("lstm"), dtype="float32"))
    cuda = 2
    with pytest.raises(rnnfast.UnsupportedError, match=r"x: .*Foreign.*CPU"):
        forward(replace(p, x=Foreign(p.x, device=cuda)), target)
