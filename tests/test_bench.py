"""The bench package: its bookkeeping with an injected clock, and one small run from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, command

sys.path.append(str(ROOT))  # at the end, so that an installed rnnfast stays the one in use

import rnnfast
from bench import __main__ as entry
from bench import (
    latency,
    limits,
    load,
    memory,
    page,
    page_adapters,
    peers,
    precision,
    problem,
    products,
    report,
    rows,
    shapes,
    streams,
    suite,
    targets,
    timing,
)
from bench.parts import Parts


class FakeTime:
    """A clock that moves only when someone works or sleeps."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.log.append("pause")
        self.now += round(seconds * 1e9)

    def work(self, name: str, *milliseconds: float) -> timing.Call:
        """A call that takes these times, in turns."""
        costs = self._forever(milliseconds)

        def call() -> None:
            self.log.append(name)
            self.now += round(next(costs) * 1e6)

        return call

    @staticmethod
    def _forever(values: tuple[float, ...]) -> Iterator[float]:
        while True:
            yield from values

    def interleave(self, budget: float, **calls: timing.Call) -> dict[str, timing.Timing]:
        return timing.interleave(calls, budget, clock=self.clock, sleep=self.sleep)


def test_rounds_have_a_block_of_each_with_a_pause_and_a_warm_up() -> None:
    fake = FakeTime()
    found = fake.interleave(0, slow=fake.work("slow", 20), fast=fake.work("fast", 5))
    assert [len(r) for r in found["slow"].rounds] == [1] * timing.MIN_ROUNDS
    assert [len(r) for r in found["fast"].rounds] == [2] * timing.MIN_ROUNDS
    assert found["fast"].calls() == 2 * timing.MIN_ROUNDS
    blocks = " ".join(fake.log[4:]).split("pause ")[1:]  # after warming up and estimating
    assert {block.strip() for block in blocks} == {"slow slow", "fast fast fast"}
    assert len(blocks) == 2 * timing.MIN_ROUNDS
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    assert all(a.strip() != b.strip() for a, b in pairs)


def test_the_budget_ends_it() -> None:
    fake = FakeTime()
    found = fake.interleave(10, only=fake.work("only", 80))
    assert 10e9 <= fake.now <= 10.25e9
    assert len(found["only"].rounds) == pytest.approx(10 / (timing.PAUSE + 2 * 0.08), abs=2)


