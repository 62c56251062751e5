"""Tables as Markdown, for people and the terminal: every table that the project prints is made here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

UNDEFINED = "undefined"
"""What stands in the place of a number that does not exist."""


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table whose columns are aligned, ending with a newline; None is an empty cell."""
    lines = [["" if value is None else str(value) for value in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * max(width, 1) for width in widths])
    return "".join(table_line(line, widths) + "\n" for line in lines)


def table_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a Markdown table, its columns aligned."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def four_digits(value: float) -> str:
    """The number in four significant digits."""
    return f"{value:.4g}"


def cell(
    value: float | None,
    interval: tuple[float, float] | None = None,
    n: int | None = None,
    form: Callable[[float], str] = four_digits,
) -> str:
    """`value [low, high] (n)`; without what is None; UNDEFINED where there is no value."""
    if value is None:
        return UNDEFINED
    bounds = f" [{form(interval[0])}, {form(interval[1])}]" if interval else ""
    return form(value) + bounds + ("" if n is None else f" ({n})")


def listed(title: str, notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of Markdown: what was noted of the experiments, each remark once; none where nothing was."""
    remarks = dict.fromkeys(line for lines in notes.values() for line in lines)
    return ["", title, "", *(f"- {line}" for line in remarks)] if remarks else []
