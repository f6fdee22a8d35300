"""The adding problem is what it says, its gradients are those of its loss, and a cell learns it."""

import sys

import numpy as np
import pytest
from helpers import command

from examples.adding_problem import CELLS, Model, main, sequences


def test_cells_are_those_of_rnnfast():
    from rnnfast.spec import CELLS as ALL

    assert CELLS.keys() == ALL.keys()


def test_sequences():
    x, sums = sequences(np.random.default_rng(0), 40, 500)
    assert x.shape == (40, 500, 2)
    numbers, marks = x[..., 0], x[..., 1]
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert set(np.unique(marks)) == {0, 1}
    assert (marks.sum(axis=0) == 2).all()
    assert (marks[:4].sum(axis=0) == 1).all()
    assert (marks[4:20].sum(axis=0) == 1).all()
    assert marks.any(axis=1).sum() == 20
    np.testing.assert_allclose(sums, (numbers * marks).sum(axis=0), rtol=1e-6)
    assert abs(((1 - sums) ** 2).mean() - 1 / 6) < 0.036  # four standard deviations


@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell, backend):
    """Every entry of every parameter, by central differences."""
    rng = np.random.default_rng(0)
    model = Model(cell, 3, 6, rng, dtype=np.float64, backend=backend)
    x, sums = sequences(rng, 6, 4)
    x = x.astype(np.float64)
    _, gradients = model.loss_and_gradients(x, sums)
    step = 1e-5
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        numeric = np.empty_like(parameter)
        for at in np.ndindex(parameter.shape):
            kept = parameter[at]
            losses = []
            for parameter[at] in (kept + step, kept - step):
                losses.append(model.loss_and_gradients(x, sums)[0])
            parameter[at] = kept
            numeric[at] = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)


def test_a_cell_learns(tmp_path, backend, capsys):
    """A short problem is learnt, the picture is drawn, and the seed repeats both."""
    picture = tmp_path / "flow.svg"
    options = f"--cells gru --length 10 --hidden 16 --steps 300 --tests 200 --backend {backend}"
    options = f"{options} --picture {picture}".split()
    (result,) = main(options)
    assert result.error < 0.02  # 1/6 for the answer 1
    assert result.before.shape == result.after.shape == (10,)
    assert (result.before > 0).all()
    printed = capsys.readouterr().out
    assert f"{result.error:.5f}" in printed
    first = picture.read_bytes()
    assert b"<svg" in first
    (again,) = main(options)
    assert again.error == result.error
    assert picture.read_bytes() == first


def test_the_gradient_vanishes_in_the_vanilla_rnn_alone():
    options = "--length 60 --hidden 16 --steps 1 --tests 32 --batch 16"
    left = {r.cell: r.before[0] / r.before[-1] for r in main(options.split())}
    assert left["rnn"] < 1e-8
    assert min(left[cell] for cell in CELLS if cell != "rnn") > 1e-5
    plain = {r.cell: r.before[0] / r.before[-1] for r in main([*options.split(), "--plain"])}
    assert max(plain.values()) < 1e-6


def test_command_line():
    options = "--cells rnn --length 6 --hidden 4 --steps 3 --batch 4 --tests 10"
    arguments = [sys.executable, "-m", "examples.adding_problem", *options.split()]
    found = command(arguments, RNNFAST_BACKEND="reference")
    assert found.returncode == 0, found.stderr
    assert "rnn   |" in found.stdout
    assert command([*arguments, "--length", "3"]).returncode == 2
