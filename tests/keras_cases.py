"""The layers of rnnfast.keras against Keras' own, on the backend that KERAS_BACKEND names.

Run by test_keras_adapter.py, one process for each backend, or by hand:

    KERAS_BACKEND=torch python -m pytest tests/keras_cases.py

Both layers compute in float32, with sums in other orders, so each result may be off by a few dozen
roundings, and by sqrt(K) of them for sums of K terms of either sign: 64 + 4 sqrt(K) eps of the
largest number of an array, which is about 1e-5. (Keras' own matrix products are float32 in float64
layers too.)
"""

from __future__ import annotations

import functools
import itertools
import os
import types
from typing import Any

import keras
import numpy as np
import pytest
from tolerance import assert_close

import rnnfast
import rnnfast.keras
from examples import keras_text

BACKEND = keras.backend.backend()
EPS = float(np.finfo(np.float32).eps)
CELLS = ("LSTM", "GRU", "SimpleRNN")
ops = keras.ops
# Keras' own doing, on every `get_weights` under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OPTIONS: dict[str, tuple[Any, ...]] = {
    "cell": CELLS,
    "return_sequences": (True, False),
    "go_backwards": (False, True),
    "zero_output_for_mask": (False, True),
    "unroll": (False, True),
    "use_bias": (True, False),
    "reset_after": (True, False),
    "dropout": (0.0, 0.4),
    "mask": ("none", "right", "left", "any"),
    "initial_state": (False, True),
    "sizes": ((3, 5, 4, 6), (1, 7, 3, 17), (4, 1, 2, 3), (5, 8, 33, 16)),  # B, T, I, H
}
CASES = 20 if BACKEND == "jax" else 64  # XLA compiles each of them


def chosen(count: int, options: dict[str, tuple[Any, ...]] = OPTIONS) -> list[dict[str, Any]]:
    """Random combinations: of 64, every pair of values of two options is in one."""
    rng = np.random.default_rng(1)
    cases = []
    for _ in range(count):
        case = {name: values[rng.integers(len(values))] for name, values in options.items()}
        if "unroll" in case:
            # Keras' unrolled loop on torch and tensorflow cannot go backwards with a mask.
            case["unroll"] &= case["mask"] == "none"
        cases.append(case)
    return cases


def test_every_pair_of_options_is_chosen() -> None:
    cases = chosen(64)
    for a, b in itertools.combinations(OPTIONS, 2):
        wanted = set(itertools.product(OPTIONS[a], OPTIONS[b]))
        if {a, b} == {"unroll", "mask"}:
            wanted -= {(True, mask) for mask in ("right", "left", "any")}
        assert wanted <= {(case[a], case[b]) for case in cases}, (a, b)


def pair(cell: str, shape: tuple[int, ...], **how: Any) -> tuple[Any, Any]:
    """Keras' layer and ours, with the same weights and the same seed of dropout."""
    theirs = getattr(keras.layers, cell)(seed=3, **how)
    theirs.build(shape)
    rng = np.random.default_rng(4)
    theirs.set_weights([rng.normal(0, 0.5, w.shape) for w in theirs.get_weights()])
    ours = getattr(rnnfast.keras, cell)(seed=3, **how)
    ours.build(shape)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def layers_of(case: dict[str, Any]) -> tuple[Any, Any]:
    shared = ("return_sequences", "go_backwards", "zero_output_for_mask", "unroll", "use_bias")
    how = {name: case[name] for name in (*shared, "dropout")}
    if case["cell"] == "GRU":
        how["reset_after"] = case["reset_after"]
    batch, steps, features, hidden = case["sizes"]
    shape = (batch, steps, features)
    return pair(case["cell"], shape, units=hidden, return_state=True, **how)


def mask_of(kind: str, batch: int, steps: int, rng: np.random.Generator) -> Any:
    if kind == "none":
        return None
    if kind == "any":
        mask = rng.random((batch, steps)) < 0.6
    else:
        mask = np.arange(steps) < rng.integers(1, steps + 1, (batch, 1))
        mask = mask if kind == "right" else mask[:, ::-1]
    if batch > 1:
        mask[0] = False
    return mask


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def loss_of(outputs: list[Any]) -> Any:
    """A sum of the outputs with random factors."""
    rng = np.random.default_rng(5)
    return sum(
        ops.sum(y * ops.convert_to_tensor(rng.standard_normal(tuple(y.shape)), dtype=y.dtype))
        for y in outputs
    )


