"""The passes of `units.py` over one row, by cell. Rows are named as there.

Gates of a row stand in `a` from `a_at` on, H apart from one another, and so do the gradients of
their arguments in `d`.
"""

from __future__ import annotations

from typing import Any

from . import units
from .compiled import jit
from .plans import GRU_AFTER, GRU_BEFORE, LSTM, RNN, RNN_RELU, RNN_SIGMOID


@jit
def update(
    cell: int, n: int, H: int, a: Any, a_at: int, extra: Any, at: int, h: Any, c: Any, h_at: int,
    y: Any, y_at: int, h_before: Any, c_before: Any,
) -> None:  # fmt: skip
    """Forward, n units; of GRU_BEFORE the part before the second product."""
    if cell == LSTM:
        units.lstm(
            n, a, a_at, a, a_at + H, a, a_at + 2 * H, a, a_at + 3 * H, c, h_at, h, h_at, y, y_at,
            extra, at, c_before, at, h_before, at,
        )  # fmt: skip
    elif cell == GRU_AFTER:
        units.gru_after(
            n, a, a_at, a, a_at + H, a, a_at + 2 * H, extra, at, h, h_at, y, y_at, h_before, at
        )
    elif cell == GRU_BEFORE:
        units.gru_reset(n, a, a_at, extra, at, h, h_at)
    elif cell == RNN:
        units.rnn(n, a, a_at, h, h_at, y, y_at, h_before, at)
    elif cell == RNN_RELU:
        units.rnn_relu(n, a, a_at, h, h_at, y, y_at, h_before, at)
    elif cell == RNN_SIGMOID:
        units.rnn_sigmoid(n, a, a_at, h, h_at, y, y_at, h_before, at)
    else:
        units.gated(n, a, a_at, a, a_at + H, a, a_at + 2 * H, h, h_at, y, y_at, h_before, at)


@jit
def update_back(
    cell: int, n: int, H: int, dh: Any, dc: Any, h_at: int, a: Any, a_at: int, extra: Any, at: int,
    h_before: Any, c_before: Any, d: Any, d_at: int, dy: Any, dy_at: int,
) -> None:  # fmt: skip
    """Back; of GRU_BEFORE the part before the product with the gradients of n."""
    if cell == LSTM:
        units.lstm_back(
            n, dh, h_at, dc, h_at, a, a_at, a, a_at + H, a, a_at + 2 * H, a, a_at + 3 * H,
            extra, at, c_before, at, d, d_at, d, d_at + H, d, d_at + 2 * H, d, d_at + 3 * H,
            dy, dy_at,
        )  # fmt: skip
    elif cell == GRU_AFTER:
        units.gru_after_back(
            n, dh, h_at, a, a_at, a, a_at + H, a, a_at + 2 * H, extra, at, h_before, at,
            d, d_at, d, d_at + H, d, d_at + 2 * H, d, d_at + 3 * H, dy, dy_at,
        )  # fmt: skip
    elif cell == GRU_BEFORE:
        units.gru_before_back(
            n, dh, h_at, a, a_at + H, a, a_at + 2 * H, h_before, at, d, d_at + H,
            d, d_at + 2 * H, dy, dy_at,
        )  # fmt: skip
    elif cell == RNN:
        units.rnn_back(n, dh, h_at, a, a_at, d, d_at, dy, dy_at)
    elif cell == RNN_RELU:
        units.rnn_relu_back(n, dh, h_at, a, a_at, d, d_at, dy, dy_at)
    elif cell == RNN_SIGMOID:
        units.rnn_sigmoid_back(n, dh, h_at, a, a_at, d, d_at, dy, dy_at)
    else:
        units.gated_back(
            n, dh, h_at, a, a_at, a, a_at + H, a, a_at + 2 * H, h_before, at,
            d, d_at, d, d_at + H, d, d_at + 2 * H, dy, dy_at,
        )  # fmt: skip
