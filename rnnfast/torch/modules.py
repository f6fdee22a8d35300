"""Drop-in layers for torch.nn.LSTM, GRU and RNN."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..errors import UnsupportedError
from ..spec import Steps
from . import autograd, calls, ops
from .autograd import Given
from .calls import Call, Lengths, Results
from .held import Held

_FLOATS = (torch.float32, torch.float64)
_ON_DEVICES = (*_FLOATS, torch.float16, torch.bfloat16)
_FIELDS = {
    (True, False): "w_ih w_hh b_ih b_hh",
    (False, False): "w_ih w_hh",
    (True, True): "w_ih w_hh b_ih b_hh w_hr",
    (False, True): "w_ih w_hh w_hr",
}

State = tuple[Tensor | None, Tensor | None]  # h and c


class _Recurrent(torch.nn.RNNBase):
    """What the three layers share.

    The constructor, parameters, state_dict and repr are those of `torch.nn.RNNBase`, which
    torch.nn's own layers have them from. These layers are not their subclasses, because
    torch.compile refuses to trace any of those.
    """

    _twin: ClassVar[type[torch.nn.RNNBase]]  # the layer of torch.nn that this one stands for
    _held: Held | None = None

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - torch's name
        """Run the layers; arguments and results are those of the layer of torch.nn.

        Parameters
        ----------
        input : Tensor or PackedSequence
            (T, B, I), (B, T, I) with batch_first, (T, I) unbatched, or packed.
        hx : Tensor, or for LSTM a pair of them, or None
            The initial state, (L*D, B, H) or (L*D, H); None for zeros.

        Returns
        -------
        output : Tensor or PackedSequence
            As the input is laid out, with D*H features.
        h_n : Tensor, or for LSTM the pair (h_n, c_n)
            The state at the end, as `hx` is laid out.

        Raises
        ------
        ValueError, RuntimeError, TypeError
            What torch.nn's layer raises for the same call.
        UnsupportedError
            For tensors that are neither on the CPU nor, with CuPy, on a CUDA device.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if isinstance(input, Proxy):
            return self._whole(input.tracer, input, hx)
        weights = self._weights()
        x, state = input, self._split(hx)
        held = self._held
        if (
            held is not None
            and held.call.batch_first is self.batch_first
            and not (self.dropout > 0 and self.training)
            and autograd.is_plain(x)
        ):
            if autograd.needs_gradients(x, *state, *weights):
                done = held.train(x, *state, weights)
            else:
                done = held.run(x, hx, weights)
            if done is not None:
                return done
        x, state = self._without_autocast(x, state, weights[0].dtype)
        if not self._fits(x, state, weights[0]):
            self._refuse(input, hx)
        return self._joined(*self._run(x, state, weights, None, self.batch_first))

    def flatten_parameters(self) -> None:
        """Forget the packed weights, which are then packed anew.

        Needed only after a change of single weights through ``.data`` or NumPy, which leaves no
        trace in a tensor's version.
        """
        super().flatten_parameters()
        self.__dict__.pop("_held", None)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {k: v for k, v in state.items() if k != "_held"}

    def __prepare_scriptable__(self) -> NoReturn:  # of torch.jit.script
        raise UnsupportedError(
            f"torch.jit.script: expected torch.compile, torch.export or torch.jit.trace for a "
            f"model with {type(self).__module__.rpartition('.')[0]}.{type(self).__name__}"
        )

    def _whole(self, tracer: Any, *arguments: Any) -> tuple[Any, Any]:
        """This layer as one node of torch.fx, as it keeps those of torch.nn."""
        if self._forward_pre_hooks or self._forward_hooks:  # they have run, or will, on proxies
            raise UnsupportedError(
                "torch.fx: a layer with forward hooks; expected a Tracer whose is_leaf_module is "
                "True for it"
            )
        path = tracer.path_of_module(self)
        whole: tuple[Any, Any] = tracer.create_proxy("call_module", path, arguments, {})
        return whole

    def _call(self, batch_first: bool, dropout: bool) -> Call:
        fields = _FIELDS[self.bias, self.proj_size > 0]
        rate = self.dropout if dropout else 0.0
        options = "{'nonlinearity': 'relu'}" if self.mode == "RNN_RELU" else "{}"
        cell = "rnn" if self.mode.startswith("RNN") else self.mode.lower()
        return Call(cell, fields, 1 + self.bidirectional, batch_first, rate, options)

    def _weights(self) -> list[Tensor]:
        """The present weights, also where a parametrization or a hook computes them."""
        own = self._parameters
        return [
            own[name] if name in own else getattr(self, name)  # type: ignore[misc]
            for name in self._flat_weights_names
        ]

    def _run(
        self,
        x: Tensor,
        state: State,
        weights: list[Tensor],
        lengths: Lengths,
        batch_first: bool,
    ) -> Results:
        seed = None
        if self.dropout > 0 and self.training and self.num_layers > 1:
            seed = torch.randint(2**62, (), device="cpu")
        h_0, c_0 = state
        if not autograd.is_plain(x):
            call = self._call(batch_first, seed is not None)
            return ops.general(x, h_0, c_0, weights, lengths, seed, call)
        held = self._held
        if held is None or not held.fits(weights, self.batch_first):
            held = self.__dict__["_held"] = Held(weights, self._call(self.batch_first, False))
        call = held.call
        if seed is not None or call.batch_first is not batch_first:
            call = self._call(batch_first, seed is not None)
        if autograd.needs_gradients(x, h_0, c_0, *weights):
            given = Given(held.weights, lengths, seed, call, held.aliases)
            return autograd.train(x, h_0, c_0, weights, given)
        return calls.run(x, h_0, c_0, held.packed(weights) or held.structure, lengths, seed, call)

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, batch_sizes, order, back = packed
        weights = self._weights()
        x, state = data, self._split(hx)
        x, state = self._without_autocast(x, state, weights[0].dtype)
        batch = int(batch_sizes[0])
        if x.dim() != 2 or not self._fits_in_batch(x, state, weights[0], (batch,)):
            self._refuse(packed, hx)
        state = self._reorder(state, order)
        if autograd.is_traced(x):
            padded, lengths = pad_packed_sequence(PackedSequence(x, batch_sizes))
            y, h_n, c_n = self._run(padded, state, weights, lengths, False)
            y = pack_padded_sequence(y, lengths).data
        else:
            steps = Steps(len(batch_sizes), batch, batch_sizes.numpy())
            y, h_n, c_n = self._run(x, state, weights, steps, False)
        h, c = self._reorder((h_n, c_n), back)
        return PackedSequence(y, batch_sizes, order, back), self._joined(y, h, c)[1]

    def _reorder(self, state: State, order: Tensor | None) -> State:
        """The rows of a state in another order."""
        if order is None:
            return state
        h, c = state
        return (
            None if h is None else h.index_select(1, order),
            None if c is None or c.dim() < 3 else c.index_select(1, order),
        )

    @staticmethod
    def _without_autocast(x: Tensor, state: State, dtype: torch.dtype) -> tuple[Tensor, State]:
        """x and the state in the dtype of the weights where autocast made them smaller."""
        if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
            return x, state

        def cast(tensor: Tensor) -> Tensor:
            small = tensor.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(dtype) if small else tensor

        h, c = state
        return cast(x), (None if h is None else cast(h), None if c is None else cast(c))

    def _fits(self, x: Tensor, state: State, weight: Tensor) -> bool:
        """Whether torch.nn would take these."""
        shape = x.shape
        if len(shape) == 3:
            steps, batch = (shape[1], shape[0]) if self.batch_first else (shape[0], shape[1])
            return steps > 0 and self._fits_in_batch(x, state, weight, (batch,))
        return len(shape) == 2 and shape[0] > 0 and self._fits_in_batch(x, state, weight, ())

    def _fits_in_batch(
        self, x: Tensor, state: State, weight: Tensor, batch: tuple[int, ...]
    ) -> bool:
        dtype, device = x.dtype, x.device
        if (
            x.shape[-1] != self.input_size
            or dtype not in _taken(x)
            or dtype != weight.dtype
            or device != weight.device
        ):
            return False
        count = self.num_layers * (1 + self.bidirectional)
        h, c = state
        widths = (h, self.proj_size or self.hidden_size), (c, self.hidden_size)
        for value, width in widths:
            if value is not None and (
                value.shape != (count, *batch, width)
                or value.dtype != dtype
                or value.device != device
            ):
                return False
        return True

    def _refuse(self, *arguments: Any) -> NoReturn:
        """Raise torch.nn's own error for these arguments."""
        x = arguments[0]
        dtype = x.data.dtype if isinstance(x, PackedSequence) else x.dtype
        weight = self._weights()[0]
        if dtype == weight.dtype and dtype not in _taken(x):
            raise TypeError(
                f"input: expected float32 or float64, got {dtype}; keep the module in float32: "
                f"under torch.autocast its inputs are cast"
            )
        self._twin.forward(self, *arguments)
        raise ValueError(
            f"input, hx: expected shapes and dtypes for {self}, got {arguments[1]!r} beside an "
            f"input of shape {tuple(getattr(x, 'shape', ()))} and dtype {dtype}"
        )

    def _split(self, hx: Any) -> State:
        return hx, None

    def _joined(self, y: Any, h_n: Any, c_n: Any) -> tuple[Any, Any]:
        return y, h_n