def run(layer: Any, x: Any, state: list[Any], mask: Any, training: bool) -> dict[str, Any]:
    """Every output of a call, and the gradients of `loss_of` it, as arrays."""
    variables = layer.trainable_variables
    inputs = [x, *state]

    def apply(inputs: list[Any]) -> list[Any]:
        how = {"initial_state": inputs[1:]} if state else {}
        given = None if mask is None else ops.convert_to_tensor(mask)
        return listed(layer(inputs[0], mask=given, training=training, **how))

    if BACKEND == "torch":
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
        outputs = apply(tensors)
        found = torch.autograd.grad(
            loss_of(outputs), tensors + [v.value for v in variables], materialize_grads=True
        )
        outputs = [y.detach() for y in outputs]
    elif BACKEND == "jax":
        import jax

        fixed = [v.value for v in layer.non_trainable_variables]

        @jax.jit
        def both(values: Any, inputs: Any) -> Any:
            def loss(values: Any, inputs: Any) -> Any:
                how = {"initial_state": inputs[1:]} if state else {}
                outputs, _ = layer.stateless_call(
                    values, fixed, inputs[0], mask=mask, training=training, **how
                )
                return loss_of(listed(outputs)), listed(outputs)

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(values, inputs)

        given = [jax.numpy.asarray(a) for a in inputs]
        (_, outputs), (dvalues, dinputs) = both([v.value for v in variables], given)
        found = [*dinputs, *dvalues]
    else:
        import tensorflow as tf

        sources = [tf.Variable(a) for a in inputs]
        with tf.GradientTape() as tape:
            outputs = apply([tf.convert_to_tensor(s) for s in sources])
            loss = loss_of(outputs)
        watched = sources + [v.value for v in variables]
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(loss, watched, unconnected_gradients=zero)
        found = [tf.convert_to_tensor(g) for g in found]
    names = [f"output {k}" for k in range(len(outputs))]
    names += ["dx", *(f"dstate {k}" for k in range(len(state)))]
    names += [f"dw.{v.name} {k}" for k, v in enumerate(variables)]
    return dict(zip(names, [np.asarray(a) for a in (*outputs, *found)], strict=True))


@pytest.mark.parametrize("case", chosen(CASES), ids=str)
def test_layers_are_those_of_keras(case: dict[str, Any]) -> None:
    batch, steps, features, hidden = case["sizes"]
    rng = np.random.default_rng(6)
    x = rng.standard_normal((batch, steps, features), np.float32)
    count = 1 + (case["cell"] == "LSTM")
    state = [rng.standard_normal((batch, hidden), np.float32) for _ in range(count)]
    state = state if case["initial_state"] else []
    mask = mask_of(case["mask"], batch, steps, rng)
    theirs, ours = layers_of(case)
    got = run(ours, x, state, mask, training=case["dropout"] > 0)
    wanted = run(theirs, x, state, mask, training=case["dropout"] > 0)
    longest = max(features, hidden, batch * steps)
    assert all(a.dtype == np.float32 for a in got.values())
    assert_close(got, wanted, EPS * (64 + 4 * longest**0.5))


ACTIVATIONS = ("sigmoid", "relu", "linear", "hard_sigmoid", "leaky_relu", "elu", "softsign")
ACTIVATIONS += ("softplus", "tanh")


@pytest.mark.parametrize(
    ("cell", "name"),
    list(zip(CELLS * 3, ACTIVATIONS, strict=True))
    if BACKEND == "jax"
    else list(itertools.product(CELLS, ACTIVATIONS)),
)
def test_activations_are_those_of_keras(cell: str, name: str) -> None:
    x = np.random.default_rng(7).standard_normal((2, 3, 4), np.float32)
    how = {"activation": name}
    if cell != "SimpleRNN":
        bounded = name in ("sigmoid", "hard_sigmoid")
        how["recurrent_activation"] = name if bounded else "hard_sigmoid"
    theirs, ours = pair(cell, x.shape, units=5, return_sequences=True, **how)
    assert_close(run(ours, x, [], None, True), run(theirs, x, [], None, True), 100 * EPS)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_dropout_has_one_mask_a_row(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of a fixed seed, seen through h @ identity, put into Keras' own cell."""
    seed = keras.random.SeedGenerator(5).next()
    rng = rnnfast.keras.kernels.rng
    monkeypatch.setattr(rnnfast.keras.kernels, "rng", lambda _: rng(seed))
    batch, hidden, rate = 64, 16, 0.25
    shape = (batch, 3, 4)
    how = {"units": hidden, "recurrent_dropout": rate}
    _, linear = pair("SimpleRNN", shape, activation="linear", return_sequences=True, **how)
    linear.set_weights([np.zeros((4, hidden)), np.eye(hidden), np.zeros(hidden)])
    ones = np.ones((batch, hidden), np.float32)
    seen = run(linear, np.zeros(shape, np.float32), [ones], None, True)["output 0"]
    mask = seen[:, 0]
    np.testing.assert_allclose(seen[:, 2], mask**3, rtol=4 * EPS)
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=EPS)
    assert abs((mask > 0).mean() - (1 - rate)) < 5 * (rate * (1 - rate) / mask.size) ** 0.5

    theirs, ours = pair(cell, shape, **how)
    x = np.random.default_rng(8).standard_normal(shape, np.float32)
    count = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[cell]
    masks = [ops.convert_to_tensor(mask)] * count
    given = masks if count > 1 else masks[0]
    monkeypatch.setattr(theirs.cell, "get_recurrent_dropout_mask", lambda _: given)
    assert_close(run(ours, x, [], None, True), run(theirs, x, [], None, True), 200 * EPS)
    assert_close(run(ours, x, [], None, False), run(theirs, x, [], None, False), 200 * EPS)


def test_the_example_learns() -> None:
    few = "--sentences 300 --epochs 4 --hidden 32 --steps 6 --batch 16"
    accuracy = keras_text.main(few.split())
    _, y, _ = keras_text.windows(keras_text.made_text(300, 0).split(), 6)
    commonest = y.mean(axis=0).max()
    assert accuracy > 1.5 * commonest


