"""Tables as Markdown, for people and the terminal: every table that the project prints is made here."""

from collections.abc import Callable, Iterable, Mapping, Sequence

UNDEFINED = "undefined"
"""What stands in the place of a number that does not exist."""


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table whose columns are aligned, ending with a newline; None is an empty cell."""
    lines = [["" if value is None else str(value) for value in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * max(width, 1) for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def cell(
    value: float | None,
    interval: tuple[float, float] | None = None,
    n: int | None = None,
    form: Callable[[float], str] = "{:.4g}".format,
    usual: int | None = None,
) -> str:
    """`value [low, high] (n)`; without what is None, and without the usual n; UNDEFINED where there is no value."""
    if value is None:
        return UNDEFINED
    bounds = f" [{form(interval[0])}, {form(interval[1])}]" if interval else ""
    return form(value) + bounds + ("" if n == usual else f" ({n})")


def listed(title: str, notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of Markdown: what was noted of the experiments, each remark once; none where nothing was."""
    remarks = dict.fromkeys(line for lines in notes.values() for line in lines)
    return ["", title, "", *(f"- {line}" for line in remarks)] if remarks else []