class LSTM(_Recurrent):
    """`torch.nn.LSTM` on rnnfast's kernels: the same arguments, attributes and checkpoints.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L, default 1.
    bias : bool
        Whether there are b_ih and b_hh, default True.
    batch_first : bool
        Whether input and output are (B, T, features), default False.
    dropout : float
        Probability of zeroing each output of every layer but the last, in training. The masks are
        drawn with a seed from PyTorch's generator, so that `torch.manual_seed` repeats them; they
        are not those that torch.nn draws. Default 0.
    bidirectional : bool
        Default False.
    proj_size : int
        P, default 0 for no projection.
    device, dtype
        Of the parameters; float32 or float64.

    Notes
    -----
    Equations, parameter names, shapes and the order of gates are those of `torch.nn.LSTM`
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html). ``isinstance(layer,
    torch.nn.LSTM)`` is False, ``isinstance(layer, torch.nn.RNNBase)`` True.
    """

    _twin = torch.nn.LSTM

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def _split(self, hx: Any) -> State:
        if hx is None:
            return None, None
        if isinstance(hx, (tuple, list)) and len(hx) == 2:
            return hx[0], hx[1]
        raise TypeError(f"hx: expected a pair (h_0, c_0) of tensors, got {type(hx).__name__}")

    def _joined(self, y: Any, h_n: Any, c_n: Any) -> tuple[Any, Any]:
        return y, (h_n, c_n)

    # `_refuse` runs torch.nn.LSTM.forward, which calls these.
    check_forward_args: Any = torch.nn.LSTM.check_forward_args
    get_expected_cell_size: Any = torch.nn.LSTM.get_expected_cell_size
    permute_hidden: Any = torch.nn.LSTM.permute_hidden