def test_the_example_is_a_model_of_keras() -> None:
    theirs, ours = (keras_text.build(k, 20, 9, 8) for k in (keras.layers, rnnfast.keras))
    ours.set_weights(theirs.get_weights())
    x, _ = text()
    got, wanted = ({"y": model.predict(x, verbose=0)} for model in (ours, theirs))
    assert_close(got, wanted, 100 * EPS)


def text_model(layers: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((9,)),
            keras.layers.Embedding(20, 6, mask_zero=True),
            layers.Bidirectional(layers.LSTM(8, return_sequences=True, dropout=0.2)),
            layers.GRU(7, return_sequences=True),
            layers.SimpleRNN(6),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )


def text() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.integers(1, 20, (24, 9))
    x *= np.arange(9) < rng.integers(1, 10, (24, 1))
    return x, keras.utils.to_categorical(rng.integers(0, 4, 24), 4)


def weights_after_fit(layers: Any, **how: Any) -> dict[str, Any]:
    keras.utils.set_random_seed(1)
    model = text_model(layers)
    model.compile(optimizer="sgd", loss="categorical_crossentropy", **how)
    x, y = text()
    before = model.get_weights()
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
    changes = zip(model.get_weights(), before, strict=True)
    return {
        "loss": np.asarray(history.history["loss"], np.float32),
        "predicted": model.predict(x, verbose=0),
        **{f"change[{k}]": after - first for k, (after, first) in enumerate(changes)},
    }


def test_fit_gives_the_weights_of_keras() -> None:
    got, wanted = (weights_after_fit(layers) for layers in (rnnfast.keras, keras.layers))
    # A change is the small difference of two numbers of order 1, each rounded.
    assert_close(got, wanted, 5000 * EPS)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras on jax takes half a minute to run eagerly")
def test_eager_fit_gives_the_same_weights() -> None:
    got = weights_after_fit(rnnfast.keras, run_eagerly=True)
    assert_close(got, weights_after_fit(rnnfast.keras), 5000 * EPS)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="torch and jax keep what backward needs")
