"""Print results as text of 120 columns, or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: The columns of the text, and their widths.
COLUMNS = {
    "": 44,
    "median": 11,
    "quartiles": 17,
    "Gop/s": 8,
    "peer/ours": 11,
    "ours/limit": 11,
    "bar": 10,
    " ": 7,
}


class Printer:
    """Prints the header when it is made, and each row as it comes."""

    def __init__(self, stored: dict[str, Any], *, markdown: bool) -> None:
        self._markdown = markdown
        self._part: str | None = None
        lines = [
            f"{name + ':':<11}{value}" for name, value in {**stored["machine"], "command": stored["command"]}.items()
        ]
        self._print(["```text", *lines, "```"] if markdown else lines)

    def row(self, row: dict[str, Any]) -> None:
        """Print a row, and before it a heading if a new part begins."""
        if row["part"] != self._part:
            self._part = row["part"]
            self._print(_markdown_heading(row["part"]) if self._markdown else _text_heading(row["part"]))
        self._print(_markdown_row(row) if self._markdown else _text_row(row))

    @staticmethod
    def _print(lines: Any) -> None:
        print("\n".join(lines), flush=True)


def _cells(row: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of each contender in a row."""
    for line in row["contenders"]:
        first, third = line["quartiles"]
        limit = line["ours_over_limit"]
        if limit is not None:
            limit = f"{100 / limit:.0f} %" if line["share"] else f"{limit:.2f}x"
        yield [
            ("limit: " if line["role"] == "limit" else "") + line["name"],
            f"{digits(line['median'])} {row['unit']}",
            f"{digits(first)} - {digits(third)}" if line["repetitions"] > 1 else "",
            f"{line['rate']:,.0f}" if line["rate"] else "",
            f"{line['peer_over_ours']:.2f}x" if line["peer_over_ours"] else "",
            limit or "",
            line["bar"] or "",
            {None: "", True: "met", False: "missed"}[line["met"]],
        ]


def digits(value: float) -> str:
    """Return a positive number with about four digits, and never an exponent.

    >>> digits(0.0123456), digits(8.1), digits(61.23), digits(1234.5)
    ('0.0123', '8.100', '61.23', '1,234')
    """
    decimals = next((d for bound, d in ((0.1, 4), (10, 3), (100, 2), (1000, 1)) if value < bound), 0)
    return f"{value:,.{decimals}f}"


def _text_heading(part: str) -> Iterator[str]:
    yield ""
    yield _aligned([part, *list(COLUMNS)[1:]])


def _text_row(row: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"  {row['work']}"
    for first, *others in _cells(row):
        yield _aligned([f"    {first}", *others])


def _aligned(values: list[str]) -> str:
    first, *others = zip(values, COLUMNS.values(), strict=True)
    return (f"{first[0]:<{first[1]}}" + "".join(f"{value:>{width}}" for value, width in others)).rstrip()


def _markdown_heading(part: str) -> Iterator[str]:
    yield f"\n**{part}**\n"
    yield "| work | qatcore | peers, times as long | times the limit |"
    yield "|---|---:|---|---|"


def _markdown_row(row: dict[str, Any]) -> Iterator[str]:
    """Yield one line for all contenders, since a README has no room for more."""
    ours, *others = row["contenders"]
    cells: dict[str, list[str]] = {"peer": [], "limit": [], "other": []}
    for line in others:
        ratio = line["peer_over_ours"] or line["ours_over_limit"]
        cells[line["role"]].append(f"{line['name']} {ratio:.2f}x")
    rate = f"<br>{ours['rate']:,.0f} Gop/s" if ours["rate"] else ""
    time = f"{digits(ours['median'])} {row['unit']}{rate}"
    limits = cells["limit"] + cells["other"]
    yield f"| {row['work']} | {time} | {'<br>'.join(cells['peer'])} | {'<br>'.join(limits)} |"
