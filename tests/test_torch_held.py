"""Weights held and packed between calls: never stale, whatever changes them, and cheap."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils import prune
from torch_pairs import close, pair

import rnnfast
import rnnfast.torch
from rnnfast.torch import calls, tapes
from rnnfast.torch.held import Held


def layer(dtype: Any = torch.float64) -> Any:
    torch.manual_seed(0)
    return rnnfast.torch.LSTM(7, 40, num_layers=2, dtype=dtype)


def by_torch(module: Any, x: Any) -> Any:
    """What torch.nn computes with the weights that the module has now."""
    dtype = next(module.parameters()).dtype
    theirs = torch.nn.LSTM(7, 40, num_layers=2, dtype=dtype)
    theirs.load_state_dict({n: getattr(module, n) for n in module._flat_weights_names})
    return theirs(x)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every call of rnnfast.pack."""
    made: list[Any] = []
    pack = rnnfast.pack

    def count(*args: Any, **kwargs: Any) -> Any:
        made.append(pack(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(rnnfast, "pack", count)
    return made


def train(make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def step(module: Any) -> None:
        optimizer = make(module.parameters())
        with torch.enable_grad():
            module(torch.ones(3, 2, 7, dtype=torch.float64))[0].sum().backward()
        optimizer.step()

    return step


def replace_parameter(module: Any) -> None:
    module.weight_hh_l1 = torch.nn.Parameter(torch.rand_like(module.weight_hh_l1))


def replace_data(module: Any) -> None:
    module.weight_hh_l1.data = torch.rand_like(module.weight_hh_l1)


def through_numpy(module: Any) -> None:
    module.weight_ih_l0.detach().numpy()[...] *= 2


def other_state(module: Any) -> None:
    torch.manual_seed(1)
    module.load_state_dict(rnnfast.torch.LSTM(7, 40, num_layers=2).state_dict())


def forget_gate(module: Any) -> None:
    """The usual way to set the bias of one gate."""
    module.bias_ih_l1.data[40:80].fill_(1)


def average(module: Any) -> None:
    """A moving average, as it is often written."""
    for parameter in module.parameters():
        parameter.data.mul_(0.9).add_(torch.rand_like(parameter.data), alpha=0.1)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "SGD": train(lambda p: torch.optim.SGD(p, 0.1)),
    "SGD foreach": train(lambda p: torch.optim.SGD(p, 0.1, foreach=True)),
    "Adam": train(torch.optim.Adam),
    "Adam fused": train(lambda p: torch.optim.Adam(p, fused=True)),
    "load_state_dict": other_state,
    "one number": lambda m: m.weight_hh_l0.data_ptr() and m.weight_hh_l0[3, 5].fill_(9),
    "copy_": lambda m: m.bias_hh_l0.copy_(torch.ones(160, dtype=torch.float64)),
    "init": lambda m: torch.nn.init.orthogonal_(m.weight_hh_l1),
    "reset_parameters": lambda m: m.reset_parameters(),
    "another parameter": replace_parameter,
    "data =": replace_data,
    "data in place": average,
    "data of one gate": forget_gate,
    "NumPy": through_numpy,
    "vector_to_parameters": lambda m: torch.nn.utils.vector_to_parameters(
        torch.rand(sum(p.numel() for p in m.parameters()), dtype=torch.float64) / 9, m.parameters()
    ),
    "to float32 and back": lambda m: m.float().double(),
    "share_memory": lambda m: m.share_memory().weight_ih_l0.mul_(2),
}


# In inference mode these would make tensors that cannot be trained.
TRAINING = ("SGD", "Adam", "another", "data")
CASES = [(change, torch.no_grad) for change in CHANGES] + [
    (change, torch.inference_mode) for change in CHANGES if change.split()[0] not in TRAINING
]


@pytest.fixture(params=[True, False], ids=["by C++", "by Python"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the tensors of a PyTorch that tells C++ where their memory is, and of an older one."""
    if request.param and not tapes.TELLS:
        pytest.skip("this PyTorch, or a backend other than native, does not tell")
    monkeypatch.setattr(tapes, "TELLS", request.param)
    return bool(request.param)


def test_part_of_a_large_bias(either_way: bool) -> None:
    """Every number of a bias is compared, also where autograd sees no change."""
    module = rnnfast.torch.LSTM(8, 512)
    x = torch.rand(3, 2, 8)
    with torch.no_grad():
        before = [module(x)[0] for _ in range(4)][-1]
        module.bias_hh_l0.data[777] = 5
        after = module(x)[0]
        assert torch.equal(after, module(x)[0])
    assert not torch.equal(before[..., 265], after[..., 265])


@pytest.mark.parametrize(("change", "how"), CASES)
def test_never_stale(change: str, how: Any, either_way: bool) -> None:
    module = layer()
    x = torch.randn(6, 2, 7, dtype=torch.float64)
    with how():
        for _ in range(3):
            before, _ = module(x)
        assert (module._held._watched is not None) is either_way or how is torch.inference_mode
        CHANGES[change](module)
        for _ in range(3):
            got = module(x)
            close(got, by_torch(module, x))
    assert not torch.equal(got[0], before)


def test_packed_once(packs: list[Any]) -> None:
    module = layer()
    x = torch.randn(1, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(5):
            module(x)
    assert len(packs) == 1
    module.train()(x)  # with gradients
    with torch.no_grad():
        module(x)
        module.eval()(x)
        module.weight_ih_l0.add_(1)
        for _ in range(5):
            module(x)
    assert len(packs) == 2


def test_weights_that_always_change_are_not_packed(packs: list[Any]) -> None:
    module = layer()
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    x = torch.randn(6, 2, 7, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(4):
            close(module(x), by_torch(module, x))
    assert not packs


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: torch.nn.utils.parametrizations.orthogonal(m, "weight_hh_l1"),
        lambda m: torch.nn.utils.parametrizations.spectral_norm(m.eval(), "weight_ih_l0"),
        lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.5),
    ],
    ids=["weight_norm", "orthogonal", "spectral_norm", "prune"],
)
def test_parametrizations(wrap: Any) -> None:
    module = layer()
    wrap(module)
    x = torch.randn(6, 2, 7, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    for _ in range(2):
        y, state = module(x)
        close((y, state), by_torch(module, x))
        optimizer.zero_grad()
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        optimizer.step()
        with torch.no_grad():
            close(module(x), by_torch(module, x))
        with torch.inference_mode():
            close(module(x), by_torch(module, x))


def test_flatten_parameters_forgets(packs: list[Any]) -> None:
    """The way out after a change that nothing shows: of one number, through .data."""
    module = layer()
    x = torch.randn(6, 2, 7, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            module(x)
        module.weight_hh_l0.data[1, 2] = 5
        module.flatten_parameters()
        close(module(x), by_torch(module, x))


def test_memory_of_weights_that_are_gone_is_let_go() -> None:
    module = layer()
    x = torch.randn(2, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            module(x)
        held = weakref.ref(module._held)
        module.float()
        module(x.float())
    assert held() is None


def test_copies_hold_their_own() -> None:
    module = layer()
    x = torch.randn(6, 2, 7, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):
            wanted, _ = module(x)
        other = copy.deepcopy(module)
        assert "_held" not in other.__dict__
        other.weight_hh_l0.zero_()
        close(other(x), by_torch(other, x))
        assert torch.equal(module(x)[0], wanted)


def test_a_layer_shared_by_threads(packs: list[Any]) -> None:
    """Weights change between calls of several threads; each result is of the old or the new."""
    module = layer()
    x = torch.randn(3, 2, 7, dtype=torch.float64)
    found: list[Any] = []
    with torch.no_grad():
        states = [module.state_dict()]
        states = [{k: v.clone() * s for k, v in states[0].items()} for s in (1, 2, 3)]
        barrier = threading.Barrier(4)

        def work() -> None:
            with torch.no_grad():
                for k in range(30):
                    barrier.wait()
                    found.append((k % 3, [module(x)[0] for _ in range(4)]))
                    barrier.wait()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for k in range(30):
            module.load_state_dict(states[k % 3])
            barrier.wait()
            barrier.wait()
        for thread in threads:
            thread.join()
        wanted = []
        for state in states:
            module.load_state_dict(state)
            wanted.append(by_torch(module, x)[0])
    assert len(found) == 90
    for k, results in found:
        for y in results:
            close(y, wanted[k])
    assert packs


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_plain_and_packed_have_the_same_bits(name: str) -> None:
    _, ours = pair(name, 7, 40, num_layers=2, bidirectional=True, dtype=torch.float32)
    x = torch.randn(6, 3, 7)
    with torch.no_grad():
        results = [ours(x)[0] for _ in range(3)]
    assert ours._held._last[1] is not None
    assert all(torch.equal(results[0], r) for r in results)
    assert torch.equal(ours(x)[0], results[0])


def short(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> list[Any]:
    """Results of a module whose weights are packed, by the long way and as it is; and whether the
    second call was short."""
    first = next(module.parameters())
    with torch.no_grad():
        for _ in range(3):
            module(torch.ones(2, 2, module.input_size, dtype=first.dtype))
        watched, module._held._watched = module._held._watched, None
        wanted = module(*arguments)
        module._held._watched = watched
        long_ways = []
        run = calls.run
        monkeypatch.setattr(calls, "run", lambda *given: long_ways.append(given) or run(*given))
        got = module(*arguments)
    return [wanted, got, not long_ways]


def inputs(name: str, dtype: Any) -> dict[str, tuple[bool, tuple[Any, ...]]]:
    """Arguments of a layer of 7 inputs and 5 units, two layers; and whether C++ takes them."""

    def numbers(*shape: int) -> Any:
        return torch.randn(*shape, dtype=dtype)

    def state(make: Callable[..., Any], *batch: int) -> Any:
        return (make(2, *batch, 5), make(2, *batch, 5)) if name == "LSTM" else make(2, *batch, 5)

    complex_x = torch.view_as_complex(numbers(1, 1, 7, 2))
    found = {
        "a batch": (True, (numbers(4, 3, 7),)),
        "no batch": (True, (numbers(4, 7),)),
        "a state": (True, (numbers(4, 3, 7), state(numbers, 3))),
        "a state without batch": (True, (numbers(4, 7), state(numbers))),
        "parameters": (
            False,
            (numbers(4, 3, 7), state(lambda *s: torch.nn.Parameter(numbers(*s)), 3)),
        ),
        "with gradients": (True, (numbers(4, 3, 7).requires_grad_(),)),
        "other strides": (False, (numbers(3, 4, 7).transpose(0, 1),)),
        "strides of one row": (True, (numbers(1, 4, 7).transpose(0, 1),)),
        "half of a larger tensor": (True, (numbers(8, 3, 7)[4:],)),
        "negated": (False, (torch._neg_view(numbers(4, 3, 7)),)),
        "negated state": (
            False,
            (numbers(4, 3, 7), state(lambda *s: torch._neg_view(numbers(*s)), 3)),
        ),
        "of a conjugate": (False, (complex_x.conj().imag,)),
        "no memory": (False, (torch._efficientzerotensor((4, 3, 7), dtype=dtype),)),
        "no rows": (False, (numbers(4, 0, 7),)),
    }
    if name == "LSTM":
        found["a list"] = (False, (numbers(4, 3, 7), list(state(numbers, 3))))
    return found


CASES_OF_SHORT = [
    (name, extra)
    for name in ("LSTM", "GRU", "RNN")
    for extra in ("", "batch_first", "bidirectional", "proj_size")
    if name == "LSTM" or extra != "proj_size"
]


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "extra"), CASES_OF_SHORT)
def test_the_short_way_has_the_same_bits(
    name: str, extra: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {extra: 4 if extra == "proj_size" else True} if extra else {}
    torch.manual_seed(1)
    module = getattr(rnnfast.torch, name)(7, 5, 2, dtype=dtype, **options).eval()
    for case, (is_short, arguments) in inputs(name, dtype).items():
        if len(arguments) > 1 and extra in ("bidirectional", "proj_size"):
            continue  # their states have other sizes
        if extra == "batch_first" and arguments[0].dim() == 3:
            x = arguments[0].transpose(0, 1)
            is_short = is_short or case == "other strides"
            arguments = (x.contiguous() if is_short else x, *arguments[1:])
        wanted, got, was_short = short(module, monkeypatch, *arguments)
        monkeypatch.undo()
        assert was_short is is_short, case
        for a, b in zip(flat(wanted), flat(got), strict=True):
            assert torch.equal(a, b), case
            assert (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad), case


def flat(results: Any) -> list[Any]:
    y, state = results
    return [y, *state] if isinstance(state, tuple) else [y, state]


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(4, 3, 6),),
        (torch.ones(4, 3, 7, dtype=torch.float64),),
        (torch.ones(4, 3, 7, dtype=torch.int64),),
        (torch.ones(7),),
        (torch.ones(1, 4, 3, 7),),
        (torch.ones(0, 3, 7),),
        (torch.ones(4, 3, 7), torch.ones(2, 2, 5)),
        (torch.ones(4, 3, 7), torch.ones(2, 5)),
        (torch.ones(4, 7), torch.ones(2, 1, 5)),
        (torch.ones(4, 3, 7, device="meta"),),
    ],
    ids=lambda arguments: ", ".join(f"{a.dtype} {tuple(a.shape)} {a.device}" for a in arguments),
)
def test_errors_with_packed_weights(arguments: Any, either_way: bool) -> None:
    """Those that the layer raised before it had packed them."""
    module = rnnfast.torch.GRU(7, 5, 2)
    with torch.no_grad():
        try:
            wanted = [type(r) for r in flat(module(*arguments))]
        except Exception as error:
            wanted = [type(error), str(error)]
        for _ in range(3):
            module(torch.ones(4, 3, 7))
        try:
            got = [type(r) for r in flat(module(*arguments))]
        except Exception as error:
            got = [type(error), str(error)]
    assert got == wanted


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
def test_results_own_their_memory() -> None:
    module = rnnfast.torch.LSTM(7, 5)
    x = torch.randn(4, 3, 7)
    with torch.no_grad():
        results = [flat(module(x)) for _ in range(9)][3:]
        kept = [[r.clone() for r in result] for result in results]
        for result in results[1:]:
            for tensor in result:
                tensor.fill_(9)
        del results[1:], result, tensor
        for _ in range(9):
            module(x)
    assert all(torch.equal(a, b) for a, b in zip(results[0], kept[0], strict=True))
    assert all(r.data_ptr() % 64 == 0 for r in results[0])


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
def test_a_watch_sees_every_change() -> None:
    """Of memory, sizes, strides, versions and sampled numbers; and it takes nothing else."""
    from rnnfast import _native

    types = (torch.Tensor, torch.nn.Parameter)
    weight, bias = torch.nn.Parameter(torch.rand(8, 8)), torch.rand(8)
    sample = weight.detach().numpy().reshape(-1)[::9]
    watch = _native.Watch([weight, bias], [sample], types)
    assert watch.same([weight, bias])
    assert watch.same([weight.detach(), bias])
    assert not watch.same([weight])
    assert not watch.same([bias, weight])
    assert not watch.same([weight, bias.clone()])
    assert not watch.same([weight.detach().T, bias])
    assert not watch.same([weight.detach()[:4], bias])
    assert not watch.same([weight, bias.numpy()])
    assert not watch.same([weight, None])
    with torch.inference_mode():
        assert not watch.same([weight, torch.from_numpy(bias.numpy())])
    weight.data[1, 1] += 1  # the version does not tell
    assert not watch.same([weight, bias])
    weight.data[1, 1] -= 1
    bias.mul_(1)
    assert not watch.same([weight, bias])
    with pytest.raises(ValueError, match="tensors: expected"):
        _native.Watch([weight.detach().numpy()], [], types)
    with pytest.raises(ValueError, match="samples: expected one axis"):
        _native.Watch([weight], [np.ones((2, 2))], types)


def gradients_of(module: Any, arguments: tuple[Any, ...], scalar: Callable[[Any], Any]) -> Any:
    """Results, and gradients of everything that may have one."""
    x, state = arguments[0].detach().requires_grad_(), None
    states = arguments[1] if len(arguments) > 1 else ()
    states = [
        s.detach().requires_grad_() for s in (states if isinstance(states, tuple) else [states])
    ]
    state = None if not states else tuple(states) if len(states) > 1 else states[0]
    results = flat(module(x, state))
    leaves = [x, *states, *module.parameters()]
    return results, torch.autograd.grad(scalar(results), leaves)


SCALARS: dict[str, Callable[[Any], Any]] = {
    "weighted": lambda r: sum((t * torch.arange(t.numel()).view_as(t)).sum() for t in r),
    "sums": lambda r: sum(t.sum() for t in r),  # their gradients are one number, repeated
    "y alone": lambda r: r[0].square().sum(),
    "h alone": lambda r: r[1].square().sum(),
    "the last step": lambda r: r[0][-1].square().sum(),
    "strided": lambda r: (r[0].transpose(0, -1) * 2).transpose(0, -1).sum(0).square().sum(),
}


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
@pytest.mark.parametrize("scalar", SCALARS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_training_the_short_way_has_the_same_bits(
    name: str, batch_first: bool, scalar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    module = getattr(rnnfast.torch, name)(7, 5, 2, batch_first=batch_first)
    cases = inputs(name, torch.float32)
    del cases["no rows"], cases["no memory"]
    long_ways: list[Any] = []
    run = calls._vjp
    monkeypatch.setattr(calls, "_vjp", lambda *given: long_ways.append(given) or run(*given))
    trained: list[Any] = []
    train = Held.train

    def spy(held: Held, *given: Any) -> Any:
        trained.append(train(held, *given))
        return trained[-1]

    monkeypatch.setattr(Held, "train", spy)
    for case, (_, arguments) in cases.items():
        x = arguments[0]
        x = x.transpose(0, 1) if batch_first and x.dim() == 3 else x
        arguments = (x, *(tuple(a) if isinstance(a, list) else a for a in arguments[1:]))
        found = []
        for tells in (True, False):
            monkeypatch.setattr(tapes, "TELLS", tells)
            module.flatten_parameters()  # forgets what it holds
            for holds in (False, True):
                long_ways.clear()
                trained.clear()
                found.append(gradients_of(module, arguments, SCALARS[scalar]))
                assert bool(long_ways) is not tells, case
                assert [done is not None for done in trained] == [tells] * holds, case
        for a, *others in zip(*([*r, *g] for r, g in found), strict=True):
            assert len(others) == 3
            assert all(torch.equal(a, b) for b in others), case


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
def test_the_way_back_needs_no_weights_of_the_caller() -> None:
    """Their memory may be changed for other memory."""
    torch.manual_seed(3)
    module = rnnfast.torch.LSTM(300, 64)
    x = torch.randn(40, 8, 300)
    wanted = gradients_of(module, (x,), SCALARS["weighted"])[1]
    mine = x.clone().requires_grad_()
    results = flat(module(mine))
    for parameter in module.parameters():
        parameter.data = torch.full_like(parameter, float("nan"))
    others = [torch.full((40, 8, 300), 7.0) for _ in range(20)]  # take the memory that is free
    got = torch.autograd.grad(SCALARS["weighted"](results), [mine, *module.parameters()])
    assert len(others) == 20
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
def test_weights_that_are_gathered_elsewhere(directions: int, functional: bool) -> None:
    """As FSDP does: their memory is given back after the call, and is another on the way back."""
    torch.manual_seed(3)
    module = rnnfast.torch.LSTM(30, 64, bidirectional=directions == 2)
    x = torch.randn(40, 8, 30)
    wanted = gradients_of(module, (x,), SCALARS["weighted"])[1]
    mine, weights = x.clone().requires_grad_(), [*module.parameters()]
    if functional:
        pairs = tuple(tuple(weights[4 * d : 4 * d + 4]) for d in range(directions))
        results = flat(rnnfast.torch.lstm(mine, pairs if directions == 2 else pairs[0]))
    else:
        results = flat(module(mine))
    others = []
    for weight in weights:
        values, memory, place = weight.detach().clone(), weight.untyped_storage(), weight.data_ptr()
        size = memory.nbytes()
        memory.resize_(0)
        others += [torch.full_like(values, float("nan")) for _ in range(4)]
        memory.resize_(size)
        weight.data.copy_(values)
        assert weight.data_ptr() != place
    got = torch.autograd.grad(SCALARS["weighted"](results), [mine, *weights])
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert others


@pytest.mark.parametrize("functional", [False, True])
def test_tapes_keep_the_memory_of_weights(functional: bool) -> None:
    """Also where a tensor is given other memory, and whoever held the old one is gone."""
    torch.manual_seed(3)
    module = rnnfast.torch.LSTM(30, 64, bidirectional=True).double()
    x = torch.randn(20, 8, 30, dtype=torch.float64, requires_grad=True)

    def twice(moved: bool) -> tuple[torch.Tensor, ...]:
        weights = [*module.parameters()]
        if functional:
            y = rnnfast.torch.lstm(x, (tuple(weights[:4]), tuple(weights[4:])))[0]
        else:
            y = module(x)[0]
        if moved:
            for weight in weights:
                weight.data = weight.detach().clone()
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        del y
        module(x)
        others = [torch.full_like(w, 7.0) for w in weights for _ in range(4)]
        found = torch.autograd.grad(dx.square().sum(), [x, *weights])
        assert others
        return found

    assert all(torch.equal(a, b) for a, b in zip(twice(True), twice(False), strict=True))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_packed_and_padded_in_turns(name: str, training: bool) -> None:
    """Rows that are packed have no batch axis; what a layer holds of them is for all calls."""
    torch.manual_seed(6)
    module = getattr(rnnfast.torch, name)(4, 6, batch_first=True).double()
    twin = getattr(torch.nn, name)(4, 6, batch_first=True).double()
    twin.load_state_dict(module.state_dict())
    rows = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 4).double() for n in (3, 2)])
    x = torch.randn(5, 5, 4, dtype=torch.float64)  # read along either axis it has the same shape
    with torch.set_grad_enabled(training):
        for _ in range(3):
            close(module(rows)[0].data, twin(rows)[0].data)
        for _ in range(3):
            close(module(x)[0], twin(x)[0])
        if training:
            gradients = torch.autograd.grad(module(x)[0].square().sum(), module.parameters())
            wanted = torch.autograd.grad(twin(x)[0].square().sum(), twin.parameters())
            close(gradients, wanted)
        module.batch_first = twin.batch_first = False
        close(module(x)[0], twin(x)[0])


class Own(torch.nn.Parameter):
    pass


def negated(weight: Any) -> Any:
    """The same numbers, whose memory holds their negatives."""
    return torch.nn.Parameter(torch.conj(torch.complex(weight, -weight)).imag)


@pytest.mark.parametrize("other", [Own, negated])
def test_weights_of_another_kind(other: Any) -> None:
    torch.manual_seed(5)
    module, twin = rnnfast.torch.GRU(3, 4).double(), torch.nn.GRU(3, 4).double()
    twin.load_state_dict(module.state_dict())
    module.weight_hh_l0 = other(module.weight_hh_l0.detach())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for _ in range(3):  # packed at the second time, the short way at the third
        for mode in (torch.enable_grad, torch.no_grad):
            with mode():
                close(module(x)[0], twin(x)[0])
        gradients = torch.autograd.grad(module(x)[0].sum(), module.parameters())
        close(gradients, torch.autograd.grad(twin(x)[0].sum(), twin.parameters()))
        with torch.no_grad():
            for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
                ours.add_(0.125), theirs.add_(0.125)


@pytest.mark.skipif(not tapes.TELLS, reason="this PyTorch does not tell C++ of its tensors")
def test_twice_through_the_short_way() -> None:
    """Second derivatives, after a forward pass that kept what only a first one needs."""
    torch.manual_seed(4)
    module, twin = rnnfast.torch.GRU(3, 4, dtype=torch.float64), torch.nn.GRU(3, 4)
    twin = twin.double()
    twin.load_state_dict(module.state_dict())
    found = []
    for layer_ in (module, twin):
        x = torch.linspace(-1, 1, 2 * 2 * 3, dtype=torch.float64).view(2, 2, 3).requires_grad_()
        y, _ = layer_(x)
        first = torch.autograd.grad(y.square().sum(), [x, *layer_.parameters()], create_graph=True)
        total = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(total, [x, *layer_.parameters()]))
    for a, b in zip(*found, strict=True):
        close(a, b)
