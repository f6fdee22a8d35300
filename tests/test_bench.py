"""The bench package: its bookkeeping with an injected clock, and one small run from end to end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, command

sys.path.append(str(ROOT))  # at the end, so that an installed rnnfast stays the one in use

from bench import load, peers, problem, report, rows, shapes, timing


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
    assert 10e9 <= fake.now <= 10.2e9
    assert len(found["only"].rounds) == pytest.approx(10 / 0.18, abs=2)


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
    row = rows.row("lstm", TINY[0], "training", 1, ["torch"], 0)
    assert row["failed"].keys() == {"torch-wrong"}
    assert row["times_ms"].keys() == {"rnnfast"}
    assert row["rivals"][0]["ratios"] == {}
    [line] = [line for line in report.row_lines(row) if "FAILED" in line]
    assert "error of" in line
    assert report.means([row]) == []


def test_where_rnnfast_is_wrong_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "OURS", (Wrong("rnnfast"),))
    monkeypatch.setattr(peers, "THEIRS", ())
    row = rows.row("gru", TINY[0], "forward", 1, [], 0)
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
    path = tmp_path / "result.json"
    arguments = "--quick --shapes 5,2,8,8 --cells lstm gated --threads 1 --budget 0.01 --json"
    done = command([sys.executable, "-m", "bench", *arguments.split(), str(path)], timeout=120)
    assert done.returncode == 0, done.stderr
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


def test_wrong_arguments_are_refused() -> None:
    done = command([sys.executable, "-m", "bench", "--shapes", "huge"])
    assert done.returncode == 2
    assert "shapes: expected one of table" in done.stderr
