"""What docs/performance.md says of the adapters and of the backend numba."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import geometric_mean
from typing import Any, NamedTuple

from .rows import Row

Document = dict[str, Any]
_OF_NATIVE = 1.5  # times native's time that numba may take


class Ratio(NamedTuple):
    """A ratio in one line and column of a table."""

    column: str
    value: float
    missed: bool
    loaded: bool


def _faster(column: str, ratio: dict[str, float], row: Row) -> Ratio:
    """How many times faster rnnfast is, which it should be."""
    return Ratio(column, ratio["median"], ratio["median"] < 1, row["loaded"])


def _adapter(row: Row) -> Iterator[Ratio]:
    """Of torch and Keras: one peer."""
    if row["ratio"]:
        column = " ".join(filter(None, (row.get("backend"), row["mode"])))
        yield _faster(column, row["ratio"], row)


def _rivals(row: Row) -> Iterator[Ratio]:
    for rival in row["rivals"]:
        for name, ratio in rival["ratios"].items():
            way = row["mode"] + ", packed" * name.endswith("-packed")
            yield _faster(f"{rival['peer']} / {way}", ratio, row)


def _onnx(row: Row) -> Iterator[Ratio]:
    for way, ratios in row["ratios"].items():
        for peer, ratio in ratios.items():
            whom = "bound" if peer == "onnxruntime" else peer
            yield _faster(f"{whom} / {way}", ratio, row)


def _numba(row: Row) -> Iterator[Ratio]:
    for name, ratio in row.get("ratios", {}).items():  # other rows tell the time to compile
        value = ratio["median"]
        missed = value > _OF_NATIVE if name.endswith("native") else value < 1
        yield Ratio(f"{row['mode']}: {name}", value, missed, row["loaded"])


class Section(NamedTuple):
    title: str
    about: str  # what the numbers are
    read: Callable[[Row], Iterator[Ratio]]


SECTIONS = {
    "torch": Section(
        "rnnfast.torch beside torch.nn",
        "Time of `torch.nn.LSTM`, `GRU`, `RNN` divided by that of the drop-in; **bold** is slower.",
        _adapter,
    ),
    "keras": Section(
        "rnnfast.keras beside Keras",
        "Time of `predict_on_batch` or `train_on_batch` of a model that is one layer of Keras, "
        "divided by that of the same with rnnfast's layer, on each of Keras' backends; **bold** is "
        "slower.",
        _adapter,
    ),
    "tensorflow": Section(
        "rnnfast.keras beside Keras, on TensorFlow",
        "The same, in an environment of its own.",
        _adapter,
    ),
    "jax": Section(
        "rnnfast.jax beside lax.scan",
        "Time of the same layer written with `lax.scan`, divided by that of `rnnfast.jax`, both "
        "under jit; **bold** is slower.",
        _rivals,
    ),
    "onnx": Section(
        "rnnfast.onnx beside ONNX Runtime",
        "Time of ONNX Runtime by `session.run`, or with inputs and outputs bound, divided by that "
        "of `rnnfast.onnx.Backend` (backend) or of its operators in onnx's own evaluator, which "
        "alone takes 8 microseconds a call; **bold** is slower.",
        _onnx,
    ),
    "numba": Section(
        "The backend numba",
        f"Its time divided by native's, **bold** above {_OF_NATIVE}, and PyTorch's divided by its "
        "own, **bold** where it is slower.",
        _numba,
    ),
}


def write(label: str, document: Document) -> str:
    """The ratios of a subject with each number of threads, one line for each cell and shape."""
    section = SECTIONS[label]
    rows = sorted(document["rows"], key=lambda row: row.get("threads", 0))
    threads = dict.fromkeys(str(row["threads"]) for row in rows if "threads" in row)
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    values: dict[str, list[float]] = {}
    for row in rows:
        for ratio in section.read(row):
            text = f"{ratio.value:.2f}" if ratio.value < 10 else f"{ratio.value:.0f}"
            line = found.setdefault((row["cell"], row["name"].replace(",", ", ")), {})
            cells = line.setdefault(ratio.column, [])
            cells.append((f"**{text}**" if ratio.missed else text) + "†" * ratio.loaded)
            values.setdefault(ratio.column, []).append(ratio.value)
    lines: list[list[str]] = [["cell", "T, B, I, H", *values], ["---"] * (len(values) + 2)]
    for where, line in found.items():
        lines.append([*where, *(" / ".join(line.get(column, [])) for column in values)])
    means = (f"{geometric_mean(some):.2f}" for some in values.values())
    lines.append(["geometric mean", "", *means])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{section.about} With {' / '.join(threads)} threads.\n\n{table}"
