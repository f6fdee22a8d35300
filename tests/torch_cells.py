"""The cells with all their options as loops for PyTorch's autograd, from the papers' equations.

Nothing is shared with rnnfast but the order of the gates. Rows of different lengths are not packed:
a row that has ended keeps its state. What is random comes from outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from helpers import Array, Problem, flatten_state
from torch.nn import functional as F  # noqa: N812

from rnnfast import Weights

torch.set_num_threads(1)  # the tensors are small

FUNCTIONS: dict[str, Any] = {  # (argument, alpha, beta), as ONNX writes them
    "sigmoid": lambda a, alpha, beta: torch.sigmoid(a),
    "tanh": lambda a, alpha, beta: torch.tanh(a),
    "relu": lambda a, alpha, beta: torch.relu(a),
    "linear": lambda a, alpha, beta: a,
    "affine": lambda a, alpha, beta: alpha * a + beta,
    "leaky_relu": lambda a, alpha, beta: F.leaky_relu(a, alpha),
    "thresholded_relu": lambda a, alpha, beta: F.threshold(a, alpha, 0.0),
    "scaled_tanh": lambda a, alpha, beta: alpha * torch.tanh(beta * a),
    "hard_sigmoid": lambda a, alpha, beta: torch.clamp(alpha * a + beta, 0, 1),
    "elu": lambda a, alpha, beta: F.elu(a, alpha),
    "softsign": lambda a, alpha, beta: F.softsign(a),
    "softplus": lambda a, alpha, beta: F.softplus(a),
}
DEFAULTS = {
    "affine": (1.0, 0.0),
    "leaky_relu": (0.01, 0.0),
    "thresholded_relu": (1.0, 0.0),
    "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (1.0, 0.0),
}


@dataclass
class Drawn:
    """The masks of a call, all None where there is none; laid out as the padded batch is."""

    between: list[Any] = field(default_factory=list)  # of the inputs of each layer, (T, B, D*P)
    recurrent: list[Any] = field(default_factory=list)  # of each direction, (B, P)
    keep_h: list[Any] = field(default_factory=list)  # (T, B, P)
    keep_c: list[Any] = field(default_factory=list)  # (T, B, H)
    w_hh: list[Any] = field(default_factory=list)  # (G*H, P)


def leaf(value: Any) -> Any:
    return None if value is None else torch.tensor(value, requires_grad=True)


@dataclass
class Cell:
    """One direction of one layer, with what a call asks of it."""

    p: Problem
    w: dict[str, Any]  # tensors
    w_hh: Any  # with elements dropped
    recurrent: Any

    def function(self, place: str, own: str) -> Any:
        chosen = self.p.keywords.get(place, own)
        name, *numbers = chosen if isinstance(chosen, tuple) else (chosen,)
        alpha, beta = (*numbers, *DEFAULTS.get(name, (0.0, 0.0))[len(numbers) :])
        clip, bound = self.p.keywords.get("clip"), self.p.keywords.get("grad_clip")

        def call(a: Any) -> Any:
            if place != "output_activation":  # neither is for c on its way to h
                if bound is not None:
                    a.register_hook(lambda d: d.clamp(-bound, bound))
                a = a if clip is None else a.clamp(-clip, clip)
            return FUNCTIONS[name](a, alpha, beta)

        return call

    def product(self, which: str, x: Any, rows: slice = slice(None)) -> Any:
        """Of x and some rows of a matrix, normalised where there is a gain, with its bias."""
        w = self.w_hh if which == "hh" else self.w["w_ih"]
        z = x @ w[rows].T
        gain, bias = self.w[f"ln_{which}"], self.w[f"b_{which}"]
        if gain is not None:
            z = F.layer_norm(z, z.shape[-1:], gain[rows], None, 1e-5)
        return z if bias is None else z + bias[rows]

    def inputs(self, x: Any, valid: Any) -> Any:
        """What comes from x at every step, (T, B, G*H): batch norm is over all valid rows."""
        if self.w["bn_ih"] is None:
            size = self.w["w_hh"].shape[0] // 3
            if self.p.spec.cell != "gru":
                return self.product("ih", x)
            parts = (slice(0, 2 * size), slice(2 * size, None))
            return torch.cat([self.product("ih", x, rows) for rows in parts], dim=-1)
        z = x @ self.w["w_ih"].T
        found = torch.zeros_like(z)
        found[valid] = F.batch_norm(
            z[valid],
            self.w["bn_mean"],
            self.w["bn_var"],
            self.w["bn_ih"],
            self.w["b_ih"],
            self.p.keywords.get("training", True),
            self.p.keywords.get("bn_momentum", 0.1),
            1e-5,
        )
        return found

    def step(self, a_x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        dropped = h if self.recurrent is None else h * self.recurrent
        gate = self.function("gate_activation", "sigmoid")
        if self.p.spec.cell == "lstm":
            return self.lstm(a_x, dropped, c, gate)
        if self.p.spec.cell == "gru":
            return self.gru(a_x, h, dropped, gate), c
        a = a_x + self.product("hh", dropped)
        if self.p.spec.cell == "rnn":
            return self.function("nonlinearity", self.p.spec.nonlinearity)(a), c
        i, f, u = a.chunk(3, dim=-1)
        return gate(f) * h + gate(i) * self.function("activation", "sigmoid")(u), c

    def lstm(self, a_x: Any, dropped: Any, c: Any, gate: Any) -> tuple[Any, Any]:
        i, f, g, o = (a_x + self.product("hh", dropped)).chunk(4, dim=-1)
        peep = self.w["w_peep"]
        if peep is not None:
            i, f = i + peep[0] * c, f + peep[1] * c
        i = gate(i)
        f = 1 - i if self.p.keywords.get("input_forget") else gate(f)
        c = f * c + i * self.function("activation", "tanh")(g)
        o = gate(o if peep is None else o + peep[2] * c)
        u = c
        if self.w["ln_c"] is not None:
            u = F.layer_norm(c, c.shape[-1:], self.w["ln_c"], self.w["ln_c_shift"], 1e-5)
        h = o * self.function("output_activation", "tanh")(u)
        return (h if self.w["w_hr"] is None else F.linear(h, self.w["w_hr"])), c

    def gru(self, a_x: Any, h: Any, dropped: Any, gate: Any) -> Any:
        size = h.shape[-1]
        r_z, new = slice(0, 2 * size), slice(2 * size, None)
        r, z = gate_pair(gate, a_x[..., r_z] + self.product("hh", dropped, r_z))
        if self.p.spec.reset_after:
            a = a_x[..., new] + r * self.product("hh", dropped, new)
        else:
            a = a_x[..., new] + self.product("hh", r * dropped, new)
        n = self.function("activation", "tanh")(a)
        return (1 - z) * n + z * h


def gate_pair(gate: Any, a: Any) -> tuple[Any, Any]:
    r, z = a.chunk(2, dim=-1)
    return gate(r), gate(z)


def run_torch(p: Problem, drawn: Drawn) -> dict[str, Array]:
    """What `helpers.run` gives for p in float64, with these masks."""
    flat = list(directions(p.weights))
    steps, batch, _ = p.x.shape
    lengths = np.full(batch, steps) if p.lengths is None else p.lengths
    weights = []
    for w in flat:
        named = {name: leaf(a) for name, a in w._asdict().items()}
        for name in ("bn_mean", "bn_var"):
            if named[name] is not None:
                named[name] = named[name].detach().clone()
        weights.append(named)
    count, outputs, hidden = len(flat), flat[0].w_hh.shape[1], p_hidden(p)
    x = leaf(p.x)
    h_0 = leaf(np.zeros((count, batch, outputs)) if p.h_0 is None else p.h_0)
    c_0 = leaf(np.zeros((count, batch, hidden)) if p.c_0 is None else p.c_0)
    per_layer = count // len(p.weights)
    rows, last_h, last_c = x, [], []
    for k in range(len(p.weights)):
        if k > 0 and drawn.between:
            rows = rows * torch.from_numpy(drawn.between[k])
        parts = []
        for d in range(per_layer):
            at = k * per_layer + d
            y, h, c = direction(p, weights[at], rows, h_0[at], c_0[at], lengths, d == 1, drawn, at)
            parts.append(y)
            last_h.append(h)
            last_c.append(c)
        rows = torch.cat(parts, dim=-1)
    ends = {"y": rows, "h_n": torch.stack(last_h)}
    if p.spec.info.has_c:
        ends["c_n"] = torch.stack(last_c)
    given = [(ends["y"], p.dy), (ends["h_n"], p.dh_n), (ends.get("c_n"), p.dc_n)]
    given = [(end, d) for end, d in given if end is not None and d is not None]
    if given:
        torch.autograd.backward(
            [end for end, _ in given], [torch.from_numpy(np.array(d)) for _, d in given]
        )
    found = {name: end.detach() for name, end in ends.items()}
    found |= (
        {"dx": grad(x)} | flatten_state(p.spec, (grad(h_0), grad(c_0)), "dh_0", "dc_0")
        if (p.spec.info.has_c)
        else {"dx": grad(x), "dh_0": grad(h_0)}
    )
    for place, named in zip(places(p.weights), weights, strict=True):
        for name, tensor in named.items():
            if tensor is None:
                continue
            if name in ("bn_mean", "bn_var"):
                found[f"new{place}.{name}"] = tensor
                found[f"dw{place}.{name}"] = torch.zeros_like(tensor)
            else:
                found[f"dw{place}.{name}"] = grad(tensor)
    return {name: tensor.numpy() for name, tensor in found.items()}


def direction(
    p: Problem,
    w: dict[str, Any],
    x: Any,
    h: Any,
    c: Any,
    lengths: Array,
    reverse: bool,
    drawn: Drawn,
    at: int,
) -> tuple[Any, Any, Any]:
    steps = x.shape[0]
    valid = torch.from_numpy(np.arange(steps)[:, None] < lengths)
    w_hh = w["w_hh"] * torch.from_numpy(drawn.w_hh[at]) if drawn.w_hh else w["w_hh"]
    recurrent = mask_of(drawn.recurrent, at)
    keep_h, keep_c = mask_of(drawn.keep_h, at), mask_of(drawn.keep_c, at)
    every = p.keywords.get("truncate")
    cell = Cell(p, w, w_hh, recurrent)
    a_x = cell.inputs(x, valid)
    y: list[Any] = [None] * steps
    for t in range(steps)[:: -1 if reverse else 1]:
        now = valid[t][:, None]
        cut = t + 1 if reverse else t  # between which steps the state passes
        if every is not None and cut % every == 0 and 0 < cut < steps:
            going_on = now & valid[t + 1][:, None] if reverse else now
            h, c = (torch.where(going_on, s.detach(), s) for s in (h, c))
        h_new, c_new = cell.step(a_x[t], h, c)
        if keep_h is not None:
            h_new = (1 - keep_h[t]) * h_new + keep_h[t] * h
        if keep_c is not None:
            c_new = (1 - keep_c[t]) * c_new + keep_c[t] * c
        h, c = torch.where(now, h_new, h), torch.where(now, c_new, c)
        y[t] = torch.where(now, h, torch.zeros_like(h))
    return torch.stack(y), h, c


def mask_of(masks: list[Any], at: int) -> Any:
    return torch.from_numpy(masks[at]) if masks and masks[at] is not None else None


def grad(tensor: Any) -> Any:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def directions(weights: Any) -> Iterator[Weights]:
    for entry in weights:
        yield from [entry] if isinstance(entry, Weights) else entry


def places(weights: Any) -> Iterator[str]:
    """[k] or [k][d] for each direction, as `helpers.flatten_weights` names them."""
    for k, entry in enumerate(weights):
        if isinstance(entry, Weights):
            yield f"[{k}]"
        else:
            yield from (f"[{k}][{d}]" for d in range(len(entry)))


def p_hidden(p: Problem) -> int:
    return next(directions(p.weights)).w_hh.shape[0] // len(p.spec.info.gates)
