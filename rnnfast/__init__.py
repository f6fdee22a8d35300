"""Fused LSTM, GRU and vanilla RNN kernels, forward and back-propagation through time."""

from .api import (
    Packed,
    gated,
    gated_vjp,
    gru,
    gru_vjp,
    lstm,
    lstm_vjp,
    pack,
    rnn,
    rnn_vjp,
)
from .backends import backends
from .errors import UnsupportedError
from .weights import Weights, init_weights

__all__ = [
    "Packed",
    "UnsupportedError",
    "Weights",
    "backends",
    "gated",
    "gated_vjp",
    "gru",
    "gru_vjp",
    "init_weights",
    "lstm",
    "lstm_vjp",
    "pack",
    "rnn",
    "rnn_vjp",
]
__version__ = "0.1.0"