@pytest.mark.parametrize("patience", [0.0, 5.0])
def test_blocks_are_done_again_where_the_machine_was_not_ready(
    monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Until patience has an end."""
    monkeypatch.setattr(timing, "PATIENCE", patience)
    fake, looks = FakeTime(), iter([True, False, False, *[True] * 100])
    found = timing.interleave(
        {"only": fake.work("only", 80)},
        1,
        ready=lambda: next(looks),
        clock=fake.clock,
        sleep=fake.sleep,
    )
    again = 2 if patience else 0
    assert found["only"].unready == 2 - again
    assert fake.log.count("pause") == len(found["only"].rounds) + again
    counted = fake.now - again * (timing.PAUSE + 2 * 0.08) * 1e9
    assert 1e9 <= counted <= 1.3e9  # the budget goes into blocks that count


def test_threads_that_share_a_core() -> None:
    """They are slow together; one thread has its core always."""
    before = rnnfast.get_num_threads()
    try:
        rnnfast.set_num_threads(1)
        assert load.Cores().are_there()
        rnnfast.set_num_threads(2)
        cores = load.Cores()
        for together, there in ((0.9, False), (0.6, True)):
            times = {1: 1.0, 2: together}
            cores._best = times.__getitem__  # type: ignore[method-assign]
            assert cores.are_there() is there
    finally:
        rnnfast.set_num_threads(before)


def test_medians_quartiles_and_ratios_are_taken_within_rounds() -> None:
    slow = timing.Timing([[40, 44, 48], [400, 400], [60]])
    fast = timing.Timing([[11], [100], [20, 20, 500]])  # the second round was slow for both
    assert slow.over(fast) == timing.Spread(4, 3.5, 4)
    assert fast.milliseconds().median == 20e-6
    assert timing.Spread.of([3]) == (3, 3, 3)


def test_order_is_shuffled_but_repeatable() -> None:
    logs = []
    for _ in range(2):
        fake = FakeTime()
        fake.interleave(3, a=fake.work("a", 20), b=fake.work("b", 20), c=fake.work("c", 20))
        logs.append(fake.log)
    assert logs[0] == logs[1]
    firsts = {logs[0][k + 1] for k in range(6, len(logs[0]), 9)}
    assert firsts == {"a", "b", "c"}


def test_what_other_processes_used(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = iter([(0.0, 100.0, 5.0), (10.0, 118.0, 15.0)])
    monkeypatch.setattr(load, "_snapshot", lambda: next(snapshots))
    assert load.Load().others() == pytest.approx(0.8)
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    assert [load.is_loaded(cores) for cores in (None, 0.05, 0.8)] == [False, False, True]


def test_shapes_are_found_by_every_kind_of_name() -> None:
    assert shapes.select(["table"]) == list(shapes.TABLE)
    assert shapes.select(["0", "streaming"])[0] == shapes.TABLE[0]
    assert len(shapes.select(["all", "table", "3"])) == len(shapes.ALL) == len(set(shapes.ALL))
    assert shapes.select(["3,2,5,8"]) == [shapes.Shape("custom", 3, 2, 5, 8)]
    for wrong in ("huge", "99", "1,2,3", "0,1,1,1", "a,b,c,d", "-1"):
        with pytest.raises(ValueError, match="shapes: expected"):
            shapes.select([wrong])


TINY = [
    shapes.Shape("custom", 1, 3, 5, 8),  # a stream: has states
    shapes.Shape("custom", 6, 3, 5, 8),
    shapes.Shape("custom", 6, 3, 5, 8, L=2, D=2),
    shapes.Shape("custom", 9, 4, 5, 8, L=2, ragged=True),
]


@pytest.mark.parametrize("mode", problem.MODES)
@pytest.mark.parametrize("shape", TINY, ids=str)
@pytest.mark.parametrize("cell", problem.CELLS)
@pytest.mark.parametrize("peer", peers.THEIRS, ids=lambda peer: peer.name)
def test_peers_compute_what_the_reference_does(
    peer: peers.Peer, cell: str, shape: shapes.Shape, mode: problem.Mode
) -> None:
    if not peer.supports(problem.CELLS[cell], shape, mode):
        return
    for module in peer.needs:
        pytest.importorskip(module)
    inputs = problem.draw(problem.CELLS[cell], shape, mode)
    contender = peer.make(inputs, threads=1)
    found = problem.errors(inputs, contender.results(contender.run()))
    assert max(found.values()) <= problem.tolerance(shape), found


class Wrong(peers.Rnnfast):
    """rnnfast with one number off by a thousandth, or a gradient left out."""

    def __init__(self, name: str, lose: str = "") -> None:
        self.name, self.lose = name, lose

    def make(self, problem: problem.Problem, threads: int) -> peers.Contender:
        right = super().make(problem, threads)

        def results(got: Any) -> dict[str, Any]:
            found = right.results(got)
            if self.lose:
                del found[self.lose]
            else:
                y = found["y"] = found["y"].copy()
                y.flat[np.abs(y).argmax()] *= 1.001
            return found

        return peers.Contender(right.run, results)


@pytest.mark.parametrize("wrong", [Wrong("torch-wrong"), Wrong("torch-wrong", lose="dx")])
def test_a_wrong_peer_fails_and_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, wrong: peers.Peer
) -> None:
    monkeypatch.setattr(peers, "THEIRS", (wrong,))
    row = rows.row("lstm", TINY[1], "training", 1, ["torch"], 0)
    assert row["failed"].keys() == {"torch-wrong"}
    assert row["times_ms"].keys() == {"rnnfast"}
    assert row["rivals"][0]["ratios"] == {}
    [line] = [line for line in report.row_lines(row) if "FAILED" in line]
    assert "error of" in line
    assert report.means([row]) == []


@pytest.mark.parametrize("steps", [1, 2])
def test_a_single_step_is_timed_in_turns_with_reading(steps: int) -> None:
    step = shapes.Shape("custom", steps, 1, 8, 8)
    who = [peers.RnnfastPacked()], [peers.Rnnfast()]
    row = rows.row("lstm", step, "forward", 1, ["rnnfast"], 0.01, who)
    assert (rows.READING in row["times_ms"]) == (steps == 1)
    assert ("at_reading" in row["rivals"][0]) == (steps == 1)


def test_where_rnnfast_is_wrong_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "OURS", (Wrong("rnnfast"),))
    monkeypatch.setattr(peers, "THEIRS", ())
    row = rows.row("gru", TINY[1], "forward", 1, [], 0)
    assert row["failed"].keys() == {"rnnfast"}
    assert row["times_ms"] == {}
    assert "FAILED" in report.row_lines(row)[0]


def made_up(ratio: float, *, packed: float, in_table: bool, loaded: bool = False) -> rows.Row:
    spreads = {
        name: {"median": r, "q1": r, "q3": r}
        for name, r in (("rnnfast", ratio), ("rnnfast-packed", packed))
    }
    return {
        "threads": 1,
        "mode": "forward",
        "cell": "lstm",
        "name": "1,1,8,8",
        "shape": {"kind": "custom"},
        "in_table": in_table,
        "loaded": loaded,
        "failed": {},
        "times_ms": {n: {"median": 1.0} for n in ("rnnfast", "rnnfast-packed", "onnxruntime")},
        "rivals": [{"peer": "onnxruntime", "against": "rnnfast-packed", "ratios": spreads}],
    }


def test_means_and_marks() -> None:
    found = [
        made_up(2, packed=4, in_table=True),
        made_up(0.5, packed=1, in_table=True, loaded=True),
        made_up(2, packed=0.25, in_table=False),
    ]
    everything, table = report.means(found)
    assert (table["rows"], table["count"], table["slower"], table["loaded"]) == ("table", 2, 0, 1)
    assert table["ratios"] == pytest.approx({"rnnfast": 1, "rnnfast-packed": 2})
    assert (everything["rows"], everything["count"], everything["slower"]) == ("all", 3, 1)
    assert everything["ratios"]["rnnfast-packed"] == pytest.approx(1)
    marks = [report.row_lines(row)[0].split("|")[-2].strip() for row in found]
    assert marks == ["", "LOADED", "SLOWER"]


def test_a_quick_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "made-up-bench.json"
    arguments = "--quick --shapes 5,2,8,8 --cells lstm gated --threads 1 --budget 0.01 --json"
    done = command([sys.executable, "-m", "bench", *arguments.split(), str(path)], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "these numbers are not measurements" in done.stdout
    saved = json.loads(path.read_text())
    assert len(saved["rows"]) == 4
    assert {"date", "cpu", "cores", "commit", "versions", "config", "means"} <= saved.keys()
    for row in saved["rows"]:
        assert row["failed"] == {}
        assert row["times_ms"]["rnnfast"]["rounds"] >= timing.MIN_ROUNDS
        spread = row["times_ms"]["rnnfast"]
        assert 0 < spread["q1"] <= spread["median"] <= spread["q3"]
        assert all(rival["ratios"].keys() <= row["times_ms"].keys() for rival in row["rivals"])
        assert f"| {row['cell']} " in done.stdout
    assert str(ROOT) not in json.dumps(saved)
    text = written_page(tmp_path)
    assert "| gated | 5, 2, 8, 8 | small |" in text
    assert "targets are met" in text


def test_a_run_that_is_cut_off_leaves_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(self: Any, argv: Any, threads: int, rows: list[Any], save: Any) -> int:
        for k in range(2):
            rows.append({"row": k})
            save()
        raise KeyboardInterrupt

    monkeypatch.setattr(suite.Suite, "_spawn", spawn)
    cut = suite.Suite("cut", "", lambda options: iter(()), list, lambda row: [])
    path = tmp_path / "cut.json"
    with pytest.raises(KeyboardInterrupt):
        cut.main(["--threads", "1", "--json", str(path)])
    assert json.loads(path.read_text())["rows"] == [{"row": 0}, {"row": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_tells_of_adapters() -> None:
    row = {"cell": "gru", "name": "1,1,8,8", "mode": "forward", "loaded": False}
    timed = [
        {**row, "threads": threads, "ratio": {"median": ratio}, "loaded": threads == 2}
        for threads, ratio in ((2, 0.5), (1, 12.4))
    ]
    text = page_adapters.write("torch", {"rows": timed})
    assert "With 1 / 2 threads." in text
    assert "| gru | 1, 1, 8, 8 | 12 / **0.50**† |" in text
    assert "| geometric mean |  | 2.49 |" in text
    ratios = {"numba / native": {"median": 1.6}, "torch / numba": {"median": 0.9}}
    compiling = {"cache": "empty", "seconds": {}}
    text = page_adapters.write(
        "numba", {"rows": [compiling, {**row, "threads": 1, "ratios": ratios}]}
    )
    assert "| gru | 1, 1, 8, 8 | **1.60** | **0.90** |" in text


def test_wrong_arguments_are_refused() -> None:
    done = command([sys.executable, "-m", "bench", "--shapes", "huge"])
    assert done.returncode == 2
    assert "shapes: expected one of table" in done.stderr
    done = command([sys.executable, "-m", "bench", "nonsense"])
    assert done.returncode == 2


def written_page(results: Path) -> str:
    """docs/performance.md from the results in a folder; its pictures are there."""
    pytest.importorskip("matplotlib")
    docs = results / "docs"
    docs.mkdir()
    (docs / f"{page.NAME}_notes.md").write_text("A note | verbatim.\n")
    assert page.main(["--results", str(results), "--docs", str(docs)]) == 0
    text = (docs / "performance.md").read_text()
    pictures = {line.partition("(")[2].rstrip(")") for line in text.splitlines() if "![" in line}
    assert all((docs / picture).read_text().startswith("<?xml") for picture in pictures)
    assert "Not measured yet." in text
    return text


def test_a_quick_run_of_a_subject(tmp_path: Path) -> None:
    path = tmp_path / "made-up-latency.json"
    arguments = "latency --quick --sizes 8 16 --cells rnn --threads 1 --budget 0.01 --json"
    done = command([sys.executable, "-m", "bench", *arguments.split(), str(path)], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "these numbers are not measurements" in done.stdout
    saved = json.loads(path.read_text())
    for row in saved["rows"]:
        assert {"rnnfast", "kernel", "nothing"} <= row["times_us"].keys()
        assert all(time["median"] <= time["p99"] for time in row["times_us"].values())
    assert "| rnn | 8 | 1 |" in written_page(tmp_path)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("name", streams.OURS | streams.THEIRS)
def test_streams_carry_the_state(name: str, cell: str) -> None:
    if name in streams.THEIRS:
        pytest.importorskip(name.partition("-")[0])
    inputs = problem.draw(problem.CELLS[cell], shapes.Shape("custom", 1, 1, 12, 12), "forward")
    try:
        latency._checked((streams.OURS | streams.THEIRS)[name], inputs, 1)
    finally:
        if name == "torch":
            pytest.importorskip("torch").set_grad_enabled(True)


def test_the_faster_way_of_a_peer_counts() -> None:
    times = {"onnxruntime": {"median": 5.0}, "onnxruntime-bound": {"median": 4.0}}
    ratios = {
        "onnxruntime": {"rnnfast": {"median": 2.5}},
        "onnxruntime-bound": {"rnnfast": {"median": 2.0}, "rnnfast-out": {"median": 4.0}},
    }
    row = {"times_us": times, "ratios": ratios}
    assert latency.best(row, "onnxruntime") == "onnxruntime-bound"
    assert latency.ratio(row, "onnxruntime") == 4
    assert latency.ratio(row, "numba") is None


def test_parts_of_a_row() -> None:
    """A sum of what was measured: products, steps, meetings and the call."""
    common = {"fma_gflops": 1e3, "function_ns": {"sigmoid": 0.5, "tanh": 0.25}}
    one = common | {"threads": 1, "read": [[1024, 60.0]], "barrier_ns": None}
    one |= {"step_ns": {"gru": 50.0}, "call_us": {"forward": 1.0, "training": 9.0, "reading": 0.25}}
    two = common | {"threads": 2, "read": [[1024, 120.0]], "barrier_ns": 1.0}
    sizes = {"nn 7,24,4": 4.0, "nn 9,24,4": 99.0, "nn 7,4,24": 3.0, "tn 24,4,7": 2.0}
    sizes |= {"tn 24,8,7": 1.0}
    rates = [
        {"threads": n, "name": name, "gflops": {"a": {"median": 0.1}, "b": {"median": n * rate}}}
        for name, rate in sizes.items()
        for n in (1, 2)
    ]
    measured = Parts(limits.Limits([one, two]), rates)
    forward = row_of("gru", "forward", 7, 1, 4, 8)
    # 24 * 8 recurrent numbers at each of 7 steps, 8 units of two sigmoids and a tanh.
    steps, of_units, reading = 7 * 50e-9, 7 * 8 * 1.25e-9, 7 * 4 * 24 * 8 / 60e9
    by_x = 2 * 7 * 24 * 4 / 4e9
    alone = steps + of_units + reading + by_x + 1e-6

    def seconds(row: rows.Row) -> Any:
        return measured.seconds(row, {})

    assert seconds(forward | {"threads": 1}) == pytest.approx(alone)
    meetings = 3 * 7 * 1e-9
    divided = steps + (of_units + reading + by_x) / 2 + meetings + 1e-6
    assert seconds(forward) == pytest.approx(divided)
    assert seconds(forward | {"meeting_ns": 1e6}) == pytest.approx(alone)
    back = 2 * 7 * 24 * (4 / 3e9 + 4 / 2e9 + 8 / 1e9)
    training = 2 * steps + of_units + 2 * reading + by_x + back + 9e-6
    row = row_of("gru", "training", 7, 1, 4, 8) | {"threads": 1}
    assert seconds(row) == pytest.approx(training)
    # Rows are divided without a meeting; a product that was not measured leaves no limit.
    batch = row_of("gru", "forward", 7, 3, 4, 8)
    rate = 2 * 99e9
    wanted = 3 * of_units / 2 + 7 * 4 * 24 * 8 / 120e9 + 2 * 21 * 24 * 4 / rate + 1e-6
    assert seconds(batch) == pytest.approx(wanted)
    # Nor are the products of steps faster than the fastest that was measured.
    many = row_of("gru", "forward", 7, 30, 4, 8)
    wanted = 30 * of_units / 2 + (2 * 210 * 24 * 8 + 2 * 210 * 24 * 4) / rate + 1e-6
    assert seconds(many) == pytest.approx(wanted)
    assert seconds(row_of("gru", "forward", 7, 1, 5, 8)) is None
    assert Parts(limits.Limits([common | two]), rates).seconds(forward, {}) is None
    # The weights of a single step are read as they were in the rounds with a rival.
    step = row_of("gru", "forward", 1, 1, 4, 8) | {"times_ms": {"torch": {"median": 0.3}}}
    rival = {"peer": "torch", "at_reading": {"median": 100.0}}
    wanted = 3e-6 + (1 - 0.25) * 1e-6 + 8 * 1.25e-9
    assert measured.seconds(step | {"threads": 1}, rival) == pytest.approx(wanted)
    wanted += 3e-9 - 8 * 1.25e-9 / 2
    assert measured.seconds(step, rival) == pytest.approx(wanted)
    assert limits.at_limit(limits.Limits([one, two]), step, rival) == 100


def row_of(cell: str, mode: str, *sizes: int, **how: Any) -> rows.Row:
    shape = vars(shapes.Shape("custom", *sizes, **how))
    return {"cell": cell, "mode": mode, "shape": shape, "threads": 2}


def test_limits_of_a_row() -> None:
    read = [[1024, 100.0], [4096, 50.0]]
    machine = limits.Limits([{"threads": 2, "fma_gflops": 10.0, "read": read}])
    rates = [machine.bandwidth(2, size) / 1e9 for size in (1, 1024, 2048, 4096, 1 << 30)]
    assert rates == pytest.approx([100, 100, 75, 50, 50])
    row = row_of("gru", "training", 7, 5, 4, 8)
    assert limits.work(row) == 3 * 2 * 7 * 5 * 24 * (4 + 8)
    assert limits.traffic(row) == 2 * 4 * 24 * (7 * 8 + 4)
    assert limits.working_set(row) == 4 * 24 * 8
    assert limits.working_set(row_of("gru", "forward", 1, 1, 4, 8)) == 4 * 24 * 12
    assert limits.work(row_of("rnn", "forward", 2, 1, 4, 8, L=2, D=2)) == 2 * 2 * 16 * (12 + 24)
    calculating, reading = limits.bounds(machine, row)
    assert calculating == pytest.approx(limits.work(row) / 10e9)
    assert reading == pytest.approx(limits.traffic(row) / 100e9)
    # 24 * 4 inputs and 24 * 8 recurrent numbers, of each three products of 35 rows.
    assert limits.in_turn(machine, row) == pytest.approx(3 * 2 * 35 * 24 * (4 + 8) / 10e9)
    row = row_of("gru", "training", 7, 1, 4, 8)
    machine = limits.Limits([{"threads": 2, "fma_gflops": 1e3, "read": read}])
    numbers = 3 * 24 * 4 + (2 * 7 + 1) * 24 * 8  # read: inputs at once, recurrent ones a step
    assert limits.in_turn(machine, row) == pytest.approx(4 * numbers / 100e9)
    # Two sigmoids and a tanh for each of 7 * 8 units, divided; a barrier a step, forward and back;
    # or all of it on one thread, where that is less.
    ns = {"sigmoid": 0.5, "tanh": 0.25}
    two = {"threads": 2, "fma_gflops": 1e3, "read": read, "function_ns": ns, "barrier_ns": 1.0}
    one = two | {"threads": 1, "read": [[1024, 60.0], [4096, 30.0]]}
    seconds = 4 * numbers / 100e9 + 7 * 8 * 1.25e-9 / 2
    together = limits.Limits([one, two])
    assert limits.in_turn(together, row) == pytest.approx(seconds + 2 * 7 * 1e-9)
    far = limits.Limits([one, two | {"barrier_ns": 1e6}])
    alone = limits.in_turn(far, row | {"threads": 1})
    assert limits.in_turn(far, row) == alone == pytest.approx(4 * numbers / 60e9 + 7 * 8 * 1.25e-9)
    # Where a row tells how long its threads took to meet, that counts, and may be far too long.
    assert limits.in_turn(together, row | {"meeting_ns": 1e6}) == alone
    assert [together.are_apart(row | {"meeting_ns": ns}) for ns in (2, 3, None)] == [
        False,
        True,
        False,
    ]
    assert not together.are_apart(row | {"threads": 1, "meeting_ns": None})


def test_limits_of_products_in_a_matrix_unit() -> None:
    """It has place for whole sixteens of rows, and reads 6 bytes for 4; the faster way counts."""
    x, h = 7 * 20 * 24 * 4 * 2, 7 * 20 * 24 * 8 * 2  # operations

    def seconds(rate: float, matrix: float, rows: int = 20) -> float:
        machine = {"threads": 2, "fma_gflops": 10.0, "matrix_gflops": matrix, "read": [[1, rate]]}
        row = row_of("gru", "forward", 7, rows, 4, 8)
        return limits.in_turn(limits.Limits([machine]), row)

    assert seconds(1e6, 0.0) == pytest.approx((x + h) / 10e9)
    assert seconds(1e6, 40.0) == pytest.approx((x * 144 / 140 + h * 32 / 20) / 40e9)
    # Where memory is the limit, numbers are read sooner than their parts.
    slow = 0.5 * h / 10e9 / (7 * 24 * 8 * 4)  # seconds a byte
    of_steps = min(h / 10e9, 7 * 24 * 8 * 6 * slow)
    assert seconds(1e-9 / slow, 40.0) == pytest.approx(x * 144 / 140 / 40e9 + of_steps)
    fewer = 7 * 15 * 24 * (4 * 2 * 112 / 105 / 40e9 + 8 * 2 / 10e9)
    assert seconds(1e6, 40.0, rows=15) == pytest.approx(fewer)


@pytest.mark.usefixtures("same_threads")
def test_threads_meet() -> None:
    rnnfast.set_num_threads(1)
    assert load.meeting_ns() is None
    rnnfast.set_num_threads(2)
    assert (load.meeting_ns() or 0) > 0


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler: 'no-such-compiler'"):
        limits.compiled(tmp_path)


def test_every_shape_of_the_table_has_the_targets_of_its_class() -> None:
    assert [targets.kind(shape) for shape in shapes.TABLE] == [s.kind for s in shapes.TABLE]
    assert targets.target(row_of("lstm", "forward", 100, 1, 32, 32), "torch") == 5
    assert targets.target(row_of("rnn", "training", 100, 1, 32, 32), "torch") == 10
    assert targets.target(row_of("lstm", "training", 1, 1, 256, 256), "torch") is None
    assert targets.target(row_of("lstm", "forward", 1, 1, 256, 256), "onnxruntime") == 2.5
    both_ways = row_of("lstm", "forward", 128, 64, 512, 512, D=2)
    assert targets.target(both_ways, "torch") == pytest.approx(1.2 * 1.3)
    assert targets.target(row_of("gru", "forward", 50, 16, 8, 8, ragged=True), "torch-packed") == 8


def test_a_stream_is_held_to_its_target_with_packed_weights() -> None:
    ratios = {"rnnfast": {"median": 2.0}, "rnnfast-packed": {"median": 12.0}}
    rival = {"peer": "torch", "against": "rnnfast", "ratios": ratios}
    assert targets.reached(row_of("lstm", "forward", 1, 1, 256, 256), rival) == (12, 10)
    assert targets.reached(row_of("lstm", "forward", 100, 1, 256, 256), rival) == (2, 2)
    assert targets.reached(row_of("lstm", "forward", 1, 1, 8, 8), rival | {"ratios": {}}) is None


def test_products_of_a_training_step() -> None:
    found = products.products(4, shapes.Shape("custom", 5, 3, 2, 8))
    names = ["nn 15,32,2", "tn 32,2,15", "nn 15,2,32", "tn 32,8,15"]
    assert [str(product) for product in found] == names
    assert [product.flops() for product in found] == [2 * 15 * 32 * 2] * 3 + [2 * 15 * 32 * 8]
    deep = products.products(1, shapes.Shape("custom", 5, 3, 2, 8, L=2, D=2))
    assert {"nn 15,8,2", "nn 15,8,16", "tn 8,16,15", "nn 15,16,8"} < set(map(str, deep))
    for product, use in found.items():
        row = products.measured(product, use, 1, 0)
        assert row["failed"] == {}
        assert row["gflops"]["numpy"]["q1"] <= row["gflops"]["numpy"]["median"]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_precisions_are_measured(cell: str) -> None:
    row = precision.measured(cell, shapes.Shape("custom", 6, 3, 16, 16), 1, 0)
    assert row["failed"] == {}
    assert row["errors"].keys() == row["times_ms"].keys()
    assert row["errors"]["rnnfast-float32"]["rms"] < 1e-6
    y = np.array([3.0, 4.0])
    assert precision.errors(y, y + 5) == pytest.approx({"max": 5, "rms": 5 / 72.5**0.5})


@pytest.mark.parametrize("way", memory.WAYS)
def test_ways_of_training_have_the_same_gradients(way: str) -> None:
    if way.startswith("torch"):
        pytest.importorskip("torch")
    shape = shapes.Shape("custom", 210, 2, 8, 8)
    step = memory.WAYS[way](problem.draw(problem.CELLS["gru"], shape, "training"))
    inputs = problem.draw(problem.CELLS["gru"], shape, "training")
    gradients = step(inputs.x, inputs.dy)
    y = problem.truth(inputs.spec, shape, "training")["y"]
    found = problem.errors(inputs, problem.named(y, (), gradients))
    assert max(found.values()) <= problem.tolerance(shape), found


def test_memory_is_counted_in_numbers_a_row_and_step() -> None:
    row = row_of("lstm", "training", 10, 2, 8, 8, L=2) | {"peak_bytes": 4 * 10 * 2 * 8 * 2 * 6}
    assert memory.numbers(row) == 6


def test_sizes_for_people_and_the_newest_document(tmp_path: Path) -> None:
    assert [report.size(b) for b in (0, 512, 1536, 3 << 20, 5 << 40)] == [
        "0 B",
        "512 B",
        "1.5 KiB",
        "3 MiB",
        "5120 GiB",
    ]
    assert report.newest("limits", tmp_path) is None
    for date, cpu in (
        ("2026-01-02", "One 7"),
        ("2026-01-01", "Other 7"),
        ("2026-01-03", "Other 8"),
    ):
        (tmp_path / f"{date}-limits.json").write_text(json.dumps({"date": date, "cpu": cpu}))
    (tmp_path / "2026-01-04-bench.json").write_text("{}")
    assert report.newest("limits", tmp_path) == {"date": "2026-01-03", "cpu": "Other 8"}
    found = [
        report.newest("limits", tmp_path, lambda cpu, part=part: part in cpu)
        for part in ("One", "Other 7", "7", "None")
    ]
    assert [d and d["date"] for d in found] == ["2026-01-02", "2026-01-01", "2026-01-02", None]


def test_everything_runs_every_subject_then_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        ran.append(command[3:])
        return subprocess.CompletedProcess(command, returncode=int(command[3] == "memory"))

    monkeypatch.setattr(entry.subprocess, "run", run)
    assert entry.main(["everything", "--budget", "2"]) == 1
    assert capsys.readouterr().err == "failed: memory\n"
    assert [words[0] for words in ran] == [*entry.SUBJECTS, "page"]
    assert ran[1] == ["table", "--budget", "2", "--shapes", "all"]
    assert ran[-1] == ["page"]
    ran.clear()
    entry.main(["everything", "--quick"])
    assert ran == [[name, "--quick"] for name in entry.SUBJECTS]


def test_a_page_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 1
    assert "no results" in capsys.readouterr().err
