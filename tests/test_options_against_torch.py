"""Every option against PyTorch in float64: its own LSTM, and loops of its autograd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import BIASES, STATES, Array, Case, Problem, problem, run, without_empty_rows
from hypothesis import assume, given
from hypothesis import strategies as st
from kinks import clear
from option_sets import (
    ACTIVATIONS,
    INTERACTING,
    OPTIONS,
    SPECS,
    compatible,
    each,
    keywords,
    of,
    unless_unsupported,
    with_options,
)
from spies import Seen, padded, spied
from tolerance import TORCH, assert_close

from rnnfast.spec import Spec

torch = pytest.importorskip("torch")
cells = pytest.importorskip("torch_cells")
with_modules = pytest.importorskip("test_against_torch")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("direction_count", [1, 2])
@pytest.mark.parametrize("bias", ["both", "none"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "packed"])
@pytest.mark.parametrize("P", [1, 7])
def test_projection(
    P: int, layers: int, direction_count: int, bias: str, ragged: bool, target: str
) -> None:
    """torch.nn.LSTM(proj_size=P)."""
    case = Case(
        Spec("lstm"),
        T=9,
        B=5,
        I=7,
        H=18,
        P=P,
        L=layers,
        D=direction_count,
        bias=bias,
        ragged=ragged,
    )
    p = without_empty_rows(problem(case))
    with unless_unsupported(target):
        found = run(p, target)
    assert_close(found, projected(p), TORCH)


def projected(p: Problem) -> dict[str, Array]:
    """What `helpers.run` gives for p, computed by torch.nn.LSTM."""
    flat = with_modules.directions(p.weights)
    P, H = flat[0].w_hr.shape
    bias = flat[0].b_ih is not None
    module = torch.nn.LSTM(
        p.x.shape[-1],
        H,
        len(p.weights),
        bias=bias,
        bidirectional=len(flat) > len(p.weights),
        proj_size=P,
        dtype=torch.float64,
    )
    used = [[a for a in w if a is not None] for w in flat]  # w_ih, w_hh, the biases, w_hr
    with torch.no_grad():
        for parameters, arrays in zip(module.all_weights, used, strict=True):
            for parameter, array in zip(parameters, arrays, strict=True):
                parameter.copy_(torch.from_numpy(array))
    x, h_0, c_0 = (torch.tensor(a, requires_grad=True) for a in (p.x, p.h_0, p.c_0))
    if p.lengths is None:
        y, state = module(x, (h_0, c_0))
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(p.lengths), enforce_sorted=False
        )
        y, state = module(packed, (h_0, c_0))
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(p.x))
    torch.autograd.backward([y, *state], [torch.from_numpy(d) for d in (p.dy, p.dh_n, p.dc_n)])
    names = ["w_ih", "w_hh", *(["b_ih", "b_hh"] if bias else []), "w_hr"]
    found = {"y": y.detach(), "h_n": state[0].detach(), "c_n": state[1].detach()}
    found |= {"dx": x.grad, "dh_0": h_0.grad, "dc_0": c_0.grad}
    for place, parameters in zip(cells.places(p.weights), module.all_weights, strict=True):
        for name, parameter in zip(names, parameters, strict=True):
            found[f"dw{place}.{name}"] = parameter.grad
    return {name: tensor.numpy() for name, tensor in found.items()}


def drawn(p: Problem, seen: Seen) -> Any:
    """The masks of a call, as they reached the backend."""
    found = cells.Drawn()
    steps, batch, _ = p.x.shape
    lengths = np.full(batch, steps) if p.lengths is None else p.lengths
    order = np.argsort(-lengths, kind="stable")
    before: Array | None = None
    for call in seen.forward:
        if p.keywords.get("dropout", 0) > 0:
            ratio = np.ones_like(call.x)
            if before is not None:
                np.divide(call.x, before, out=ratio, where=before != 0)
            found.between.append(padded(ratio, lengths, steps))
        before = call.ys[-1]
        for masks in call.masks or []:
            recurrent = masks.recurrent
            if recurrent is not None:  # to the caller's order of rows
                rows = np.zeros((batch, recurrent.shape[1]))
                rows[order[: len(recurrent)]] = recurrent
                recurrent = rows
            found.recurrent.append(recurrent)
            for name in ("keep_h", "keep_c"):
                keep = getattr(masks, name)
                if keep is not None:
                    rows = np.broadcast_to(keep, (len(call.x), keep.shape[1]))
                    keep = padded(rows, lengths, steps)
                getattr(found, name).append(keep)
    if p.keywords.get("dropconnect", 0) > 0 and p.keywords.get("training", True):
        prepared = [w for layer in seen.prepared for w in layer]
        given = cells.directions(p.weights)
        found.w_hh = [a.w_hh / b.w_hh for a, b in zip(prepared, given, strict=True)]
    return found


def check(case: Case, target: str) -> None:
    """Outputs, gradients and running statistics."""
    p = problem(case)
    with unless_unsupported(target), spied(target) as seen:
        found = run(p, target)
    assert_close(found, cells.run_torch(p, drawn(p, seen)), TORCH)


def middling(spec: Spec, **sizes: Any) -> Case:
    return Case(spec, **({"T": 7, "B": 5, "I": 4, "H": 9, "L": 2, "D": 2, "ragged": True} | sizes))


@pytest.fixture(params=SPECS, ids=Spec.variants)
def cell(request: pytest.FixtureRequest) -> Spec:
    found: Spec = request.param
    return found


def test_the_loops_without_options(cell: Spec, target: str) -> None:
    check(middling(cell), target)


@each(of)
@pytest.mark.parametrize("layers", [1, 2])
def test_each_alone(spec: Spec, names: str, layers: int, backend: str) -> None:
    """Rows of different lengths in two directions; two layers."""
    case = middling(spec, T=5, L=layers, D=3 - layers, ragged=layers == 1)
    check(clear(with_options(case, [names]), 1e-9), backend)


@each(lambda spec: [chosen for chosen in INTERACTING if set(chosen) <= set(of(spec))])
def test_what_acts_together(spec: Spec, names: tuple[str, ...]) -> None:
    """On the reference, with which `test_options` compares the others."""
    check(clear(with_options(middling(spec, T=5, L=1), names), 1e-9), "reference")


@pytest.mark.parametrize("f", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_activations(f: Any, clip: float | None, cell: Spec) -> None:
    """In each of the cell's places at once."""
    places = ("gate_activation", "activation", "output_activation", "nonlinearity")
    own = {place: f for place in places if cell.cell in OPTIONS[place].cells}
    check(clear(keywords(**own, clip=clip)(middling(cell, T=3, L=1, D=1)), 1e-9), "reference")


