"""Layers for Flax linen: `LSTM`, `GRU` and `RNN`, whole sequences by `rnnfast.jax`."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from . import parameters
from .call import run

__all__ = ["GRU", "LSTM", "RNN"]


class _Layer(nn.Module):
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    save: str = "all"
    param_dtype: Any = jnp.float32

    cell: ClassVar[str]

    @nn.compact
    def __call__(
        self, x: Any, state: Any = None, *, lengths: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """y and the final state, as `rnnfast.jax.lstm` and its siblings return them.

        `deterministic` switches dropout off; its key is that of the collection "dropout".
        """
        parameters.check(self.hidden_size, self.num_layers, self.dropout)
        stack = (self.num_layers, self.bidirectional, self.bias)
        draw = parameters.uniform(self.hidden_size)
        found = {
            name: self.param(name, draw, shape, self.param_dtype)
            for name, shape in parameters.shapes(self.cell, x.shape[-1], self.hidden_size, *stack)
        }
        weights = parameters.weights(found.__getitem__, *stack)
        random = self.dropout > 0 and not deterministic and self.num_layers > 1
        return run(
            self.cell,
            x,
            weights,
            state,
            lengths,
            self.batch_first,
            self.dropout if random else 0.0,
            self.make_rng("dropout") if random else None,
            self.save,
            {},
            **self._variant(),
        )

    def _variant(self) -> dict[str, Any]:
        return {}


class LSTM(_Layer):
    """`rnnfast.jax.lstm` as a layer; parameters `w_ih_l0`, `w_hh_l0`, `b_ih_l0`, `b_hh_l0`, ...

    Attributes
    ----------
    hidden_size, num_layers : int
        H and L.
    bidirectional, bias, batch_first : bool
        As `torch.nn.LSTM` has them.
    dropout : float
        Between layers, in calls that are not deterministic.
    save : {"all", "recompute"}
        As in `rnnfast.jax.lstm`.
    param_dtype : float32 or float64
        Of the parameters; x must have it too.
    """

    cell: ClassVar[str] = "lstm"


class GRU(_Layer):
    """`rnnfast.jax.gru` as a layer. Attributes as of `LSTM`, and `reset_after`."""

    reset_after: bool = True
    cell: ClassVar[str] = "gru"

    def _variant(self) -> dict[str, Any]:
        return {"reset_after": self.reset_after}


class RNN(_Layer):
    """`rnnfast.jax.rnn` as a layer. Attributes as of `LSTM`, and `nonlinearity`."""

    nonlinearity: str = "tanh"
    cell: ClassVar[str] = "rnn"

    def _variant(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}