@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_of_tensorflow_runs_a_layer_once(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward are two callbacks; what one keeps for the other is gone after it."""
    from rnnfast.keras import tensorflow as adapter
    from rnnfast.keras import tensorflow_ops

    monkeypatch.setattr(tensorflow_ops, "_OPERATORS", None)

    name = rnnfast.keras.layers.__dict__[cell].rnnfast_cell
    functions = {key: getattr(rnnfast, key) for key in (name, f"{name}_vjp")}
    calls = dict.fromkeys(functions, 0)

    def counted(key: str) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            calls[key] += 1
            return functions[key](*args, **how)

        return call

    for key in functions:
        monkeypatch.setattr(rnnfast, key, counted(key))
    model = keras.Sequential([keras.Input((7, 4)), getattr(rnnfast.keras, cell)(5)])
    model.compile(optimizer="sgd", loss="mse")
    x, y = np.ones((3, 7, 4), np.float32), np.ones((3, 5), np.float32)
    for _ in range(3):
        model.train_on_batch(x, y)
    assert calls == {name: 0, f"{name}_vjp": 3}
    model.predict_on_batch(x)
    model.layers[0](x, training=True)  # whose gradients nobody asks for
    assert calls == {name: 1, f"{name}_vjp": 4}
    assert not adapter._tapes


@pytest.fixture
def operators() -> Any:
    """Those of TensorFlow, which a build may leave out, but not where this backend is required."""
    if BACKEND != "tensorflow":
        pytest.skip("operators are TensorFlow's")
    from rnnfast.keras import tensorflow_ops

    if tensorflow_ops._OPERATORS is None:
        reason = "rnnfast was built without its operators for TensorFlow"
        if "tensorflow" in os.environ.get("RNNFAST_REQUIRE_KERAS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return tensorflow_ops._OPERATORS


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ["plain", "masked", "both ways", "no bias", "states", "no rows"])
@pytest.mark.parametrize("cell", CELLS)
def test_operators_have_the_bits_of_callbacks(
    cell: str,
    case: str,
    dtype: str,
    training: bool,
    operators: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results and gradients, in a graph and eagerly; a batch of any size in one graph."""
    import tensorflow as tf

    from rnnfast.keras import tensorflow_ops

    keras.utils.set_random_seed(3)
    how = {"return_sequences": True, "return_state": True, "dtype": dtype}
    layer = getattr(rnnfast.keras, cell)(6, use_bias=case != "no bias", **how)
    if case == "both ways":
        layer = rnnfast.keras.Bidirectional(layer, dtype=dtype)
    rows = 0 if case == "no rows" else 5
    x = tf.constant(np.random.default_rng(0).standard_normal((rows, 7, 4)), dtype)
    more: dict[str, Any] = {"training": training}
    if case == "masked":
        more["mask"] = tf.constant(np.arange(7) < np.array([7, 1, 3, 0, 7])[:, None])
    if case == "states":
        count = 2 if cell == "LSTM" else 1
        more["initial_state"] = [tf.fill((rows, 6), tf.cast(0.5, dtype))] * count
    layer(x)
    variables = [v.value for v in layer.trainable_variables]

    def results(x: Any) -> Any:
        states = more.get("initial_state", [])
        with tf.GradientTape() as tape:
            tape.watch([x, *states])
            found = layer(x, **more)
            total = sum(tf.reduce_sum(f**2) for f in found)
        return [*found, *tape.gradient(total, [x, *variables, *states])]

    graph = tf.function(results, input_signature=[tf.TensorSpec((None, 7, 4), dtype)])
    used: list[str] = []
    forward = operators.rnnfast_forward
    spy = types.SimpleNamespace(
        rnnfast_forward=lambda *a, **k: used.append("") or forward(*a, **k),
        rnnfast_backward=operators.rnnfast_backward,
    )
    with monkeypatch.context() as patch:
        patch.setattr(tensorflow_ops, "_OPERATORS", spy)
        by_operators, in_graph = results(x), graph(x)
    assert used
    monkeypatch.setattr(tensorflow_ops, "_OPERATORS", None)
    by_callbacks = results(x)
    for a, b, c in zip(by_operators, in_graph, by_callbacks, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes() == c.numpy().tobytes()


def test_a_saved_model_holds_operators(operators: Any, tmp_path: Any) -> None:
    import tensorflow as tf

    both = rnnfast.keras.Bidirectional(rnnfast.keras.LSTM(6, return_sequences=True))
    model = keras.Sequential([keras.Input((7, 4)), both, rnnfast.keras.GRU(5)])
    model.export(tmp_path, verbose=False)
    loaded = tf.saved_model.load(tmp_path)
    for rows in (1, 3):
        x = np.random.default_rng(rows).standard_normal((rows, 7, 4)).astype(np.float32)
        served = loaded.serve(x).numpy()
        assert served.tobytes() == np.asarray(model.predict_on_batch(x)).tobytes()


def test_an_operator_tells_what_is_wrong(operators: Any) -> None:
    """What Keras checks is checked once more, above the kernels' pointers."""
    import tensorflow as tf

    nothing, x = tf.zeros([0]), tf.zeros((3, 2, 4))
    weights = [tf.zeros((4, 24)), tf.zeros((6, 24)), nothing, nothing]
    how = {"cell": "lstm", "directions": 1, "units": 6, "slots": 4, "places": []}
    run = functools.partial(operators.rnnfast_forward, has_c=True, keep=False, **how)
    ends = tf.constant([3, 1])
    run(x, nothing, nothing, ends, weights)
    for wrong, message in (
        ((x, tf.zeros((1, 2, 5)), nothing, ends, weights), "size of a buffer"),
        ((x, nothing, nothing, tf.constant([4, 1]), weights), "from 0 to T = 3, got 4"),
        ((tf.zeros((3, 2)), nothing, nothing, ends, weights), "unexpected inputs"),
        ((x, nothing, nothing, ends, [*weights, nothing]), "unexpected inputs"),
        ((x, nothing, nothing, ends, [*weights[:1], nothing, *weights[2:]]), "rank of a buffer"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(*wrong)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the kernels are compiled on torch and jax")
def test_tensorflow_proceeds_without_xla() -> None:
    model = text_model(rnnfast.keras)
    model.compile(optimizer="sgd", loss="categorical_crossentropy")
    assert model.jit_compile is False
    with pytest.warns(UserWarning, match="jit_compile"):
        model.compile(optimizer="sgd", loss="categorical_crossentropy", jit_compile=True)
    assert model.jit_compile is False


def test_saved_models_load(tmp_path: Any) -> None:
    model = text_model(rnnfast.keras)
    x, _ = text()
    wanted = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[2]) is rnnfast.keras.GRU
    assert type(loaded.layers[1].backward_layer) is rnnfast.keras.LSTM
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), wanted)


def test_weights_load_either_way(tmp_path: Any) -> None:
    keras.utils.set_random_seed(2)
    theirs, ours = text_model(keras.layers), text_model(rnnfast.keras)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    x, _ = text()
    got = {"y": ours.predict(x, verbose=0)}
    assert_close(got, {"y": theirs.predict(x, verbose=0)}, 100 * EPS)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")


BOTH: dict[str, tuple[Any, ...]] = {
    "cell": CELLS,
    "merge_mode": ("concat", "sum", "mul", "ave", None),
    "return_sequences": (True, False),
    "return_state": (False, True),
    "initial_state": (False, True),
    "use_bias": (True, False),
    "mask": ("none", "right", "left", "any"),
    "dropout": (0.0, 0.4),  # in training each direction is then called by itself
    "sizes": ((3, 5, 4, 6), (1, 7, 3, 17), (4, 1, 2, 3)),
}


def both_of(case: dict[str, Any], kind: Any, layers: Any) -> Any:
    _, steps, features, hidden = case["sizes"]
    how = {name: case[name] for name in ("return_sequences", "return_state", "use_bias", "dropout")}
    layer = getattr(layers, case["cell"])(hidden, seed=3, **how)
    both = kind(layer, merge_mode=case["merge_mode"])
    both.build((None, steps, features))
    rng = np.random.default_rng(4)
    both.set_weights([rng.normal(0, 0.3, w.shape) for w in both.get_weights()])
    return both


@pytest.mark.parametrize("case", chosen(CASES // 2, BOTH), ids=str)
def test_both_directions_are_those_of_keras(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case["cell"] == "SimpleRNN":
        case = {**case, "dropout": 0.0}  # its seed is not in its config
    batch, steps, features, hidden = case["sizes"]
    rng = np.random.default_rng(6)
    x = rng.standard_normal((batch, steps, features), np.float32)
    count = 2 * (1 + (case["cell"] == "LSTM"))
    state = [rng.standard_normal((batch, hidden), np.float32) for _ in range(count)]
    state = state if case["initial_state"] else []
    mask = mask_of(case["mask"], batch, steps, rng)
    theirs = both_of(case, keras.layers.Bidirectional, keras.layers)
    ours = both_of(case, rnnfast.keras.Bidirectional, rnnfast.keras)
    assert ours.get_config()["merge_mode"] == case["merge_mode"]
    training = case["dropout"] > 0
    wanted = run(theirs, x, state, mask, training)
    directions = []
    kernel = rnnfast.keras.kernels.run

    def spied(cell: str, x: Any, weights: Any, states: Any, *rest: Any) -> Any:
        directions.append(len(states))
        return kernel(cell, x, weights, states, *rest)

    monkeypatch.setattr(rnnfast.keras.kernels, "run", spied)
    got = run(ours, x, state, mask, training)
    assert directions == ([1, 1] if training else [2])
    assert_close(got, wanted, EPS * (64 + 4 * max(features, hidden, batch * steps) ** 0.5))


def test_both_directions_are_packed_together() -> None:
    """And anew when the weights of either change."""
    case = {name: values[0] for name, values in BOTH.items()} | {"sizes": (2, 3, 4, 5)}
    ours = both_of(case, rnnfast.keras.Bidirectional, rnnfast.keras)
    theirs = both_of(case, keras.layers.Bidirectional, keras.layers)
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    models = [keras.Sequential([keras.Input((3, 4)), layer]) for layer in (ours, theirs)]
    for factor in (1, 2):
        for layer in (ours, theirs):
            variable = layer.backward_layer.cell.kernel
            variable.assign(ops.multiply(variable, factor))
        for _ in range(3):
            got, wanted = ({"y": model.predict(x, verbose=0)} for model in models)
            assert_close(got, wanted, 100 * EPS)


@pytest.mark.parametrize(
    "change",
    [
        {"stateful": True},
        {"backward": {"activation": "relu"}},
        {"backward": {"units": 3}},
        {"backward": {"use_bias": False}},
        {"forward": {"go_backwards": True}, "backward": {"go_backwards": False}},
        {"kind": keras.layers},
    ],
    ids=str,
)
def test_layers_that_are_not_alike_are_called_one_by_one(change: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 4), np.float32)
    found = []
    for wrapper, layers in (
        (keras.layers.Bidirectional, keras.layers),
        (rnnfast.keras.Bidirectional, change.get("kind", rnnfast.keras)),
    ):
        shared = {"units": 5, "stateful": change.get("stateful", False)}
        forward = layers.GRU(**{**shared, **change.get("forward", {})})
        other = {"go_backwards": True, **shared, **change.get("backward", {})}
        both = wrapper(forward, backward_layer=layers.GRU(**other), merge_mode="concat")
        both.build((2, 3, 4))
        rng = np.random.default_rng(4)
        both.set_weights([rng.normal(0, 0.5, w.shape) for w in both.get_weights()])
        if "stateful" in change:
            both.reset_state()
        parts = [both(x[:, :3]), both(x[:, 3:])]
        found.append({f"{k}": np.asarray(ops.stop_gradient(y)) for k, y in enumerate(parts)})
    assert_close(found[1], found[0], 100 * EPS)


def nested_model() -> Any:
    tokens = keras.Input((9,))
    h = keras.layers.Embedding(20, 6, mask_zero=True)(tokens)
    backward = keras.layers.GRU(5, go_backwards=True, return_sequences=True)
    forward = keras.layers.GRU(5, return_sequences=True)
    h = keras.layers.Bidirectional(forward, backward_layer=backward)(h)
    inner = keras.Input((9, 10))
    inside = keras.Model(inner, keras.layers.SimpleRNN(4, return_sequences=True)(inner))
    h = keras.layers.LSTM(3, return_sequences=True)(inside(h))
    h = keras.layers.Reshape((3, 3, 3))(h)
    h = keras.layers.TimeDistributed(keras.layers.LSTM(2))(h)
    return keras.Model(tokens, keras.layers.Flatten()(h))


@pytest.mark.filterwarnings("ignore:Layer '.*was passed an input with a mask:UserWarning")
def test_replace_takes_every_layer_and_its_weights() -> None:
    keras.utils.set_random_seed(3)
    model = nested_model()
    replaced = rnnfast.keras.replace(model)
    kinds = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
    found = [type(k) for k in replaced._flatten_layers() if isinstance(k, kinds)]
    assert len(found) == 5
    assert {kind.__module__ for kind in found} == {"rnnfast.keras.layers"}
    wrappers = [k for k in replaced._flatten_layers() if isinstance(k, keras.layers.Bidirectional)]
    assert [type(k) for k in wrappers] == [rnnfast.keras.Bidirectional]
    x, _ = text()
    wanted = {"y": model.predict(x, verbose=0)}
    assert_close({"y": replaced.predict(x, verbose=0)}, wanted, 100 * EPS)
    for layer in model._flatten_layers():
        assert not type(layer).__module__.startswith("rnnfast")


def test_replace_refuses_what_it_cannot_do() -> None:
    class Own(keras.Model):
        pass

    class Special(keras.layers.LSTM):
        pass

    with pytest.raises(TypeError, match=r"expected a keras\.Model, got int"):
        rnnfast.keras.replace(3)
    with pytest.raises(rnnfast.UnsupportedError, match="functional model, got Own"):
        rnnfast.keras.replace(Own())
    with pytest.raises(ValueError, match="at least one LSTM"):
        rnnfast.keras.replace(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))

    class Doubled(keras.Sequential):
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return 2 * super().call(inputs, training=training, mask=mask)

    class Functional(keras.Model):
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return 2 * super().call(inputs, training=training, mask=mask)

    x = keras.Input((3, 2))
    with pytest.raises(rnnfast.UnsupportedError, match="functional model, got Functional"):
        rnnfast.keras.replace(Functional(x, keras.layers.GRU(2)(x)))
    doubled = Doubled([keras.Input((3, 2)), keras.layers.GRU(2, return_sequences=True)])
    for model in (doubled, keras.Sequential([keras.Input((3, 2)), doubled])):
        with pytest.raises(rnnfast.UnsupportedError, match="functional model, got Doubled"):
            rnnfast.keras.replace(model)
    layers = [keras.Input((3, 2)), keras.layers.GRU(2, return_sequences=True), Special(2)]
    with pytest.raises(rnnfast.UnsupportedError, match="a Special, cannot be replaced"):
        rnnfast.keras.replace(keras.Sequential(layers))


@pytest.mark.parametrize("cell", CELLS)
def test_stateful_layers_carry_their_state(cell: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 3), np.float32)
    theirs, ours = pair(cell, (2, 3, 3), units=4, stateful=True, return_sequences=True)
    for layer in (theirs, ours):
        layer.reset_state()
    for part in (x[:, :3], x[:, 3:]):
        got, wanted = ({"y": np.asarray(ops.stop_gradient(k(part)))} for k in (ours, theirs))
        assert_close(got, wanted, 100 * EPS)
    whole = {"y": np.asarray(ops.stop_gradient(pair(cell, (2, 6, 3), units=4)[1](x)))}
    assert_close({"y": got["y"][:, -1]}, whole, 100 * EPS)
    ours.reset_state()
    assert all(not np.asarray(s).any() for s in map(ops.convert_to_numpy, ours.states))


def stateful_changes(layers: Any, cell: str) -> dict[str, Any]:
    keras.utils.set_random_seed(1)
    layer = getattr(layers, cell)(5, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(4, 3, 2)), layer])
    model.compile(optimizer="sgd", loss="mse")
    before = model.get_weights()
    x = np.random.default_rng(0).standard_normal((12, 3, 2), np.float32)
    model.fit(x, np.ones((12, 5)), batch_size=4, epochs=2, verbose=0, shuffle=False)
    after = zip(model.get_weights(), before, strict=True)
    return {f"change[{k}]": a - b for k, (a, b) in enumerate(after)}


