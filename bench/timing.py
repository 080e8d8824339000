"""Time contenders in alternation, so that a change of the clock or a busy neighbour affects all of them alike."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

OURS, PEER, LIMIT, OTHER = "ours", "peer", "limit", "other"

#: Calls that take fewer seconds are timed several at a time, after an untimed call that fills the caches.
SHORTEST = 2e-3


@dataclass(frozen=True)
class Bar:
    """The bar that judges a ratio; the functions below make bars of each ``kind``."""

    kind: str
    value: float
    unit: str = "x"

    def __str__(self) -> str:
        sign = ">=" if self.kind in ("faster", "share") else "<="
        return f"{sign} {self.value * (100 if self.kind == 'share' else 1):g}{self.unit}"

    def met(self, ours: float, other: float) -> bool:
        """Return whether two medians meet the bar."""
        return {
            "faster": other / ours >= self.value,
            "within": ours / other <= self.value,
            "share": other / ours >= self.value,
            "at_most": ours <= self.value,
        }[self.kind]


def faster(value: float) -> Bar:
    """Return the bar: the peer takes at least `value` times as long as qatcore."""
    return Bar("faster", value)


def within(value: float) -> Bar:
    """Return the bar: qatcore takes at most `value` times as long as the limit."""
    return Bar("within", value)


def share(value: float) -> Bar:
    """Return the bar: qatcore reaches at least this share of the limit's rate."""
    return Bar("share", value, " %")


def at_most(value: float, unit: str) -> Bar:
    """Return the bar: qatcore's value is at most this, in the row's unit."""
    return Bar("at_most", value, f" {unit}")


@dataclass
class Contender:
    """One way to do a row's work.

    ``name`` is ``package: function``.  ``prepare`` runs before each call and is not timed.  With ``measure`` the call
    itself returns the value, in the row's unit.
    """

    name: str
    role: str
    call: Callable[[], object]
    bar: Bar | None = None
    prepare: Callable[[], object] | None = None
    measure: bool = False
    values: list[float] = field(default_factory=list)
    calls: int = 1  # that are timed together

    def once(self) -> float:
        """Return one value: milliseconds per call, unless the contender measures something else."""
        if self.measure:
            return float(self.call())  # type: ignore[arg-type]
        call, calls = self.call, self.calls
        if self.prepare is not None:
            self.prepare()
        elif calls > 1:
            call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls * 1e3


@dataclass
class Row:
    """One piece of work, and all contenders that do it.

    ``chart`` is the row's name in the chart; without a name it is not there.  ``least`` is the least number of
    repetitions, if the row needs more than others.
    """

    work: str
    chart: str = ""
    unit: str = "ms"
    least: int = 0
    operations: int = 0  # multiplications and additions, for Gop/s
    contenders: list[Contender] = field(default_factory=list)

    def ours(self, call: Callable[[], object], *, name: str = "qatcore", **options: object) -> None:
        """Add qatcore, which has to be the first contender."""
        self.contenders.append(Contender(name, OURS, call, **options))  # type: ignore[arg-type]

    def peer(self, name: str, call: Callable[[], object], bar: Bar | None = None, **options: object) -> None:
        """Add a peer."""
        self.contenders.append(Contender(name, PEER, call, bar, **options))  # type: ignore[arg-type]

    def limit(self, name: str, call: Callable[[], object], bar: Bar | None = None, **options: object) -> None:
        """Add the limit: work that the machine has to do at least."""
        self.contenders.append(Contender(name, LIMIT, call, bar, **options))  # type: ignore[arg-type]

    def other(self, name: str, call: Callable[[], object], bar: Bar | None = None, **options: object) -> None:
        """Add another function of qatcore, which is judged like a limit."""
        self.contenders.append(Contender(name, OTHER, call, bar, **options))  # type: ignore[arg-type]


def alternate(contenders: list[Contender], budget: float, least: int, most: int) -> None:
    """Fill the contenders' values round by round, one value for each contender, in an order shuffled for each round.

    In a fixed order, each contender would always find the caches as the same predecessor leaves them.  A contender
    after one that only reads is 10 % faster than a contender after one that writes.

    Every contender gets an equal share of the budget, which is in seconds.  A contender that is too slow for every
    round takes part in some rounds, spread evenly.  If one call takes longer than the whole budget, it is timed once.
    """
    part = budget / len(contenders)
    turns = []
    for contender in contenders:
        start = time.perf_counter()
        contender.once()  # warms up, and shows about how long a call takes
        contender.values = [contender.once()]
        cost = (time.perf_counter() - start) / 2
        if not contender.measure and contender.prepare is None:
            seconds = contender.values[0] * 1e-3
            contender.calls = min(math.ceil(SHORTEST / max(seconds, 1e-7)), 1000)
            cost *= contender.calls
        turns.append(1 if cost > budget else min(max(int(part / cost), least), most))
    shuffle = random.Random(0).shuffle
    collect = gc.isenabled()
    gc.disable()
    try:
        rounds = max(turns)
        for contender, own in zip(contenders, turns, strict=True):
            if own > 1:
                contender.values = []
        order = list(zip(contenders, turns, strict=True))
        for turn in range(rounds):
            shuffle(order)
            for contender, own in order:
                if own > 1 and turn * own % rounds < own:
                    contender.values.append(contender.once())
    finally:
        if collect:
            gc.enable()


def result(part: str, row: Row, *, judge: bool) -> dict[str, object]:
    """Return a timed row as plain data for JSON."""
    medians = [float(np.median(c.values)) for c in row.contenders]
    ours = medians[0]
    lines = []
    for contender, median in zip(row.contenders, medians, strict=True):
        bar = contender.bar
        first, third = np.percentile(contender.values, [25, 75])
        lines.append(
            {
                "name": contender.name,
                "role": contender.role,
                "median": median,
                "quartiles": [float(first), float(third)],
                "repetitions": len(contender.values),
                "calls": contender.calls,
                "rate": row.operations / median * 1e-6 if row.operations else None,
                "peer_over_ours": median / ours if contender.role == PEER else None,
                "ours_over_limit": ours / median if contender.role in (LIMIT, OTHER) else None,
                "bar": str(bar) if bar else None,
                "share": bar is not None and bar.kind == "share",
                "met": bar.met(ours, median) if bar and judge else None,
            }
        )
    return {"part": part, "work": row.work, "chart": row.chart, "unit": row.unit, "contenders": lines}
