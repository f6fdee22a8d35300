"""What the layers above hand to a backend is what the protocol promises it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers import Array, Case, problem, run

from rnnfast.backends import get
from rnnfast.spec import Masks, Spec, Steps


def assert_plain(array: Array | None, shape: tuple[int, ...], dtype: str) -> None:
    if array is not None:
        assert type(array) is np.ndarray
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.aligned


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("dropout", [0, 0.5])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_protocol(
    L: int,
    D: int,
    ragged: bool,
    dropout: float,
    batch_first: bool,
    spec: Spec,
    dtype: str,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every array is C-contiguous, aligned, of one dtype and of the documented shape."""
    B, H = 5, 3
    together = 1 if dropout else L  # layers that have nothing between them
    kind = type(get(backend, spec))
    forward, backward = kind.forward, kind.backward
    calls: list[Steps] = []

    def checked_forward(
        self: Any,
        spec: Spec,
        prepared: Any,
        x: Array,
        steps: Steps,
        h_0: Array,
        c_0: Array | None,
        ys: list[Array],
        h_n: Array,
        c_n: Array | None,
        save: str | None,
        masks: list[Masks] | None,
    ) -> Any:
        assert masks is None
        assert steps.batch == B
        sizes = steps.sizes()
        assert len(sizes) == steps.num_steps
        assert all(B >= a >= b >= 1 for a, b in pairwise(sizes))
        features = 2 if len(calls) == 0 else D * H
        assert_plain(x, (outer_rows(steps), features), dtype)
        assert len(prepared) == len(ys) == together
        for k, y in enumerate(ys):
            rows = outer_rows(steps) if k + 1 == together else steps.rows
            assert_plain(y, (rows, D * H), dtype)
            assert y.flags.writeable
        assert_states(h_0, c_0)
        assert_states(h_n, c_n)
        if steps.batch_sizes is not None:
            assert_plain(steps.batch_sizes, (steps.num_steps,), "int64")
        if steps.order is not None:
            assert not dropout
            assert_plain(steps.order, (B,), "int64")
            assert get(backend, spec).pads(spec, np.dtype(dtype))
        calls.append(steps)
        return forward(self, spec, prepared, x, steps, h_0, c_0, ys, h_n, c_n, save, masks)

    def checked_backward(
        self: Any,
        spec: Spec,
        prepared: Any,
        saved: Any,
        dy: Array,
        dh_n: Array,
        dc_n: Array | None,
        masks: list[Masks] | None,
    ) -> Any:
        assert masks is None
        steps = calls.pop()
        assert_plain(dy, (outer_rows(steps), D * H), dtype)
        assert_states(dh_n, dc_n)
        dx, dweights, dh_0, dc_0 = backward(self, spec, prepared, saved, dy, dh_n, dc_n, masks)
        assert_plain(dx, (outer_rows(steps), 2 if len(calls) == 0 else D * H), dtype)
        assert len(dweights) == together * D
        assert_states(dh_0, dc_0)
        return dx, dweights, dh_0, dc_0

    def outer_rows(steps: Steps) -> int:
        """Rows of x, of the last y and of their gradients."""
        return steps.rows if steps.order is None else B * B

    def assert_states(h: Array, c: Array | None) -> None:
        assert_plain(h, (together * D, B, H), dtype)
        assert (c is not None) == spec.info.has_c
        if c is not None:
            assert_plain(c, (together * D, B, H), dtype)

    monkeypatch.setattr(kind, "forward", checked_forward)
    monkeypatch.setattr(kind, "backward", checked_backward)
    p = problem(Case(spec, T=B, B=B, I=2, H=H, L=L, D=D, dtype=dtype, ragged=ragged))
    run(p.map(np.asfortranarray), backend, batch_first=batch_first, dropout=dropout, rng=0)
    assert not calls