@pytest.mark.parametrize("cell", CELLS)
def test_stateful_layers_train(cell: str) -> None:
    got = stateful_changes(rnnfast.keras, cell)
    if BACKEND == "torch":
        # Keras' own raise an error, which of them depends on its version: they change the state
        # that backward needs.
        assert all(np.abs(a).max() > 0 for a in got.values())
    else:
        assert_close(got, stateful_changes(keras.layers, cell), 5000 * EPS)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies(policy: str) -> None:
    """Half precision: float32 inside, from inputs and weights that Keras has rounded."""
    if policy == "float64" and BACKEND == "jax":
        pytest.skip("float64 on jax needs jax_enable_x64")
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    theirs, ours = pair("LSTM", x.shape, units=5, dtype=policy)
    y = ours(x)
    compute = keras.DTypePolicy(policy).compute_dtype
    assert keras.backend.standardize_dtype(y.dtype) == compute
    roundings = {"float16": 2**-10, "bfloat16": 2**-7, "float64": EPS}[compute]
    results = [{"y": np.asarray(ops.cast(ops.stop_gradient(a), "float32"))} for a in (y, theirs(x))]
    assert_close(*results, 16 * roundings)


def test_weights_that_change_are_packed_anew() -> None:
    x, _ = text()
    model = text_model(rnnfast.keras)
    for _ in range(3):
        first = model.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), first)
    model.set_weights([w * 1.5 for w in model.get_weights()])
    second = model.predict(x, verbose=0)
    assert abs(second - first).max() > 1e-4
    reference = keras.models.clone_model(model)
    reference.set_weights(model.get_weights())
    np.testing.assert_allclose(second, reference.predict(x, verbose=0), rtol=100 * EPS)


