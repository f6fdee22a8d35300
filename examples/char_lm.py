"""A character language model in plain NumPy and rnnfast: embedding, recurrent layers, softmax.

    python -m examples.char_lm                          the documentation of Python, three minutes
    python -m examples.char_lm --text FILE --minutes 10
    python -m examples.char_lm --cell gru --plot gru.png

The model reads a text character by character and predicts the next one. It is trained by
truncated back-propagation through time: the text is cut into `batch` long strips that are read
side by side, `window` characters at a time; the state is carried from window to window, the
gradient is not. What is reported is the cross-entropy in bits per character (bpc).

Shapes: T characters of a window, B strips, V different characters, E embedding, H hidden size.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# rnnfast has the threads. NumPy's products here are small, and its own threads, which spin while
# they wait, would only get in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

import rnnfast

Array = NDArray[Any]
VALIDATION = 0.05  # the last part of the text, never trained on


class Text:
    """A text as character numbers, split into a part to train on and one to validate on."""

    def __init__(self, text: str) -> None:
        self.alphabet = sorted(set(text))
        numbers = {char: k for k, char in enumerate(self.alphabet)}
        ids = np.array([numbers[char] for char in text], dtype=np.int64)
        at = round(len(ids) * (1 - VALIDATION))
        self.train, self.validation = ids[:at], ids[at:]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[k] for k in ids)


def windows(ids: Array, batch: int, window: int) -> Iterator[tuple[Array, Array]]:
    """Inputs (T, B) and targets (T, B), one character later, window after window."""
    rows = (len(ids) - 1) // batch
    if rows < 1:
        raise ValueError(f"batch: expected fewer strips than the {len(ids)} characters of the text")
    inputs = ids[: batch * rows].reshape(batch, rows).T
    targets = ids[1 : batch * rows + 1].reshape(batch, rows).T
    for t in range(0, rows, window):
        yield inputs[t : t + window], targets[t : t + window]


class Model:
    """Embedding (V, E), recurrent layers, and an affine map (V, H) to the scores of a softmax."""

    def __init__(
        self,
        cell: str,
        characters: int,
        embedding: int,
        hidden: int,
        layers: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
        backend: str = "auto",
    ) -> None:
        self.cell, self.backend = cell, backend
        self.embedding = rng.normal(0, 1, (characters, embedding)).astype(dtype)
        self.recurrent = rnnfast.init_weights(
            cell, embedding, hidden, num_layers=layers, dtype=dtype, rng=rng
        )
        bound = hidden**-0.5
        self.w_out = rng.uniform(-bound, bound, (characters, hidden)).astype(dtype)
        self.b_out = np.zeros(characters, dtype)
        forget = slice(hidden, 2 * hidden)  # rows of the forget gate of LSTM and gated
        weights: Any
        for weights in self.recurrent:
            if cell == "lstm":  # starts open: the state lasts from the beginning
                weights.b_ih[forget] = 1
            elif cell == "gated":  # closes as its own unit grows: the state has no other bound
                weights.w_hh[forget] -= np.eye(hidden, dtype=dtype)

    def parameters(self) -> list[Array]:
        recurrent = [array for weights in self.recurrent for array in flat(weights)]
        return [self.embedding, *recurrent, self.w_out, self.b_out]

    def loss_and_gradients(
        self, inputs: Array, targets: Array, state: Any, dropout: float = 0.0, rng: Any = None
    ) -> tuple[float, list[Array], Any]:
        """Mean cross-entropy in bits, its gradients in the order of `parameters`, new state."""
        layers_vjp = getattr(rnnfast, f"{self.cell}_vjp")
        options = {"dropout": dropout, "rng": rng, "backend": self.backend}
        x = self.embedding[inputs]  # (T, B, E)
        y, state_n, backward = layers_vjp(x, self.recurrent, state, **options)
        rows = y.reshape(-1, y.shape[-1])  # (T*B, H)
        loss, dscores = cross_entropy(rows @ self.w_out.T + self.b_out, targets.ravel())
        dy = (dscores @ self.w_out).reshape(y.shape)
        dx, drecurrent, _ = backward(dy, None)  # None: nothing flows back from later windows
        dembedding = np.zeros_like(self.embedding)
        np.add.at(dembedding, inputs, dx)
        gradients = [array for dweights in drecurrent for array in flat(dweights)]
        gradients = [dembedding, *gradients, dscores.T @ rows, dscores.sum(axis=0)]
        return loss, gradients, state_n

    def bits_per_character(self, ids: Array, batch: int, window: int) -> float:
        """The mean cross-entropy over a text, without training."""
        layers = getattr(rnnfast, self.cell)
        packed = rnnfast.pack(self.recurrent, cell=self.cell, backend=self.backend)
        total, count, state = 0.0, 0, None
        for inputs, targets in windows(ids, batch, window):
            y, state = layers(self.embedding[inputs], packed, state)
            scores = y.reshape(-1, y.shape[-1]) @ self.w_out.T + self.b_out
            total += cross_entropy(scores, targets.ravel())[0] * targets.size
            count += targets.size
        return total / count

    def sample(self, first: int, length: int, temperature: float, rng: Any) -> list[int]:
        """`length` characters, `first` and more; the state carries what was drawn before."""
        layers = getattr(rnnfast, self.cell)
        packed = rnnfast.pack(self.recurrent, cell=self.cell, backend=self.backend)
        drawn, state = [first], None
        for _ in range(length - 1):
            y, state = layers(self.embedding[drawn[-1:]], packed, state)  # one step, unbatched
            scores = (self.w_out @ y[0] + self.b_out).astype(np.float64) / temperature
            chances = np.exp(scores - scores.max())
            drawn.append(int(rng.choice(len(chances), p=chances / chances.sum())))
        return drawn


def flat(weights: Any) -> tuple[Array, Array, Array, Array]:
    return weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh


def cross_entropy(scores: Array, targets: Array) -> tuple[float, Array]:
    """Mean of -log2 softmax(scores)[target] over the rows, and its gradient (rows, V)."""
    rows = np.arange(len(targets))
    scores = scores - scores.max(axis=1, keepdims=True)
    exp = np.exp(scores)
    total = exp.sum(axis=1, keepdims=True)
    loss = np.log2(total[:, 0]) - scores[rows, targets] / np.log(2)
    gradient = exp / total
    gradient[rows, targets] -= 1
    gradient *= 1 / (len(targets) * np.log(2))
    return float(loss.mean(dtype=np.float64)), gradient


class Adam:
    """Kingma & Ba 2015: steps scaled by running means of the gradient and of its square."""

    def __init__(self, parameters: list[Array], beta_1: float = 0.9, beta_2: float = 0.99) -> None:
        self.parameters, self.beta_1, self.beta_2 = parameters, beta_1, beta_2
        self.mean = [np.zeros_like(p) for p in parameters]
        self.square = [np.zeros_like(p) for p in parameters]
        self.count = 0

    def step(self, gradients: list[Array], rate: float) -> None:
        self.count += 1
        rate *= (1 - self.beta_2**self.count) ** 0.5 / (1 - self.beta_1**self.count)
        for p, g, m, v in zip(self.parameters, gradients, self.mean, self.square, strict=True):
            m += (1 - self.beta_1) * (g - m)
            v += (1 - self.beta_2) * (g * g - v)
            p -= rate * m / (np.sqrt(v) + 1e-8)


def train(model: Model, text: Text, args: argparse.Namespace) -> dict[str, list[Any]]:
    """Train until --steps are done or --minutes are over; return the curves.

    The clock decides only where training stops: the rate and the data depend on the step alone,
    so that a run repeats itself from its seed.
    """
    rng = np.random.default_rng(args.seed)
    adam = Adam(model.parameters())
    curves: dict[str, list[Any]] = {"train": [], "step": [], "validation": []}
    begin, seconds = time.monotonic(), args.minutes * 60
    batches: Iterator[tuple[Array, Array]] = iter(())
    state = None
    validation = float("nan")
    with tqdm(total=args.steps or round(seconds), unit="step" if args.steps else "s") as bar:
        while len(curves["train"]) < (args.steps or float("inf")):
            batch = next(batches, None)
            if batch is None:  # read the text anew, cut at another place
                state = None
                offset = int(rng.integers(min(args.window, len(text.train) - args.batch)))
                batches = windows(text.train[offset:], args.batch, args.window)
                batch = next(batches)
            loss, gradients, state = model.loss_and_gradients(*batch, state, args.dropout, rng)
            rnnfast.clip_grad_norm(gradients, args.clip)
            step = len(curves["train"]) + 1
            adam.step(gradients, args.lr * min(step / 50, (args.decay / step) ** 0.5, 1))
            curves["train"].append(loss)
            elapsed = time.monotonic() - begin
            over = step == args.steps or (not args.steps and elapsed >= seconds)
            if step % args.every == 0 or over:
                validation = model.bits_per_character(text.validation, args.batch, args.window)
                curves["step"].append(step)
                curves["validation"].append(validation)
            recent = np.mean(curves["train"][-args.every :])
            bar.set_postfix_str(f"bits/char: train {recent:.3f}, validation {validation:.3f}")
            bar.update((step if args.steps else min(round(elapsed), bar.total)) - bar.n)
            if over:
                break
    return curves


def plot(curves: dict[str, list[Any]], title: str, path: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="bits per character", title=title)
    axes.plot(np.arange(1, len(curves["train"]) + 1), curves["train"], lw=0.5, label="training")
    axes.plot(curves["step"], curves["validation"], "o-", ms=3, label="validation")
    axes.set_ylim(0, max(curves["train"]) * 1.05)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def read_text(path: str | None) -> tuple[str, str]:
    """The text, and where it comes from."""
    if path is not None:
        return Path(path).read_text(encoding="utf-8"), path
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise SystemExit(f"{error}; it ships with CPython, name another text by --text") from None
    return "\n\n".join(topics.values()), "pydoc_data.topics, the help texts that ship with CPython"


def main(argv: Sequence[str] | None = None) -> float:
    """Train, sample, plot; return the bits per character of the validation text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", metavar="FILE", help="UTF-8 text; the help texts of Python if not given")
    add("--cell", choices=("lstm", "gru", "rnn", "gated"), default="lstm")
    add("--hidden", type=int, default=256, help="units of a layer (%(default)s)")
    add("--layers", type=int, default=2, help="recurrent layers (%(default)s)")
    add("--embedding", type=int, default=64, help="numbers for a character (%(default)s)")
    add("--batch", type=int, default=32, help="strips read side by side (%(default)s)")
    add("--window", type=int, default=64, help="characters of a window (%(default)s)")
    add("--lr", type=float, default=4e-3, help="learning rate of Adam (%(default)s)")
    add("--decay", type=int, default=400, help="steps before it falls, as 1/sqrt (%(default)s)")
    add("--clip", type=float, default=1.0, help="limit of the gradient norm (%(default)s)")
    add("--dropout", type=float, default=0.1, help="between layers (%(default)s)")
    add("--minutes", type=float, default=3.0, help="stop after (%(default)s)")
    add("--steps", type=int, help="stop after this many steps, whatever the time")
    add("--every", type=int, default=100, help="steps between validations (%(default)s)")
    add("--sample", type=int, default=600, help="characters to write at the end (%(default)s)")
    add("--temperature", type=float, default=0.7, help="of the sample (%(default)s)")
    add("--plot", default="char_lm.png", help="picture of the losses, '' for none (%(default)s)")
    add("--seed", type=int, default=0)
    add("--backend", default="auto", help="of rnnfast (%(default)s)")
    add("--threads", type=int, help="of rnnfast; all cores if not given")
    args = parser.parse_args(argv)
    if args.temperature <= 0:
        parser.error(f"--temperature: expected more than 0, got {args.temperature}")
    if args.threads is not None:
        rnnfast.set_num_threads(args.threads)

    characters, source = read_text(args.text)
    text = Text(characters)
    if len(text.validation) <= args.batch:
        parser.error(f"{source}: too short, its last {VALIDATION:.0%} must fill --batch strips")
    print(f"text: {source}; {len(characters):,} characters, {len(text.alphabet)} different")
    rng = np.random.default_rng(args.seed)
    sizes = (len(text.alphabet), args.embedding, args.hidden, args.layers)
    model = Model(args.cell, *sizes, rng, backend=args.backend)
    count = sum(p.size for p in model.parameters())
    print(f"model: {args.layers} x {args.cell}, {args.hidden} units, {count:,} parameters")

    curves = train(model, text, args)
    final = float(curves["validation"][-1])
    print(f"validation: {final:.3f} bits per character after {len(curves['train'])} steps")
    if args.plot:
        plot(curves, f"{args.layers} x {args.cell}, {args.hidden} units", args.plot)
        print(f"losses: {args.plot}")
    if args.sample:
        start = int(text.train[0])
        print(f"sample, temperature {args.temperature}:\n")
        print(text.decode(model.sample(start, args.sample, args.temperature, rng)))
    return final


if __name__ == "__main__":
    main()
