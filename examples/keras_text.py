"""Next word, in Keras: Embedding, two LSTM layers, Dense(softmax), adam, categorical cross-entropy.

    KERAS_BACKEND=torch python -m examples.keras_text
    KERAS_BACKEND=jax python -m examples.keras_text --text FILE --epochs 20
    KERAS_BACKEND=torch python -m examples.keras_text --layers keras

The model is written as for Keras; what is rnnfast's is the import of LSTM. Without --text the
sentences are made here, from a small grammar and a seed, so that what there is to learn is known:
of a sentence like "the old dog sees a cat .", only some words are possible at each place. The
program prints the loss and the accuracy on sentences that it has not trained on, and how long an
epoch took. --layers keras runs the same model with Keras' own layers, for comparison.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import rnnfast.keras

Array = NDArray[Any]
VALIDATION = 0.1  # the last part of the text, never trained on


def made_text(sentences: int, seed: int) -> str:
    """Sentences of a grammar with agreement: a plural noun takes another verb than a singular."""
    rng = np.random.default_rng(seed)
    nouns = {"one": ["dog", "cat", "bird"], "many": ["dogs", "cats", "birds"]}
    verbs = {"one": ["sees", "hears", "follows"], "many": ["see", "hear", "follow"]}
    articles = {"one": ["the", "a", "this"], "many": ["the", "some", "these"]}
    adjectives = ["old", "small", "quiet", "hungry"]

    def group(number: str) -> list[str]:
        words = [rng.choice(articles[number])]
        words += list(rng.choice(adjectives, rng.integers(0, 3), replace=False))
        return [*words, rng.choice(nouns[number])]

    words: list[str] = []
    for _ in range(sentences):
        subject, other = rng.choice(["one", "many"], 2)
        words += [*group(subject), rng.choice(verbs[subject]), *group(other), "."]
    return " ".join(words)


def windows(words: Sequence[str], steps: int) -> tuple[Array, Array, list[str]]:
    """Inputs (N, T) and the words after each of them as rows of an identity matrix (N, V)."""
    known = sorted(set(words))
    numbers = {word: k for k, word in enumerate(known)}
    ids = np.array([numbers[word] for word in words])
    if len(ids) <= steps:
        raise ValueError(f"text: expected more than {steps} words, got {len(ids)}")
    x = np.lib.stride_tricks.sliding_window_view(ids[:-1], steps)
    return x, keras.utils.to_categorical(ids[steps:], len(known)), known


def build(layers: Any, vocabulary: int, steps: int, hidden: int) -> Any:
    model = keras.Sequential(
        [
            keras.Input((steps,)),
            keras.layers.Embedding(vocabulary, 32),
            layers.LSTM(hidden, return_sequences=True),
            layers.LSTM(hidden),
            keras.layers.Dense(vocabulary, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def sample(model: Any, start: Array, count: int, known: list[str], seed: int) -> str:
    """Go on from the words of `start`, one at a time."""
    rng = np.random.default_rng(seed)
    words = list(start)
    for _ in range(count):
        p = model.predict_on_batch(np.array([words[-len(start) :]]))[0].astype(np.float64)
        words.append(rng.choice(len(p), p=p / p.sum()))
    return " ".join(known[k] for k in words[len(start) :])


def main(argv: Sequence[str] | None = None) -> float:
    """Train, print, and return the accuracy on the validation part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--text", type=Path, help="a text file of your own; made sentences without it")
    add("--sentences", type=int, default=1500, help="how many are made")
    add("--epochs", type=int, default=5)
    add("--steps", type=int, default=12, help="words that the model sees")
    add("--hidden", type=int, default=64)
    add("--batch", type=int, default=64)
    add("--layers", choices=("rnnfast", "keras"), default="rnnfast")
    add("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    if options.text is None:
        print(f"no --text: {options.sentences} sentences are made, with seed {options.seed}")
        text = made_text(options.sentences, options.seed)
    else:
        text = options.text.read_text(encoding="utf-8").lower()
    x, y, known = windows(re.findall(r"\w+|[^\w\s]", text), options.steps)
    split = round(len(x) * (1 - VALIDATION))
    print(f"{len(x)} windows of {options.steps} words, {len(known)} different words")

    keras.utils.set_random_seed(options.seed)
    layers = rnnfast.keras if options.layers == "rnnfast" else keras.layers
    model = build(layers, len(known), options.steps, options.hidden)
    start = time.perf_counter()
    model.fit(x[:split], y[:split], batch_size=options.batch, epochs=options.epochs, verbose=0)
    seconds = (time.perf_counter() - start) / options.epochs
    loss, accuracy = model.evaluate(x[split:], y[split:], verbose=0)
    print(
        f"{options.layers} on {keras.backend.backend()}: validation loss {loss:.3f}, accuracy "
        f"{accuracy:.3f}, {seconds:.1f} s an epoch"
    )
    print(sample(model, x[split], 24, known, options.seed))
    return float(accuracy)


if __name__ == "__main__":
    main()