@pytest.mark.skipif(BACKEND != "torch", reason="only on torch are weights packed")
@pytest.mark.parametrize("cell", CELLS)
def test_an_activation_that_changes(cell: str) -> None:
    import torch

    theirs, ours = pair(cell, (2, 3, 4), units=5)
    x = np.random.default_rng(6).standard_normal((2, 3, 4)).astype("float32")
    with torch.no_grad():
        for _ in range(3):
            ours(x)
        for layer in (theirs, ours):
            layer.cell.activation = keras.activations.relu
        assert_close({"y": np.asarray(ours(x))}, {"y": np.asarray(theirs(x))}, 100 * EPS)


@pytest.mark.skipif(BACKEND != "torch", reason="torch has such a mode")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_inference_mode(policy: str, both: bool) -> None:
    """Of a layer that is built within it, and of one whose weights are cast in each call."""
    import torch

    x = np.random.default_rng(6).standard_normal((2, 3, 4)).astype("float32")

    def layer() -> Any:
        one = rnnfast.keras.LSTM(5, dtype=policy)
        return rnnfast.keras.Bidirectional(one, dtype=policy) if both else one

    before = layer()
    before.build(x.shape)
    with torch.inference_mode():
        within = layer()
        within.build(x.shape)
        within.set_weights(before.get_weights())
        for _ in range(3):
            found = [np.asarray(k(x).float()) for k in (within, before)]
    with torch.no_grad():
        wanted = np.asarray(before(x).float())
    assert_close({"0": found[0], "1": found[1]}, {"0": wanted, "1": wanted}, 100 * EPS)


