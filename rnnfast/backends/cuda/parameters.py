"""The parameters of the kernels, as NumPy lays them out: every field has 8 bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...spec import ACTIVATIONS, Activation, Spec

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
    "step_h gates value c_step extra q h_before c_before hat_c scale_h scale_c "
    "hidden outputs y_stride keep_h_stride keep_c_stride"
)
_BACKWARD = (
    "dy gates value c_step q h_before c_before hat_c hat_h scale_h scale_c ln_hh ln_c w_peep "
    "recurrent keep_h keep_c sum dh dc dh_step d d_h product_h du dc_norm "
    "hidden outputs dy_stride keep_h_stride keep_c_stride cut"
)


def _struct(names: str) -> np.dtype[Any]:
    return np.dtype([*((name, "i8") for name in names.split()), ("options", _OPTIONS)])


FORWARD_STEP = _struct(_FORWARD)
BACKWARD_STEP = _struct(_BACKWARD)
_SEQUENCE = [
    (name, "i8")
    for name in (
        *("w_hh", "visits", "arrived", "exchange", "visit_count", "batch", "w_stride"),
        *("units", "rows", "extra_stride"),
    )
]


def _directions(step: np.dtype[Any]) -> np.dtype[Any]:
    one = np.dtype([("of", _SEQUENCE), ("step", step)])
    return np.dtype([("of", one, (2,))])


FORWARD_SEQUENCES, BACKWARD_SEQUENCES = map(_directions, (FORWARD_STEP, BACKWARD_STEP))
_FUNCTIONS = list(ACTIVATIONS)


def function(f: Activation) -> int:
    """Its number in cells.cuh."""
    return _FUNCTIONS.index(f.name)


def options(spec: Spec) -> tuple[Any, ...]:
    """The value of the field `options`."""
    functions = (
        (function(f), f.alpha, f.beta) for f in (spec.of_gates, spec.of_candidate, spec.of_output)
    )
    return (*functions, spec.clip or 0.0, spec.grad_clip or 0.0, int(spec.input_forget))
