"""rnnfast.torch under torch.func.vmap, beside a loop over the mapped axis."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence
from torch_pairs import NAMES, close, pair

import rnnfast
import rnnfast.torch

SIZE = 3  # of the mapped axis


def sample(*shape: int) -> Any:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def looped(f: Callable[..., Any], axes: tuple[int | None, ...], *arguments: Any) -> Any:
    """What vmap gives."""
    found = [
        f(*(a if d is None else a.select(d, k) for a, d in zip(arguments, axes, strict=True)))
        for k in range(SIZE)
    ]
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


def on_tensors(module: Any, h_axis: int | None) -> Callable[..., Any]:
    """x, h_0, c_0 -> y, h_n, c_n, with no state where `h_axis` is None and for GRU without c."""

    def f(x: Any, h: Any, c: Any) -> Any:
        hx = None if h_axis is None else (h, c) if module.mode == "LSTM" else h
        y, state = module(x, hx)
        return (y, *state) if module.mode == "LSTM" else (y, state)

    return f


@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("name", NAMES)
def test_mapped_inputs(name: str, layout: str) -> None:
    """Every axis of x, with and without states, which may be mapped or not."""
    theirs, ours = pair(
        name, 4, 5, num_layers=2, bidirectional=True, batch_first=layout == "batch first"
    )
    shape = {"time first": (6, 2, 4), "batch first": (2, 6, 4), "unbatched": (6, 4)}[layout]
    x = sample(*shape, SIZE)
    among = () if layout == "unbatched" else (2,)
    for x_axis, h_axis in itertools.product((0, 1, len(shape), None), (0, 1, -1, None)):
        if x_axis is None and h_axis in (None, -1):
            continue  # nothing is mapped
        given = x[..., 0] if x_axis is None else x.movedim(-1, x_axis)
        states = [sample(4, *among, 5, SIZE) * s for s in (1, 2)]
        if h_axis in (0, 1):
            states = [s.movedim(-1, h_axis) for s in states]
        else:  # one state of all elements
            states = [s[..., 0] for s in states]
        state_axis = h_axis if h_axis in (0, 1) else None
        axes = (x_axis, state_axis, state_axis)
        wanted = looped(on_tensors(theirs, h_axis), axes, given, *states)
        f = vmap(on_tensors(ours, h_axis), axes)
        close(f(given, *states), wanted)
        with torch.no_grad():
            close(f(given, *states), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_mapped_call(name: str) -> None:
    """Autograd goes back through vmap, to x and to the weights of all elements."""
    theirs, ours = pair(name, 4, 5, num_layers=2)
    results = []
    for module in (theirs, ours):
        x = sample(SIZE, 6, 2, 4).requires_grad_()

        def f(x: Any, module: Any = module) -> Any:
            return (module(x)[0].square(),)

        (y,) = looped(f, (0,), x) if module is theirs else vmap(f)(x)
        results.append([y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])])
    close(results[1], results[0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_each_sample(name: str) -> None:
    theirs, ours = pair(name, 4, 5, num_layers=2)
    x, target = sample(SIZE, 6, 4), sample(SIZE, 6, 5)

    def loss(module: Any) -> Callable[..., Any]:
        def f(parameters: Any, x: Any, target: Any) -> Any:
            y, _ = functional_call(module, parameters, (x,))
            return (y - target).square().sum()

        return f

    parameters = {k: v.detach() for k, v in ours.named_parameters()}
    each, dx = vmap(grad(loss(ours), argnums=(0, 1)), (None, 0, 0))(parameters, x, target)
    for k in range(SIZE):
        x_k = x[k].clone().requires_grad_()
        found = loss(theirs)(dict(theirs.named_parameters()), x_k, target[k])
        wanted = torch.autograd.grad(found, [x_k, *theirs.parameters()])
        close([dx[k], *(g[k] for g in each.values())], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_ensemble(name: str) -> None:
    """Weights are mapped, and the input is that of all or another for each."""
    modules = []
    for k in range(SIZE):
        torch.manual_seed(k)
        modules.append(getattr(torch.nn, name)(4, 5, bidirectional=True, dtype=torch.float64))
    parameters, buffers = stack_module_state(modules)
    base = getattr(rnnfast.torch, name)(4, 5, bidirectional=True, dtype=torch.float64)
    x = sample(SIZE, 6, 2, 4)

    def f(parameters: Any, x: Any) -> Any:
        return functional_call(base, (parameters, buffers), (x,))[0]

    for axis in (None, 0):
        xs = [x[0] if axis is None else x[k] for k in range(SIZE)]
        given = x[0] if axis is None else x
        wanted = torch.stack([module(x)[0] for module, x in zip(modules, xs, strict=True)])
        close(vmap(f, (0, axis))(parameters, given), wanted)
        summed = torch.autograd.grad(wanted.sum(), [p for m in modules for p in m.parameters()])
        count = len(parameters)

        def total(parameters: Any, given: Any = given, axis: int | None = axis) -> Any:
            return vmap(f, (0, axis))(parameters, given).sum()

        together = list(grad(total)(parameters).values())
        for k in range(SIZE):
            close([g[k] for g in together], list(summed[k * count : (k + 1) * count]))


def test_vmap_within_vmap() -> None:
    theirs, ours = pair("GRU", 4, 5)
    x = sample(2, SIZE, 6, 2, 4)
    got = vmap(vmap(lambda x: ours(x)[0]))(x)
    close(got, torch.stack([torch.stack([theirs(b)[0] for b in a]) for a in x]))


@pytest.mark.parametrize("name", NAMES)
def test_jacobian(name: str) -> None:
    theirs, ours = pair(name, 4, 5)
    x = sample(3, 2, 4)
    wanted = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], x)
    close(jacrev(lambda x: ours(x)[0])(x), wanted)


def test_second_derivatives_of_each_sample() -> None:
    theirs, ours = pair("LSTM", 4, 3)
    x = sample(SIZE, 5, 4)

    def slope(module: Any) -> Callable[..., Any]:
        return lambda x: grad(lambda x: module(x)[0].square().sum())(x).square().sum()

    wanted = torch.stack([grad(slope(theirs))(row) for row in x])
    close(vmap(grad(slope(ours)))(x), wanted, rtol=1e-9)


@pytest.mark.parametrize("axis", [0, None])
def test_lengths(axis: int | None) -> None:
    theirs, _ = pair("GRU", 4, 5)
    entry = rnnfast.Weights(*theirs.parameters())
    x = sample(SIZE, 6, 2, 4)
    lengths = torch.tensor([[6, 2], [0, 1], [3, 4]])
    lengths = lengths if axis == 0 else lengths[0]

    def f(x: Any, lengths: Any) -> Any:
        return rnnfast.torch.gru(x, [entry], lengths=lengths)

    close(vmap(f, (0, axis))(x, lengths), looped(f, (0, axis), x, lengths))


def test_dropout() -> None:
    """Masks are those of each element, or the same, as vmap is asked."""
    _, ours = pair("LSTM", 4, 40, num_layers=2, dropout=0.5)
    x = sample(1, 6, 4).expand(SIZE, 6, 4)

    def f(x: Any) -> Any:
        return ours(x)[0]

    torch.manual_seed(0)
    y = vmap(f, randomness="different")(x)
    assert not torch.equal(y[0], y[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(f)(x)
    torch.manual_seed(0)
    y = vmap(f, randomness="same")(x)
    torch.manual_seed(0)
    wanted = f(x[0])
    assert all(torch.equal(row, wanted) for row in y)


def test_packed_sequences() -> None:
    theirs, ours = pair("LSTM", 4, 5)
    x = sample(SIZE, 7, 4)
    sizes = torch.tensor([3, 2, 1, 1])

    def f(module: Any) -> Callable[..., Any]:
        return lambda x: (module(PackedSequence(x, sizes))[0].data,)

    close(vmap(f(ours))(x), looped(f(theirs), (0,), x))


def test_statistics_of_each_batch() -> None:
    weights = rnnfast.init_weights("rnn", 4, 5, batch_norm=True, dtype="float64", rng=0)
    entry = rnnfast.Weights(*(None if a is None else torch.tensor(a) for a in weights[0]))
    x = sample(SIZE, 6, 2, 4)

    def f(x: Any) -> Any:
        return rnnfast.torch.rnn(x, entry)

    close(vmap(f)(x), looped(f, (0,), x))


def test_no_rows() -> None:
    _, ours = pair("GRU", 4, 5)
    y, h = vmap(ours)(torch.zeros(SIZE, 6, 0, 4, dtype=torch.float64))
    assert (y.shape, h.shape) == ((SIZE, 6, 0, 5), (SIZE, 1, 0, 5))
