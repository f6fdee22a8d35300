"""Bad calls: each gets an error that names the argument, what came and what was expected.

A row changes one thing in a good call of one layer with T = 4, B = 3, I = 5, H = 6 in float32.
Every row is tried on every usable backend, for the plain function and for its _vjp.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers import Case, assert_same_bits, flatten_state, function, problem, run

import rnnfast
from rnnfast import UnsupportedError, Weights
from rnnfast.spec import ACTIVATIONS, Spec, all_specs

Call = dict[str, Any]
LSTM, GRU, RNN, GATED = Spec("lstm"), Spec("gru"), Spec("rnn"), Spec("gated")
NAMES = ", ".join(ACTIVATIONS)
HUGE = 2**44  # as a number of rows, beyond any address space of today


@dataclass(frozen=True)
class Bad:
    name: str
    change: Callable[[Call], object]  # changes the arguments of a good call in place
    error: type[Exception] | tuple[type[Exception], ...]
    words: tuple[str, ...]  # what the message must contain, in this order
    spec: Spec = LSTM

    def __str__(self) -> str:
        return self.name


def good(spec: Spec) -> Call:
    p = problem(Case(spec, T=4, B=3, I=5, H=6, dtype="float32"))
    return {"x": p.x, "weights": p.weights, "state": p.state}


def put(name: str, value: Any) -> Callable[[Call], object]:
    """Give an argument a value, or one made of the good value."""

    def change(call: Call) -> None:
        call[name] = value(call.get(name)) if callable(value) else value

    return change


def weight(field: str, value: Any) -> Callable[[Call], object]:
    """The same for one array of the weights."""

    def change(call: Call) -> None:
        (w,) = call["weights"]
        new = value(getattr(w, field)) if callable(value) else value
        call["weights"] = [w._replace(**{field: new})]

    return change


def state(name: str, value: Any) -> Callable[[Call], object]:
    """The same for h_0 or c_0 of an LSTM."""

    def change(call: Call) -> None:
        pair = dict(zip(("h_0", "c_0"), call["state"], strict=True))
        pair[name] = value(pair[name]) if callable(value) else value
        call["state"] = tuple(pair.values())

    return change


def both(*changes: Callable[[Call], object]) -> Callable[[Call], object]:
    def change(call: Call) -> None:
        for one in changes:
            one(call)

    return change


def stretched(*shape: int) -> Any:
    """An array of enormous shape that takes four bytes."""
    return np.broadcast_to(np.float32(0), shape)


def out_like(shape: tuple[int, ...], dtype: Any = np.float32, **flags: bool) -> Any:
    a = np.zeros(shape, dtype)
    a.setflags(**flags)
    return a


def overlapping(call: Call) -> None:
    memory = np.zeros(4 * 3 * 6 + 2, np.float32)
    call["x"] = memory[: 4 * 3 * 5].reshape(4, 3, 5)
    call["out"] = memory[2:].reshape(4, 3, 6)


def out_on_weights(call: Call) -> None:
    w = call["weights"][0]
    memory = np.zeros((4 * 3 * 6 * 2,), np.float32)
    call["out"] = memory[: 4 * 3 * 6].reshape(4, 3, 6)
    call["weights"] = [w._replace(b_ih=memory[50:74])]


def out_on_state(call: Call) -> None:
    call["out"] = np.zeros((4, 3, 6), np.float32)
    call["state"] = (call["out"][:1], call["state"][1])


def deeper(second: Any) -> Callable[[Call], object]:
    """A second layer."""
    return lambda call: call["weights"].append(second(call["weights"][0]))


def pair(second: Any) -> Callable[[Call], object]:
    """A reverse direction."""

    def change(call: Call) -> None:
        (w,) = call["weights"]
        call["weights"] = [(w, second(w))]

    return change


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def read_only(a: Any) -> Any:
    a.setflags(write=False)
    return a


def weight_of(layer: int, field: str, value: Any) -> Callable[[Call], object]:
    """Give one array of one of several layers a value."""

    def change(call: Call) -> None:
        call["weights"][layer] = call["weights"][layer]._replace(**{field: value})

    return change


def fields(**arrays: Any) -> Callable[[Call], object]:
    """Give arrays of the weights values."""

    def change(call: Call) -> None:
        (w,) = call["weights"]
        call["weights"] = [w._replace(**arrays)]

    return change


def projected(outputs: int) -> Callable[[Call], object]:
    """An LSTM with projection."""
    return both(fields(w_hr=ones(outputs, 6), w_hh=ones(24, outputs)), put("state", None))


def normed(**arrays: Any) -> Callable[[Call], object]:
    """An LSTM with layer normalisation."""
    return fields(**({"ln_ih": ones(24), "ln_hh": ones(24)} | arrays))


def batch_normed(**arrays: Any) -> Callable[[Call], object]:
    """An LSTM with batch normalisation."""
    return fields(**({"bn_ih": ones(24), "bn_mean": ones(24), "bn_var": ones(24)} | arrays))


def batch_normed_weights() -> Weights:
    call = good(LSTM)
    batch_normed()(call)
    found: Weights = call["weights"][0]
    return found


# The optional arrays of the weights: what gives one a value, and its shape.
OPTIONAL: tuple[tuple[str, Callable[..., Callable[[Call], object]], tuple[int, ...]], ...] = (
    ("w_hr", fields, (2, 6)),
    ("w_peep", fields, (3, 6)),
    ("ln_ih", normed, (24,)),
    ("ln_hh", normed, (24,)),
    ("ln_c", normed, (6,)),
    ("bn_ih", batch_normed, (24,)),
    ("bn_mean", batch_normed, (24,)),
    ("bn_var", batch_normed, (24,)),
)


def transposed(a: Any) -> Any:
    return np.ascontiguousarray(a.T)


def as_type(dtype: Any) -> Callable[[Any], Any]:
    return lambda a: a.astype(dtype)


def unbatched(call: Call) -> None:
    call["x"], call["state"] = call["x"][:, 0], None


# (what it is, value, error, words of the message): of every argument that is an activation
BAD_ACTIVATIONS: tuple[tuple[str, Any, type[Exception], tuple[str, ...]], ...] = (
    ("is unknown", "gelu", ValueError, (NAMES, "'gelu'")),
    ("is in ONNX's spelling", "HardSigmoid", ValueError, (NAMES, "'HardSigmoid'")),
    ("is None", None, TypeError, ("str", "alpha, beta", "None")),
    ("is a function", lambda _: np.tanh, TypeError, ("str", "alpha, beta", "numpy.ufunc")),
    ("is an array", np.zeros(3), TypeError, ("str", "alpha, beta", "array of shape (3,)")),
    ("is a list", ["tanh"], TypeError, ("str", "alpha, beta", "list")),
    ("is an empty tuple", (), TypeError, ("str", "alpha, beta", "()")),
    ("has three numbers", ("elu", 1, 2, 3), TypeError, ("str", "alpha, beta", "('elu', 1, 2, 3)")),
    ("has a number for a name", (1.0, "elu"), TypeError, ("str", "alpha, beta", "(1.0, 'elu')")),
    ("is unknown in a tuple", ("gelu", 1.0), ValueError, (NAMES, "'gelu'")),
    ("has a string for alpha", ("elu", "1"), TypeError, ("float", "'1'")),
    ("has True for alpha", ("elu", True), TypeError, ("float", "True")),
    ("has an infinite alpha", ("affine", np.inf, 0.0), ValueError, ("finite", "inf")),
    ("has NaN for beta", ("affine", 1.0, np.nan), ValueError, ("finite", "nan")),
    ("falls and rises", ("elu", -0.5), ValueError, ("alpha", "0", "elu", "-0.5")),
    ("has an alpha of 0", ("elu", 0.0), ValueError, ("alpha", "0", "elu", "0.0")),
    ("is a leak upwards", ("leaky_relu", -1.0), ValueError, ("alpha", "0", "leaky_relu", "-1.0")),
    ("is scaled by 0", ("scaled_tanh", 0.0), ValueError, ("alpha", "0", "scaled_tanh", "0")),
)


# fmt: off
X = (
    Bad("x is None", put("x", None), TypeError, ("x:", "array", "None")),
    Bad("x is a list", put("x", np.ndarray.tolist), TypeError, ("x:", "array", "list")),
    Bad("x is a scalar", put("x", 1.0), TypeError, ("x:", "array", "1.0")),
    Bad("x is a NumPy scalar", put("x", np.float32(1)), TypeError, ("x:", "float32")),
    Bad("x is a string", put("x", "abc"), TypeError, ("x:", "array", "'abc'")),
    Bad("x is masked", put("x", np.ma.masked_array), TypeError, ("x:", "masked")),
    Bad("x has 0 axes", put("x", np.array(1, np.float32)), ValueError,
        ("x:", "(T, B, I)", "()")),
    Bad("x has 1 axis", put("x", lambda x: x[0, 0]), ValueError, ("x:", "(T, B, I)", "(5,)")),
    Bad("x has 4 axes", put("x", lambda x: x[None]), ValueError,
        ("x:", "(T, B, I)", "(1, 4, 3, 5)")),
    Bad("x has no steps", put("x", lambda x: x[:0]), ValueError, ("x:", "step", "(0, 3, 5)")),
    Bad("x has no steps, batch first", both(put("x", lambda x: x.swapaxes(0, 1)[:, :0]),
        put("batch_first", True)), ValueError, ("x:", "step", "(3, 0, 5)")),
    Bad("x has too few features", put("x", lambda x: x[..., :4].copy()), ValueError,
        ("x:", "5 features", "(4, 3, 4)")),
    Bad("x has no features", put("x", lambda x: x[..., :0]), ValueError,
        ("x:", "5 features", "(4, 3, 0)")),
    *(
        Bad(f"x is {np.dtype(dtype)}", put("x", as_type(dtype)), TypeError,
            ("x:", "float32", "float64", str(np.dtype(dtype))))
        for dtype in (np.int32, np.int64, np.bool_, np.float16, np.longdouble, np.complex64,
                      object, "S8", ">f4", ">f8", "M8[s]")
    ),
    Bad("x is structured", put("x", lambda x: x.view([("re", "f4")])), TypeError,
        ("x:", "float32", "re")),
    Bad("x is float64, the rest float32", put("x", as_type(np.float64)), TypeError,
        ("weights[0].w_ih:", "float64", "float32")),
    Bad("x is too large to address", both(put("x", stretched(2**56, 3, 5)), put("state", None)),
        ValueError, ("x:", str(2**56), "too large")),
    Bad("x does not fit in memory", both(put("x", stretched(HUGE, 3, 5)), put("state", None)),
        (ValueError, MemoryError), ("",)),
    Bad("x is huge in I", put("x", stretched(4, 3, HUGE)), ValueError, ("x:", "5 features")),
)
WEIGHTS = (
    Bad("weights is None", put("weights", None), TypeError, ("weights:", "Weights", "None")),
    Bad("weights is an array", put("weights", lambda w: w[0].w_ih), TypeError,
        ("weights:", "Weights", "array of shape (24, 5)")),
    Bad("weights is a dict", put("weights", lambda w: w[0]._asdict()), TypeError,
        ("weights:", "Weights", "dict")),
    Bad("weights is a generator", put("weights", iter), TypeError, ("weights:", "list")),
    Bad("weights is an empty list", put("weights", []), ValueError,
        ("weights:", "one layer", "empty")),
    Bad("weights is an empty tuple", put("weights", ()), ValueError, ("weights:", "2 to", "0")),
    Bad("weights is a tuple of one", put("weights", lambda w: tuple(w[0][:1])), ValueError,
        ("weights:", "2 to", "1")),
    Bad("weights is a tuple of fourteen", put("weights", lambda w: (*w[0], None)), ValueError,
        ("weights:", "2 to 13", "w_ih, w_hh, b_ih, b_hh, w_hr", "14")),
    Bad("weights is a tuple of layers", put("weights", lambda w: (w[0], w[0])), TypeError,
        ("weights:", "list")),
    Bad("weights is a list of arrays", put("weights", lambda w: list(w[0][:4])), TypeError,
        ("weights[0]:", "Weights", "array of shape")),
    Bad("a layer is None", put("weights", [None]), TypeError, ("weights[0]:", "None")),
    Bad("a layer is a list", put("weights", lambda w: [[w[0], w[0]]]), TypeError,
        ("weights[0]:", "pair", "list")),
    Bad("a layer of three directions", put("weights", lambda w: [(w[0],) * 3]), TypeError,
        ("weights[0]:", "pair", "tuple")),
    Bad("directions differ between layers", both(pair(lambda w: w), deeper(lambda w: w[0])),
        ValueError, ("weights[1]:", "2 direction", "1")),
    Bad("directions of two sizes", both(pair(lambda w: Weights(w.w_ih[:4], w.w_hh[:4, :1])),
        put("state", None)), ValueError, ("weights[0][1].w_hh:", "6", "1")),
    Bad("directions of two input sizes", pair(lambda w: w._replace(w_ih=w.w_hh)), ValueError,
        ("weights[0][1].w_ih:", "(24, 5)", "(24, 6)")),
    Bad("a second layer for another width", both(deeper(lambda w: w), put("state", None)),
        ValueError, ("weights[1].w_ih:", "(24, 6)", "(24, 5)")),
    Bad("w_ih is None", weight("w_ih", None), TypeError, ("weights[0].w_ih:", "array", "None")),
    Bad("w_hh is None", weight("w_hh", None), TypeError, ("weights[0].w_hh:", "array", "None")),
    Bad("w_ih is a list", weight("w_ih", np.ndarray.tolist), TypeError,
        ("weights[0].w_ih:", "array", "list")),
    Bad("w_ih is transposed", weight("w_ih", transposed), ValueError,
        ("weights[0].w_ih:", "(24, ", "(5, 24)")),
    Bad("w_ih has one axis", weight("w_ih", np.ravel), ValueError,
        ("weights[0].w_ih:", "(24, ", "(120,)")),
    Bad("w_ih has no columns", weight("w_ih", lambda w: w[:, :0]), ValueError,
        ("weights[0].w_ih:", "(24, ", "(24, 0)")),
    Bad("w_ih is of three gates", weight("w_ih", lambda w: w[:18].copy()), ValueError,
        ("weights[0].w_ih:", "(24, ", "(18, 5)")),
    Bad("w_hh is transposed", weight("w_hh", transposed), ValueError,
        ("weights[0].w_hh:", "(4*H, H)", "lstm", "(6, 24)")),
    Bad("w_hh is of three gates", weight("w_hh", lambda w: w[:18].copy()), ValueError,
        ("weights[0].w_hh:", "(4*H, H)", "lstm", "(18, 6)")),
    Bad("w_hh is empty", weight("w_hh", lambda w: w[:0, :0]), ValueError,
        ("weights[0].w_hh:", "(4*H, H)", "(0, 0)")),
    Bad("w_hh is a vector", weight("w_hh", lambda w: w[0]), ValueError,
        ("weights[0].w_hh:", "(4*H, H)", "(6,)")),
    Bad("weights of a GRU", put("weights", lambda w: good(GRU)["weights"]), ValueError,
        ("weights[0].w_hh:", "(4*H, H)", "lstm", "(18, 6)")),
    Bad("weights of an LSTM", put("weights", lambda w: good(LSTM)["weights"]), ValueError,
        ("weights[0].w_hh:", "(1*H, H)", "rnn", "(24, 6)"), RNN),
    Bad("b_ih is too short", weight("b_ih", lambda b: b[:-1]), ValueError,
        ("weights[0].b_ih:", "(24,)", "(23,)")),
    Bad("b_hh has two axes", weight("b_hh", lambda b: b[:, None]), ValueError,
        ("weights[0].b_hh:", "(24,)", "(24, 1)")),
    Bad("b_hh is one number", weight("b_hh", 0.0), TypeError, ("weights[0].b_hh:", "array", "0.0")),
    Bad("b_ih is False", weight("b_ih", False), TypeError, ("weights[0].b_ih:", "array", "False")),
    *(
        Bad(f"{field} is {np.dtype(dtype)}", weight(field, as_type(dtype)), TypeError,
            (f"weights[0].{field}:", "float32", str(np.dtype(dtype))))
        for field in ("w_ih", "w_hh", "b_ih", "b_hh")
        for dtype in (np.float64, np.float16, np.int32, np.complex128, object, ">f4")
    ),
    Bad("w_hh is huge", both(put("state", None), weight("w_hh", stretched(2**30, 2**28))),
        (ValueError, MemoryError), ("",)),
    Bad("w_ih is huge", both(put("x", stretched(4, 3, HUGE)), weight("w_ih", stretched(24, HUGE))),
        (ValueError, MemoryError), ("",)),
    Bad("w_hr does not fit w_hh", weight("w_hr", ones(2, 6)), ValueError,
        ("weights[0].w_hh:", "(24, 2)", "w_hr", "(2, 6)", "(24, 6)")),
    Bad("w_hr has one axis", weight("w_hr", ones(6)), ValueError,
        ("weights[0].w_hr:", "(P, H)", "(6,)")),
    Bad("w_hr has no rows", both(weight("w_hr", ones(0, 6)), weight("w_hh", ones(24, 0))),
        ValueError, ("weights[0].w_hr:", "(P, H)", "(0, 6)")),
    Bad("w_hr is a number", weight("w_hr", 2), TypeError, ("weights[0].w_hr:", "array", "2")),
    Bad("w_hr of a GRU", weight("w_hr", ones(6, 6)), UnsupportedError,
        ("weights[0].w_hr:", "gru", "lstm"), GRU),
    Bad("directions of two projections", both(projected(2), pair(
        lambda w: w._replace(w_hr=ones(3, 6), w_hh=ones(24, 3))), put("state", None)), ValueError,
        ("weights[0][1].w_hh:", "(24, 2)", "forward direction", "(24, 3)")),
    Bad("layers of two projections", both(projected(2), deeper(
        lambda w: Weights(ones(24, 2), ones(24, 3), w_hr=ones(3, 6))), put("state", None)),
        ValueError, ("weights[1].w_hh:", "(24, 2)", "first layer", "(24, 3)")),
    Bad("a projection in one layer", both(projected(2), deeper(
        lambda w: Weights(ones(24, 2), ones(24, 6))), put("state", None)), ValueError,
        ("weights[1].w_hr:", "array", "first layer", "None")),
    Bad("a second layer that overlooks the projection", both(projected(2), deeper(
        lambda w: w._replace(w_ih=ones(24, 6))), put("state", None)), ValueError,
        ("weights[1].w_ih:", "(24, 2)", "(24, 6)")),
    Bad("w_peep of two gates", weight("w_peep", ones(2, 6)), ValueError,
        ("weights[0].w_peep:", "(3, 6)", "(2, 6)")),
    Bad("w_peep in ONNX's shape", weight("w_peep", ones(18)), ValueError,
        ("weights[0].w_peep:", "(3, 6)", "(18,)")),
    Bad("w_peep of a GRU", weight("w_peep", ones(3, 6)), UnsupportedError,
        ("weights[0].w_peep:", "gru", "lstm"), GRU),
    Bad("peepholes in one direction", pair(lambda w: w._replace(w_peep=ones(3, 6))), ValueError,
        ("weights[0][1].w_peep:", "None", "got an array")),
    Bad("peepholes in one layer", both(deeper(lambda w: w._replace(w_ih=w.w_hh)),
        weight_of(0, "w_peep", ones(3, 6))), ValueError,
        ("weights[1].w_peep:", "an array", "first layer", "None")),
    Bad("ln_ih alone", weight("ln_ih", ones(24)), ValueError,
        ("weights[0].ln_hh:", "array", "ln_ih", "None")),
    Bad("ln_hh alone", weight("ln_hh", ones(24)), ValueError,
        ("weights[0].ln_ih:", "array", "ln_hh", "None")),
    Bad("ln_ih is too short", normed(ln_ih=ones(6)), ValueError,
        ("weights[0].ln_ih:", "(24,)", "(6,)")),
    Bad("ln_hh has two axes", normed(ln_hh=ones(4, 6)), ValueError,
        ("weights[0].ln_hh:", "(24,)", "(4, 6)")),
    Bad("ln_ih is a number", normed(ln_ih=1.0), TypeError, ("weights[0].ln_ih:", "array", "1.0")),
    Bad("ln_c without ln_ih", weight("ln_c", ones(6)), ValueError,
        ("weights[0].ln_ih:", "array", "ln_c", "None")),
    Bad("ln_c_shift without ln_c", normed(ln_c_shift=ones(6)), ValueError,
        ("weights[0].ln_c:", "array", "ln_c_shift", "None")),
    Bad("ln_c of all gates", normed(ln_c=ones(24)), ValueError,
        ("weights[0].ln_c:", "(6,)", "(24,)")),
    Bad("ln_c_shift is too short", normed(ln_c=ones(6), ln_c_shift=ones(5)), ValueError,
        ("weights[0].ln_c_shift:", "(6,)", "(5,)")),
    Bad("ln_c of a GRU", weight("ln_c", ones(6)), UnsupportedError,
        ("weights[0].ln_c:", "gru", "lstm"), GRU),
    Bad("ln_c_shift of an RNN", weight("ln_c_shift", ones(6)), UnsupportedError,
        ("weights[0].ln_c_shift:", "rnn", "lstm"), RNN),
    Bad("bn_ih alone", weight("bn_ih", ones(24)), ValueError,
        ("weights[0].bn_mean:", "array", "bn_ih", "None")),
    Bad("bn_mean alone", weight("bn_mean", ones(24)), ValueError,
        ("weights[0].bn_ih:", "array", "bn_mean", "None")),
    Bad("bn_var alone", weight("bn_var", ones(24)), ValueError,
        ("weights[0].bn_ih:", "array", "bn_var", "None")),
    Bad("bn_var is missing", batch_normed(bn_var=None), ValueError,
        ("weights[0].bn_var:", "array", "bn_ih", "None")),
    Bad("bn_ih is too short", batch_normed(bn_ih=ones(23)), ValueError,
        ("weights[0].bn_ih:", "(24,)", "(23,)")),
    Bad("bn_mean has two axes", batch_normed(bn_mean=ones(1, 24)), ValueError,
        ("weights[0].bn_mean:", "(24,)", "(1, 24)")),
    Bad("bn_var is a list", batch_normed(bn_var=[1.0] * 24), TypeError,
        ("weights[0].bn_var:", "array", "list")),
    Bad("bn_mean is read-only", batch_normed(bn_mean=read_only(ones(24))), ValueError,
        ("weights", "bn_mean:", "writable", "training=False")),
    Bad("both normalisations", both(normed(), batch_normed()), UnsupportedError,
        ("weights[0].bn_ih:", "batch and layer normalisation", "ln_ih")),
    *(
        Bad(f"{field} is {np.dtype(dtype)}", change(**{field: ones(*shape).astype(dtype)}),
            TypeError, (f"weights[0].{field}:", "float32", str(np.dtype(dtype))))
        for field, change, shape in OPTIONAL
        for dtype in (np.float64, np.int32, ">f4")
    ),
)
STATE = (
    Bad("state is an array", put("state", lambda s: s[0]), TypeError,
        ("state:", "(h_0, c_0)", "array of shape (1, 3, 6)")),
    Bad("state is one of two", put("state", lambda s: s[:1]), TypeError,
        ("state:", "(h_0, c_0)", "1")),
    Bad("state is three", put("state", lambda s: (*s, None)), TypeError,
        ("state:", "(h_0, c_0)", "3")),
    Bad("state is stacked", put("state", np.stack), TypeError,
        ("state:", "(h_0, c_0)", "array of shape (2, 1, 3, 6)")),
    Bad("state is a string", put("state", "hc"), TypeError, ("state:", "(h_0, c_0)", "'hc'")),
    Bad("state of an LSTM for a GRU", put("state", lambda s: (s, s)), TypeError,
        ("h_0:", "array", "tuple"), GRU),
    Bad("h_0 without layers", state("h_0", lambda h: h[0]), ValueError,
        ("h_0:", "(1, 3, 6)", "(3, 6)")),
    Bad("c_0 without layers", state("c_0", lambda c: c[0]), ValueError,
        ("c_0:", "(1, 3, 6)", "(3, 6)")),
    Bad("h_0 of another batch", state("h_0", lambda h: h[:, :2]), ValueError,
        ("h_0:", "(1, 3, 6)", "(1, 2, 6)")),
    Bad("c_0 of another size", state("c_0", lambda c: c[..., :5]), ValueError,
        ("c_0:", "(1, 3, 6)", "(1, 3, 5)")),
    Bad("h_0 of two layers", state("h_0", lambda h: np.concatenate([h, h])), ValueError,
        ("h_0:", "(1, 3, 6)", "(2, 3, 6)")),
    Bad("h_0 is batch first", both(put("x", lambda x: x.swapaxes(0, 1)), put("batch_first", True),
        state("h_0", lambda h: h.swapaxes(0, 1))), ValueError, ("h_0:", "(1, 3, 6)", "(3, 1, 6)")),
    Bad("h_0 is batched, x is not", put("x", lambda x: x[:, 0]), ValueError,
        ("h_0:", "(1, 6)", "(1, 3, 6)")),
    Bad("h_0 is float64", state("h_0", as_type(np.float64)), TypeError,
        ("h_0:", "float32", "float64")),
    Bad("c_0 is an int array", state("c_0", as_type(np.int64)), TypeError,
        ("c_0:", "float32", "int64")),
    Bad("c_0 is a list", state("c_0", np.ndarray.tolist), TypeError, ("c_0:", "array", "list")),
    Bad("h_0 is zero", state("h_0", 0), TypeError, ("h_0:", "array", "0")),
    Bad("h_0 of a GRU is of another size", put("state", lambda h: h[..., :5]), ValueError,
        ("h_0:", "(1, 3, 6)", "(1, 3, 5)"), GRU),
)
OPTIONS = (
    Bad("lengths are floats", put("lengths", np.array([1.0, 2, 3])), TypeError,
        ("lengths:", "integers", "float64")),
    Bad("lengths are booleans", put("lengths", np.ones(3, bool)), TypeError,
        ("lengths:", "integers", "bool")),
    Bad("lengths are objects", put("lengths", [1, None, 3]), TypeError,
        ("lengths:", "integers", "object")),
    Bad("lengths are strings", put("lengths", ["1", "2", "3"]), TypeError,
        ("lengths:", "integers", "<U1")),
    Bad("lengths is one number", put("lengths", 3), TypeError, ("lengths:", "3")),
    Bad("lengths of another batch", put("lengths", [1, 2]), ValueError,
        ("lengths:", "(3,)", "(2,)")),
    Bad("lengths have two axes", put("lengths", [[1, 2, 3]]), ValueError,
        ("lengths:", "(3,)", "(1, 3)")),
    Bad("lengths are ragged", put("lengths", [[1, 2], 3, 1]), (ValueError, TypeError),
        ("lengths:",)),
    Bad("a length is negative", put("lengths", [1, -1, 3]), ValueError,
        ("lengths:", "0 to T = 4", "-1")),
    Bad("a length is above T", put("lengths", [1, 5, 3]), ValueError,
        ("lengths:", "0 to T = 4", "5")),
    Bad("a length overflows", put("lengths", np.array([1, 2**64 - 1, 3], np.uint64)), ValueError,
        ("lengths:", "0 to T = 4", str(2**64 - 1))),
    Bad("lengths of unbatched x", both(unbatched, put("lengths", [4])), ValueError,
        ("lengths:", "unbatched")),
    Bad("batch_first is 1", put("batch_first", 1), TypeError, ("batch_first:", "bool", "1")),
    Bad("batch_first is a string", put("batch_first", "no"), TypeError,
        ("batch_first:", "bool", "'no'")),
    Bad("batch_first is None", put("batch_first", None), TypeError,
        ("batch_first:", "bool", "None")),
    Bad("dropout is negative", put("dropout", -0.1), ValueError, ("dropout:", "0 to 1", "-0.1")),
    Bad("dropout is above 1", put("dropout", 1.5), ValueError, ("dropout:", "0 to 1", "1.5")),
    Bad("dropout is NaN", put("dropout", float("nan")), ValueError, ("dropout:", "0 to 1", "nan")),
    Bad("dropout is a string", put("dropout", "0.5"), TypeError, ("dropout:", "float", "'0.5'")),
    Bad("dropout is None", put("dropout", None), TypeError, ("dropout:", "float", "None")),
    Bad("dropout is True", put("dropout", True), TypeError, ("dropout:", "float", "True")),
    Bad("dropout is an array", put("dropout", np.zeros(1)), TypeError,
        ("dropout:", "float", "array of shape (1,)")),
    Bad("rng is a string", put("rng", "seed"), TypeError, ("rng:", "Generator", "'seed'")),
    Bad("rng is a float", put("rng", 1.5), TypeError, ("rng:", "Generator", "1.5")),
    Bad("rng is negative", put("rng", -1), ValueError, ("rng:", "at least 0", "-1")),
    Bad("rng is True", put("rng", True), TypeError, ("rng:", "Generator", "True")),
    Bad("rng is of the old kind", put("rng", np.random.RandomState(0)), TypeError,
        ("rng:", "Generator", "RandomState")),
    Bad("reset_after is a string", put("reset_after", "yes"), TypeError,
        ("reset_after:", "bool", "'yes'"), GRU),
    Bad("reset_after is None", put("reset_after", None), TypeError,
        ("reset_after:", "bool", "None"), GRU),
    *(
        Bad(f"{name} of {spec.cell} {what}", put(name, value), error, (f"{name}:", *words), spec)
        for name, spec in (("gate_activation", LSTM), ("gate_activation", GRU), ("activation", GRU),
                           ("output_activation", LSTM), ("nonlinearity", RNN))
        for what, value, error, words in BAD_ACTIVATIONS
    ),
    *(
        Bad(f"{name} of {spec.cell}", put(name, "tanh"), UnsupportedError, (f"{name}:", spec.cell,
            *whose), spec)
        for name, spec, whose in (
            ("gate_activation", RNN, ("lstm, gru, gated",)),
            ("activation", RNN, ("lstm, gru, gated",)),
            ("output_activation", RNN, ("lstm",)),
            ("output_activation", GRU, ("lstm",)),
            ("output_activation", GATED, ("lstm",)),
        )
    ),
    *(
        Bad(f"input_forget of {spec.cell}", put("input_forget", True), UnsupportedError,
            ("input_forget:", spec.cell, "lstm"), spec)
        for spec in (GRU, RNN, GATED)
    ),
    *(
        Bad(f"{name} is {value}", put(name, value), error, (f"{name}:", *words))
        for name in ("clip", "grad_clip")
        for value, error, words in (
            (0, ValueError, ("above 0", "None", "0")),
            (-1.5, ValueError, ("above 0", "None", "-1.5")),
            (np.inf, ValueError, ("finite", "inf")),
            (np.nan, ValueError, ("finite", "nan")),
            (True, TypeError, ("float", "True")),
            ("1", TypeError, ("float", "'1'")),
            ((1.0, 2.0), TypeError, ("float", "tuple")),
        )
    ),
    *(
        Bad(f"truncate is {value}", put("truncate", value), error, ("truncate:", *words))
        for value, error, words in (
            (0, ValueError, ("at least 1", "0")),
            (-2, ValueError, ("at least 1", "-2")),
            (2.0, TypeError, ("int", "None", "2.0")),
            (True, TypeError, ("int", "None", "True")),
            ("2", TypeError, ("int", "None", "'2'")),
        )
    ),
    *(
        Bad(f"{name} is {value}", put(name, value), error, (f"{name}:", *words))
        for name in ("recurrent_dropout", "zoneout", "dropconnect", "bn_momentum")
        for value, error, words in (
            (-0.1, ValueError, ("0 to 1", "-0.1")),
            (1.5, ValueError, ("0 to 1", "1.5")),
            (np.nan, ValueError, ("0 to 1", "nan")),
            (None, TypeError, ("float", "None")),
            (True, TypeError, ("float", "True")),
            ("0.5", TypeError, ("float", "'0.5'")),
            ([0.1, 0.2], TypeError, ("float", "list")),
        )
    ),
    Bad("zoneout is three", put("zoneout", (0.1, 0.2, 0.3)), ValueError,
        ("zoneout:", "pair", "(0.1, 0.2, 0.3)")),
    Bad("zoneout is one in a tuple", put("zoneout", (0.1,)), ValueError,
        ("zoneout:", "pair", "(0.1,)")),
    Bad("zoneout of c is above 1", put("zoneout", (0.1, 1.1)), ValueError,
        ("zoneout:", "0 to 1", "1.1")),
    Bad("zoneout of h is below 0", put("zoneout", (-0.1, 0.1)), ValueError,
        ("zoneout:", "0 to 1", "-0.1")),
    Bad("zoneout of c is None", put("zoneout", (0.1, None)), TypeError,
        ("zoneout:", "float", "None")),
    *(
        Bad(f"{name} is {value}", put(name, value), TypeError, (f"{name}:", "bool", str(value)))
        for name in ("input_forget", "variational", "training")
        for value in (1, None, "yes")
    ),
    Bad("backend is misnamed", put("backend", "Native"), ValueError,
        ("backend:", "native", "reference", "'Native'")),
    Bad("backend is None", put("backend", None), TypeError, ("backend:", "str", "None")),
    Bad("backend is a list", put("backend", ["native"]), TypeError, ("backend:", "str", "list")),
    Bad("backend is planned", put("backend", "cuda"), UnsupportedError, ("'cuda'", "can")),
    Bad("an option of another cell", put("nonlinearity", "tanh"), TypeError, ("nonlinearity",)),
    Bad("an unknown option", put("gate_activations", "tanh"), TypeError,
        ("gate_activations:", "gate_activation, activation", "training")),
)
OUT = (
    Bad("out is a list", put("out", []), TypeError, ("out:", "array", "list")),
    Bad("out is True", put("out", True), TypeError, ("out:", "array", "True")),
    Bad("out is of another shape", put("out", out_like((4, 3, 5))), ValueError,
        ("out:", "(4, 3, 6)", "(4, 3, 5)")),
    Bad("out is larger", put("out", out_like((5, 3, 6))), ValueError,
        ("out:", "(4, 3, 6)", "(5, 3, 6)")),
    Bad("out is not batch first", both(put("x", lambda x: x.swapaxes(0, 1)), put("batch_first",
        True), put("out", out_like((4, 3, 6)))), ValueError, ("out:", "(3, 4, 6)", "(4, 3, 6)")),
    Bad("out has a batch, x has none", both(unbatched, put("out", out_like((4, 1, 6)))),
        ValueError, ("out:", "(4, 6)", "(4, 1, 6)")),
    Bad("out is float64", put("out", out_like((4, 3, 6), np.float64)), TypeError,
        ("out:", "float32", "float64")),
    Bad("out is int32", put("out", out_like((4, 3, 6), np.int32)), TypeError,
        ("out:", "float32", "int32")),
    Bad("out is read-only", put("out", out_like((4, 3, 6), write=False)), ValueError,
        ("out:", "writable")),
    Bad("out is in Fortran order", put("out", np.zeros((4, 3, 6), np.float32, order="F")),
        ValueError, ("out:", "C-contiguous")),
    Bad("out has gaps", put("out", np.zeros((4, 3, 12), np.float32)[..., ::2]), ValueError,
        ("out:", "C-contiguous")),
    Bad("out is broadcast", put("out", stretched(4, 3, 6)), ValueError, ("out:", "C-contiguous")),
    Bad("out overlaps x", overlapping, ValueError, ("out:", "x", "overlap")),
    Bad("out overlaps the weights", out_on_weights, ValueError, ("out:", "weights", "overlap")),
    Bad("out overlaps h_0", out_on_state, ValueError, ("out:", "h_0", "overlap")),
)
# fmt: on
BAD = (*X, *WEIGHTS, *STATE, *OPTIONS, *OUT)


def in_order(words: tuple[str, ...]) -> str:
    return "(?s)" + ".*".join(map(re.escape, words))


def named(value: object) -> str:
    return str(value)


def test_good_calls_are_good(backend: str) -> None:
    """The calls that the rows change, and that no two rows have one name."""
    for spec in all_specs():
        for vjp in (False, True):
            function(spec, vjp)(*good(spec).values(), backend=backend)
    assert len({row.name for row in BAD}) == len(BAD) >= 300


@pytest.mark.parametrize("row", BAD, ids=named)
@pytest.mark.parametrize("vjp", [False, True], ids=["forward", "vjp"])
def test_bad_calls(row: Bad, vjp: bool, backend: str) -> None:
    call = {**good(row.spec), "backend": backend}
    row.change(call)
    arguments = [call.pop(name) for name in ("x", "weights", "state")]
    options = {**function(row.spec).keywords, **call}  # type: ignore[attr-defined]
    plain = getattr(rnnfast, row.spec.cell + "_vjp" * vjp)
    with pytest.raises(row.error, match=in_order(row.words)):
        plain(*arguments, **options)


Cotangents = dict[str, Any]


@dataclass(frozen=True)
class BadBackward:
    name: str
    change: Callable[[Cotangents], object]
    error: type[Exception]
    words: tuple[str, ...]
    spec: Spec = LSTM

    def __str__(self) -> str:
        return self.name


def cotangent(name: str, value: Any) -> Callable[[Cotangents], object]:
    """dh_n or dc_n of an LSTM."""

    def change(call: Cotangents) -> None:
        pair = dict(zip(("dh_n", "dc_n"), call["dstate"], strict=True))
        pair[name] = value(pair[name]) if callable(value) else value
        call["dstate"] = tuple(pair.values())

    return change


# fmt: off
BAD_BACKWARD = (
    BadBackward("dy is a list", put("dy", np.ndarray.tolist), TypeError, ("dy:", "array", "list")),
    BadBackward("dy is a number", put("dy", 1.0), TypeError, ("dy:", "array", "1.0")),
    BadBackward("dy is the state's too", put("dy", lambda d: (d, None)), TypeError,
        ("dy:", "array", "tuple")),
    BadBackward("dy is of another shape", put("dy", lambda d: d[:-1]), ValueError,
        ("dy:", "(4, 3, 6)", "(3, 3, 6)")),
    BadBackward("dy is batch first", put("dy", lambda d: d.swapaxes(0, 1)), ValueError,
        ("dy:", "(4, 3, 6)", "(3, 4, 6)")),
    BadBackward("dy has one row", put("dy", lambda d: d[:, 0]), ValueError,
        ("dy:", "(4, 3, 6)", "(4, 6)")),
    BadBackward("dy is float64", put("dy", as_type(np.float64)), TypeError,
        ("dy:", "float32", "float64")),
    BadBackward("dy is int64", put("dy", as_type(np.int64)), TypeError,
        ("dy:", "float32", "int64")),
    BadBackward("dy is big-endian", put("dy", as_type(">f4",)), TypeError,
        ("dy:", "float32", ">f4")),
    BadBackward("dy is huge", put("dy", stretched(HUGE, 3, 6)), ValueError,
        ("dy:", "(4, 3, 6)", str(HUGE))),
    BadBackward("the state's is an array", put("dstate", lambda d: d[0]), TypeError,
        ("dstate_n:", "(dh_n, dc_n)", "array of shape (1, 3, 6)")),
    BadBackward("the state's are three", put("dstate", lambda d: (*d, None)), TypeError,
        ("dstate_n:", "(dh_n, dc_n)", "3")),
    BadBackward("the state's is a pair for a GRU", put("dstate", lambda d: (d, d)), TypeError,
        ("dh_n:", "array", "tuple"), GRU),
    BadBackward("dh_n is of another shape", cotangent("dh_n", lambda d: d[0]), ValueError,
        ("dh_n:", "(1, 3, 6)", "(3, 6)")),
    BadBackward("dc_n is of another batch", cotangent("dc_n", lambda d: d[:, :2]), ValueError,
        ("dc_n:", "(1, 3, 6)", "(1, 2, 6)")),
    BadBackward("dh_n is float64", cotangent("dh_n", as_type(np.float64)), TypeError,
        ("dh_n:", "float32", "float64")),
    BadBackward("dc_n is a list", cotangent("dc_n", np.ndarray.tolist), TypeError,
        ("dc_n:", "array", "list")),
    BadBackward("dh_n is float16", cotangent("dh_n", as_type(np.float16)), TypeError,
        ("dh_n:", "float32", "float16")),
)
# fmt: on


@pytest.mark.parametrize("row", BAD_BACKWARD, ids=named)
def test_bad_cotangents(row: BadBackward, backend: str) -> None:
    p = problem(Case(row.spec, T=4, B=3, I=5, H=6, dtype="float32"))
    _, _, backward = function(row.spec, vjp=True)(p.x, p.weights, p.state, backend=backend)
    call = {"dy": p.dy, "dstate": p.dstate}
    row.change(call)
    with pytest.raises(row.error, match=in_order(row.words)):
        backward(call["dy"], call["dstate"])
    backward(p.dy, p.dstate)  # a mistake may be mended


BAD_PACK: tuple[
    tuple[str, Call, type[Exception] | tuple[type[Exception], ...], tuple[str, ...]], ...
] = (
    ("the cell is misnamed", {"cell": "LSTM"}, ValueError, ("cell:", "lstm, gru", "'LSTM'")),
    ("the cell is None", {"cell": None}, (ValueError, TypeError), ("cell:", "lstm, gru", "None")),
    ("the cell is another", {"cell": "gru"}, ValueError, ("weights[0].w_hh:", "gru", "(24, 6)")),
    ("dtype is float16", {"dtype": np.float16}, TypeError, ("dtype:", "float32", "float16")),
    ("dtype is a misspelt name", {"dtype": "flaot32"}, TypeError, ("dtype:", "flaot32")),
    ("dtype is a number", {"dtype": 32}, TypeError, ("dtype:", "32")),
    ("reset_after is 0", {"reset_after": 0}, TypeError, ("reset_after:", "bool", "0")),
    ("the backend is misnamed", {"backend": "nativ"}, ValueError, ("backend:", "'nativ'")),
    ("the backend is None", {"backend": None}, (ValueError, TypeError), ("backend:", "None")),
    ("the backend is a list", {"backend": []}, (ValueError, TypeError), ("backend:", "list")),
    ("the backend is planned", {"backend": "cuda"}, UnsupportedError, ("'cuda'", "can")),
    ("weights is None", {"weights": None}, TypeError, ("weights:", "None")),
    ("weights is empty", {"weights": []}, ValueError, ("weights:", "empty")),
    ("clip is 0", {"clip": 0}, ValueError, ("clip:", "above 0", "0")),
    ("dropconnect", {"dropconnect": 0.5}, TypeError, ("dropconnect:", "inference", "0")),
    ("an unknown option", {"lengths": None}, TypeError, ("lengths:", "gate_activation")),
)


@pytest.mark.parametrize(
    ("change", "error", "words"), [row[1:] for row in BAD_PACK], ids=[row[0] for row in BAD_PACK]
)
def test_bad_packing(change: Call, error: Any, words: tuple[str, ...], backend: str) -> None:
    call = {"weights": good(LSTM)["weights"], "cell": "lstm", "backend": backend, **change}
    with pytest.raises(error, match=in_order(words)):
        rnnfast.pack(call.pop("weights"), **call)


VJP_ONLY: tuple[tuple[str, Call, type[Exception], str], ...] = (
    ("checkpoint across a cut", {"truncate": 2, "checkpoint": 3}, ValueError,
        r"checkpoint: .*multiple of truncate = 2.*3"),
    ("checkpoint with batch normalisation", {"checkpoint": 2, "weights": [
        batch_normed_weights()]}, UnsupportedError, r"checkpoint: .*batch normalisation"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "words"), [row[1:] for row in VJP_ONLY], ids=[row[0] for row in VJP_ONLY]
)
def test_bad_training(change: Call, error: Any, words: str) -> None:
    call = {**good(LSTM), "backend": "reference", **change}
    arguments = [call.pop(name) for name in ("x", "weights", "state")]
    with pytest.raises(error, match=words):
        rnnfast.lstm_vjp(*arguments, **call)


def test_packed_for_something_else(backend: str) -> None:
    call = good(LSTM)
    packed = rnnfast.pack(call["weights"], cell="lstm", backend=backend)
    x = call["x"]
    with pytest.raises(ValueError, match=r"weights: packed for lstm, expected gru"):
        rnnfast.gru(x, packed)
    with pytest.raises(TypeError, match=r"x: .*float32.*float64"):
        rnnfast.lstm(x.astype(np.float64), packed)
    with pytest.raises(ValueError, match=r"x: .*5 features.*\(4, 3, 4\)"):
        rnnfast.lstm(x[..., :4], packed)
    with pytest.raises(ValueError, match=r"h_0: .*\(1, 3, 6\).*\(1, 3, 5\)"):
        rnnfast.lstm(x, packed, (np.zeros((1, 3, 5), np.float32), None))
    with pytest.raises(TypeError, match=r"weights\[0\]: .*Packed"):
        rnnfast.lstm(x, [packed])
    with pytest.raises(TypeError, match=r"weights: .*Packed"):
        rnnfast.pack(packed, cell="lstm")
    for other in set(rnnfast.backends()) - {backend}:
        with pytest.raises((ValueError, UnsupportedError), match=f"backend.*'{other}'"):
            rnnfast.lstm(x, packed, backend=other)


THREADS: tuple[tuple[Any, type[Exception]], ...] = (
    (0, ValueError),
    (-1, ValueError),
    (2**40, ValueError),
    (1.0, TypeError),
    ("2", TypeError),
    (None, TypeError),
    (True, TypeError),
)


@pytest.mark.parametrize(("n", "error"), THREADS)
def test_bad_numbers_of_threads(n: Any, error: type[Exception], isa: str) -> None:
    before = rnnfast.get_num_threads()
    with pytest.raises(error, match=f"n: .*{n}"):
        rnnfast.set_num_threads(n)
    assert rnnfast.get_num_threads() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
def test_what_is_not_finite_stays_in_its_row(
    value: float, ragged: bool, spec: Spec, dtype: str, target: str
) -> None:
    """NaN or infinity in one row of the batch: no crash, and no other row sees it."""
    case = Case(spec, T=4, B=5, I=3, H=17, L=2, D=2, dtype=dtype, ragged=ragged)
    p = problem(case)
    wanted = run(p, target)
    p.x[0, 2, 1] = p.dy[0, 2, 3] = value
    with np.errstate(invalid="ignore", over="ignore"):
        found = run(p, target)
    rows = [0, 1, 3, 4]
    others = [k for k in found if not k.startswith("dw")]
    assert_same_bits(
        {k: found[k][:, rows] for k in others}, {k: wanted[k][:, rows] for k in others}
    )
    if np.isnan(value):
        assert np.isnan(found["y"][0, 2]).all()
        assert np.isnan(found["dx"][0, 2]).all()
        assert np.isnan(found["dw[0][0].w_ih"]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(value: float, spec: Spec, dtype: str, target: str) -> None:
    p = problem(Case(spec, dtype=dtype))
    p.weights[0].w_hh[...] = value
    with np.errstate(invalid="ignore", over="ignore"):
        found = run(p, target)
        wanted = run(p, "reference")
    np.testing.assert_array_equal(np.isnan(found["y"]), np.isnan(wanted["y"]))


def test_errors_leave_out_alone(spec: Spec, backend: str) -> None:
    call = good(spec)
    out = np.full((4, 3, 6), 7, np.float32)
    with pytest.raises(ValueError, match="lengths"):
        function(spec)(call["x"], call["weights"], lengths=[9, 9, 9], out=out, backend=backend)
    assert (out == 7).all()
    y, state_n = function(spec)(call["x"], call["weights"], out=out, backend=backend)
    assert y is out
    assert flatten_state(spec, state_n, "h_n", "c_n")["h_n"].shape == (1, 3, 6)
