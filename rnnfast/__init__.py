"""Fused LSTM, GRU and vanilla RNN kernels, forward and back-propagation through time."""

import pkgutil

__version__ = "0.1.0"

# From a source checkout, `python -m bench` finds this folder before the installed package; the
# compiled module stands in the latter.
__path__ = pkgutil.extend_path(__path__, __name__)

from .api import gated, gated_vjp, gru, gru_vjp, lstm, lstm_vjp, rnn, rnn_vjp
from .backends import backends
from .config import get_num_threads, set_num_threads, show_config
from .convert import convert
from .errors import UnsupportedError
from .flow import GradientFlow, gradient_flow
from .gradients import clip_grad_norm
from .options import Options
from .packed import Packed, pack
from .stream import Stream
from .weights import Weights, init_weights

__all__ = [
    "GradientFlow",
    "Options",
    "Packed",
    "Stream",
    "UnsupportedError",
    "Weights",
    "backends",
    "clip_grad_norm",
    "convert",
    "gated",
    "gated_vjp",
    "get_num_threads",
    "gradient_flow",
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
