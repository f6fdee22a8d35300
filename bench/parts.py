"""What a call takes whose parts each take what was measured of that part alone.

`limits.in_turn` asks what the machine could do: every product at the peak of its arithmetic, a
step that is over when its numbers are. Here a product of all steps takes as long as in the fastest
of the libraries that `python -m bench products` compares, a step of one row no less than one of 16
units, where there is next to nothing to multiply, threads that divide a step meet as often as ours
do, and a call comes from Python. No product is faster than the fastest one that was measured: those
of the steps of many rows neither.
"""

from __future__ import annotations

import math
import re
from typing import Any

from .limits import MATRIX_ROWS, Limits, functions, product
from .problem import CELLS
from .products import MATRIX
from .rows import READING, Row
from .shapes import Shape

_MEETINGS = 3  # for each step that units are divided for: h travels as well, see docs


class Parts:
    """Bounds made from the rows of `python -m bench limits` and of `python -m bench products`."""

    def __init__(self, limits: Limits, products: list[Row]) -> None:
        self._limits = limits
        # Of any product, and of those in a matrix unit too.
        self._rates: dict[tuple[bool, int, str, int, int], list[tuple[int, float]]] = {}
        self._fastest: dict[tuple[bool, int], float] = {}
        for row in products:
            if not row["gflops"]:
                continue
            kind, *sizes = re.split("[ ,]", row["name"])
            M, N, K = map(int, sizes)
            # Rows of all steps are what shapes of one layer differ in.
            rows, *others = (K, M, N) if kind == "tn" else (M, N, K)
            for matrix in (False, True):
                rates = [
                    r["median"] for name, r in row["gflops"].items() if matrix or name != MATRIX
                ]
                best, threads = max(rates, default=0) * 1e9, row["threads"]
                key = (matrix, threads, kind, *others)
                self._rates.setdefault(key, []).append((rows, best))
                self._fastest[matrix, threads] = max(self._fastest.get((matrix, threads), 0), best)

    def seconds(self, row: Row, rival: dict[str, Any]) -> float | None:
        """Of a row of the table, or None where a part was not measured."""
        if "at_reading" in rival:
            return self._single_step(row, rival)
        threads, shape = row["threads"], Shape(**row["shape"])
        whole = self._on(row, threads)
        alone = self._on(row, 1)
        call = self._limits.call(row["mode"])
        if whole is None or alone is None or call is None:
            return None
        if shape.B > 1 or threads == 1:
            return whole + call
        passes = 2 if row["mode"] == "training" else 1
        meetings = passes * shape.T * shape.L * shape.D * _MEETINGS
        ways = [alone, whole + meetings * self._limits.barrier(row)]
        if shape.D > 1:  # side by side
            ways.append(alone / 2)
        if shape.L > 1:  # one layer after the other, each a step behind
            ways.append(alone * math.ceil(shape.L / threads) / shape.L)
        return min(ways) + call

    def _single_step(self, row: Row, rival: dict[str, Any]) -> float | None:
        """The weights are read as fast as in the rows' turns with the rival, then all the rest."""
        of_peer = row["times_ms"][rival["peer"]]["median"] / 1e3
        call, reading = self._limits.call(row["mode"]), self._limits.call(READING)
        if call is None or reading is None:
            return None
        more = call - reading + functions(self._limits, row, row["threads"])
        if row["threads"] > 1:
            more += _MEETINGS * self._limits.barrier(row)
        return float(of_peer / rival["at_reading"]["median"]) + more

    def _on(self, row: Row, threads: int) -> float | None:
        """On threads that never wait for one another."""
        spec, shape = CELLS[row["cell"]], Shape(**row["shape"])
        wide, rows = len(spec.info.gates) * shape.H, shape.steps * shape.B
        matrix = shape.B >= MATRIX_ROWS
        training = row["mode"] == "training"
        passes = 2 if training else 1
        total = 0.0
        if shape.B == 1:
            chain = self._limits.step(row["cell"])
            if chain is None:
                return None
            total += chain * shape.T * shape.L * shape.D * passes
        inputs = shape.I
        for _ in range(shape.L):
            total += functions(self._limits, row, threads)
            peaks = self._peaks(threads) if shape.B > 1 else None
            total += product(self._limits, row, threads, shape.H, shape.T, peaks) * passes
            wanted = [("nn", wide, inputs)]
            if training:
                wanted += [("nn", inputs, wide), ("tn", wide, inputs), ("tn", wide, shape.H)]
            for kind, first, second in wanted:
                width = shape.H if (kind, second) == ("tn", shape.H) else inputs
                if rows == 1:  # of vectors
                    total += product(self._limits, row, threads, width)
                    continue
                rate = self._rate((matrix, threads, kind, first, second), rows)
                if rate is None:
                    return None
                total += 2.0 * rows * wide * width * shape.D / rate
            inputs = shape.D * shape.H
        return total

    def _peaks(self, threads: int) -> tuple[float, float] | None:
        """The fastest product that was measured, without and in a matrix unit."""
        found = [self._fastest.get((matrix, threads), 0.0) for matrix in (False, True)]
        return (found[0], found[1] if found[1] > found[0] else 0.0) if found[0] else None

    def _rate(self, key: tuple[bool, int, str, int, int], rows: float) -> float | None:
        """Operations a second of a product, of the number of rows that comes closest."""
        found = self._rates.get(key)
        if found is None:
            return None
        return min(found, key=lambda one: abs(math.log(one[0] / rows)))[1]
