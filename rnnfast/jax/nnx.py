"""Layers for Flax nnx: `LSTM`, `GRU` and `RNN`, whole sequences by `rnnfast.jax`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from . import parameters
from .call import run

__all__ = ["GRU", "LSTM", "RNN"]


class _Layer(nnx.Module):
    cell: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        save: str = "all",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        parameters.check(hidden_size, num_layers, dropout)
        self.stack = (num_layers, bidirectional, bias)
        self.batch_first, self.dropout, self.save = batch_first, dropout, save
        self.deterministic = False
        draw = parameters.uniform(hidden_size)
        for name, shape in parameters.shapes(self.cell, input_size, hidden_size, *self.stack):
            setattr(self, name, nnx.Param(draw(rngs.params(), shape, param_dtype)))

    def __call__(
        self, x: Any, state: Any = None, *, lengths: Any = None, rngs: nnx.Rngs | None = None
    ) -> tuple[Any, Any]:
        """y and the final state, as `rnnfast.jax.lstm` and its siblings return them.

        Dropout takes its key from the stream "dropout" of `rngs`; `eval()`, or
        `nnx.view(model, deterministic=True)`, switches it off.
        """
        random = self.dropout > 0 and not self.deterministic and self.stack[0] > 1
        if random and rngs is None:
            raise ValueError("rngs: expected nnx.Rngs, as dropout is above 0, got None")
        return run(
            self.cell,
            x,
            parameters.weights(lambda name: getattr(self, name)[...], *self.stack),
            state,
            lengths,
            self.batch_first,
            self.dropout if random else 0.0,
            rngs.dropout() if random and rngs is not None else None,
            self.save,
            {},
            **self._variant(),
        )

    def set_view(self, deterministic: bool | None = None) -> None:
        """For `nnx.view`: whether dropout is off."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _variant(self) -> dict[str, Any]:
        return {}


class LSTM(_Layer):
    """`rnnfast.jax.lstm` as a layer; parameters `w_ih_l0`, `w_hh_l0`, `b_ih_l0`, `b_hh_l0`, ...

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and L.
    bidirectional, bias, batch_first : bool
        As `torch.nn.LSTM` has them.
    dropout : float
        Between layers, in training.
    save : {"all", "recompute"}
        As in `rnnfast.jax.lstm`.
    param_dtype : float32 or float64
        Of the parameters; x must have it too.
    rngs : nnx.Rngs
        Its stream "params" draws the parameters.
    """

    cell = "lstm"


class GRU(_Layer):
    """`rnnfast.jax.gru` as a layer. Parameters as of `LSTM`, and `reset_after`."""

    cell = "gru"

    def __init__(self, *sizes: int, reset_after: bool = True, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.reset_after = reset_after

    def _variant(self) -> dict[str, Any]:
        return {"reset_after": self.reset_after}


class RNN(_Layer):
    """`rnnfast.jax.rnn` as a layer. Parameters as of `LSTM`, and `nonlinearity`."""

    cell = "rnn"

    def __init__(self, *sizes: int, nonlinearity: str = "tanh", **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.nonlinearity = nonlinearity

    def _variant(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}