@given(data=st.data())
def test_anything(cell: Spec, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(of(cell)), unique=True, min_size=2), "options")
    assume(compatible(names))
    case = Case(
        cell,
        T=data.draw(st.integers(2, 8), "T"),
        B=data.draw(st.integers(2, 9), "B"),
        I=data.draw(st.integers(3, 9), "I"),
        H=data.draw(st.integers(4, 12), "H"),
        L=data.draw(st.integers(1, 3), "L"),
        D=data.draw(st.integers(1, 2), "D"),
        bias=data.draw(st.sampled_from(BIASES), "bias"),
        state=data.draw(st.sampled_from(STATES), "state"),
        ragged=data.draw(st.booleans(), "ragged"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    check(clear(with_options(case, names), 1e-9), "reference")


@pytest.mark.parametrize("every", [1, 3, 4, 100])
@pytest.mark.parametrize("bound", [0.05, None])
def test_steps_of_truncation_and_bounds(
    every: int, bound: float | None, cell: Spec, backend: str
) -> None:
    """Ends that fall on a cut, and rows that end on one."""
    case = keywords(truncate=every, grad_clip=bound)(middling(cell, T=9, B=7, L=1))
    p = problem(case)
    p = replace(p, lengths=np.array([9, 3, 4, 0, 8, 6, 1]))
    with unless_unsupported(backend), spied(backend) as seen:
        found = run(p, backend)
    assert_close(found, cells.run_torch(p, drawn(p, seen)), TORCH)
