"""dL/dh_t of every layer, direction and step, against PyTorch's autograd on a plain loop."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, Array, Case, Problem, function, problem, variant
from hypothesis import given
from hypothesis import strategies as st
from test_kinds import KINDS

import rnnfast
from rnnfast.spec import Spec

RTOL = 1e-9  # of every single norm, however small it is beside the others


def step(spec: Spec, w: Any, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    """One step of a cell in PyTorch: the new h and c."""
    import torch

    a_x, a_h = x @ w.w_ih.T, h @ w.w_hh.T
    b_h = 0 if w.b_hh is None else w.b_hh
    if w.b_ih is not None:
        a_x = a_x + w.b_ih
    if spec.cell == "rnn":
        return getattr(torch, spec.nonlinearity)(a_x + a_h + b_h), c
    if spec.cell == "gated":
        i, f, u = torch.sigmoid(a_x + a_h + b_h).chunk(3, -1)
        return f * h + i * u, c
    if spec.cell == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = a_x.chunk(3, -1), (a_h + b_h).chunk(3, -1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        if not spec.reset_after:
            size = h.shape[-1]
            h_n = (r * h) @ w.w_hh[2 * size :].T + (0 if w.b_hh is None else b_h[2 * size :])
        n = torch.tanh(x_n + (r * h_n if spec.reset_after else h_n))
        return (1 - z) * n + z * h, c
    i, f, g, o = (a_x + a_h + b_h).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w.w_hr is None else h @ w.w_hr.T), c


def wanted(p: Problem, truncate: int | None = None) -> Array:
    """The norm of dL/dh_t for each row (L, D, T, B), of L = <y, dy> + <h_n, dh_n> + <c_n, dc_n>."""
    torch = pytest.importorskip("torch")
    spec = p.spec
    p = p.map(torch.from_numpy)
    steps, batch, _ = p.x.shape
    ends = torch.full((batch,), steps) if p.lengths is None else torch.from_numpy(p.lengths)
    layers = [w if not isinstance(w, rnnfast.Weights) else (w,) for w in p.weights]
    loss = torch.zeros((), dtype=p.x.dtype)
    nodes: dict[tuple[int, int, int], Any] = {}
    below, at = p.x, 0
    for k, layer in enumerate(layers):
        outputs = []
        for d, w in enumerate(layer):
            hidden = w.w_hh.shape[0] // len(spec.info.gates)
            h = torch.zeros(batch, w.w_hh.shape[1]).to(p.x) if p.h_0 is None else p.h_0[at]
            c = torch.zeros(batch, hidden).to(p.x) if p.c_0 is None else p.c_0[at]
            y = [torch.zeros_like(h)] * steps
            order = range(steps)[:: -1 if d else 1]
            for t in order:
                runs = (t < ends)[:, None]
                before = t + 1 if d else t - 1
                if truncate and max(t, before) % truncate == 0:
                    going_on = (max(t, before) < ends)[:, None] & (before >= 0)
                    h, c = (
                        torch.where(going_on, h.detach(), h),
                        torch.where(going_on, c.detach(), c),
                    )
                new, c_new = step(spec, w, below[t], h, c)
                new.requires_grad_(True)
                new.retain_grad()
                nodes[k, d, t] = new
                y[t] = torch.where(runs, new, 0.0)
                h, c = torch.where(runs, new, h), torch.where(runs, c_new, c)
            outputs.append(torch.stack(y))
            if p.dh_n is not None:
                loss = loss + (h * p.dh_n[at]).sum()
            if p.dc_n is not None:
                loss = loss + (c * p.dc_n[at]).sum()
            at += 1
        below = torch.cat(outputs, -1)
    if p.dy is not None:
        loss = loss + (below * p.dy).sum()
    loss.backward()
    norms = np.zeros((len(layers), len(layers[0]), steps, batch))
    for index, node in nodes.items():
        if node.grad is not None:
            norms[index] = node.grad.norm(dim=-1).numpy()
    return norms


def flow(p: Problem, backend: str, **options: Any) -> rnnfast.GradientFlow:
    how = {**variant(p.spec), "state": p.state, "lengths": p.lengths, **options}
    return rnnfast.gradient_flow(p.x, p.weights, p.dy, p.dstate, backend=backend, **how)


def check(found: rnnfast.GradientFlow, right: Array) -> None:
    np.testing.assert_allclose(found.per_row, right, rtol=RTOL, atol=0)
    np.testing.assert_allclose(found.norms, (right**2).sum(-1) ** 0.5, rtol=RTOL, atol=0)
    assert found.norms.dtype == found.per_row.dtype == np.float64


@given(data=st.data())
def test_against_autograd(spec: Spec, backend: str, data: st.DataObject) -> None:
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    cotangents = pick("yhc", "y", "hc", "h", "yc")
    case = Case(
        spec,
        T=pick(1, 2, 7),
        B=pick(1, 2, 4),
        H=pick(1, 5, 17),
        L=pick(1, 2, 3),
        D=pick(1, 2),
        bias=pick("both", "none", "ih", "hh"),
        state=pick("both", "none", "h", "c"),
        ragged=pick(False, True),
        cotangents=cotangents,
        seed=pick(0, 1, 2),
    )
    p = problem(case)
    if p.dy is None and p.dstate is None:
        return
    right = wanted(p)
    check(flow(p, backend), right)
    if data.draw(st.booleans()):
        swapped = replace(p, x=p.x.swapaxes(0, 1), dy=None if p.dy is None else p.dy.swapaxes(0, 1))
        check(flow(swapped, backend, batch_first=True), right)
    truncate = pick(1, 2, 3)
    if backend in truncating(spec):
        check(flow(p, backend, truncate=truncate), wanted(p, truncate))


def truncating(spec: Spec) -> tuple[str, ...]:
    """The backends that have truncated BPTT."""
    from rnnfast.backends import supporting

    return supporting(replace(spec, truncate=2))


@pytest.mark.parametrize("directions", [1, 2])
def test_projection(directions: int) -> None:
    p = problem(Case(Spec("lstm"), T=6, B=3, H=5, L=2, D=directions, cotangents="y", state="none"))
    weights = rnnfast.init_weights("lstm", 4, 7, 2, directions == 2, proj_size=5, dtype="f8", rng=0)
    p = replace(p, weights=weights)
    check(flow(p, "reference"), wanted(p))


OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("lstm", {"peepholes": True}, {}),
    ("lstm", {"layer_norm": True, "proj_size": 2}, {}),
    ("gru", {"layer_norm": True}, {"reset_after": False}),
    ("rnn", {"batch_norm": True}, {"training": False}),
    ("lstm", {}, {"zoneout": (0.3, 0.2), "training": False, "dropconnect": 0.5}),
    ("gru", {}, {"zoneout": 0.4, "training": False, "dropout": 0.5, "rng": 0}),
    ("lstm", {}, {"clip": 0.8, "input_forget": True, "activation": "elu"}),
    ("gated", {}, {"gate_activation": ("hard_sigmoid", 0.3, 0.4)}),
    ("rnn", {}, {"nonlinearity": "softsign"}),
]


@pytest.mark.parametrize(("cell", "made", "options"), OPTIONS, ids=[str(o) for o in OPTIONS])
def test_options_by_differences(cell: str, made: dict[str, Any], options: dict[str, Any]) -> None:
    """Perturb h_t between two calls: of the steps up to t and of those after it."""
    rng = np.random.default_rng(0)
    weights = rnnfast.init_weights(cell, 2, 3, dtype="f8", rng=0, **made)
    if made.get("batch_norm"):
        weights[0].bn_mean[...] = rng.standard_normal(3)
    x = rng.standard_normal((6, 1, 2))
    call = getattr(rnnfast, cell)
    how = {**options, "backend": "reference"}
    y, _ = call(x, weights, **how)
    dy = rng.standard_normal(y.shape)
    found = rnnfast.gradient_flow(x, weights, dy, cell=cell, **how)
    step = 1e-4
    for t in range(5):
        _, state = call(x[: t + 1], weights, **how)
        h = state[0] if cell == "lstm" else state

        def loss(change: Array, t: int = t, state: Any = state, h: Array = h) -> float:
            moved = h + change
            after = (moved, state[1]) if cell == "lstm" else moved
            rest, _ = call(x[t + 1 :], weights, after, **how)
            return float((dy[t] * moved[0]).sum() + (dy[t + 1 :] * rest).sum())

        gradient = []
        for unit in np.eye(h.shape[-1])[:, None, None] * step:
            near, far = loss(unit) - loss(-unit), loss(2 * unit) - loss(-2 * unit)
            gradient.append((8 * near - far) / (12 * step))
        np.testing.assert_allclose(found.norms[0, 0, t], np.linalg.norm(gradient), rtol=1e-8)


def test_gradient_clipping_acts_at_every_step() -> None:
    """With every gradient of a gate clipped to nothing, only dy itself is left of dL/dh_t."""
    p = problem(Case(Spec("rnn"), T=5, L=2, cotangents="y"))
    found = flow(p, "reference", grad_clip=1e-300)
    np.testing.assert_allclose(found.per_row[1, 0], np.linalg.norm(p.dy, axis=-1), rtol=1e-12)
    assert (found.norms[0] < 1e-250).all()


def test_unbatched(spec: Spec, backend: str) -> None:
    p = problem(Case(spec, T=5, B=1, L=2, D=2))
    one = p.map(lambda a: a[:, 0] if a.ndim == 3 else a)
    np.testing.assert_array_equal(flow(one, backend).per_row, flow(p, backend).per_row)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(kind: str, spec: Spec, backend: str) -> None:
    make = KINDS[kind][1]
    p = problem(Case(spec, T=5, B=2, ragged=True, dtype="float32"))
    other = replace(p.map(make), lengths=make(p.lengths))
    np.testing.assert_array_equal(flow(other, backend).per_row, flow(p, backend).per_row)


def test_against_the_gradient_of_a_state(spec: Spec, target: str) -> None:
    """dL/dh_t is dy_t and what the steps after it say of their initial state."""
    p = problem(Case(spec, T=5, B=3, cotangents="y"))
    vjp = function(spec, vjp=True)
    _, middle, _ = vjp(p.x[:2], p.weights, p.state, backend=target)
    _, _, backward = vjp(p.x[2:], p.weights, middle, backend=target)
    dstate = backward(p.dy[2:])[2]
    dh = (dstate[0] if spec.info.has_c else dstate)[0] + p.dy[1]
    right = np.linalg.norm(dh, axis=-1)
    np.testing.assert_allclose(flow(p, target).per_row[0, 0, 1], right, rtol=RTOL)


def test_running_statistics_stay() -> None:
    weights = rnnfast.init_weights("lstm", 3, 4, batch_norm=True, dtype="f8", rng=0)
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    dy = np.ones((5, 2, 4))
    with pytest.raises(rnnfast.UnsupportedError, match=r"weights\.bn_ih: .*training=False"):
        rnnfast.gradient_flow(x, weights, dy, cell="lstm", backend="reference")
    assert (weights[0].bn_mean == 0).all()
    rnnfast.gradient_flow(x, weights, dy, cell="lstm", backend="reference", training=False)
    assert (weights[0].bn_mean == 0).all()


@pytest.mark.parametrize("directions", [1, 2])
def test_plot(directions: int) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    norms = np.geomspace(1e-20, 1, 2 * directions * 6).reshape(2, directions, 6)
    norms[0, 0, 0] = 0
    found = rnnfast.GradientFlow(norms, norms[..., None])
    ax = figures.Figure().add_subplot()
    assert found.plot(ax) is ax
    assert ax.get_yscale() == "log"
    lines = ax.get_lines()
    assert len(lines) == 2 * directions
    assert np.isnan(lines[0].get_ydata()[0])
    np.testing.assert_array_equal(lines[-1].get_ydata(), norms[1, -1])
    names = [line.get_label() for line in lines]
    ends = (
        ["", ", forward", ", reverse"][directions - 1 :][:directions] if directions == 2 else [""]
    )
    assert names == [f"layer {k}{end}" for k in range(2) for end in ends]


def test_plot_makes_its_own_figure() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    norms = np.ones((1, 1, 1))
    ax = rnnfast.GradientFlow(norms, norms[..., None]).plot()
    try:
        assert ax.get_figure().number in pyplot.get_fignums()
    finally:
        pyplot.close(ax.get_figure())


def test_the_page() -> None:
    """The code of docs/gradient_flow.md runs, and its pictures and links are there."""
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    page = ROOT / "docs" / "gradient_flow.md"
    text = page.read_text(encoding="utf-8")
    weights = rnnfast.init_weights("lstm", 5, 9, rng=0)
    x = np.ones((4, 3, 5), np.float32)
    names: dict[str, Any] = {"np": np, "rnnfast": rnnfast, "x": x, "weights": weights, "target": 1}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    pyplot.close("all")
    assert names["flow"].norms.shape == (1, 1, 4)
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) == 2
    assert all((page.parent / link).exists() for link in links)


P = problem(Case(Spec("lstm"), T=4, B=3, I=5, H=9))

BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("no loss", {"dy": None, "dstate_n": None}, ValueError, r"dy: .*dstate_n.*None"),
    ("cell", {"cell": "elman"}, ValueError, r"cell: .*elman"),
    ("weights", {"weights": 5}, TypeError, r"weights: .*5"),
    ("packed", {"weights": rnnfast.pack(P.weights, cell="lstm", backend="reference")}, TypeError,
     r"weights: .*Packed"),
    ("x", {"x": P.x[..., :4]}, ValueError, r"x: expected 5 .*\(4, 3, 4\)"),
    ("dy", {"dy": P.dy[:3]}, ValueError, r"dy: .*\(4, 3, 9\).*\(3, 3, 9\)"),
    ("dstate_n", {"dstate_n": P.dh_n}, TypeError, r"dstate_n: .*pair"),
    ("state", {"state": (P.h_0[:, :2], None)}, ValueError, r"h_0: .*\(1, 2, 9\)"),
    ("lengths", {"lengths": [1, 2, 5]}, ValueError, r"lengths: .*5"),
    ("backend", {"backend": "best"}, ValueError, r"backend: .*best"),
    ("an option", {"reset": True}, TypeError, r"reset"),
    ("out", {"out": P.dy}, TypeError, r"out: unexpected"),
    ("save", {"save": "all"}, TypeError, r"save: unexpected"),
    ("checkpoint", {"checkpoint": 2}, TypeError, r"checkpoint: unexpected"),
    *((name, {name: 0.5, "rng": 0}, rnnfast.UnsupportedError, rf"{name}: .*training=False")
      for name in ("recurrent_dropout", "zoneout", "dropconnect")),
    ("zoneout of c", {"zoneout": (0.0, 0.5)}, rnnfast.UnsupportedError, "zoneout: .*training"),
    ("dropout", {"dropout": 0.5, "weights": rnnfast.init_weights("lstm", 5, 9, 2, dtype="float64")},
     rnnfast.UnsupportedError, r"dropout: .*training=False"),
]  # fmt: skip


def test_rates_of_zero_draw_nothing() -> None:
    """Nor does dropout, which is between layers, where there is one."""
    flow = partial(rnnfast.gradient_flow, P.x, P.weights, P.dy, cell="lstm")
    for options in ({"zoneout": (0.0, 0.0)}, {"dropout": 0.5}, {"recurrent_dropout": 0.0}):
        np.testing.assert_array_equal(flow(**options).norms, flow().norms)


@pytest.mark.parametrize(("what", "change", "error", "words"), BAD, ids=[b[0] for b in BAD])
def test_bad_arguments(
    what: str, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    given: dict[str, Any] = {"x": P.x, "weights": P.weights, "dy": P.dy, "cell": "lstm"}
    with pytest.raises(error, match=words):
        rnnfast.gradient_flow(**{**given, **change})
