"""One row: draw the inputs, check everyone's results, then time those that are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from . import peers
from .load import Cores, Load, is_loaded, meeting_ns
from .problem import CELLS, Mode, Problem, draw, errors, tolerance
from .shapes import TABLE, Shape
from .timing import Call, Timing, interleave

READING = "reading"  # of as many numbers as a single step has weights
Row = dict[str, Any]  # see README.md; of JSON's types, because it crosses processes


def row(
    cell: str,
    shape: Shape,
    mode: Mode,
    threads: int,
    families: Iterable[str],
    budget: float,
    contenders: tuple[Sequence[peers.Peer], Sequence[peers.Peer]] | None = None,
) -> Row:
    """Compare rnnfast with every peer of these families that can do it and is installed.

    `contenders` are ours and theirs, by default those of `peers`.
    """
    of_us, others = contenders or (peers.OURS, peers.THEIRS)
    spec = CELLS[cell]
    problem = draw(spec, shape, mode)
    calls: dict[str, Call] = {}
    failed: dict[str, str] = {}
    rivals = []
    for peer in (*of_us, *others):
        ours = peer in of_us
        wanted = ours or peer.name.partition("-")[0] in families
        if not wanted or not peer.supports(spec, shape, mode) or peers.missing(peer):
            continue
        if not ours:
            rivals.append(peer)
        outcome = checked(peer, problem, threads)
        if isinstance(outcome, str):
            failed[peer.name] = outcome
        else:
            calls[peer.name] = outcome
    own = [peer.name for peer in of_us if peer.supports(spec, shape, mode)]
    if shape.T == 1 and mode == "forward":
        calls[READING] = peers.reading(problem)
    timings, load = timed({} if failed.keys() & own else calls, budget)
    return {
        "threads": threads,
        "mode": mode,
        "cell": cell,
        "shape": dataclasses.asdict(shape),
        "name": str(shape),
        "in_table": shape in TABLE,
        **load,
        "failed": failed,
        "times_ms": {
            name: {**t.milliseconds()._asdict(), "rounds": len(t.rounds), "calls": t.calls()}
            for name, t in timings.items()
        },
        "rivals": [
            {
                "peer": peer.name,
                "against": own[-1] if peer.prepacked else own[0],
                "ratios": {
                    name: timings[peer.name].over(timings[name])._asdict()
                    for name in own
                    if peer.name in timings
                },
                **_at_reading(timings, peer.name),
            }
            for peer in rivals
        ],
    }


def _at_reading(timings: dict[str, Timing], peer: str) -> dict[str, Any]:
    """The ratio of a program that only reads the weights."""
    if READING not in timings or peer not in timings:
        return {}
    return {"at_reading": timings[peer].over(timings[READING])._asdict()}


def timed(calls: dict[str, Call], budget: float) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Time them in turns, and tell what other processes used and what the threads had.

    That is how far apart they were, and the share of blocks in which they had only one core.
    """
    load, cores = Load(), Cores()
    met = [meeting_ns()]
    timings = interleave(calls, budget, ready=cores.are_there) if calls else {}
    others = load.others() if calls else None
    met.append(meeting_ns())
    apart = max((ns for ns in met if ns is not None), default=None)
    blocks = sum(len(timing.rounds) for timing in timings.values())
    return timings, {
        "other_cores": others,
        "loaded": is_loaded(others),
        "meeting_ns": apart,
        "one_core": sum(t.unready for t in timings.values()) / blocks if blocks else 0.0,
    }


def said(error: Exception) -> str:
    """Its kind and first line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def checked(peer: peers.Peer, problem: Problem, threads: int) -> Call | str:
    """The call to time, or why it may not be."""
    try:
        contender = peer.make(problem, threads)
        found = errors(problem, contender.results(contender.run()))
    except Exception as error:
        return said(error)
    worst = max(found, key=found.__getitem__)
    allowed = tolerance(problem.shape)
    if found[worst] <= allowed:
        return contender.run
    return f"error of {worst} {found[worst]:.2g}, above {allowed:.2g}"