class GRU(_Recurrent):
    """`torch.nn.GRU` on rnnfast's kernels: the same arguments, attributes and checkpoints.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype
        As `rnnfast.torch.LSTM` takes them.

    Notes
    -----
    Equations, parameter names, shapes and the order of gates are those of `torch.nn.GRU`
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html).
    """

    _twin = torch.nn.GRU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _no_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)


class RNN(_Recurrent):
    """`torch.nn.RNN` on rnnfast's kernels: the same arguments, attributes and checkpoints.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        As `rnnfast.torch.LSTM` takes them.
    nonlinearity : {"tanh", "relu"}
        Default "tanh".
    bias, batch_first, dropout, bidirectional, device, dtype
        As `rnnfast.torch.LSTM` takes them.

    Notes
    -----
    Equations, parameter names and shapes are those of `torch.nn.RNN`
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html).
    """

    _twin = torch.nn.RNN

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _no_projection(kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], (*args[:3], *args[4:])
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        modes = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}
        if nonlinearity not in modes:
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        super().__init__(modes[nonlinearity], *args, **kwargs)


def _taken(x: Tensor | PackedSequence) -> tuple[torch.dtype, ...]:
    return _ON_DEVICES if x.is_cuda else _FLOATS


def _no_projection(arguments: dict[str, Any]) -> None:
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
