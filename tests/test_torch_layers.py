"""rnnfast.torch.LSTM, GRU and RNN beside those of torch.nn, in float64."""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch_pairs import NAMES, RTOL, close, flat, pair, same_training, trained

import rnnfast
import rnnfast.torch

LAYOUTS = ("time first", "batch first", "unbatched")
STATES = (False, True)


def options() -> list[dict[str, Any]]:
    """Every combination of the options that change what is computed."""
    keys = ("num_layers", "bias", "bidirectional")
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product((1, 2), (True, False), (True, False))
    ]


def named(case: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in case.items())


def inputs(module: Any, layout: str, state: bool, steps: int = 5, batch: int = 3) -> Any:
    """x and hx for a module, all of them requiring gradients."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Any:
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.requires_grad_()

    rows = {"time first": (steps, batch), "batch first": (batch, steps), "unbatched": (steps,)}
    x = normal(*rows[layout], module.input_size)
    if not state:
        return x, None
    count = module.num_layers * (1 + module.bidirectional)
    among = () if layout == "unbatched" else (batch,)
    h_0 = normal(count, *among, module.proj_size or module.hidden_size)
    if module.mode != "LSTM":
        return x, h_0
    return x, (h_0, normal(count, *among, module.hidden_size))


@pytest.mark.parametrize("case", options(), ids=named)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination(name: str, case: dict[str, Any]) -> None:
    for layout, state in itertools.product(LAYOUTS, STATES):
        for first in (
            (layout == "batch first", True) if layout == "unbatched" else (layout == "batch first",)
        ):
            theirs, ours = pair(name, 4, 6, batch_first=first, **case)
            same_training(ours, theirs, *inputs(theirs, layout, state))


def test_relu() -> None:
    theirs, ours = pair("RNN", 4, 33, nonlinearity="relu", num_layers=2, bidirectional=True)
    same_training(ours, theirs, *inputs(theirs, "time first", True))


@pytest.mark.parametrize("name", NAMES)
def test_random_sizes(name: str) -> None:
    draw = random.Random(name)
    for _ in range(15):
        sizes = [draw.choice((1, 2, 15, 16, 17, 40)) for _ in range(2)]
        case = {
            "num_layers": draw.randint(1, 3),
            "bias": draw.random() < 0.7,
            "bidirectional": draw.random() < 0.5,
            "batch_first": draw.random() < 0.5,
        }
        layout = draw.choice(("batch first" if case["batch_first"] else "time first", "unbatched"))
        theirs, ours = pair(name, *sizes, **case)
        steps, batch = draw.randint(1, 12), draw.choice((1, 2, 5, 17))
        same_training(ours, theirs, *inputs(theirs, layout, draw.random() < 0.5, steps, batch))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_projection(num_layers: int, bias: bool, bidirectional: bool) -> None:
    case = {"num_layers": num_layers, "bias": bias, "bidirectional": bidirectional}
    theirs, ours = pair("LSTM", 4, 6, proj_size=3, **case)
    assert repr(ours) == repr(theirs)
    for layout, state in itertools.product(("time first", "unbatched"), STATES):
        same_training(ours, theirs, *inputs(theirs, layout, state))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences(
    name: str, state: bool, enforce_sorted: bool, bidirectional: bool
) -> None:
    case = {"num_layers": 2, "bidirectional": bidirectional}
    lengths = [5, 4, 4, 1] if enforce_sorted else [2, 5, 1, 4]
    for batch_first in (False, True):
        theirs, ours = pair(name, 4, 6, batch_first=batch_first, **case)
        layout = "batch first" if batch_first else "time first"
        x, hx = inputs(theirs, layout, state, 5, 4)

        packed = partial(
            pack_padded_sequence,
            lengths=torch.tensor(lengths),
            batch_first=batch_first,
            enforce_sorted=enforce_sorted,
        )

        results = []
        for module in (theirs, ours):
            data, *rest = packed(x.detach())
            leaf = PackedSequence(data.clone().requires_grad_(), *rest)
            results.append(trained(module, leaf, hx))
        (wanted, gradients), (got, own) = results
        close(got, wanted)
        close(own, gradients)
        assert isinstance(got[0], PackedSequence)
        for a, b in zip(got[0][1:], wanted[0][1:], strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
        with torch.no_grad():
            for _ in range(3):
                close(ours(packed(x), hx), wanted)


def test_packed_sequences_of_one_length_and_of_one_row() -> None:
    theirs, ours = pair("LSTM", 4, 6)
    for rows in ([5, 5, 5], [4], [1, 1]):
        x = pack_sequence([torch.randn(n, 4, dtype=torch.float64) for n in rows])
        same_training(ours, theirs, x)


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_the_attributes_and_the_text(name: str) -> None:
    for case in ({}, *options(), {"batch_first": True, "num_layers": 2, "dropout": 0.25}):
        theirs, ours = pair(name, 4, 6, **case)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        assert repr(ours) == repr(theirs)
        for attribute in (
            *("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"),
            *("bidirectional", "proj_size", "training"),
        ):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert len(ours.all_weights) == len(theirs.all_weights)
        assert ours.__constants__ == theirs.__constants__


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_draws_the_same_weights(name: str) -> None:
    drawn = []
    for library in (torch.nn, rnnfast.torch):
        torch.manual_seed(3)
        drawn.append(getattr(library, name)(4, 6, num_layers=2).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(d.values() for d in drawn), strict=True))


def test_positional_arguments() -> None:
    for name in NAMES:
        extra = ("relu",) if name == "RNN" else ()
        arguments = (4, 6, 2, *extra, False, True, 0.5, True)
        theirs, ours = (getattr(of, name)(*arguments) for of in (torch.nn, rnnfast.torch))
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())


def failure(call: Any, *arguments: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.type, str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": 4},
        {"input_size": 0, "hidden_size": 3},
        {"input_size": 4, "hidden_size": 0},
        {"input_size": 4.0, "hidden_size": 3},
        {"input_size": 4, "hidden_size": 3, "num_layers": 0},
        {"input_size": 4, "hidden_size": 3, "dropout": 2},
        {"input_size": 4, "hidden_size": 3, "bias": 1},
        {"input_size": 4, "hidden_size": 3, "batch_first": 1},
        {"input_size": 4, "hidden_size": 3, "proj_size": 3},
        {"input_size": 4, "hidden_size": 3, "proj_size": -1},
        {"input_size": 4, "hidden_size": 3, "nonlinearity": "sigmoid"},
        {"input_size": 4, "hidden_size": 3, "size": 1},
    ],
    ids=named,
)
def test_wrong_constructors(name: str, arguments: dict[str, Any]) -> None:
    try:
        getattr(torch.nn, name)(**arguments)
    except (TypeError, ValueError) as error:
        wanted = type(error), str(error)
        assert failure(lambda: getattr(rnnfast.torch, name)(**arguments)) == wanted
    else:  # PyTorch before 2.11 did not mind some of them
        assert torch.__version__ < "2.11"
        getattr(rnnfast.torch, name)(**arguments)


def test_dropout_in_one_layer_warns_as_torch_does() -> None:
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        rnnfast.torch.LSTM(4, 6, dropout=0.5)


def wrong_calls(name: str) -> dict[str, tuple[Any, Any]]:
    """x and hx that do not fit a layer of two layers, input size 4, hidden size 6, float64."""

    def zeros(*shape: int, dtype: Any = torch.float64) -> Any:
        return torch.zeros(shape, dtype=dtype)

    def state(*shape: int, dtype: Any = torch.float64) -> Any:
        one = zeros(*shape, dtype=dtype)
        return (one, one) if name == "LSTM" else one

    x = zeros(5, 3, 4)
    ragged = pack_sequence([zeros(3, 5), zeros(2, 5)])
    fitting = pack_sequence([zeros(3, 4), zeros(2, 4)])
    found = {
        "one dimension": (zeros(4), None),
        "four dimensions": (zeros(1, 5, 3, 4), None),
        "features": (zeros(5, 3, 5), None),
        "features, unbatched": (zeros(5, 5), None),
        "no steps": (zeros(0, 3, 4), None),
        "dtype": (x.float(), None),
        "integers": (x.long(), None),
        "state of one layer": (x, state(1, 3, 6)),
        "state of another batch": (x, state(2, 4, 6)),
        "state of another width": (x, state(2, 3, 5)),
        "unbatched state": (x, state(2, 6)),
        "batched state": (zeros(5, 4), state(2, 1, 6)),
        "unbatched state of another width": (zeros(5, 4), state(2, 5)),
        "packed features": (ragged, None),
        "packed, state of another batch": (fitting, state(2, 3, 6)),
        "packed, state of another width": (fitting, state(2, 2, 5)),
        "packed dtype": (pack_sequence([zeros(3, 4, dtype=torch.float32)]), None),
    }
    if name == "LSTM":
        found["c of another batch"] = (x, (zeros(2, 3, 6), zeros(2, 4, 6)))
        found["c of another width"] = (x, (zeros(2, 3, 6), zeros(2, 3, 5)))
        found["c unbatched"] = (x, (zeros(2, 3, 6), zeros(2, 6)))
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_wrong_calls_fail_as_torch_does(name: str, training: bool) -> None:
    theirs, ours = pair(name, 4, 6, num_layers=2)
    for what, (x, hx) in wrong_calls(name).items():
        with torch.set_grad_enabled(training):
            assert failure(ours, x, hx) == failure(theirs, x, hx), what


@pytest.mark.parametrize("name", NAMES)
def test_wrong_states_that_torch_would_take(name: str) -> None:
    """Of another dtype: torch.nn computes in mixed types or fails in words of its kernels."""
    _, ours = pair(name, 4, 6)
    h = torch.zeros(1, 3, 6)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        ours(torch.zeros(5, 3, 4, dtype=torch.float64), (h, h) if name == "LSTM" else h)


def test_an_lstm_wants_both_states() -> None:
    _, ours = pair("LSTM", 4, 6)
    x = torch.zeros(5, 3, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match="hx"):
        ours(x, torch.zeros(1, 3, 6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_that_the_kernels_lack(dtype: Any) -> None:
    ours = rnnfast.torch.GRU(4, 6).to(dtype)
    with pytest.raises(TypeError, match=f"expected float32 or float64, got {dtype}"):
        ours(torch.zeros(5, 3, 4, dtype=dtype))


@pytest.mark.parametrize("name", NAMES)
def test_no_rows(name: str) -> None:
    theirs, ours = pair(name, 4, 6, num_layers=2)
    same_training(ours, theirs, *inputs(theirs, "time first", True, batch=0))


def module_db() -> list[Any]:
    pytest.importorskip("expecttest", reason="torch's own tests need expecttest")
    from torch.testing._internal.common_modules import module_db as found

    layers = {torch.nn.LSTM: "LSTM", torch.nn.GRU: "GRU", torch.nn.RNN: "RNN"}
    return [(layers[info.module_cls], info) for info in found if info.module_cls in layers]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_the_cases_of_torch_s_own_tests(training: bool, dtype: Any) -> None:
    count = 0
    for name, info in module_db():
        cases = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=True, training=training
        )
        for case in cases:
            made, call = case.constructor_input, case.forward_input
            theirs = info.module_cls(*made.args, **{**made.kwargs, "dtype": dtype})
            ours = getattr(rnnfast.torch, name)(*made.args, **{**made.kwargs, "dtype": dtype})
            ours.load_state_dict(theirs.state_dict())
            theirs.train(training)
            ours.train(training)
            x, hx = (*call.args, None)[:2]
            if theirs.dropout and training:
                # The masks are others; the shapes are the same.
                wanted = theirs(x, hx)
                got, _ = trained(ours, x, hx)
                assert [t.shape for t in flat(got)] == [t.shape for t in flat(wanted)]
            else:
                same_training(ours, theirs, x, hx, rtol=1e4 * torch.finfo(dtype).eps)
            count += 1
    assert count >= 80


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_y_of_batch_first_may_be_changed_in_place(name: str, dtype: Any) -> None:
    """As with torch.nn, whose gradients of a residual connection these are."""
    theirs, ours = pair(name, 4, 4, batch_first=True, dtype=dtype)
    x = torch.randn(3, 5, 4, dtype=dtype)
    found = []
    for module in (ours, ours, theirs):
        leaf = x.clone().requires_grad_()
        y = module(leaf)[0]
        y = y + leaf if module is theirs else y.add_(leaf)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaf)])
    for got in found[:2]:
        close(got, found[2], RTOL if dtype is torch.float64 else 1e-5)
    leaf = torch.zeros(3, 5, 4, dtype=dtype, requires_grad=True)
    for _ in range(4):  # packed from the third on
        with torch.no_grad():
            y = ours(x)[0]
        y += leaf


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_shrink_where_they_are(name: str, training: bool) -> None:
    """They keep addresses and strides, and a layer that has been called must not use the old."""
    theirs, ours = pair(name, 4, 6)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        for _ in range(3):
            ours(x)
        for module in (theirs, ours):
            gates = module.weight_hh_l0.shape[0] // 6
            for key in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                parameter = getattr(module, key)
                parameter.data = parameter.data[: 4 * gates]
                if key == "weight_hh_l0":
                    parameter.data = parameter.data[:, :4]
            module.hidden_size = 4
        wanted, got = theirs(x), ours(x)
    close(flat(got), flat(wanted))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")  # torch's own
def test_tangents_are_refused() -> None:
    from torch.autograd import forward_ad

    layer = rnnfast.torch.GRU(4, 4, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    for frozen in (False, True):
        layer.requires_grad_(not frozen)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled), forward_ad.dual_level():
                layer(x)
                with pytest.raises(rnnfast.UnsupportedError, match="forward-mode"):
                    layer(forward_ad.make_dual(x, torch.ones_like(x)))
    leaf = x.clone().requires_grad_()
    y = layer(leaf)[0]
    with forward_ad.dual_level(), pytest.raises(rnnfast.UnsupportedError, match="forward-mode"):
        torch.autograd.grad(y, leaf, forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))
    with pytest.raises(rnnfast.UnsupportedError, match="forward-mode"):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_scripting_is_refused() -> None:
    with pytest.raises(rnnfast.UnsupportedError, match=r"torch\.jit\.trace.*rnnfast\.torch\.GRU"):
        torch.jit.script(torch.nn.Sequential(rnnfast.torch.GRU(4, 4)))
