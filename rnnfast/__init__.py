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
from .config import get_num_threads, set_num_threads, show_config
from .convert import convert
from .errors import UnsupportedError
from .weights import Weights, init_weights

__version__ = "0.1.0"
__all__ = [
    "Packed",
    "UnsupportedError",
    "Weights",
    "backends",
    "convert",
    "gated",
    "gated_vjp",
    "get_num_threads",
    "gru",
    "gru_vjp",
    "init_weights",
    "lstm",
    "lstm_vjp",
    "pack",
    "rnn",
    "rnn_vjp",
    "set_num_threads",
    "show_config",
]
