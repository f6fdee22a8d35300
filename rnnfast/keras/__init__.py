"""LSTM, GRU, SimpleRNN and Bidirectional for Keras 3, on its torch, jax and tensorflow backends.

The layers subclass those of Keras: constructor, config, weights, states and files are Keras' own,
and so are the results. What is replaced is the loop over time. See docs/keras.md.
"""

from .bidirectional import Bidirectional
from .layers import GRU, LSTM, SimpleRNN
from .replacement import replace

__all__ = ["GRU", "LSTM", "Bidirectional", "SimpleRNN", "replace"]
