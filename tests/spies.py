"""What the layers above hand to a backend: the masks of a call, seen from below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from helpers import Array

from rnnfast.backends import get
from rnnfast.spec import Masks, Spec, Steps


@dataclass
class Call:
    """A pass of one or more layers."""

    x: Array  # (N, I)
    steps: Steps
    ys: list[Array]  # (N, D*P), as they were when the pass was over
    masks: list[Masks] | None


@dataclass
class Seen:
    prepared: list[tuple[Any, ...]] = field(default_factory=list)  # layers, as `prepare` got them
    forward: list[Call] = field(default_factory=list)
    backward: list[list[Masks] | None] = field(default_factory=list)


@contextmanager
def spied(backend: str) -> Iterator[Seen]:
    """Note every call of a backend."""
    kind = type(get(backend, Spec("lstm")))
    prepare, forward, backward = kind.prepare, kind.forward, kind.backward
    seen = Seen()

    def spied_prepare(self: Any, spec: Spec, layer: Any, *rest: Any, **more: Any) -> Any:
        seen.prepared.append(layer)
        return prepare(self, spec, layer, *rest, **more)

    def spied_forward(
        self: Any, spec: Spec, prepared: Any, x: Any, steps: Steps, *rest: Any
    ) -> Any:
        found = forward(self, spec, prepared, x, steps, *rest)
        seen.forward.append(Call(x.copy(), steps, [y.copy() for y in rest[2]], rest[-1]))
        return found

    def spied_backward(self: Any, *arguments: Any) -> Any:
        seen.backward.append(arguments[-1])
        return backward(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "prepare", spied_prepare)
        patch.setattr(kind, "forward", spied_forward)
        patch.setattr(kind, "backward", spied_backward)
        yield seen


def padded(packed: Array, lengths: Array, num_steps: int) -> Array:
    """Rows of a packed batch (steps after steps, the longest rows first) as (T, B, ...)."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    found = np.zeros((num_steps, len(lengths), *packed.shape[1:]), packed.dtype)
    at = 0
    for t in range(num_steps):
        for b in order:
            if t < lengths[b]:
                found[t, b] = packed[at]
                at += 1
    assert at == len(packed)
    return found
