"""Weights of a direction to panels, in one call."""

from __future__ import annotations

from typing import Any

from .compiled import entry
from .lanes import held, part
from .plans import BACK, GRU_AFTER, HIDDEN, INPUTS, OUTPUTS, PROJECTION, WEIGHTS
from .products import aligned, pack_all
from .shared import ONE, ZERO, K, add, clear, copy, section


@entry
def pack_forward(plan: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, w_hr: Any, to: Any) -> None:
    """The panels and biases of the forward pass; empty arrays for what there is not."""
    to = aligned(to)
    H, P, I, rows = plan[HIDDEN], plan[OUTPUTS], plan[INPUTS], plan[1] * plan[HIDDEN]  # noqa: E741
    split = plan[2] * H
    w_ih, w_hh, w_hr = held(w_ih), held(w_hh), held(w_hr)
    pack_all(w_ih, ONE, I, I, rows, section(to, plan, WEIGHTS, K[0]))
    pack_all(w_hh, ONE, P, P, split, section(to, plan, WEIGHTS, K[2]))
    second = section(to, plan, WEIGHTS, K[3])
    if plan[PROJECTION]:
        pack_all(w_hr, ONE, H, H, P, second)
    elif split < rows:
        pack_all(part(w_hh, split * P, rows * P), ONE, P, P, rows - split, second)
    bias = section(to, plan, WEIGHTS, K[1])
    if bias.size:
        if b_ih.size:
            copy(bias, ZERO, b_ih, ZERO, rows)
        else:
            clear(bias, ZERO, ZERO, ONE, ZERO, rows)
        if b_hh.size:
            add(bias, ZERO, b_hh, ZERO, split if plan[0] == GRU_AFTER else rows)
    bias = section(to, plan, WEIGHTS, K[4])
    if bias.size:
        copy(bias, ZERO, b_hh, split, H)


@entry
def pack_backward(plan: Any, w_ih: Any, w_hh: Any, w_hr: Any, to: Any) -> None:
    """The panels of BPTT."""
    to = aligned(to)
    H, P, I, rows = plan[HIDDEN], plan[OUTPUTS], plan[INPUTS], plan[1] * plan[HIDDEN]  # noqa: E741
    split = plan[2] * H
    w_ih, w_hh, w_hr = held(w_ih), held(w_hh), held(w_hr)
    pack_all(w_hh, P, ONE, split, P, section(to, plan, BACK, K[0]))
    second = section(to, plan, BACK, K[1])
    if plan[PROJECTION]:
        pack_all(w_hr, H, ONE, P, H, second)
    elif split < rows:
        pack_all(part(w_hh, split * P, rows * P), P, ONE, rows - split, P, second)
    pack_all(w_ih, I, ONE, rows, I, section(to, plan, BACK, K[2]))
