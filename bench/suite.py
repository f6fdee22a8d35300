"""What every subject of the command line shares: options, worker processes, the table, the JSON."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report
from .rows import Row

# Read by the thread pools of rnnfast, torch and NumPy when they start.
_POOLS = (
    "RNNFAST_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)


def _nothing(*_: Any) -> Any:
    return {}


@dataclass(frozen=True)
class Suite:
    """One subject: `python -m bench NAME` measures its rows, prints and saves them."""

    name: str
    about: str
    rows: Callable[[argparse.Namespace], Iterator[Row]]  # runs in a worker with options.worker
    header: Callable[[], list[str]]  # threads; of the JSON types, because rows cross processes
    lines: Callable[[Row], list[str]]
    arguments: Callable[[Any], None] = _nothing  # given parser.add_argument
    summary: Callable[[list[Row]], list[str]] = lambda rows: []
    more: Callable[[list[Row]], dict[str, Any]] = _nothing  # of the JSON document
    finish: Callable[[argparse.Namespace, dict[str, Any], Path], None] = _nothing
    budget: float = 1.0  # seconds for each row
    label: str = ""  # in the names of files, instead of the name
    epilog: str = ""

    def main(self, argv: list[str]) -> int:
        options = self._parse(argv)
        if options.worker:
            for found in self.rows(options):
                print(json.dumps(found), flush=True)
            return 0
        print(*self.header(), sep="\n", flush=True)
        folder = Path(tempfile.gettempdir()) if options.quick else report.RESULTS
        path = options.json or report.default_path(self.label or self.name, folder)
        arguments = {k: v for k, v in vars(options).items() if not isinstance(v, Path)}
        rows: list[Row] = []
        document = report.document(rows, arguments)

        def save() -> None:  # after every row, so that a run that is cut off leaves what it found
            report.write(document | self.more(rows), path)

        broken = False
        for threads in options.threads:
            broken |= self._spawn(argv, threads, rows, save) != 0
        print(*self.summary(rows), sep="\n")
        loaded = sum(found.get("loaded", False) for found in rows)
        if loaded:
            print(
                f"NOT MEASUREMENTS: {loaded} of {len(rows)} rows are LOADED, timed while other "
                f"processes used the cores. Ratios may be off a hundredfold; repeat when idle."
            )
        if options.quick:
            print("--quick is for seeing that it works: these numbers are not measurements.")
        save()
        print(f"saved to {path}")
        self.finish(options, document | self.more(rows), path)
        wrong = sum(bool(found.get("failed")) for found in rows)
        if wrong:
            print(f"{wrong} rows FAILED", file=sys.stderr)
        return int(broken or wrong > 0)

    def _parse(self, argv: list[str]) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            "python -m bench" + f" {self.name}" * (self.name != "table"),
            description=self.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=self.epilog,
        )
        add = parser.add_argument
        self.arguments(add)
        cores = os.cpu_count() or 1
        add("--threads", nargs="+", type=positive, default=sorted({1, min(2, cores)}), metavar="N")
        add("--budget", type=float, metavar="SECONDS", help="time for each row, checks apart")
        add(
            "--json",
            type=Path,
            metavar="PATH",
            help="default: a new file in bench/results, of --quick a temporary one",
        )
        add("--quick", action="store_true", help="small and few, to see that it works")
        add("--worker", type=int, help=argparse.SUPPRESS)
        options = parser.parse_args(argv)
        if options.budget is None:
            options.budget = 0.2 if options.quick else self.budget
        return options

    def _spawn(
        self, argv: list[str], threads: int, rows: list[Row], save: Callable[[], None]
    ) -> int:
        """Run the rows in a process of their own, whose pools start with this number of threads."""
        with subprocess.Popen(
            [sys.executable, "-m", "bench", self.name, *argv, "--worker", str(threads)],
            cwd=report.ROOT,
            env={**os.environ, **dict.fromkeys(_POOLS, str(threads))},
            stdout=subprocess.PIPE,
            text=True,
        ) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                rows.append(json.loads(line))
                save()
                print(*self.lines(rows[-1]), sep="\n", flush=True)
        if worker.returncode:
            print(
                f"the worker with {threads} threads ended with {worker.returncode}",
                file=sys.stderr,
            )
        return worker.returncode


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
