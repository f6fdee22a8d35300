"""The example runs as the README calls it; tests/test_char_lm.py looks inside."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import command

pytest.importorskip("tqdm")


def test_help() -> None:
    found = command([sys.executable, "-m", "examples.char_lm", "--help"])
    assert found.returncode == 0, found.stderr
    assert "--cell" in found.stdout


def test_a_few_steps(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 100, encoding="utf-8")
    options = f"--text {text} --steps 3 --hidden 16 --layers 2 --batch 4 --window 8 --plot="
    found = command(
        [sys.executable, "-m", "examples.char_lm", *options.split()], RNNFAST_BACKEND="reference"
    )
    assert found.returncode == 0, found.stderr
    assert "bits per character after 3 steps" in found.stdout


def test_training_in_torch() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    options = "--steps 60 --hidden 24 --batch 32 --cell gru"
    found = command(
        [sys.executable, "-m", "examples.torch_training", *options.split()],
        RNNFAST_NUM_THREADS="1",
    )
    assert found.returncode == 0, found.stderr
    assert "step 50: loss" in found.stdout
    assert "of new sequences read right" in found.stdout
