"""Every usable backend against PyTorch in float64, which shares no line with the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import (
    BIASES,
    COTANGENTS,
    STATES,
    Array,
    Case,
    Problem,
    flatten_state,
    flatten_weights,
    problem,
    run,
    without_empty_rows,
)
from tolerance import TORCH, assert_close

from rnnfast import Weights
from rnnfast.spec import Spec, all_specs

torch = pytest.importorskip("torch")

MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
# torch has one form of the GRU, no sigmoid RNN and no gated cell.
IN_TORCH = [
    s
    for s in all_specs()
    if s.cell in MODULES and s.reset_after and s.nonlinearity in ("tanh", "relu")
]
in_torch = pytest.mark.parametrize("spec", IN_TORCH, ids=Spec.variants)


def directions(weights: Any) -> list[Weights]:
    """Every direction of every layer, in torch's order."""
    return [w for entry in weights for w in ([entry] if isinstance(entry, Weights) else entry)]


def module_of(p: Problem, batch_first: bool = False) -> Any:
    """A torch module with p's weights; its missing biases are zero, which is the same."""
    flat = directions(p.weights)
    module = MODULES[p.spec.cell](
        input_size=p.x.shape[-1],
        hidden_size=flat[0].w_hh.shape[1],
        num_layers=len(p.weights),
        bidirectional=len(flat) > len(p.weights),
        bias=any(b is not None for b in flat[0][2:4]),
        batch_first=batch_first,
        dtype=torch.float64,
        **({"nonlinearity": p.spec.nonlinearity} if p.spec.cell == "rnn" else {}),
    )
    with torch.no_grad():
        for into, w in zip(module.all_weights, flat, strict=True):
            for parameter, value in zip(into, w, strict=False):
                parameter.copy_(torch.zeros(()) if value is None else torch.from_numpy(value))
    return module


def run_torch(p: Problem, batch_first: bool = False) -> dict[str, Array]:
    """What `helpers.run` gives for p, computed by torch. p may be unbatched."""
    module = module_of(p, batch_first)
    time = 1 if batch_first and p.x.ndim == 3 else 0
    rows = np.delete(p.x.shape[:-1], time)
    zeros = np.zeros((len(directions(p.weights)), *rows, module.hidden_size))

    def leaf(value: Array | None) -> Any:
        return torch.tensor(zeros if value is None else value, requires_grad=True)

    x, h_0, c_0 = leaf(p.x), leaf(p.h_0), leaf(p.c_0)
    state = (h_0, c_0) if p.spec.info.has_c else h_0
    if p.lengths is None:
        y, state_n = module(x, state)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.from_numpy(p.lengths), batch_first=batch_first, enforce_sorted=False
        )
        y, state_n = module(packed, state)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(
            y, batch_first=batch_first, total_length=p.x.shape[time]
        )
    outputs = {"y": y} | flatten_state(p.spec, state_n, "h_n", "c_n")
    torch.autograd.backward(
        list(outputs.values()),
        [
            torch.zeros_like(output) if d is None else torch.tensor(d)
            for output, d in zip(outputs.values(), (p.dy, p.dh_n, p.dc_n), strict=False)
        ],
    )
    leaves = {"dx": x, "dh_0": h_0} | ({"dc_0": c_0} if p.spec.info.has_c else {})
    flat = flatten_weights(p.weights)
    parameters = (
        parameter
        for ours, theirs in zip(directions(p.weights), module.all_weights, strict=True)
        for value, parameter in zip(ours, theirs, strict=False)
        if value is not None
    )
    leaves |= dict(zip(flat, parameters, strict=True))
    found = {name: output.detach() for name, output in outputs.items()}
    found |= {name: leaf.grad for name, leaf in leaves.items()}
    return {name: tensor.numpy() for name, tensor in found.items()}


@in_torch
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("direction_count", [1, 2])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "packed"])
def test_outputs_and_gradients(
    spec: Spec, layers: int, direction_count: int, bias: str, ragged: bool, target: str
) -> None:
    case = Case(spec, T=9, B=5, I=7, H=18, L=layers, D=direction_count, bias=bias, ragged=ragged)
    p = without_empty_rows(problem(case))
    assert_close(run(p, target), run_torch(p), TORCH)


@in_torch
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("cotangents", COTANGENTS)
def test_missing_states_and_cotangents(
    spec: Spec, state: str, cotangents: str, target: str
) -> None:
    p = problem(Case(spec, T=6, B=4, I=3, H=5, L=2, D=2, state=state, cotangents=cotangents))
    assert_close(run(p, target), run_torch(p), TORCH)


@in_torch
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "packed"])
def test_batch_first(spec: Spec, ragged: bool, target: str) -> None:
    p = without_empty_rows(problem(Case(spec, T=6, B=4, I=3, H=17, L=2, D=2, ragged=ragged)))
    p = replace(p, x=p.x.swapaxes(0, 1), dy=p.dy.swapaxes(0, 1))
    assert_close(run(p, target, batch_first=True), run_torch(p, batch_first=True), TORCH)


@in_torch
def test_unbatched(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=6, B=1, I=3, H=17, L=2, D=2)).rows(0)
    assert_close(run(p, target), run_torch(p), TORCH)


@in_torch
def test_kinks_and_saturation(spec: Spec, target: str) -> None:
    """Plain random weights for relu, whose problems elsewhere avoid the kink; large inputs."""
    p = problem(Case(replace(spec, nonlinearity="tanh"), T=12, B=6, I=5, H=33))
    p = replace(p, spec=spec, x=10 * p.x)
    assert_close(run(p, target), run_torch(p), TORCH)


def step(spec: Spec, w: Weights, x: Any, h: Any) -> Any:
    """One step of a cell that torch does not have, from its equations, for autograd."""
    hidden = h.shape[1]
    a = (x @ w.w_ih.T + w.b_ih).split(hidden, dim=1)
    b = (h @ w.w_hh.T + w.b_hh).split(hidden, dim=1)
    if spec.cell == "rnn":
        return torch.sigmoid(a[0] + b[0])
    first, second = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
    if spec.cell == "gated":
        return second * h + first * torch.sigmoid(a[2] + b[2])
    u_n, b_n = w.w_hh[2 * hidden :], w.b_hh[2 * hidden :]
    n = torch.tanh(a[2] + (first * h) @ u_n.T + b_n)
    return (1 - second) * n + second * h


@pytest.mark.parametrize("spec", [s for s in all_specs() if s not in IN_TORCH], ids=Spec.variants)
def test_cells_that_torch_lacks(spec: Spec, target: str) -> None:
    p = problem(Case(spec, T=9, B=5, I=7, H=18))
    names = {"dx": p.x, "dh_0": p.h_0} | flatten_weights(p.weights)
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in names.items()}
    w = Weights(*(leaves[f"dw[0].{field}"] for field in ("w_ih", "w_hh", "b_ih", "b_hh")))
    h = leaves["dh_0"][0]
    outputs = []
    for x_t in leaves["dx"]:
        h = step(spec, w, x_t, h)
        outputs.append(h)
    y, h_n = torch.stack(outputs), h[None]
    torch.autograd.backward([y, h_n], [torch.tensor(p.dy), torch.tensor(p.dh_n)])
    wanted = {"y": y.detach(), "h_n": h_n.detach()} | {k: v.grad for k, v in leaves.items()}
    assert_close(run(p, target), {k: v.numpy() for k, v in wanted.items()}, TORCH)