@pytest.mark.parametrize("both", [False, True])
def test_masks_of_one_row_and_of_other_shapes(both: bool) -> None:
    theirs, ours = pair("GRU", (4, 6, 3), units=5, return_sequences=True)
    if both:
        layers = keras.layers.Bidirectional(theirs), rnnfast.keras.Bidirectional(ours)
        for k in layers:
            k.build((4, 6, 3))
        layers[1].set_weights(layers[0].get_weights())
        theirs, ours = layers
    x = np.random.default_rng(6).standard_normal((4, 6, 3)).astype("float32")
    for kept in ([0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0]):
        mask = np.array([kept], bool)
        found = np.asarray(ops.convert_to_numpy(ours(x, mask=ops.convert_to_tensor(mask))))
        every = ops.convert_to_tensor(np.repeat(mask, 4, 0))
        wanted = np.asarray(ops.convert_to_numpy(theirs(x, mask=every)))
        assert_close({"y": found}, {"y": wanted}, 100 * EPS)
    for shape in ((4, 5), (4, 7), (3, 6), (6,)):
        with pytest.raises(ValueError, match=r"mask: expected shape \(4, 6\)"):
            ours(x, mask=ops.convert_to_tensor(np.ones(shape, bool)))


@pytest.mark.skipif(BACKEND != "jax", reason="Keras' unrolled loop takes no masks there")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("zero_output", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_masks_in_an_unrolled_loop(both: bool, zero_output: bool, start: bool) -> None:
    how = {"units": 4, "return_sequences": True, "unroll": True}
    x = np.random.default_rng(0).standard_normal((3, 5, 2)).astype("float32")
    mask = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], bool)
    theirs, ours = pair("GRU", x.shape, zero_output_for_mask=zero_output, **how)
    if both:
        weights = theirs.get_weights()
        theirs, ours = keras.layers.Bidirectional(theirs), rnnfast.keras.Bidirectional(ours)
        for layer in (theirs, ours):
            layer.build(x.shape)
            layer.set_weights([*weights, *weights])
    states = [x[:, :2].reshape(3, 4)] * (1 + both) if start else None
    given = {"mask": ops.convert_to_tensor(mask), "initial_state": states}
    wanted, found = (ops.convert_to_numpy(layer(x, **given)) for layer in (theirs, ours))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's tapes")
@pytest.mark.parametrize("activation", ["tanh", "relu"], ids=["operator", "callback"])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_no_second_derivatives(activation: str, alone: bool, graph: bool) -> None:
    """A penalty on gradients would lose its own in silence."""
    import tensorflow as tf

    x = tf.constant(np.random.default_rng(0).standard_normal((3, 5, 2)), tf.float32)
    layer = rnnfast.keras.LSTM(4, activation=activation)
    layer.build(x.shape)

    def penalty() -> Any:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(layer(x) ** 2)
            steps = inner.gradient(loss, x)
            assert steps is not None
            total = tf.reduce_sum(steps**2) + (0 if alone else loss)
        return outer.gradient(total, layer.trainable_variables)

    run = tf.function(penalty, autograph=False) if graph else penalty  # which wraps all errors
    with pytest.raises(rnnfast.UnsupportedError, match="cannot be differentiated again"):
        run()


@pytest.mark.parametrize("both", [False, True])
def test_no_rows_with_a_mask(both: bool) -> None:
    layer: Any = rnnfast.keras.LSTM(5, return_sequences=True)
    layer = rnnfast.keras.Bidirectional(layer) if both else layer
    x = np.zeros((0, 6, 3), "float32")
    y = layer(x, mask=ops.convert_to_tensor(np.zeros((0, 6), bool)))
    assert tuple(y.shape) == (0, 6, 5 * (1 + both))


