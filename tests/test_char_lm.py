"""The example learns, its gradients are those of its loss, and a seed repeats a run."""

import numpy as np
import pytest

from examples.char_lm import Model, Text, main, windows
from rnnfast.spec import CELLS


@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell, backend):
    """Every entry of every parameter, by central differences; the carried state is a constant."""
    rng = np.random.default_rng(0)
    model = Model(cell, 5, 3, 4, layers=2, rng=rng, dtype=np.float64, backend=backend)
    before, inputs, targets = rng.integers(5, size=(3, 3, 2))
    _, _, state = model.loss_and_gradients(before, inputs, None)

    def loss_and_gradients():
        return model.loss_and_gradients(inputs, targets, state, dropout=0.3, rng=1)[:2]

    step = 1e-5
    _, gradients = loss_and_gradients()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        numeric = np.empty_like(parameter)
        for at in np.ndindex(parameter.shape):
            kept = parameter[at]
            losses = []
            for parameter[at] in (kept + step, kept - step):
                losses.append(loss_and_gradients()[0])
            parameter[at] = kept
            numeric[at] = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)


def test_windows():
    """The strips read the whole text once, and each target is the next character."""
    text = Text("abcdefghijklmnopqrstuvwxyz" * 4)
    assert len(text.train) + len(text.validation) == 104
    ids = np.arange(27)
    parts = list(windows(ids, batch=2, window=5))
    inputs = np.concatenate([i for i, _ in parts])
    np.testing.assert_array_equal(inputs.T.ravel(), ids[:26])
    assert all(np.array_equal(target, i + 1) for i, target in parts)
    with pytest.raises(ValueError, match="batch"):
        next(windows(ids, batch=27, window=5))


@pytest.mark.parametrize("cell", CELLS)
def test_main(cell, backend, tmp_path, capsys):
    """A text that repeats itself is learnt, sampled and drawn; the seed repeats the run."""
    file, picture = tmp_path / "text.txt", tmp_path / "losses.png"
    file.write_text("réné " * 80, encoding="utf-8")
    options = f"--text {file} --plot {picture} --cell {cell} --backend {backend} --steps 50"
    options += " --hidden 16 --layers 1 --embedding 4 --batch 4 --window 8 --every 25 --lr 0.05"
    first = main(f"{options} --sample 20".split())
    assert first < 0.5
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"{first:.3f} bits per character after 50 steps" in printed
    assert "réné réné" in printed
    assert main(f"{options} --sample 0 --plot=".split()) == first
