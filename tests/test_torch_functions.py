"""rnnfast.torch.lstm, gru and rnn: rnnfast's functions on tensors, with gradients."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from helpers import Case, assert_same_bits, flatten_weights, function, problem, run

import rnnfast
import rnnfast.torch
from rnnfast import Weights
from rnnfast.spec import Spec, all_specs

SPECS = [spec for spec in all_specs() if hasattr(rnnfast.torch, spec.cell)]


def call(p: Any, **options: Any) -> dict[str, Any]:
    """Every output and every gradient of the function on tensors, as `helpers.run` gives them."""
    t = p.map(lambda a: torch.tensor(a, requires_grad=True))
    apply = getattr(rnnfast.torch, p.spec.cell)
    variant = function(p.spec).keywords  # type: ignore[attr-defined]
    lengths = None if t.lengths is None else torch.from_numpy(t.lengths)
    y, state_n = apply(t.x, t.weights, t.state, lengths=lengths, **variant, **options)
    results = {"y": y}
    results |= dict(zip(("h_n", "c_n"), state_n if p.spec.info.has_c else (state_n,), strict=False))
    given = [
        (out, torch.from_numpy(d))
        for out, d in zip(results.values(), (p.dy, p.dh_n, p.dc_n), strict=False)
        if d is not None
    ]
    torch.autograd.backward([o for o, _ in given], [d for _, d in given])
    results |= {"dx": t.x.grad, "dh_0": t.h_0 is not None and t.h_0.grad}
    if t.c_0 is not None:
        results["dc_0"] = t.c_0.grad
    found = {k: v.detach().numpy() for k, v in results.items() if isinstance(v, torch.Tensor)}
    return found | {k: v.grad.numpy() for k, v in flatten_weights(t.weights).items()}


@pytest.mark.parametrize("spec", SPECS, ids=Spec.variants)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(("layers", "directions"), [(1, 1), (2, 2)])
def test_same_bits_as_on_arrays(
    spec: Spec, layers: int, directions: int, ragged: bool, dtype: str
) -> None:
    case = Case(spec, T=6, B=4, I=3, H=17, L=layers, D=directions, dtype=dtype, ragged=ragged)
    p = problem(case)
    wanted = run(p, "auto")
    assert_same_bits(call(p), wanted)
    if layers == 1:
        single = replace(p, weights=p.weights[0])
        assert_same_bits({k.replace("dw.", "dw[0]."): v for k, v in call(single).items()}, wanted)


@pytest.mark.parametrize("bias", ["none", "ih", "hh"])
@pytest.mark.parametrize("state", ["none", "h", "c"])
def test_what_may_be_left_out(bias: str, state: str) -> None:
    p = problem(Case(Spec("lstm"), H=17, L=2, bias=bias, state=state))
    wanted = run(p, "auto")
    got = call(p)
    assert got.keys() >= {"y", "h_n", "c_n", "dx"} | flatten_weights(p.weights).keys()
    assert_same_bits(got, {k: wanted[k] for k in got})


@pytest.mark.parametrize(
    "options",
    [{"save": "recompute"}, {"checkpoint": 2}, {"backend": "reference"}],
    ids=str,
)
def test_options_reach_rnnfast(options: dict[str, Any]) -> None:
    p = problem(Case(Spec("gru"), T=5, H=17, L=2))
    wanted = run(
        p, options.get("backend", "auto"), **{k: v for k, v in options.items() if k != "backend"}
    )
    assert_same_bits(call(p, **options), wanted)
    with torch.no_grad():
        y, _ = rnnfast.torch.gru(
            torch.tensor(p.x), p.map(torch.from_numpy).weights, torch.tensor(p.h_0), **options
        )
    assert_same_bits({"y": y.numpy()}, {"y": wanted["y"]})


RICH = {
    "projection": ({"proj_size": 5}, {}),
    "peepholes": ({"peepholes": True}, {}),
    "layer norm": ({"layer_norm": True}, {}),
    "activations": ({}, {"activation": ("leaky_relu", 0.2, 0.0), "clip": 2.0}),
    "noise": (
        {},
        {"recurrent_dropout": 0.3, "zoneout": (0.2, 0.1), "dropconnect": 0.2, "variational": True},
    ),
}


@pytest.mark.parametrize("name", RICH)
def test_what_torch_nn_has_not(name: str) -> None:
    """Second layers too, and in one graph; the masks of a seed are those of rnnfast."""
    fields, options = RICH[name]
    rng = np.random.default_rng(0)
    weights = rnnfast.init_weights("lstm", 3, 17, 2, dtype=np.float64, rng=rng, **fields)
    x = rng.standard_normal((6, 4, 3))
    seeded = {"rng": 7} if name == "noise" else {}
    y, state, backward = rnnfast.lstm_vjp(x, weights, **options, **seeded)
    dx, dweights, _ = backward(np.ones_like(y))
    wanted = {"y": y, "h_n": state[0], "c_n": state[1], "dx": dx} | flatten_weights(dweights)

    def trained(apply: Any) -> dict[str, Any]:
        leaves = [torch.tensor(a, requires_grad=True) for a in flatten_weights(weights).values()]
        rest = iter(leaves)
        given = [Weights(*(None if a is None else next(rest) for a in w)) for w in weights]
        data = torch.tensor(x, requires_grad=True)
        y, state = apply(data, given)
        y.sum().backward()
        found = [t.detach().numpy() for t in (y, *state)]
        gradients = [t.grad.numpy() for t in (data, *leaves)]
        return dict(zip(wanted, [*found, *gradients], strict=True))

    def apply(x: Any, weights: Any) -> Any:
        return rnnfast.torch.lstm(x, weights, **options, **seeded)

    assert_same_bits(trained(apply), wanted)
    torch._dynamo.reset()
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    assert_same_bits(trained(compiled), wanted)


def test_running_statistics() -> None:
    """They are written in place, which a compiled call cannot do."""
    weights = rnnfast.init_weights("gru", 3, 7, batch_norm=True, rng=0)
    x = np.random.default_rng(0).standard_normal((6, 4, 3)).astype(np.float32)
    entry = Weights(*(None if a is None else torch.tensor(a) for a in weights[0]))
    for name in ("w_ih", "w_hh", "b_ih", "b_hh", "bn_ih"):
        getattr(entry, name).requires_grad_()
    y, _, backward = rnnfast.gru_vjp(x, weights)
    got, _ = rnnfast.torch.gru(torch.from_numpy(x), entry)
    dweights = backward(np.ones_like(y))[1][0]
    got.sum().backward()
    assert_same_bits(
        {
            "y": got.detach().numpy(),
            "bn_mean": entry.bn_mean.numpy(),
            "bn_ih": entry.bn_ih.grad.numpy(),
        },
        {"y": y, "bn_mean": weights[0].bn_mean, "bn_ih": dweights.bn_ih},
    )
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: rnnfast.torch.gru(x, entry)[0], backend="aot_eager")
    with pytest.raises(Exception, match="running statistics"):
        compiled(torch.from_numpy(x))


def test_layouts() -> None:
    p = problem(Case(Spec("lstm"), T=4, B=3, H=17)).map(torch.from_numpy)
    y, state = rnnfast.torch.lstm(p.x, p.weights, p.state)
    swapped, again = rnnfast.torch.lstm(p.x.transpose(0, 1), p.weights, p.state, batch_first=True)
    assert torch.equal(swapped.transpose(0, 1), y)
    assert all(map(torch.equal, state, again))
    row, _ = rnnfast.torch.lstm(p.x[:, 1], p.weights, tuple(s[:, 1] for s in p.state))
    assert row.shape == (4, 17)


def test_packed_weights_are_for_inference() -> None:
    p = problem(Case(Spec("gru"), H=17, dtype="float32"))
    packed = rnnfast.pack(p.weights, cell="gru")
    x, h_0 = torch.from_numpy(p.x), torch.from_numpy(p.h_0)
    y, h_n = rnnfast.torch.gru(x, packed, h_0)
    assert_same_bits(
        {"y": y.numpy(), "h_n": h_n.numpy()},
        dict(zip(("y", "h_n"), rnnfast.gru(p.x, packed, p.h_0), strict=True)),
    )
    with pytest.raises(TypeError, match="weights: packed weights are for inference"):
        rnnfast.torch.gru(x.requires_grad_(), packed, h_0)


def test_dropout() -> None:
    p = problem(Case(Spec("lstm"), H=17, L=3)).map(torch.from_numpy)

    def y(**options: Any) -> Any:
        return rnnfast.torch.lstm(p.x, p.weights, p.state, **options)[0]

    wanted, _ = rnnfast.lstm(p.x, p.weights, p.state, dropout=0.5, rng=7)
    assert torch.equal(y(dropout=0.5, rng=7), wanted)
    torch.manual_seed(0)
    first = y(dropout=0.5)
    assert not torch.equal(y(dropout=0.5), first)
    torch.manual_seed(0)
    assert torch.equal(y(dropout=0.5), first)
    drawn = [y(dropout=0.5, rng=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(y(dropout=0.0, rng=7), y())


def test_lengths_of_every_kind() -> None:
    p = problem(Case(Spec("rnn"), T=5, B=3)).map(torch.from_numpy)
    found = [
        rnnfast.torch.rnn(p.x, p.weights, lengths=lengths)[0]
        for lengths in ([5, 0, 2], np.array([5, 0, 2], np.int32), torch.tensor([5, 0, 2]))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0][:, 1].abs().max() == 0


@pytest.mark.parametrize("training", [False, True])
def test_wrong_arguments(training: bool) -> None:
    p = problem(Case(Spec("lstm"), T=5, B=3, I=4, H=6, L=2)).map(
        lambda a: torch.tensor(a, requires_grad=training)
    )
    x, weights, (h, c) = p.x, p.weights, p.state
    wrong: list[tuple[type, str, tuple[Any, ...], dict[str, Any]]] = [
        (TypeError, "x: expected a torch.Tensor", (x.detach().numpy(), weights), {}),
        (TypeError, "h_0: expected a torch.Tensor", (x, weights, (1.0, c)), {}),
        (TypeError, "state: expected a pair", (x, weights, h), {}),
        (TypeError, "weights: ", (x, 3), {}),
        (ValueError, "weights: ", (x, []), {}),
        (TypeError, r"weights\[1\]: ", (x, [weights[0], 3]), {}),
        (ValueError, r"weights: expected 2 to", (x, (weights[0][0],)), {}),
        (ValueError, r"weights\[1\]\.w_ih: ", (x, [weights[0], weights[0]]), {}),
        (TypeError, r"weights.*w_ih", (x, rnnfast.Weights(None, weights[0][1])), {}),
        (ValueError, "direction", (x, [weights[0], (weights[1], weights[1])]), {}),
        (ValueError, "x: expected 4 features", (x[..., :3], weights), {}),
        (TypeError, "dtype", (x.float(), weights), {}),
        (ValueError, "h_0: ", (x, weights, (h[:1], c)), {}),
        (TypeError, "dropout: ", (x, weights), {"dropout": "half"}),
        (ValueError, "dropout: ", (x, weights), {"dropout": 2.0}),
        (TypeError, "rng: ", (x, weights), {"dropout": 0.5, "rng": "seed"}),
        (TypeError, "batch_first: ", (x, weights), {"batch_first": 1}),
        (ValueError, "lengths: ", (x, weights), {"lengths": [6, 1, 1]}),
        (ValueError, "backend: ", (x, weights), {"backend": "quick"}),
        (TypeError, "speed", (x, weights), {"speed": 3}),
        (TypeError, "nonlinearity: ", (x, weights), {"nonlinearity": "relu"}),
        (TypeError, "reset_after: ", (x, weights), {"reset_after": True}),
        (TypeError, "dropout: ", (x, weights), {"dropout": False}),
        (TypeError, "rng: ", (x, weights), {"rng": "seed"}),
        (ValueError, "save: ", (x, weights), {"save": "some"}),
        (ValueError, "checkpoint: ", (x, weights), {"checkpoint": -1}),
        (ValueError, "truncate: ", (x, weights), {"truncate": -1}),
        (NotImplementedError, "out: ", (x, weights), {"out": x}),
        (ValueError, "clip: expected a finite", (x, weights), {"clip": math.inf}),
        (ValueError, "clip: expected a finite", (x, weights), {"clip": np.float32("nan")}),
        (TypeError, "grad_clip: .*torch.Tensor", (x, weights), {"grad_clip": torch.ones(())}),
        (ValueError, "rng: .*seed", (x, weights), {"dropout": 0.5, "rng": 2**63}),
        (TypeError, r"weights\[0\]\.w_ih: .*list", (x, [([[1.0]], [[1.0]])]), {}),
    ]
    for error, words, arguments, options in wrong:
        with pytest.raises(error, match=words):
            rnnfast.torch.lstm(*arguments, **options)


def test_options_of_numpy() -> None:
    """Its numbers and bools are as good as Python's."""
    p = problem(Case(Spec("lstm"), T=5, B=3, I=4, H=6)).map(torch.from_numpy)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"clip": np.float64(2)}, {"clip": 2.0}),
        ({"truncate": np.int64(2)}, {"truncate": 2}),
        ({"zoneout": (np.float64(0.25), 0.5)}, {"zoneout": (0.25, 0.5)}),
        ({"activation": ("elu", np.float32(0.5))}, {"activation": ("elu", 0.5)}),
        ({"activation": np.str_("softsign")}, {"activation": "softsign"}),
    ]
    for theirs, ours in pairs:
        for how in (theirs, ours):
            how["training"] = np.False_ if how is theirs else False
        found = rnnfast.torch.lstm(p.x, p.weights, p.state, **theirs)[0]
        assert torch.equal(found, rnnfast.torch.lstm(p.x, p.weights, p.state, **ours)[0])
    drawn = [
        rnnfast.torch.lstm(p.x, p.weights, recurrent_dropout=0.5, rng=rng)[0]
        for rng in (3, np.int64(3))
    ]
    assert torch.equal(*drawn)