@pytest.mark.parametrize("of_cell", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_a_state_of_one_s_own_to_start_with(both: bool, of_cell: bool) -> None:
    def ones(batch_size: Any = None) -> Any:
        return [ops.ones((batch_size, 5)), ops.ones((batch_size, 5))]

    x = np.random.default_rng(6).standard_normal((4, 6, 3)).astype("float32")
    found, weights = [], None
    for layers in (keras.layers, rnnfast.keras):

        def begin(layer: Any) -> Any:
            (layer.cell if of_cell else layer).get_initial_state = ones
            return layer

        layer = begin(layers.LSTM(5))
        if both:
            back = begin(layers.LSTM(5, go_backwards=True))
            layer = layers.Bidirectional(layer, backward_layer=back)
            for k in (layer.forward_layer, layer.backward_layer):  # copies of them
                begin(k)
        layer.build(x.shape)
        weights = weights or layer.get_weights()
        layer.set_weights(weights)
        found.append(np.asarray(ops.convert_to_numpy(layer(x))))
    assert_close({"y": found[1]}, {"y": found[0]}, 100 * EPS)


def test_replace_with_what_has_adapted() -> None:
    """Normalization keeps copies of its weights, Discretization has its bins in its config."""
    rng = np.random.default_rng(6)
    if BACKEND == "tensorflow":  # on others too it adapts by TensorFlow
        bins = keras.layers.Discretization(num_bins=5)
        bins.adapt(rng.normal(0, 1, (40,)))
    else:
        bins = keras.layers.Discretization(bin_boundaries=[-1.0, -0.3, 0.3, 1.0])
    tokens = [keras.Input((6,)), bins, keras.layers.Embedding(5, 3), keras.layers.GRU(4)]
    model = keras.Sequential(tokens)
    x = rng.normal(0, 1, (4, 6)).astype("float32")
    wanted = {"y": model.predict(x, verbose=0)}
    assert_close({"y": rnnfast.keras.replace(model).predict(x, verbose=0)}, wanted, 100 * EPS)
    normalization = keras.layers.Normalization()
    normalization.adapt(rng.normal(3, 2, (8, 6, 3)))
    model = keras.Sequential([keras.Input((6, 3)), normalization, keras.layers.GRU(5)])
    x = rng.normal(3, 2, (4, 6, 3)).astype("float32")
    wanted = {"y": model.predict(x, verbose=0)}
    assert_close({"y": rnnfast.keras.replace(model).predict(x, verbose=0)}, wanted, 100 * EPS)


def test_unknown_activations_are_refused() -> None:
    message = "activation: expected one of keras.activations' tanh, .*got gelu"
    with pytest.raises(rnnfast.UnsupportedError, match=message):
        rnnfast.keras.LSTM(3, activation="gelu")
    with pytest.raises(rnnfast.UnsupportedError, match=r"recurrent_activation: .* got <lambda>"):
        rnnfast.keras.GRU(3, recurrent_activation=lambda x: x)
    with pytest.raises(rnnfast.UnsupportedError, match="use_cudnn: expected 'auto' or False"):
        rnnfast.keras.LSTM(3, use_cudnn=True)


@keras.saving.register_keras_serializable()
class Doubled(rnnfast.keras.GRU):  # type: ignore[misc,name-defined]
    def call(self, sequences: Any, **how: Any) -> Any:
        return super().call(2 * sequences, **how)


@keras.saving.register_keras_serializable()
class InnerLoop(rnnfast.keras.GRU):  # type: ignore[misc,name-defined]
    def inner_loop(self, *arguments: Any, **how: Any) -> Any:
        last, outputs, states = super().inner_loop(*arguments, **how)
        return 3 * last, 3 * outputs, states


@pytest.mark.parametrize("kind", [Doubled, InnerLoop])
def test_subclasses_in_both_directions(kind: Any) -> None:
    """What they override runs."""
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    ours = rnnfast.keras.Bidirectional(kind(4))
    theirs = keras.layers.Bidirectional(kind(4))
    ours.build(x.shape)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    assert_close(
        {"y": keras.ops.convert_to_numpy(ours(x))},
        {"y": keras.ops.convert_to_numpy(theirs(x))},
        100 * EPS,
    )


def test_other_cells_are_refused() -> None:
    class Cell(keras.layers.GRUCell):  # type: ignore[misc,name-defined]
        def call(self, *arguments: Any, **how: Any) -> Any:
            return super().call(*arguments, **how)

    layer = rnnfast.keras.GRU(3)
    layer.cell = Cell(3)
    with pytest.raises(rnnfast.UnsupportedError, match=r"cell: expected one of .* got Cell"):
        layer(np.zeros((1, 2, 3), "float32"))


def test_replace_keeps_what_is_frozen() -> None:
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.GRU(5), keras.layers.Dense(2)])
    model.layers[0].cell.trainable = False
    replaced = rnnfast.keras.replace(model)
    assert len(replaced.trainable_variables) == len(model.trainable_variables) == 2


def test_config_and_names_are_those_of_keras() -> None:
    for cell in CELLS:
        theirs, ours = pair(cell, (2, 3, 4), units=5, name="a", go_backwards=True)
        assert isinstance(ours, getattr(keras.layers, cell))
        assert ours.get_config() == theirs.get_config()
        assert type(ours).from_config(theirs.get_config()).get_config() == theirs.get_config()
        assert type(ours).__name__ == type(theirs).__name__
        assert [v.path for v in ours.weights] == [v.path for v in theirs.weights]
