"""Draw results as one SVG: the time of each contender, in multiples of qatcore's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

from .report import digits

#: Colours that are legible on GitHub's light and dark backgrounds.
TEXT, OURS, PEER, LIMIT = "#768390", "#2f81f7", "#9aa4ae", "#e3742f"

#: Longer bars are cut here; their label gives the full ratio.
LONGEST = 8.0
CUT = ((0.0, 0.92 * LONGEST), (0.935 * LONGEST, 0.955 * LONGEST), (0.97 * LONGEST, LONGEST))

WIDTH = 8.6  # inches; 826 pixels, as wide as GitHub shows a README
LINE = 0.165  # inches; the height of a bar, and of a heading
SPACE = 0.6  # between groups, in lines
LABELS, BARS, VALUES = 1.15, 2.0, 1.0  # widths in a column, in inches


@dataclass
class Group:
    """The bars of one row, qatcore's first: name, multiple of qatcore's time, value with unit."""

    title: str
    bars: list[tuple[str, float, str]]
    limit: float | None

    @property
    def lines(self) -> float:
        """The height of the group, in lines."""
        return 1 + len(self.bars) + SPACE


def draw(stored: dict[str, Any], path: str) -> None:
    """Draw the rows that have a place in the chart, in two columns."""
    mpl.use("svg")
    # The same results give the same bytes.  Text stays text, so that it can be searched, scaled and read aloud.
    mpl.rcParams.update({"svg.hashsalt": "qatcore", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"]})
    mpl.rcParams.update({"font.size": 8.5, "text.color": TEXT})
    from matplotlib import pyplot

    groups = [group for group in map(_group, stored["rows"]) if group.title and len(group.bars) > 1]
    columns = _columns(groups)
    legend = 1.8
    lines = legend + max(sum(group.lines for group in column) for column in columns)
    figure = pyplot.figure(figsize=(WIDTH, lines * LINE))
    for index, column in enumerate(columns):
        # A unit across is one multiple of qatcore's time; a unit down is one line.
        left = index * WIDTH / 2 + LABELS
        axes = figure.add_axes((left / WIDTH, 0.0, BARS / WIDTH, 1.0))
        axes.set_axis_off()
        axes.set(xlim=(0.0, LONGEST), ylim=(lines, 0.0))
        y = legend
        for group in column:
            _draw_group(axes, group, y)
            y += group.lines
        label = _across(LABELS)
        if index == 0:
            axes.text(-label, 0.5, "Time in multiples of qatcore's: shorter bars are faster.", va="center")
        else:
            axes.plot([-label, -label], [0.15, 0.85], color=LIMIT, linewidth=2, clip_on=False)
            axes.text(
                0.2 - label, 0.5, "limit: copying or reading the same bytes, or the multiplier's peak", va="center"
            )
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _across(inches: float) -> float:
    return inches / BARS * LONGEST


def _group(row: dict[str, Any]) -> Group:
    """Return the group of a row; the chart shows the fastest contender of each package."""
    ours = row["contenders"][0]["median"]
    medians: dict[str, float] = {}
    for line in row["contenders"]:
        if line["role"] in ("ours", "peer"):
            name = line["name"].partition(":")[0]
            medians[name] = min(line["median"], medians.get(name, line["median"]))
    limits = [line["median"] / ours for line in row["contenders"] if line["role"] == "limit"]
    bars = [(name, median / ours, f"{digits(median)} {row['unit']}") for name, median in medians.items()]
    return Group(row["chart"], bars, limits[0] if limits else None)


def times(ratio: float) -> str:
    """Return a multiple of qatcore's time with about three digits.

    >>> times(0.951), times(4.1), times(226.3)
    ('0.95x', '4.10x', '226x')
    """
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x"


def _columns(groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """Cut the groups into two columns of about the same height."""
    cuts = [(groups[:index], groups[index:]) for index in range(len(groups) + 1)]
    return min(cuts, key=lambda columns: max(sum(group.lines for group in column) for column in columns))


def _draw_group(axes: Any, group: Group, y: float) -> None:
    axes.text(-_across(LABELS), y + 0.4, group.title, va="center", weight="bold")
    for line, (name, ratio, value) in enumerate(group.bars):
        top = y + 1 + line
        axes.text(-0.3, top + 0.5, name, va="center", ha="right")
        for left, right in ((0.0, ratio),) if ratio <= LONGEST else CUT:
            axes.barh(top + 0.5, right - left, left=left, height=0.76, color=PEER if line else OURS)
        label = f"{times(ratio)}, {value}" if line else value
        end = min(ratio, LONGEST) if line else max(ratio, min(group.limit or 0.0, LONGEST))
        axes.text(end + 0.25, top + 0.5, label, va="center", clip_on=False)
    if group.limit is not None and group.limit <= LONGEST:
        axes.plot([group.limit] * 2, [y + 1, y + 2], color=LIMIT, linewidth=2, solid_capstyle="butt")
