"""What a step does to the units of one row, for cells without options: forward and back.

Each function goes once over its rows, which are named after what they hold. Gates come in as
arguments. What is there for a backward pass alone may be an empty array. Equations:
rnnfast/reference/<cell>.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .functions import sigmoid_of, tanh_of
from .vectors import Number, Place, update


def _sigmoid_back(d: Number, y: Number) -> Number:
    return d * y * (1 - y)


def _tanh_back(d: Number, y: Number) -> Number:
    return d * (1 - y * y)


def _relu(x: Number) -> Number:
    return x.where("<=", 0, 0, x)  # a NaN stays one


def _relu_back(d: Number, y: Number) -> Number:
    return y.where("<=", 0, 0, d)


@update
def lstm(
    i: Place, f: Place, g: Place, o: Place, c: Place, h: Place, y: Place,
    *, v: Place, c_before: Place, h_before: Place,
) -> None:  # fmt: skip
    """v = tanh(c)"""
    of_i, of_f, of_o = (sigmoid_of(gate.load()) for gate in (i, f, o))
    of_g, before = tanh_of(g.load()), c.load()
    after = of_f * before + of_i * of_g
    of_v = tanh_of(after)
    h_before.store(h.load())
    c_before.store(before)
    c.store(after)
    v.store(of_v)
    for place, value in ((i, of_i), (f, of_f), (g, of_g), (o, of_o)):
        place.store(value, beside=v)
    after = of_o * of_v
    h.store(after)
    y.store(after)


@update
def gru_after(
    r: Place, z: Place, n: Place, q: Place, h: Place, y: Place, *, h_before: Place
) -> None:
    """q = U h + b"""
    of_r, of_z, before = sigmoid_of(r.load()), sigmoid_of(z.load()), h.load()
    of_n = tanh_of(n.load() + of_r * q.load())
    h_before.store(before)
    for place, value in ((r, of_r), (z, of_z), (n, of_n)):
        place.store(value, beside=h_before)
    after = (1 - of_z) * of_n + of_z * before
    h.store(after)
    y.store(after)


@update
def gru_reset(r: Place, rh: Place, h: Place) -> None:
    """rh = r h"""
    of_r = sigmoid_of(r.load())
    r.store(of_r)
    rh.store(of_r * h.load())


@update
def gru_before(z: Place, n: Place, h: Place, y: Place, *, h_before: Place) -> None:
    of_z, of_n, before = sigmoid_of(z.load()), tanh_of(n.load()), h.load()
    h_before.store(before)
    z.store(of_z, beside=h_before)
    n.store(of_n, beside=h_before)
    after = (1 - of_z) * of_n + of_z * before
    h.store(after)
    y.store(after)


def _rnn(function: Callable[[Number], Number]) -> Any:
    def rnn(a: Place, h: Place, y: Place, *, h_before: Place) -> None:
        after = function(a.load())
        h_before.store(h.load())
        a.store(after, beside=h_before)
        h.store(after)
        y.store(after)

    return update(rnn)


rnn, rnn_relu, rnn_sigmoid = map(_rnn, (tanh_of, _relu, sigmoid_of))


@update
def gated(i: Place, f: Place, v: Place, h: Place, y: Place, *, h_before: Place) -> None:
    of_i, of_f, of_v = (sigmoid_of(gate.load()) for gate in (i, f, v))
    before = h.load()
    h_before.store(before)
    for place, value in ((i, of_i), (f, of_f), (v, of_v)):
        place.store(value, beside=h_before)
    after = of_f * before + of_i * of_v
    h.store(after)
    y.store(after)


# Back: dh becomes what of it goes to the h before without a product; d is of the arguments.


@update
def lstm_back(
    dh: Place, dc: Place, i: Place, f: Place, g: Place, o: Place, v: Place,
    c_before: Place, di: Place, df: Place, dg: Place, do: Place, *, dy: Place,
) -> None:  # fmt: skip
    d = dh.load() + dy.load()
    of_i, of_f, of_g, of_o, of_v = (gate.load() for gate in (i, f, g, o, v))
    do.store(_sigmoid_back(d * of_v, of_o))
    dc_step = dc.load() + _tanh_back(d * of_o, of_v)
    di.store(_sigmoid_back(dc_step * of_g, of_i))
    df.store(_sigmoid_back(dc_step * c_before.load(), of_f))
    dg.store(_tanh_back(dc_step * of_i, of_g))
    dc.store(dc_step * of_f)
    dh.store(d.number(0))


@update
def gru_after_back(
    dh: Place, r: Place, z: Place, n: Place, q: Place, h_before: Place,
    dr: Place, dz: Place, dn: Place, dq: Place, *, dy: Place,
) -> None:  # fmt: skip
    d = dh.load() + dy.load()
    of_r, of_z, of_n = r.load(), z.load(), n.load()
    dz.store(_sigmoid_back(d * (h_before.load() - of_n), of_z))
    of_dn = _tanh_back(d * (1 - of_z), of_n)
    dn.store(of_dn)
    dr.store(_sigmoid_back(of_dn * q.load(), of_r))
    dq.store(of_dn * of_r)
    dh.store(d * of_z)


@update
def gru_before_back(
    dh: Place, z: Place, n: Place, h_before: Place, dz: Place, dn: Place, *, dy: Place
) -> None:
    d = dh.load() + dy.load()
    of_z, of_n = z.load(), n.load()
    dz.store(_sigmoid_back(d * (h_before.load() - of_n), of_z))
    dn.store(_tanh_back(d * (1 - of_z), of_n))
    dh.store(d * of_z)


@update
def gru_reset_back(dh: Place, drh: Place, r: Place, h_before: Place, dr: Place) -> None:
    d, of_r = drh.load(), r.load()
    dr.store(_sigmoid_back(d * h_before.load(), of_r))
    dh.store(dh.load() + d * of_r)


def _rnn_back(function_back: Callable[[Number, Number], Number]) -> Any:
    def rnn_back(dh: Place, a: Place, da: Place, *, dy: Place) -> None:
        d = dh.load() + dy.load()
        da.store(function_back(d, a.load()))
        dh.store(d.number(0))

    return update(rnn_back)


rnn_back, rnn_relu_back, rnn_sigmoid_back = map(_rnn_back, (_tanh_back, _relu_back, _sigmoid_back))


@update
def gated_back(
    dh: Place, i: Place, f: Place, v: Place, h_before: Place,
    di: Place, df: Place, dv: Place, *, dy: Place,
) -> None:  # fmt: skip
    d = dh.load() + dy.load()
    of_i, of_f, of_v = i.load(), f.load(), v.load()
    di.store(_sigmoid_back(d * of_v, of_i))
    df.store(_sigmoid_back(d * h_before.load(), of_f))
    dv.store(_sigmoid_back(d * of_i, of_v))
    dh.store(d * of_f)
