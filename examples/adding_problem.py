"""The adding problem: does a cell learn what lies a hundred steps back, and why not?

    python -m examples.adding_problem                       all four cells, under a minute
    python -m examples.adding_problem --length 400 --steps 2000 --cells gru lstm
    python -m examples.adding_problem --picture flow.svg    and draw the gradients

Each step of a sequence has a number from 0 to 1 and a mark. Two steps are marked, one in the
first tenth and one in the rest of the first half. After the last step the network has to tell the
sum of the two marked numbers (Hochreiter & Schmidhuber 1997, section 5.4, with numbers from 0 to
1). Saying 1 every time has a mean squared error of 1/6.

Before and after training, `rnnfast.gradient_flow` measures how much of the gradient of the loss,
which belongs to the last step, reaches each of the steps before.

Shapes: T steps, B sequences, H hidden units.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# rnnfast has the threads. NumPy's products here are small, and its own threads, which spin while
# they wait, would only get in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

import rnnfast

from .char_lm import Adam

Array = NDArray[Any]
CELLS = {"rnn": "-", "gated": "-", "gru": "--", "lstm": "-"}  # and how each is drawn
CLOSE = 0.04  # an answer at most so far off counts as right, as in the paper


def sequences(rng: np.random.Generator, length: int, batch: int) -> tuple[Array, Array]:
    """x (T, B, 2), a number and a mark, and the sums (B,)."""
    x = np.zeros((length, batch, 2), np.float32)
    x[..., 0] = rng.random((length, batch))
    tenth, half = max(1, length // 10), max(2, length // 2)
    rows = np.arange(batch)
    first, second = rng.integers(tenth, size=batch), rng.integers(tenth, half, batch)
    x[first, rows, 1] = x[second, rows, 1] = 1
    return x, x[first, rows, 0] + x[second, rows, 0]


class Model:
    """One recurrent layer, and an affine map from its last h to the answer."""

    def __init__(
        self,
        cell: str,
        hidden: int,
        length: int,
        rng: np.random.Generator,
        dtype: DTypeLike = np.float32,
        backend: str = "auto",
        plain: bool = False,
    ) -> None:
        self.cell, self.backend = cell, backend
        self.recurrent: Any = rnnfast.init_weights(cell, 2, hidden, dtype=dtype, rng=rng)
        bound = hidden**-0.5
        self.w_out = rng.uniform(-bound, bound, hidden).astype(dtype)
        self.b_out = np.zeros(1, dtype)
        if not plain:
            self._remember(hidden, length, rng)

    def _remember(self, hidden: int, length: int, rng: np.random.Generator) -> None:
        """Units that forget in 1 to T steps to begin with (Tallec & Ollivier 2018).

        A gate with bias log(n) is n / (n + 1) and forgets in about n steps. The vanilla RNN has
        no gate that could be set so.
        """
        bias = self.recurrent[0].b_ih
        keep = np.log(rng.uniform(1, max(2, length - 1), hidden))
        if self.cell in ("lstm", "gated"):  # gates i and f come first
            bias[:hidden], bias[hidden : 2 * hidden] = -keep, keep
        elif self.cell == "gru":  # gates r and z: z keeps
            bias[hidden : 2 * hidden] = keep

    def parameters(self) -> list[Array]:
        recurrent = [array for array in self.recurrent[0] if array is not None]
        return [*recurrent, self.w_out, self.b_out]

    def answers(self, x: Array) -> Array:
        y, _ = getattr(rnnfast, self.cell)(x, self.recurrent, backend=self.backend)
        return np.asarray(y[-1] @ self.w_out + self.b_out)

    def loss_and_gradients(self, x: Array, sums: Array) -> tuple[float, list[Array]]:
        """The mean squared error, and its gradients in the order of `parameters`."""
        layer_vjp = getattr(rnnfast, f"{self.cell}_vjp")
        y, _, backward = layer_vjp(x, self.recurrent, backend=self.backend)
        loss, dy, dlast = self._loss(y, sums)
        _, dweights, _ = backward(dy)
        recurrent = [array for array in dweights[0] if array is not None]
        gradients = [*recurrent, dlast @ y[-1], dlast.sum(keepdims=True)]
        return loss, gradients

    def _loss(self, y: Array, sums: Array) -> tuple[float, Array, Array]:
        """The mean squared error, and its gradients with respect to y and to the answers."""
        off = y[-1] @ self.w_out + self.b_out - sums
        dlast = (2 / len(off) * off).astype(y.dtype)
        dy = np.zeros_like(y)
        dy[-1] = np.outer(dlast, self.w_out)
        return float((off**2).mean(dtype=np.float64)), dy, dlast

    def flow(self, x: Array, sums: Array) -> Array:
        """The norm of dL/dh_t (T,), in float64, where very small numbers are not zero yet."""
        x = x.astype(np.float64)
        weights = [
            rnnfast.Weights(*(None if a is None else a.astype(np.float64) for a in w))
            for w in self.recurrent
        ]
        y, _ = getattr(rnnfast, self.cell)(x, weights, backend=self.backend)
        _, dy, _ = self._loss(y, sums)
        flow = rnnfast.gradient_flow(x, weights, dy, cell=self.cell, backend=self.backend)
        return flow.norms[0, 0]


class Result(NamedTuple):
    cell: str
    error: float  # mean squared, of the test sequences
    right: float  # the share of them that is answered within CLOSE
    before: Array  # norm of dL/dh_t (T,)
    after: Array


def learn(cell: str, args: argparse.Namespace) -> Result:
    """Train one cell from the seed; every cell gets the same sequences."""
    tests, train, draw = (np.random.default_rng([args.seed, k]) for k in range(3))
    x, sums = sequences(tests, args.length, args.tests)
    some = slice(0, args.batch)
    model = Model(cell, args.hidden, args.length, draw, backend=args.backend, plain=args.plain)
    adam = Adam(model.parameters())
    before = model.flow(x[:, some], sums[some])
    losses: list[float] = []
    with tqdm(range(1, args.steps + 1), desc=f"{cell:5}", unit="step") as bar:
        for step in bar:
            loss, gradients = model.loss_and_gradients(*sequences(train, args.length, args.batch))
            rnnfast.clip_grad_norm(gradients, args.clip)
            adam.step(gradients, args.lr * min(1, 2 * (1 - step / (args.steps + 1))))
            losses.append(loss)
            if step % 20 == 0:
                bar.set_postfix_str(f"squared error {np.mean(losses[-20:]):.4f}")
    off = model.answers(x) - sums
    error, right = float((off**2).mean(dtype=np.float64)), float((abs(off) <= CLOSE).mean())
    return Result(cell, error, right, before, model.flow(x[:, some], sums[some]))


def share(flow: Array) -> float:
    """How much of the gradient at the last step is left at the first: a ratio of norms."""
    return float(flow[0] / flow[-1])


def table(results: Sequence[Result]) -> Iterator[str]:
    yield "      | test error | right | dL/dh_1 / dL/dh_T before, after"
    for r in results:
        ends = f"{share(r.before):9.2g} {share(r.after):9.2g}"
        yield f"{r.cell:5} | {r.error:10.5f} | {r.right:5.1%} | {ends}"


def draw(results: Sequence[Result], path: str) -> None:
    """The norms of dL/dh_t of every cell over t, before and after training."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "rnnfast"  # the same file for the same numbers
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("before", "after"), strict=True):
        for result in results:
            flow = getattr(result, name) / getattr(result, name)[-1]
            steps = np.arange(1, len(flow) + 1)
            ax.plot(steps, np.where(flow > 0, flow, np.nan), CELLS[result.cell], label=result.cell)
        ax.set(xlabel="step t", yscale="log", title=f"{name} training")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("norm of dL/dh_t / that of dL/dh_T")
    axes[0].legend()
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Train every cell, print what they learnt, draw; return the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL")
    add("--length", type=int, default=100, help="T, steps of a sequence (%(default)s)")
    add("--hidden", type=int, default=32, help="units (%(default)s)")
    add("--steps", type=int, default=2000, help="of training, for each cell (%(default)s)")
    add("--batch", type=int, default=32, help="sequences of a step (%(default)s)")
    add("--lr", type=float, default=1e-2, help="learning rate of Adam (%(default)s)")
    add("--clip", type=float, default=1.0, help="limit of the gradient norm (%(default)s)")
    add("--plain", action="store_true", help="start with gates that forget in about two steps")
    add("--tests", type=int, default=2000, help="sequences to test with (%(default)s)")
    add("--picture", default="", metavar="FILE", help="draw the norms of dL/dh_t")
    add("--seed", type=int, default=0)
    add("--backend", default="auto", help="of rnnfast (%(default)s)")
    add("--threads", type=int, help="of rnnfast; all cores if not given")
    args = parser.parse_args(argv)
    if args.length < 4:
        parser.error(f"--length: expected at least 4, got {args.length}")
    if args.threads is not None:
        rnnfast.set_num_threads(args.threads)
    print(
        f"adding problem: {args.length} steps, {args.hidden} units, {args.steps} steps of training "
        f"with {args.batch} sequences, seed {args.seed}; the answer 1 has an error of 0.16667"
    )
    results = [learn(cell, args) for cell in args.cells]
    print("\n".join(table(results)))
    if args.picture:
        draw(results, args.picture)
        print(f"norms of dL/dh_t: {args.picture}")
    return results


if __name__ == "__main__":
    main()
