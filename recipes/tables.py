"""Tables of results for a console of any width: a table where it fits, and else a block of lines for each row."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 100_000


class Fitted:
    """A table that stays readable where the console is narrower than it.

    Where its narrowest form (cells wrapped at words, those with ``no_wrap`` not) is wider than the console, each row is
    a block: its first cell as a heading, then ``column value`` pairs, as many beside each other as there is room for.
    Nothing is cut.

    Args:
        table: of texts; a cell of several lines is one value and what belongs to it, such as its interval.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        for column in table.columns:
            if column.no_wrap:  # rich would cut it: it takes a word's width for the least
                lines = [line for cell in (column.header, *column.cells) for line in _plain(cell).split("\n")]
                column.min_width = max(map(cell_len, lines), default=0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._narrowest(console, options) <= options.max_width:
            yield self.table
            return
        for label, style in ((self.table.title, "bold"), (None, "")):
            if label:
                yield _text(label, style)
        yield from self._blocks(options.max_width)
        if self.table.caption:
            yield _text(self.table.caption, "dim")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def _narrowest(self, console: Console, options: ConsoleOptions) -> int:
        return Measurement.get(console, options.update(max_width=_UNBOUNDED), self.table).minimum

    def _blocks(self, width: int) -> Iterator[Text]:
        headings = [_one_line(column.header) for column in self.table.columns]
        columns = [list(column.cells) for column in self.table.columns]
        blocks: list[tuple[Text, list[Text]]] = []
        for number, row in enumerate(self.table.rows):
            texts = [_one_line(cells[number]) for cells in columns]
            style = row.style or ""
            pairs = [
                Text.assemble((f"{heading.plain} ", "dim"), text)
                for heading, text in list(zip(headings, texts, strict=True))[1:]  # not per token
                if text.plain
            ]
            blocks.append((_text(texts[0], style), pairs))
        size = max((cell_len(pair.plain) for _, pairs in blocks for pair in pairs), default=0) + 2
        beside = max(1, (width - 2) // size)
        for heading, pairs in blocks:
            if heading.plain:
                yield Text.assemble(heading, style="bold")
            for start in range(0, len(pairs), beside):
                line = Text("  ")
                for pair in pairs[start : start + beside]:
                    line.append_text(pair).append(" " * max(0, size - cell_len(pair.plain)))
                line.rstrip()
                yield line


def _text(value: object, style: str | Style) -> Text:
    text = Text.assemble(value) if isinstance(value, Text) else Text.from_markup(str(value))
    text.stylize(style)
    return text


def _one_line(value: object) -> Text:
    """A cell's text on one line: what stands below its first line is put behind it."""
    text = value if isinstance(value, Text) else Text.from_markup(str(value))
    return Text(" ").join(text.split("\n"))


def _plain(value: object) -> str:
    return (value if isinstance(value, Text) else Text.from_markup(str(value))).plain
