"""A launch for all steps of a layer: its parameters, and what its kernel is compiled for.

What grid.py and cluster.py have in common; sequences.cuh has the structs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import cupy
import numpy as np

from ...spec import Spec
from .. import Array
from .launch import compile_options, known
from .parameters import (
    BACKWARD_SEQUENCES,
    BACKWARD_STEP,
    FORWARD_SEQUENCES,
    FORWARD_STEP,
    SEQUENCE,
    array,
    by_value,
    integers,
    pointers,
)

if TYPE_CHECKING:
    from .engine import Pass


def has_visits(p: Pass) -> bool:
    """Whether the steps of a pass are not all alike."""
    return p.steps.batch_sizes is not None or p.spec.truncate is not None


class Launch(NamedTuple):
    options: tuple[str, ...]  # for the compiler
    parameters: Array  # by value
    kept: list[Any]  # what must live until then


@cache
def options(
    spec: Spec,
    dtype: np.dtype[Any],
    backward: bool,
    hidden: int,
    two: bool,
    equal: bool,
    there: tuple[bool | None, ...],
    variant: tuple[str, ...],
) -> tuple[str, ...]:
    """`there` tells of each pointer of a step whether it is null; None where that is not known."""
    names = pointers(BACKWARD_STEP if backward else FORWARD_STEP)
    built_in = known(backward, hidden, two, equal, dict(zip(names, there, strict=True)))
    return compile_options(spec, dtype, *variant, *built_in)


def launch(
    passes: Sequence[Pass],
    variant: tuple[str, ...],
    units: int,
    rows: int,
    own: Sequence[dict[str, Array]] = ({}, {}),
) -> Launch:
    """A launch of a variant of its file, whose blocks have so many units and rows.

    `own` are more arrays of each pass.
    """
    one = passes[0]
    packed, kept = b"", []
    of_passes: list[tuple[bool, ...]] = []
    for p, more in zip(passes, own, strict=False):
        w_hh, extra = p.arrays["w_hh"], p.arrays.get("extra")
        arrays = {"w_hh": w_hh, **p.ends, **more}
        if has_visits(p):
            arrays["visits"] = cupy.asarray(np.stack(p.visited))
        of_rows = extra is not None and extra.shape[0] == p.steps.rows
        numbers = {name: int(a.data.ptr) for name, a in arrays.items() if a is not None} | {
            "visit_count": arrays["visits"].shape[1] if "visits" in arrays else p.steps.num_steps,
            "batch": p.steps.batch,
            "w_stride": w_hh.strides[0] // w_hh.itemsize,
            "units": units,
            "rows": rows,
            "extra_stride": p.hidden if of_rows else 0,
            "reverse": int(p.reverse),
            "wide_ends": int(p.wide_ends),
        }
        places = p.places
        packed += integers(SEQUENCE, numbers) + p.origin(places)
        kept.append(arrays)
        of_passes.append(tuple(map(bool, places)))
    backward = one.struct is BACKWARD_STEP
    there: tuple[bool | None, ...] = of_passes[0]
    if of_passes[-1] != there:  # biases of one direction alone
        alike = zip(there, of_passes[-1], strict=True)
        there = tuple(a if a == b else None for a, b in alike)
    known_to_compiler = one.hidden, len(passes) == 2, not has_visits(one), there
    return Launch(
        options(one.spec, one.dtype, backward, *known_to_compiler, variant),
        by_value(array(BACKWARD_SEQUENCES if backward else FORWARD_SEQUENCES, packed)),
        kept,
    )
