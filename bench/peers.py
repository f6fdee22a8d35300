"""Who is timed: rnnfast's own calls and those of other libraries, behind one small interface.

A peer copies weights into its own form once, in `make`; what remains in the timed call is what a
user of that library calls once per batch. Frameworks are imported in `make` and nowhere else.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import rnnfast
from rnnfast.convert import convert
from rnnfast.spec import Spec

from .problem import Array, Mode, Problem, flat, named, options, within
from .shapes import Shape


@dataclass(frozen=True)
class Contender:
    """A peer at work on one problem."""

    run: Callable[[], Any]  # the timed call; copies nothing
    results: Callable[[Any], dict[str, Array]]  # what `run` returned, by name, for `errors`


class Peer(ABC):
    """An implementation. Once `make` has returned, `Contender.run` is all that is timed."""

    name: str
    needs: tuple[str, ...] = ()  # modules
    prepacked = False  # whether its weights are in their final layout before the timed call

    @abstractmethod
    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        """Whether it can do this at all, honestly."""

    @abstractmethod
    def make(self, problem: Problem, threads: int) -> Contender:
        """Do everything that is done once. Sets the number of threads for the whole process."""


def missing(peer: Peer) -> list[str]:
    """The modules that a peer lacks here."""
    return [name for name in peer.needs if importlib.util.find_spec(name) is None]


def reading(problem: Problem) -> Callable[[], Any]:
    """Read as many numbers as the matrices of a problem have, by all threads."""
    from rnnfast import _native

    count = sum(a.size for a in flat(problem.weights) if a.ndim == 2)
    room = np.ones(count + 32, np.float32)  # zeros may be one page, many times
    skipped = -room.ctypes.data % 128 // room.itemsize
    return partial(_native.total, room[skipped : skipped + count])


class Rnnfast(Peer):
    """The functional API, by default on the backend that RNNFAST_BACKEND names, else native."""

    name = "rnnfast"
    backend = "auto"

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return True

    def weights(self, problem: Problem) -> Any:
        return problem.weights

    def make(self, problem: Problem, threads: int) -> Contender:
        rnnfast.set_num_threads(threads)
        cell, x, weights, state_0 = (
            problem.spec.cell,
            problem.x,
            self.weights(problem),
            problem.state,
        )
        how: dict[str, Any] = {
            **options(problem.spec),
            "lengths": problem.lengths,
            "backend": self.backend,
        }
        if problem.mode == "forward":
            call = partial(getattr(rnnfast, cell), x, weights, state_0, **how)
            return Contender(call, lambda got: named(*got))
        function = getattr(rnnfast, f"{cell}_vjp")

        def train() -> Any:
            y, state, backward = function(x, weights, state_0, **how)
            return y, state, backward(problem.dy)

        def results(got: Any) -> dict[str, Array]:
            y, state, (dx, dweights, _) = got
            return named(y, state, [dx, *flat(dweights)])

        return Contender(train, results)


class RnnfastPacked(Rnnfast):
    """The same with weights from `rnnfast.pack`; a single step as `rnnfast.Stream`.

    A stream keeps y and the state in buffers, as ONNX Runtime's bound outputs are.
    """

    name = "rnnfast-packed"
    prepacked = True

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return mode == "forward"

    def make(self, problem: Problem, threads: int) -> Contender:
        if problem.shape.T > 1 or problem.shape.D > 1:
            return super().make(problem, threads)
        rnnfast.set_num_threads(threads)
        packed = self.weights(problem)
        stream = rnnfast.Stream(
            packed, problem.spec.cell, backend=self.backend, **options(problem.spec)
        )
        stream.state = problem.state
        return Contender(partial(stream, problem.x), lambda y: named(y, stream.state))

    def weights(self, problem: Problem) -> Any:
        spec = problem.spec
        how = options(spec)
        return rnnfast.pack(problem.weights, cell=spec.cell, backend=self.backend, **how)


class _Torch(Peer):
    """What the peers that run on torch share."""

    needs = ("torch",)
    knows_ends = False  # whether ragged rows end where they end

    @abstractmethod
    def layers(self, problem: Problem) -> tuple[Callable[[Any], Any], list[Any]]:
        """x -> (y, state), and its parameters in the order of `flat`."""

    def make(self, problem: Problem, threads: int) -> Contender:
        import torch

        torch.set_num_threads(threads)
        x, dy = torch.from_numpy(problem.x), torch.from_numpy(problem.dy)
        apply, parameters = self.layers(problem)
        if problem.mode == "forward":
            return Contender(torch.no_grad()(partial(apply, x)), partial(self._results, problem))
        inputs = [tensor.requires_grad_() for tensor in (x, *parameters)]

        def train() -> Any:
            y, state = apply(x)
            return y, state, *torch.autograd.grad(y, inputs, dy)

        return Contender(train, partial(self._results, problem))

    def _results(self, problem: Problem, got: Any) -> dict[str, Array]:
        y, state, *gradients = got
        states = state if isinstance(state, tuple) else (state,)
        if problem.shape.ragged and not self.knows_ends:
            states = ()
        return named(
            within(y.detach().numpy(), problem.lengths),
            tuple(tensor.detach().numpy() for tensor in states),
            [tensor.numpy() for tensor in gradients],
        )


class Torch(_Torch):
    """torch.nn.LSTM, GRU or RNN. Ragged rows are padded: the result is right up to their ends."""

    name = "torch"

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        has = {"lstm": True, "gru": spec.reset_after, "rnn": spec.nonlinearity != "sigmoid"}
        return has.get(spec.cell, False)

    def layers(self, problem: Problem) -> tuple[Callable[[Any], Any], list[Any]]:
        import torch

        module, parameters = self.module(problem)
        state = self.state(problem, torch.float32)
        return (lambda x: module(x, state)), parameters

    def state(self, problem: Problem, dtype: Any) -> Any:
        """That the module starts with, or None."""
        import torch

        states = [torch.from_numpy(array).to(dtype) for array in problem.states or ()]
        return tuple(states) if len(states) > 1 else states[0] if states else None

    def module(self, problem: Problem) -> tuple[Any, list[Any]]:
        import torch

        spec, shape = problem.spec, problem.shape
        how: dict[str, Any] = {"num_layers": shape.L, "bidirectional": shape.D == 2}
        if spec.cell == "rnn":
            how["nonlinearity"] = spec.nonlinearity
        module = getattr(torch.nn, spec.cell.upper())(shape.I, shape.H, **how)
        parameters = list(module.parameters())
        with torch.no_grad():
            for parameter, array in zip(parameters, flat(problem.weights), strict=True):
                parameter.copy_(torch.from_numpy(array))
        return module, parameters


class TorchPacked(Torch):
    """The same on a PackedSequence, made and padded again in the timed call."""

    name = "torch-packed"
    knows_ends = True

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return shape.ragged and super().supports(spec, shape, mode)

    def layers(self, problem: Problem) -> tuple[Callable[[Any], Any], list[Any]]:
        import torch
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        module, parameters = self.module(problem)
        lengths, total = torch.from_numpy(problem.lengths), problem.shape.T

        def apply(x: Any) -> Any:
            packed, state = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
            return pad_packed_sequence(packed, total_length=total)[0], state

        return apply, parameters


class TorchLoop(_Torch):
    """What torch.nn has not, as one writes it: one input product, then a Python loop of steps."""

    name = "torch-loop"

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return spec.cell == "gated" or (spec.cell == "gru" and not spec.reset_after)

    def layers(self, problem: Problem) -> tuple[Callable[[Any], Any], list[Any]]:
        import torch
        from torch.nn.functional import linear

        count, batch, hidden = problem.shape.D, problem.shape.B, problem.shape.H
        parameters = [torch.tensor(array) for array in flat(problem.weights)]
        h_0 = torch.from_numpy(problem.states[0]) if problem.states else None

        def gated(a: Any, h: Any, w_hh: Any) -> Any:
            i, f, u = torch.sigmoid(a + linear(h, w_hh)).chunk(3, dim=-1)
            return f * h + i * u

        def gru_before(a: Any, h: Any, w_hh: Any) -> Any:
            r, z = torch.sigmoid(a[:, : 2 * hidden] + linear(h, w_hh[: 2 * hidden])).chunk(2, -1)
            n = torch.tanh(a[:, 2 * hidden :] + linear(r * h, w_hh[2 * hidden :]))
            return n + z * (h - n)

        step = gated if problem.spec.cell == "gated" else gru_before

        def one(x: Any, weights: list[Any], direction: int) -> Any:
            w_ih, w_hh, b_ih, b_hh = weights
            reverse = direction == 1
            projected = linear(x, w_ih, b_ih + b_hh).unbind()
            h = x.new_zeros(batch, hidden) if h_0 is None else h_0[direction]
            ys = []
            for a in reversed(projected) if reverse else projected:
                h = step(a, h, w_hh)
                ys.append(h)
            return torch.stack(ys[::-1] if reverse else ys), h

        def apply(y: Any) -> Any:
            state = []
            for k in range(0, len(parameters), 4 * count):
                found = [one(y, parameters[k + 4 * d : k + 4 * d + 4], d) for d in range(count)]
                y = torch.cat([f[0] for f in found], dim=-1) if count > 1 else found[0][0]
                state += [f[1] for f in found]
            return y, torch.stack(state)

        return apply, parameters


class OnnxRuntime(Peer):
    """ONNX Runtime: weights as initialisers, which it packs at load; bound inputs and outputs."""

    name = "onnxruntime"
    needs = ("onnx", "onnxruntime")
    prepacked = True

    def supports(self, spec: Spec, shape: Shape, mode: Mode) -> bool:
        return mode == "forward" and spec.cell != "gated"

    def model(self, problem: Problem) -> Any:
        return onnx_model(problem)

    def make(self, problem: Problem, threads: int) -> Contender:
        import onnxruntime  # type: ignore[import-untyped]

        shape, spec = problem.shape, problem.spec
        how = onnxruntime.SessionOptions()
        how.intra_op_num_threads, how.inter_op_num_threads = threads, 1
        model = self.model(problem).SerializeToString()
        session = onnxruntime.InferenceSession(model, how, providers=["CPUExecutionProvider"])
        inputs = {"x": problem.x, **dict(zip("hc", problem.states or (), strict=False))}
        if problem.lengths is not None:
            inputs["lengths"] = problem.lengths.astype(np.int32)
        outputs = {o.name: np.empty(o.shape, np.float32) for o in session.get_outputs()}
        binding = session.io_binding()
        wrap = onnxruntime.OrtValue.ortvalue_from_numpy
        values = {name: wrap(array) for name, array in (inputs | outputs).items()}
        for name in inputs:
            binding.bind_ortvalue_input(name, values[name])
        for name in outputs:
            binding.bind_ortvalue_output(name, values[name])

        def results(_: Any) -> dict[str, Array]:  # keeps `values`, whose memory is bound, alive
            y, *states = (values[name].numpy() for name in outputs)
            width = shape.D * shape.H
            y = y.transpose(0, 2, 1, 3).reshape(shape.T, shape.B, width)
            kinds = 1 + spec.info.has_c
            return named(y, tuple(np.concatenate(states[k::kinds]) for k in range(kinds)))

        return Contender(partial(session.run_with_iobinding, binding), results)


def onnx_model(problem: Problem, stream: bool = False) -> Any:
    """One recurrent node a layer; outputs Y of the last (T, D, B, H), then the states of each.

    Where the problem has states, h and perhaps c are inputs too. With `stream` they are as well,
    and the new ones, h0 and c0, are all that is returned.
    """
    from onnx import TensorProto, helper, numpy_helper

    spec, shape = problem.spec, problem.shape
    layers = convert(
        problem.weights,
        cell=spec.cell,
        source="torch",
        target="onnx",
        reset_after=spec.reset_after,
    )
    shared: dict[str, Any] = {"hidden_size": shape.H}
    if shape.D == 2:
        shared["direction"] = "bidirectional"
    if spec.cell == "gru":
        shared["linear_before_reset"] = int(spec.reset_after)
    if spec.cell == "rnn":
        shared["activations"] = [spec.nonlinearity.capitalize()] * shape.D

    def tensor(name: str, sizes: tuple[int, ...], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, sizes)

    inputs = [tensor("x", problem.x.shape)]
    if shape.ragged:
        inputs.append(tensor("lengths", (shape.B,), TensorProto.INT32))
    old = ["h", "c"][: 1 + spec.info.has_c] if stream or problem.states else []
    inputs += [tensor(name, (shape.D, shape.B, shape.H)) for name in old]
    nodes, states, data = [], [], "x"
    constants: list[Any] = []
    for k, arrays in enumerate(layers):
        own = [f"W{k}", f"R{k}", f"B{k}"]
        constants += map(numpy_helper.from_array, arrays, own)
        kept = [f"h{k}", f"c{k}"][: 1 + spec.info.has_c]
        given = [data, *own, "lengths" if shape.ragged else "", *old]
        made = ["" if stream else f"y{k}", *kept]
        nodes.append(helper.make_node(spec.cell.upper(), given, made, **shared))
        states += [tensor(name, (shape.D, shape.B, shape.H)) for name in kept]
        if k + 1 < shape.L:
            nodes.append(helper.make_node("Transpose", [f"y{k}"], [f"t{k}"], perm=(0, 2, 1, 3)))
            nodes.append(helper.make_node("Reshape", [f"t{k}", "flat"], [f"x{k}"]))
            data = f"x{k}"
    if shape.L > 1:
        constants.append(numpy_helper.from_array(np.array([0, 0, -1], np.int64), "flat"))
    y = tensor(f"y{shape.L - 1}", (shape.T, shape.D, shape.B, shape.H))
    outputs = states if stream else [y, *states]
    graph = helper.make_graph(nodes, spec.cell, inputs, outputs, constants)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


OURS: tuple[Peer, ...] = (Rnnfast(), RnnfastPacked())
THEIRS: tuple[Peer, ...] = (Torch(), TorchPacked(), TorchLoop(), OnnxRuntime())
FAMILIES = tuple(dict.fromkeys(peer.name.partition("-")[0] for peer in THEIRS))
