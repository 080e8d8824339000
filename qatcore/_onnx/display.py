"""Progress on standard error, and tables, with Rich; without a terminal there is no progress."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

#: The space between the columns of a table, and the least width of a column whose names are folded.
_GAP, _FOLDED = 2, 16
#: If all names begin with more common characters than this, the table shows these once, in its title.
_LONG_PREFIX = 12


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s" if speed < 100 else f"{speed:.0f}/s")


class Phases:
    """Shows the progress of each phase of a long run."""

    def __init__(self, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    def __enter__(self) -> Phases:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, name: str, total: int | None) -> Callable[..., None]:
        """Begin a phase, and return a function to call with how much of it is done."""
        task = self._progress.add_task(f"{name:<12}", total=total, note="")

        def done(n: int, note: str = "") -> None:
            self._progress.update(task, completed=n, note=note)

        return done

    def end(self) -> None:
        """End the phases that are not finished: what was done counts as all there was."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.completed)


def counted(n: int, what: str) -> str:
    """Return a number and what it counts, in the plural unless the number is 1."""
    plural = f"{what}es" if what.endswith(("ch", "s")) else f"{what}s"
    return f"{n:,} {what if n == 1 else plural}"


def figure(value: float, form: str) -> str:
    """Return a number as text in a format, or a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def printable(text: str) -> str:
    """Return text with its control characters escaped, because names in a model may hold some."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(title: str, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[str]]) -> None:
    """Print a table; each column has a heading and a kind: "name", "left" or "right".

    "left" and "right" say to which side cells are set.  On a terminal that is too narrow, names are folded or get lines
    of their own; nothing is cut off.  Without a terminal each row is one line, with whole names.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(highlight=False, no_color=not terminal, soft_wrap=True)
    headings, kinds = zip(*columns, strict=True)
    cells = [[printable(cell) for cell in row] for row in rows]
    names = [i for i, kind in enumerate(kinds) if kind == "name"]
    others = [i for i, kind in enumerate(kinds) if kind != "name"]
    if terminal:
        title += _shortened(cells, names)
    console.print(Text(title, style="bold"))
    heading = [[text] for text in headings]
    widths = _widths(heading, cells)
    room = console.width - sum(widths[i] + _GAP for i in others) if terminal else sys.maxsize
    if room + _GAP < sum(min(widths[i], _FOLDED) + _GAP for i in names):
        folded = [text.split() for text in headings]
        widths = [_widths(folded, cells)[i] for i in others]
        sides = [kinds[i] for i in others]
        longest = max((sum(cell_len(row[i]) + _GAP for i in names) - _GAP for row in cells), default=0)
        between = " " * _GAP if longest <= console.width else "\n"
        for style, row in [("bold", folded), *(("", [[cell] for cell in row]) for row in cells)]:
            console.print(Text(between.join(" ".join(row[i]) for i in names), style=style))
            _print_row(console, [row[i] for i in others], widths, sides, 1, style, indent=2)
        return
    for n, i in enumerate(sorted(names, key=widths.__getitem__)):  # the longer ones share what is left
        widths[i] = min(widths[i], max((room + _GAP) // (len(names) - n) - _GAP, _FOLDED))
        room -= widths[i] + _GAP
    _print_row(console, heading, widths, kinds, _GAP, "bold")
    for row in cells:
        folded = [chop_cells(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
        _print_row(console, folded, widths, kinds, _GAP, "")


def _shortened(cells: list[list[str]], names: list[int]) -> str:
    """Cut a long common beginning off all names, and return a note on it for the title."""
    given = [row[i] for row in cells for i in names]
    prefix = os.path.commonprefix(given)  # noqa: RUF071 (names are no paths)
    prefix = prefix[: max(prefix.rfind("/"), prefix.rfind(".")) + 1]
    if len(given) < 2 or len(prefix) <= _LONG_PREFIX:
        return ""
    for row in cells:
        for i in names:
            row[i] = "…" + row[i].removeprefix(prefix)
    return f"; … is {prefix}"


def _widths(heading: list[list[str]], cells: list[list[str]]) -> list[int]:
    """Return the widths of columns, from the lines of their headings and the rows."""
    return [max(map(cell_len, [*lines, *(row[i] for row in cells)])) for i, lines in enumerate(heading)]


def _print_row(
    console: Console,
    row: Sequence[list[str]],
    widths: list[int],
    kinds: Sequence[str],
    gap: int,
    style: str,
    *,
    indent: int = 0,
) -> None:
    """Print a row whose cells may have several lines."""
    for line in itertools.zip_longest(*row, fillvalue=""):
        padded = []
        for text, width, kind in zip(line, widths, kinds, strict=True):
            space = " " * (width - cell_len(text))
            padded.append(space + text if kind == "right" else text + space)
        console.print(Text(" " * indent + (" " * gap).join(padded).rstrip(), style=style))
