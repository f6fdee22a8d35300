"""rnnfast.torch under autograd's and the compiler's features, and as a part of models."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from helpers import python
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torch_pairs import NAMES, close, flat, pair, same_training, trained

import rnnfast
import rnnfast.torch
from rnnfast.torch import ops, tapes

# PyTorch 2.4 says these of its own code.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (".torch.cpu.amp.autocast", "At pre-dispatch", "You are using .torch.load")
]


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch._dynamo.reset()


def sample(*shape: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(len(shape)))


def state(name: str, *shape: int) -> Any:
    h = sample(*shape).requires_grad_()
    return (h, (h.detach() / 2).requires_grad_()) if name == "LSTM" else h


# The operators


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck of PyTorch 2.14
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, batch_first: bool, keep: bool) -> None:
    _, ours = pair(name, 3, 5, num_layers=2, bidirectional=True, batch_first=batch_first)
    weights, call = ours._weights(), ours._call(batch_first, False)
    h = sample(4, 3, 5).requires_grad_()
    for x, h_0, lengths in (
        (sample(3, 3, 3).requires_grad_(), h, torch.tensor([3, 1, 2])),
        (sample(4, 3).requires_grad_(), None, None),
    ):
        c_0 = None
        if h_0 is not None and name == "LSTM":
            c_0 = (h_0.detach() * 2).requires_grad_()
        arguments = (x, h_0, c_0, weights, lengths, None, *call, keep)
        torch.library.opcheck(ops.run_op, arguments)
        y, h_n, c_n, tape = ops.run_op(*arguments)
        given = (y, h_n, c_n if name == "LSTM" else None)
        cotangents = [None if t is None else torch.randn_like(t) for t in given]
        torch.library.opcheck(
            ops.gradients_op,
            (tape.detach(), *cotangents, *arguments[:-1]),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["plain", "rich"])
def test_compiled_in_one_graph(name: str, case: str) -> None:
    rich = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    theirs, ours = pair(name, 3, 5, **(rich if case == "rich" else {}))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = sample(4, 4, 3).requires_grad_()
    hx = state(name, 4, 4, 5) if case == "rich" else None
    wanted, gradients = trained(theirs, x, hx)
    got, own = trained(compiled, x, hx)
    close(got, wanted)
    close(own, gradients)
    with torch.no_grad():
        close(compiled(x, hx), wanted)
    short = x.detach()[:, :2].clone().requires_grad_()
    hx = None if case == "plain" else hx
    if case == "plain":
        close(compiled(short), theirs(short))  # another number of rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
@pytest.mark.parametrize("what", ["x", "weights"])
def test_inductor_may_make_what_the_tape_reads_anew(what: str) -> None:
    """It gives its memory to other tensors in between."""

    def twice(*tensors: Any) -> Any:
        return tuple(2 * torch.sin(t) for t in tensors)

    def model(x: Any, *weights: Any) -> list[Any]:
        made = {"x": (x,), "weights": weights}
        made[what] = checkpoint(twice, *made[what], use_reentrant=False)
        y, _ = rnnfast.torch.lstm(*made["x"], rnnfast.Weights(*made["weights"]))
        more = [t.cos() * y.mean() for t in (x, *weights)]  # as large as what was made
        return [y.square().sum() + sum(t.sum() for t in more), *(t.exp() for t in more)]

    _, layer = pair("LSTM", 32, 32, dtype=torch.float32)
    found = []
    for run in (model, torch.compile(model, fullgraph=True)):
        inputs = [sample(5, 16, 32, dtype=torch.float32), *layer.parameters()]
        inputs = [t.detach().clone().requires_grad_() for t in inputs]
        total, *rest = run(*inputs)
        (total + sum(t.sum() for t in rest) / 100).backward()
        found.append([t.grad for t in inputs])
    for wanted, got in zip(*found, strict=True):
        close(got, wanted, 1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own
def test_compiled_by_inductor_within_a_model() -> None:
    def model() -> Any:
        torch.manual_seed(0)

        class Tagger(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = torch.nn.Embedding(11, 3)
                self.rnn = torch.nn.LSTM(3, 5, num_layers=2, batch_first=True)
                self.out = torch.nn.Linear(5, 11)

            def forward(self, tokens: Any) -> Any:
                y, (h, _) = self.rnn(self.embed(tokens))
                return self.out(torch.relu(y)) + h.sum()

        return Tagger().double()

    tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    theirs, ours = model(), model()
    assert rnnfast.torch.replace_(ours) == 1
    compiled = torch.compile(ours, fullgraph=True)
    for _ in range(2):
        results = []
        for module in (theirs, compiled):
            loss = module(tokens).square().mean()
            results.append([loss, *torch.autograd.grad(loss, list(module.parameters()))])
        close(results[1], results[0])


def test_compiled_functions() -> None:
    theirs, _ = pair("GRU", 3, 5)
    entry = rnnfast.Weights(*theirs.parameters())

    def double(x: Any, entry: Any) -> Any:
        y, h = rnnfast.torch.gru(x, [entry], batch_first=True)
        return y * 2, h

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    x = sample(4, 3, 3).requires_grad_()
    y, h = theirs(x.transpose(0, 1))
    close(compiled(x, entry), (2 * y.transpose(0, 1), h))
    loss = compiled(x, entry)[0].sum()
    close(torch.autograd.grad(loss, x), torch.autograd.grad(2 * y.sum(), x))


def test_dropout_when_compiled() -> None:
    _, ours = pair("LSTM", 3, 40, num_layers=2, dropout=0.5)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = sample(4, 3, 3)
    torch.manual_seed(0)
    wanted = ours(x)
    torch.manual_seed(0)
    close(compiled(x), wanted)
    assert not torch.equal(compiled(x)[0], wanted[0])


@pytest.mark.parametrize("name", NAMES)
def test_export(name: str) -> None:
    theirs, ours = pair(name, 3, 5, num_layers=2, batch_first=True)
    batch, steps = torch.export.Dim("batch", min=2), torch.export.Dim("steps", min=2)
    x = sample(4, 6, 3)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: batch, 1: steps},))
    assert [n.target for n in program.graph.nodes].count(torch.ops.rnnfast.run.default) == 1
    kept = io.BytesIO()
    torch.export.save(program, kept)
    kept.seek(0)
    loaded = torch.export.load(kept).module()
    for other in (x, sample(2, 9, 3)):
        close(loaded(other), theirs(other))
    # An exported program keeps nothing for gradients, and yet has them.
    x = sample(3, 4, 3).requires_grad_()
    wanted = torch.autograd.grad(theirs(x)[0].sum(), x)
    close(torch.autograd.grad(loaded(x)[0].sum(), x), wanted)


def test_a_module_without_memory() -> None:
    with torch.device("meta"):
        module = rnnfast.torch.LSTM(3, 5, bidirectional=True)
        y, (h, c) = module(torch.empty(4, 2, 3))
    assert y.is_meta
    assert (y.shape, h.shape, c.shape) == ((4, 2, 10), (2, 2, 5), (2, 2, 5))
    module.to_empty(device="cpu").reset_parameters()
    assert module(torch.zeros(4, 2, 3))[0].shape == (4, 2, 10)


# torch.func


def test_functional_call() -> None:
    theirs, ours = pair("LSTM", 3, 5)
    x = sample(4, 3, 3)
    other = {k: (v * 2).detach().requires_grad_() for k, v in theirs.named_parameters()}
    results = []
    for module in (theirs, ours):
        y, _ = torch.func.functional_call(module, other, (x,))
        results.append([y, *torch.autograd.grad(y.sum(), list(other.values()))])
    close(*results[::-1])
    close(ours(x), theirs(x))
    with torch.no_grad():
        for _ in range(3):
            ours(x)
        close(torch.func.functional_call(ours, other, (x,))[0], results[0][0])
        close(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_torch_func(name: str) -> None:
    theirs, ours = pair(name, 3, 5)
    x = sample(4, 3, 3)

    def loss(module: Any) -> Any:
        return lambda p, x: torch.func.functional_call(module, p, (x,))[0].square().sum()

    results = []
    for module in (theirs, ours):
        parameters = dict(module.named_parameters())
        gradients, dx = torch.func.grad(loss(module), argnums=(0, 1))(parameters, x)
        results.append([*gradients.values(), dx])
    close(results[1], results[0])


# Autograd


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    _, ours = pair(name, 2, 3, num_layers=2, bidirectional=True)
    x, hx = sample(3, 2, 2).requires_grad_(), state(name, 4, 2, 3)

    def run(x: Any, *hx: Any) -> Any:
        y, state = ours(x, hx if name == "LSTM" else hx[0])
        return (y, *flat(state))

    assert torch.autograd.gradcheck(run, (x, *flat(hx)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["plain", "rich"])
def test_second_derivatives(name: str, case: str) -> None:
    """Of a penalty on gradients, as torch.nn's layers have them on the CPU."""
    rich = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    theirs, ours = pair(name, 3, 5, **(rich if case == "rich" else {}))
    x = sample(4, 4, 3).requires_grad_()
    hx = state(name, 4, 4, 5) if case == "rich" else None
    results = []
    for module in (theirs, ours):
        inputs = [x, *flat(hx), *module.parameters()]
        loss = sum(t.square().sum() for t in flat(module(x, hx)))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        penalty = sum(d.square().sum() for d in first)
        results.append([*first, *torch.autograd.grad(penalty, inputs)])
    close(results[1], results[0], rtol=1e-9)


