"""rnnfast in PyTorch: drop-in layers, `replace_` for whole models, and functions on tensors.

Nothing is computed here. The layers and functions hand a tensor's memory to `rnnfast.lstm`,
`rnnfast.gru`, `rnnfast.rnn` and `rnnfast.gated` or their _vjp functions, and their results back to
autograd. docs/torch.md tells how to use them.
"""

from .functional import gated, gru, lstm, rnn
from .modules import GRU, LSTM, RNN
from .swap import replace_
from .threads import share

__all__ = ["GRU", "LSTM", "RNN", "gated", "gru", "lstm", "replace_", "rnn"]

share()
