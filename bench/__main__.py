"""python -m bench: rnnfast beside PyTorch and ONNX Runtime, as a table of ratios."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import peers, report, shapes
from .problem import CELLS, DEFAULT_CELLS, MODES
from .rows import Row, row

# Read by the thread pools of rnnfast, torch and NumPy when they start.
_POOLS = (
    "RNNFAST_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)


def main(argv: list[str]) -> int:
    options = _parse(argv)
    if options.worker:
        for found in _rows(options):
            print(json.dumps(found), flush=True)
        return 0
    for peer in peers.THEIRS:
        for module in peers.missing(peer):
            print(f"{peer.name}: left out, because {module} is not installed")
    print(*report.row_header(), sep="\n", flush=True)
    rows: list[Row] = []
    broken = False
    for threads in options.threads:
        broken |= _spawn(argv, threads, rows) != 0
    print("", *report.mean_lines(rows), sep="\n")
    print(
        "\nratio: time of the peer / time of rnnfast; above 1 rnnfast is faster. float32, medians."
    )
    loaded = sum(found["loaded"] for found in rows)
    if loaded:
        print(
            f"NOT MEASUREMENTS: {loaded} of {len(rows)} rows are LOADED, timed while other "
            f"processes used the cores. Ratios may be off a hundredfold; repeat when it is idle."
        )
    if options.quick:
        print("--quick is for seeing that it works: these numbers are not measurements.")
    path = options.json or report.default_path("quick" if options.quick else "bench")
    arguments = {name: value for name, value in vars(options).items() if name != "json"}
    path.write_text(json.dumps(report.document(rows, arguments), indent=1) + "\n")
    print(f"saved to {path}")
    wrong = sum(bool(found["failed"]) for found in rows)
    if wrong:
        print(f"{wrong} rows FAILED", file=sys.stderr)
    return int(broken or wrong > 0)


def _parse(argv: list[str]) -> argparse.Namespace:
    listing = [f"  {k:>2}  {shape.kind:<14}{shape}" for k, shape in enumerate(shapes.ALL)]
    parser = argparse.ArgumentParser(
        "python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="shapes by index, class and T,B,I,H:\n" + "\n".join(listing),
    )
    cores = os.cpu_count() or 1
    add = parser.add_argument
    add("--cells", nargs="+", choices=CELLS, default=DEFAULT_CELLS)
    add("--shapes", nargs="+", help="table, extra, all, quick, a class, an index, or T,B,I,H")
    add("--threads", nargs="+", type=_positive, default=sorted({1, min(2, cores)}), metavar="N")
    add("--modes", nargs="+", choices=MODES, default=MODES)
    add("--peers", nargs="+", choices=peers.FAMILIES, default=peers.FAMILIES)
    add("--budget", type=float, metavar="SECONDS", help="time for each row, checks apart")
    add("--json", type=Path, metavar="PATH", help="default: a new file in bench/results")
    add("--quick", action="store_true", help="small shapes and few rounds, to see that it works")
    add("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.shapes is None:
        options.shapes = ["quick" if options.quick else "table"]
    if options.budget is None:
        options.budget = 0.2 if options.quick else 8.0
    try:
        shapes.select(options.shapes)
    except ValueError as error:
        parser.error(str(error))
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    for cell in options.cells:
        for shape in shapes.select(options.shapes):
            for mode in options.modes:
                yield row(cell, shape, mode, options.worker, options.peers, options.budget)


def _spawn(argv: list[str], threads: int, rows: list[Row]) -> int:
    """Run the rows in a process of their own, whose pools start with this number of threads."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *argv, "--worker", str(threads)],
        cwd=report.ROOT,
        env={**os.environ, **dict.fromkeys(_POOLS, str(threads))},
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            rows.append(json.loads(line))
            print(*report.row_lines(rows[-1]), sep="\n", flush=True)
    if worker.returncode:
        print(f"the worker with {threads} threads ended with {worker.returncode}", file=sys.stderr)
    return worker.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