def test_second_derivatives_of_packed_sequences() -> None:
    theirs, ours = pair("LSTM", 3, 5, num_layers=2, bidirectional=True)
    results = []
    for module in (theirs, ours):
        x = sample(7, 3).requires_grad_()
        packed = PackedSequence(x, torch.tensor([3, 2, 1, 1]), torch.tensor([1, 2, 0]))
        y, _ = module(packed)
        first = torch.autograd.grad(
            y.data.square().sum(), [x, *module.parameters()], create_graph=True
        )
        penalty = sum(d.square().sum() for d in first)
        results.append([*first, *torch.autograd.grad(penalty, [x, *module.parameters()])])
    close(results[1], results[0], rtol=1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by torch.compile
@pytest.mark.skipif(
    torch.__version__.startswith("2.8."), reason="PyTorch 2.8 cannot trace pad_packed_sequence"
)
def test_packed_sequences_in_a_compiled_model() -> None:
    """The graph breaks at them, and what comes out is the same."""
    theirs, ours = pair("GRU", 3, 5)

    def run(module: Any, x: Any, lengths: Any) -> Any:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0])[0] * 2

    compiled = torch.compile(run, backend="aot_eager")
    x, lengths = sample(4, 2, 3).requires_grad_(), torch.tensor([2, 4])
    for _ in range(2):
        got, wanted = compiled(ours, x, lengths), run(theirs, x, lengths)
        close(got, wanted)
        close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(wanted.sum(), x))


