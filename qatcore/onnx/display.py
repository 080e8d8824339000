"""Progress on standard error, and tables, by Rich; nothing moves where there is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

#: Columns of a table where there is no terminal that says how many it has.
_WIDTH = 100
_LEAST_WIDTH = 76
#: Characters that all names begin with are told once, if they are more than this.
_LONG_PREFIX = 12


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s" if speed < 100 else f"{speed:.0f}/s")


class Phases:
    """Shows how far each phase of a long run is."""

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
        """Return what has to be told how much of a new phase is done."""
        task = self._progress.add_task(f"{name:<12}", total=total, note="")

        def done(n: int, note: str = "") -> None:
            self._progress.update(task, completed=n, note=note)

        return done

    def end(self) -> None:
        """Say that the last phase is over, however much there was."""
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, total=task.completed)


def print_table(title: str, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[str]]) -> None:
    """Print a table, of each column its name and "left" or "right"; the first one may need several lines."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, (name, side) in enumerate(columns):
        table.add_column(name, justify=side, overflow="fold", no_wrap=index > 0)  # type: ignore[arg-type]
    cells = [list(row) for row in rows]
    prefix = os.path.commonprefix([row[0] for row in cells])  # noqa: RUF071 (names are no paths)
    prefix = prefix[: max(prefix.rfind("/"), prefix.rfind(".")) + 1] if len(cells) > 1 else ""
    if len(prefix) > _LONG_PREFIX:
        title += f"; … is {prefix}"
        for row in cells:
            row[0] = "…" + row[0].removeprefix(prefix)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(Console().width, _LEAST_WIDTH) if terminal else _WIDTH  # a column that vanishes is worse than a fold
    console = Console(width=width, highlight=False, no_color=not terminal)
    console.print(Text(title, style="bold"))
    console.print(table)
