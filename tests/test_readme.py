"""README.md is true: its example runs, its table is the registry's, its names and files exist."""

import importlib.util
import re

import numpy as np
import pytest

import rnnfast
from docs.support_table import README, update

TEXT = README.read_text(encoding="utf-8")


def test_examples(backend, monkeypatch):
    monkeypatch.setenv("RNNFAST_BACKEND", backend)
    example, options, streaming = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(example.splitlines()) <= 10
    names = {}
    exec(example, names)
    before = names["loss"]
    y, _ = rnnfast.lstm(names["x"], names["weights"])
    assert (y**2).mean() < before
    with_options = dict(names)
    exec(options, with_options)
    assert with_options["y"].shape == (50, 16, 48)
    exec(streaming, names)
    whole, (h_n, c_n) = rnnfast.lstm(names["x"][:, :1], names["weights"])
    assert np.allclose(names["y"], whole[-len(names["y"]) :], atol=1e-6)
    assert np.allclose(names["h"], h_n, atol=1e-6)
    assert np.allclose(names["c"], c_n, atol=1e-6)


def test_support_table():
    assert update(TEXT) == TEXT, "run: python -m docs.support_table --write"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`rnnfast\.(\w+)", TEXT))))
def test_names(name):
    # An adapter is a module, which is imported when it is asked for.
    assert hasattr(rnnfast, name) or importlib.util.find_spec(f"rnnfast.{name}")


def test_links():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert all((README.parent / link).exists() for link in links)