def test_gradgradcheck() -> None:
    _, ours = pair("LSTM", 2, 3)
    x, hx = sample(3, 2, 2).requires_grad_(), state("LSTM", 1, 2, 3)
    assert torch.autograd.gradgradcheck(lambda x, *hx: flat(ours(x, hx)), (x, *hx))


def test_second_derivatives_through_torch_func() -> None:
    theirs, ours = pair("GRU", 3, 5)
    x, v = sample(4, 2, 3), sample(4, 2, 3) * 2
    results = []
    for module in (theirs, ours):

        def slope(x: Any, module: Any = module) -> Any:
            return (torch.func.grad(lambda x: module(x)[0].square().sum())(x) * v).sum()

        results.append(torch.func.grad(slope)(x))
    close(results[1], results[0], rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_that_are_refused(name: str) -> None:
    _, ours = pair(name, 3, 5)
    x = sample(4, 2, 3).requires_grad_()
    traced, *_ = ops.run_op(
        x, None, None, ours._weights(), None, None, *ours._call(False, False), True
    )
    for y in (ours(x)[0], traced):
        found = y.square().sum()
        for _ in range(2):
            (dx,) = torch.autograd.grad(found, x, create_graph=True)
            found = dx.square().sum()
        with pytest.raises(rnnfast.UnsupportedError, match="cannot be differentiated again"):
            found.backward()
    single = rnnfast.torch.RNN(3, 5)
    x = sample(4, 2, 3, dtype=torch.float32).requires_grad_()
    (dx,) = torch.autograd.grad(single(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(rnnfast.UnsupportedError, match="second derivatives are for float64"):
        dx.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_back_twice(name: str) -> None:
    theirs, ours = pair(name, 3, 5)
    x = sample(4, 2, 3).requires_grad_()
    y, _ = ours(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)
    second = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first[0], second[0])
    close(first, torch.autograd.grad(theirs(x)[0].sum(), x))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("name", NAMES)
def test_each_output_alone(name: str) -> None:
    theirs, ours = pair(name, 3, 5, num_layers=2)
    x = sample(4, 2, 3).requires_grad_()
    for k in range(3 if name == "LSTM" else 2):
        results = []
        for module in (theirs, ours):
            out = flat(module(x))[k]
            found = torch.autograd.grad(
                out.square().sum(), [x, *module.parameters()], allow_unused=True
            )
            results.append([torch.zeros(()) if g is None else g for g in found])
        for a, b in zip(*results, strict=True):
            scale = a.abs().max()
            assert (a - b).abs().max() <= 1e-11 * scale, k


@pytest.mark.parametrize("name", NAMES)
def test_only_some_parameters_train(name: str) -> None:
    theirs, ours = pair(name, 3, 5)
    x = sample(4, 2, 3)
    for module in (theirs, ours):
        for parameter in list(module.parameters())[1:]:
            parameter.requires_grad_(False)
        module(x)[0].square().sum().backward()
        assert module.weight_hh_l0.grad is None
    close(ours.weight_ih_l0.grad, theirs.weight_ih_l0.grad)


def test_overwritten_inputs_are_noticed() -> None:
    _, ours = pair("LSTM", 3, 5)
    for overwrite in (lambda x: x.mul_(2), lambda x: ours.weight_hh_l0.add_(1)):
        x = sample(4, 2, 3)
        y, _ = ours(x)
        with torch.no_grad():
            overwrite(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_outputs_may_be_overwritten(name: str) -> None:
    theirs, ours = pair(name, 3, 5)
    x = sample(4, 2, 3).requires_grad_()
    y, _ = ours(x)
    close(torch.autograd.grad(y.mul_(2).sum(), x), torch.autograd.grad(2 * theirs(x)[0].sum(), x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_traced_layer_computes(name: str, grad: bool) -> None:
    """What torch.jit.trace records is a call, not the results that one call had."""
    theirs, ours = pair(name, 3, 5)
    with torch.set_grad_enabled(grad):
        for _ in range(3):  # it holds its weights, and without gradients packs them
            ours(sample(4, 2, 3))
        traced = torch.jit.trace(ours, sample(4, 2, 3))
        x = sample(4, 2, 3)
        close(flat(traced(x)), flat(theirs(x)))
    if grad:
        gradients = torch.autograd.grad(traced(x)[0].sum(), ours.parameters())
        close(gradients, torch.autograd.grad(theirs(x)[0].sum(), theirs.parameters()))


@pytest.mark.parametrize("smaller", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_input_that_gets_other_memory(name: str, smaller: bool) -> None:
    """Through ``.data``, which autograd does not see: gradients are those of what is there now.

    Fewer steps at the same address are refused where C++ is told of tensors, and else those of
    the call are read, which are still there.
    """
    theirs, ours = pair(name, 3, 5)
    ours(sample(4, 2, 3))
    now = sample(4, 2, 3)
    x = sample(4, 2, 3).requires_grad_()
    y, _ = ours(x)
    if smaller:
        before = x.detach().clone()
        x.data = x.data[:1]
        if tapes.TELLS:
            with pytest.raises(Exception, match="expected"):
                torch.autograd.grad(y.sum(), ours.parameters())
        else:
            gradients = torch.autograd.grad(y.sum(), ours.parameters())
            close(gradients, torch.autograd.grad(theirs(before)[0].sum(), theirs.parameters()))
        return
    x.data = now.clone()
    gradients = torch.autograd.grad(y.sum(), ours.parameters())
    close(gradients, torch.autograd.grad(theirs(now)[0].sum(), theirs.parameters()))


def test_what_a_step_keeps_is_let_go() -> None:
    _, ours = pair("LSTM", 3, 5)
    gc.collect()
    before = tapes.living()
    gc.disable()
    try:
        x = sample(4, 2, 3).requires_grad_()
        y, _ = ours(x)
        assert tapes.living() == before + 1
        y.sum().backward()
        assert tapes.living() == before
        kept = ours(x)[0]
        assert tapes.living() == before + 1
        del kept
        assert tapes.living() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool, compiled: bool) -> None:
    """With dropout too: the masks of the second run are those of the first."""
    if reentrant and compiled:
        reentrant = False
    _, ours = pair("LSTM", 3, 20, num_layers=3, dropout=0.5)
    x = sample(4, 2, 3).requires_grad_()

    def again(x: Any) -> Any:
        return checkpoint(ours, x, use_reentrant=reentrant)[0]

    if compiled:
        again = torch.compile(again, backend="aot_eager")
    results = []
    for call in (lambda x: ours(x)[0], again):
        torch.manual_seed(5)
        y = call(x)
        torch.manual_seed(6)  # backward is not to depend on it
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in ours.parameters())])
        x.grad = None
        ours.zero_grad()
    close(results[1], results[0])


def test_checkpoint_keeps_no_tape() -> None:
    _, ours = pair("LSTM", 3, 5)
    before = tapes.living()
    x = sample(4, 2, 3).requires_grad_()
    y, _ = checkpoint(ours, x, use_reentrant=False)
    assert tapes.living() == before
    y.sum().backward()
    assert tapes.living() == before


def test_saved_tensors_that_are_copied() -> None:
    """As save_on_cpu does: the tape is lost, and the forward pass run again."""
    theirs, ours = pair("GRU", 3, 5, num_layers=2)
    x = sample(4, 2, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y, _ = ours(x)
    close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(theirs(x)[0].sum(), x))


def copying() -> Any:
    """Hooks that copy what is saved but the tape."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone() if t.numel() > 1 else t, lambda t: t
    )


@pytest.mark.parametrize("saved", [copying, torch.autograd.graph.allow_mutation_on_saved_tensors])
@pytest.mark.parametrize("what", ["weights", "x", "state"])
def test_saved_copies_are_what_counts(saved: Any, what: str) -> None:
    """Where what the tape reads has changed, as a hook that copies lets it, it is not used."""
    found = []
    for module in pair("GRU", 3, 5):
        x, h = sample(4, 2, 3), sample(1, 2, 5)
        with saved():
            y, _ = module(x, h)
            with torch.no_grad():
                for t in module.parameters() if what == "weights" else [x if what == "x" else h]:
                    t.mul_(3)
            found.append(torch.autograd.grad(y.square().sum(), list(module.parameters())))
    close(found[1], found[0])


@pytest.mark.parametrize("name", NAMES)
def test_recorded_by_make_fx(name: str) -> None:
    _, ours = pair(name, 3, 5)
    x = sample(4, 2, 3)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            graph = make_fx(lambda x: ours(x)[0])(x)
            close(graph(2 * x), ours(2 * x)[0])
    packed = rnnfast.pack(rnnfast.init_weights("gru", 3, 5, dtype=np.float64), cell="gru")
    with pytest.raises(rnnfast.UnsupportedError, match="packed weights where a call is"):
        make_fx(lambda x: rnnfast.torch.gru(x, packed)[0])(x)


def test_beside_modes_that_count() -> None:
    """Modes that record nothing change nothing: of packed rows, and of second derivatives."""
    theirs, ours = pair("GRU", 3, 5)
    x = pack_padded_sequence(sample(4, 2, 3), [4, 2])
    with FlopCounterMode(display=False):
        y = ours(x)[0].data
        (first,) = torch.autograd.grad(y.square().sum(), ours.weight_hh_l0, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), ours.weight_ih_l0)
    (first,) = torch.autograd.grad(
        theirs(x)[0].data.square().sum(), theirs.weight_hh_l0, create_graph=True
    )
    close(found, torch.autograd.grad(first.square().sum(), theirs.weight_ih_l0)[0], rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_whole_in_a_graph_of_fx(name: str) -> None:
    """As torch.fx keeps a layer of torch.nn."""
    _, ours = pair(name, 3, 5)
    x, hx = sample(4, 2, 3), state(name, 1, 2, 5)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.ModuleList([ours])

        def forward(self, x: Any, hx: Any) -> Any:
            y, _ = self.inner[0](torch.tanh(x))
            z, h = self.inner[0](input=x, hx=hx)
            return y + z, h

    model = Model()
    graph = torch.fx.symbolic_trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["inner.0"] * 2
    close(graph(x, hx), model(x, hx))
    ours.register_forward_hook(lambda *_: None)
    with pytest.raises(rnnfast.UnsupportedError, match="is_leaf_module"):
        torch.fx.symbolic_trace(model)


def test_batches_of_cotangents_are_refused() -> None:
    _, ours = pair("LSTM", 3, 5)
    x = sample(4, 2, 3).requires_grad_()
    y = ours(x)[0]
    with pytest.raises(rnnfast.UnsupportedError, match="is_grads_batched"):
        torch.autograd.grad(y, x, torch.stack([y, y]), is_grads_batched=True)
    with pytest.raises(rnnfast.UnsupportedError, match=r"torch\.func\.vmap"):
        torch.autograd.functional.jacobian(lambda x: ours(x)[0], x, vectorize=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by torch.compile
def test_autocast() -> None:
    """Inputs that autocast made smaller are cast back, and results are float32."""
    _, ours = pair("LSTM", 3, 5, dtype=torch.float32)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), ours)
    x = sample(4, 2, 3, dtype=torch.float32)
    h = torch.zeros(1, 2, 5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        small = model[0](x)
        assert small.dtype is torch.bfloat16
        y, (h_n, c_n) = model(x)
        close(ours(small, (h, h)), (y, (h_n, c_n)))
        with torch.no_grad():
            close(ours(small, (h, h)), (y, (h_n, c_n)))
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        close(compiled(small), (y, (h_n, c_n)))
    assert {t.dtype for t in (y, h_n, c_n)} == {torch.float32}
    close((y, (h_n, c_n)), ours(small.float()))
    y.sum().backward()
    assert model[0].weight.grad.dtype is torch.float32
    with pytest.raises(ValueError, match="type"):
        ours(small)  # outside of autocast nothing is cast


# Dropout


@pytest.mark.parametrize("name", NAMES)
def test_dropout_comes_from_torch_s_generator(name: str) -> None:
    _, ours = pair(name, 3, 40, num_layers=2, dropout=0.5)
    x = sample(4, 2, 3)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append((ours(x)[0], ours(x)[0]))
    (a, b), (c, d), (e, _) = results
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.equal(a, b)
    assert not torch.equal(a, e)
    with torch.no_grad():
        torch.manual_seed(0)
        assert torch.equal(ours(x)[0], a)
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])
    before = torch.get_rng_state()
    ours(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_zeroes_at_its_rate() -> None:
    """The second layer of an RNN of weights 0 and 1 counts what the first lets through."""
    ours = rnnfast.torch.RNN(1, 400, 2, "relu", bias=False, dropout=0.25, dtype=torch.float64)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
        ours.weight_ih_l0.fill_(1)
        ours.weight_ih_l1.copy_(torch.eye(400))
        y, _ = ours(torch.ones(50, 10, 1, dtype=torch.float64))
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    rate = (y == 0).double().mean().item()
    assert abs(rate - 0.25) < 5 * (0.25 * 0.75 / y.numel()) ** 0.5


# Modules in models


def test_replace() -> None:
    class Own(torch.nn.LSTM):
        pass

    model = torch.nn.ModuleDict(
        {
            "a": torch.nn.Sequential(torch.nn.LSTM(3, 5), torch.nn.Linear(1, 1)),
            "b": torch.nn.GRU(3, 5, 2, dropout=0.5).eval(),
            "c": torch.nn.RNN(3, 5, nonlinearity="relu"),
            "d": Own(3, 5),
            "e": rnnfast.torch.LSTM(3, 5),
            "f": torch.nn.LSTMCell(3, 5),
        }
    ).double()
    model["again"] = model["b"]
    lstm, gru, own = model["a"][0], model["b"], model["d"]
    x = sample(4, 2, 3).requires_grad_()
    seen: list[str] = []
    gru.register_forward_hook(lambda *_: seen.append("hook"))
    before = list(model.parameters())
    wanted = [m(x) for m in (lstm, gru, model["c"])]
    lstm.eval()
    assert rnnfast.torch.replace_(model) == 3
    assert type(model["a"][0]) is rnnfast.torch.LSTM
    assert type(model["b"]) is type(model["again"]) is rnnfast.torch.GRU
    assert type(model["c"]) is rnnfast.torch.RNN
    assert model["d"] is own
    assert type(own) is Own
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert not model["a"][0].training
    assert not gru.training
    assert model["c"].training
    close([m(x) for m in (lstm, gru, model["c"])], wanted)
    assert seen == ["hook", "hook"]
    assert rnnfast.torch.replace_(model) == 0
    y, _ = model["a"][0](x)
    y.sum().backward()
    assert lstm.weight_ih_l0.grad is not None


def test_replace_the_model_itself() -> None:
    theirs = torch.nn.LSTM(3, 5).double()
    ours = copy.deepcopy(theirs)
    assert rnnfast.torch.replace_(ours) == 1
    same_training(ours, theirs, sample(4, 2, 3))
    assert repr(ours) == repr(theirs)
    with pytest.raises(TypeError, match="model"):
        rnnfast.torch.replace_([theirs])


def test_an_optimizer_goes_on_after_a_swap() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LSTM(3, 5)).double()
    twin = copy.deepcopy(model)
    x = sample(4, 2, 3)
    optimizers = [torch.optim.Adam(m.parameters(), 0.1) for m in (model, twin)]
    for step in range(4):
        if step == 2:
            rnnfast.torch.replace_(model)
        for module, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(x)[0].square().sum().backward()
            optimizer.step()
    close(list(model.parameters()), list(twin.parameters()), rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_pickle_and_deepcopy(name: str) -> None:
    _, ours = pair(name, 3, 5, num_layers=2, batch_first=True)
    x = sample(4, 2, 3)
    with torch.no_grad():
        wanted = [ours(x) for _ in range(3)]
    kept = io.BytesIO()
    torch.save(ours, kept)
    kept.seek(0)
    for other in (
        pickle.loads(pickle.dumps(ours)),
        copy.deepcopy(ours),
        copy.copy(ours),
        torch.load(kept, weights_only=False),
    ):
        assert type(other) is type(ours)
        assert repr(other) == repr(ours)
        close(other(x), wanted[0])
        other(x)[0].sum().backward()


def test_threads() -> None:
    theirs, ours = pair("LSTM", 3, 20, num_layers=2)
    xs = [sample(6, 2, 3) * k for k in range(1, 5)]
    wanted = [trained(theirs, x, None) for x in xs]
    found: dict[int, Any] = {}

    def work(k: int) -> None:
        for _ in range(5):
            found[k] = trained(ours, xs[k], None)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        close(found[k][0], wanted[k][0])
        close(found[k][1], wanted[k][1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_workers_that_are_forked() -> None:
    """A data set whose items a layer computes, in two processes, after it ran in this one."""
    code = """
import torch, rnnfast.torch
torch.manual_seed(0)
layer = rnnfast.torch.LSTM(8, 64, 2)
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, k):
        with torch.no_grad():
            return layer(torch.full((30, 16, 8), 0.1 * k))[0]
def items(workers):
    loader = torch.utils.data.DataLoader(
        Data(), batch_size=None, num_workers=workers,
        multiprocessing_context="fork" if workers else None)
    return list(loader)
wanted = items(0)
layer(torch.ones(30, 16, 8))[0].sum().backward()
for _ in range(2):
    assert all(map(torch.equal, items(2), wanted))
assert all(map(torch.equal, items(0), wanted))
print("same")
"""
    found = python(code, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "same" in found.stdout
