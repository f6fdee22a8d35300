"""What rnnfast is to reach: how many times faster than a peer, by class of shape."""

from __future__ import annotations

from typing import Any, NamedTuple

from .rows import Row
from .shapes import Shape


class Target(NamedTuple):
    """Time of PyTorch / time of rnnfast; None where nothing is asked."""

    forward: float
    training: float | None


# LSTM, which PyTorch has fused, then all other cells.
TORCH = {
    "streaming": (Target(10, None), Target(10, None)),  # packed
    "small": (Target(5, 6), Target(10, 10)),
    "narrow": (Target(2, 2), Target(3, 5)),
    "wide": (Target(1.5, 1.6), Target(1.5, 2)),
    "medium": (Target(1.3, 1.5), Target(2, 2.5)),
    "large": (Target(1.3, 1.25), Target(1.4, 1.3)),
    "ragged": (Target(2, 2), Target(2, 2)),  # beside padded torch
}
RAGGED_PACKED = 8.0  # beside torch with a PackedSequence
STACKED = 1.2  # two directions, or several layers: the target of the class times this
ONNXRUNTIME = {"streaming": 2.5}  # packed; elsewhere never behind
PRECISION = {"wide": {"bfloat16": 2.5, "int8": 4.0}}  # packed in these, beside torch's float32
RAGGED_COST = 1.15  # times the share of steps that are there, of the padded time
TORCH_MEAN = {1: 2.0, 2: 2.5}  # geometric mean over the table, by threads
ONNXRUNTIME_MEAN = 1.5
FMA_SHARE = {"medium": 0.8, "large": 0.85}  # of the peak: what would be perfect, not asked


def kind(shape: Shape) -> str:
    """The class of a shape; where none fits, that of its nearest neighbour."""
    if shape.T == 1 and shape.B == 1:
        return "streaming"
    if shape.ragged:
        return "ragged"
    if shape.B <= 4:
        return "small" if shape.H <= 64 else "narrow" if shape.H <= 512 else "wide"
    return "large" if shape.B >= 64 and shape.H >= 512 else "medium"


def target(row: Row, peer: str) -> float | None:
    """The least ratio of the peer's time to rnnfast's, or None."""
    shape = Shape(**row["shape"])
    of = kind(shape)
    if peer == "onnxruntime":
        return ONNXRUNTIME.get(of, 1.0)
    if peer == "torch-packed":
        return RAGGED_PACKED
    least: float | None = getattr(TORCH[of][row["cell"] != "lstm"], row["mode"])
    stacked = shape.L > 1 or shape.D > 1
    return least * STACKED if least and stacked else least


def counts(row: Row, rival: dict[str, Any]) -> str:
    """Which of rnnfast's times is compared: like with like, but a stream is always packed."""
    if row["mode"] == "forward" and kind(Shape(**row["shape"])) == "streaming":
        return "rnnfast-packed"
    return str(rival["against"])


def reached(row: Row, rival: dict[str, Any]) -> tuple[float, float | None] | None:
    """The ratio that counts and its target; None where the peer or rnnfast failed."""
    if not rival["ratios"]:
        return None
    ratio = float(rival["ratios"][counts(row, rival)]["median"])
    return ratio, target(row, rival["peer"])
