"""The parameters of the kernels, as NumPy lays them out: every field has 8 bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ...spec import Spec

_ACTIVATION = [("function", "i8"), ("alpha", "f8"), ("beta", "f8")]
_OPTIONS = [
    ("gate", _ACTIVATION),
    ("candidate", _ACTIVATION),
    ("output", _ACTIVATION),
    ("clip", "f8"),
    ("grad_clip", "f8"),
    ("input_forget", "i8"),
]
_FORWARD = (
    "gx raw b_ih b_hh ln_ih ln_hh ln_c ln_c_shift w_peep recurrent keep_h keep_c h c operand y "
    "step_h gates value c_step extra q h_before c_before hat_c scale_h scale_c given "
    "hidden outputs y_stride keep_h_stride keep_c_stride"
)
_BACKWARD = (
    "dy gates value c_step q h_before c_before hat_c hat_h scale_h scale_c ln_hh ln_c w_peep "
    "recurrent keep_h keep_c sum dh dc dh_step d d_h product_h du dc_norm given "
    "hidden outputs dy_stride keep_h_stride keep_c_stride cut"
)


def _struct(names: str) -> np.dtype[Any]:
    return np.dtype([*((name, "i8") for name in names.split()), ("options", _OPTIONS)])


FORWARD_STEP = _struct(_FORWARD)
BACKWARD_STEP = _struct(_BACKWARD)
SEQUENCE = np.dtype(
    [
        (name, "i8")
        for name in (
            *("w_hh", "visits", "arrived", "exchange", "h_0", "c_0", "h_n", "c_n"),
            *("visit_count", "batch", "w_stride", "units", "rows", "extra_stride", "reverse"),
            "wide_ends",
        )
    ]
)


def _directions(step: np.dtype[Any]) -> np.dtype[Any]:
    one = np.dtype([("of", SEQUENCE), ("step", step)])
    return np.dtype([("of", one, (2,))])


FORWARD_SEQUENCES, BACKWARD_SEQUENCES = map(_directions, (FORWARD_STEP, BACKWARD_STEP))


_NUMBERS = ("hidden", "outputs", "cut", "options")


@cache
def pointers(of: np.dtype[Any]) -> tuple[str, ...]:
    """The fields of a step that are pointers to arrays."""
    names = (n for n in of.names or () if n not in _NUMBERS and not n.endswith("_stride"))
    return tuple(n for n in names if n != "given")


@cache
def _options(spec: Spec) -> bytes:
    functions = spec.of_gates, spec.of_candidate, spec.of_output
    of_functions = [n for f in functions for n in (f.number, f.alpha, f.beta)]
    rest = spec.clip or 0.0, spec.grad_clip or 0.0, int(spec.input_forget)
    return struct.pack("qddqddqddddq", *of_functions, *rest)


def integers(of: np.dtype[Any], numbers: Mapping[str, int]) -> bytes:
    """The fields of a struct that are integers; 0 where there is none of that name."""
    names, form = _integers(of)
    return form.pack(*[numbers.get(name, 0) for name in names])


@cache
def _integers(of: np.dtype[Any]) -> tuple[tuple[str, ...], struct.Struct]:
    names = tuple(name for name in of.names or () if name != "options")
    return names, struct.Struct(f"{len(names)}q")


def step(of: np.dtype[Any], places: Sequence[int], numbers: Mapping[str, int], spec: Spec) -> bytes:
    """A FORWARD_STEP or BACKWARD_STEP; `places` are those of its `pointers`."""
    names, form = _integers(of)
    rest = [numbers.get(name, 0) for name in names[len(places) :]]
    return form.pack(*places, *rest) + _options(spec)


def array(of: np.dtype[Any], packed: bytes) -> Any:
    """One struct, or its beginning, as an array without dimensions."""
    return np.frombuffer(bytearray(packed.ljust(of.itemsize, b"\0")), of).reshape(())


def by_value(struct: Any) -> Any:
    """A struct without names, which CuPy would go through at each launch; numbers as they are."""
    return struct if struct.dtype.names is None else struct.view(f"V{struct.dtype.itemsize}")