def test_tensors_elsewhere() -> None:
    """What lives on a device is refused by name; here the device is feigned."""
    from rnnfast.torch import memory

    class Elsewhere:
        is_cpu = is_cuda = False
        device = "xpu:0"

    with pytest.raises(rnnfast.UnsupportedError, match=r"xpu:0.*\.cpu\(\)"):
        memory.array(Elsewhere())  # type: ignore[arg-type]


@pytest.mark.parametrize("tells", [True, False])
def test_nothing_is_copied(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions below are handed the tensors' own memory, or by C++ the tensors."""
    from rnnfast.torch import calls, tapes

    if tells and not tapes.TELLS:
        pytest.skip("this PyTorch does not tell C++ of its tensors")
    monkeypatch.setattr(tapes, "TELLS", tells)
    seen: list[int] = []
    by_array, by_tensor = rnnfast.lstm_vjp, calls.short_vjp

    def note(address: int, weights: Any) -> None:
        entry = getattr(weights, "template", weights)[0]
        seen.extend([address, *(a.ctypes.data for a in entry[:4])])

    def spy(x: Any, weights: Any, *rest: Any, **options: Any) -> Any:
        note(x.ctypes.data, weights)
        return by_array(x, weights, *rest, **options)

    def spy_short(spec: Any, x: Any, weights: Any, state: Any) -> Any:
        done = by_tensor(spec, x, weights, state)
        if done is not None:
            note(x.data_ptr(), weights)
        return done

    monkeypatch.setattr(rnnfast, "lstm_vjp", spy)
    monkeypatch.setattr(calls, "short_vjp", spy_short)
    layer = rnnfast.torch.LSTM(4, 6)
    x = torch.zeros(5, 3, 4)
    layer(x)
    rnnfast.torch.lstm(x, rnnfast.Weights(*layer.parameters()))
    rows = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
    layer(rows)
    wanted = [t.data_ptr() for t in (x, *layer.parameters())] * 2
    assert seen == [*wanted, *(t.data_ptr() for t in (rows.data, *layer.parameters()))]


def test_torch_is_imported_only_when_asked_for() -> None:
    from helpers import python

    found = python("import sys, rnnfast; print('torch' in sys.modules)")
    assert found.stdout.strip() == "False", found.stderr
    assert importlib.import_module("rnnfast.torch").__all__
