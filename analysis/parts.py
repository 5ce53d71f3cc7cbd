"""What a result is made of: tables of typed columns, charts as data, places in texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import pandas

Kind = Literal["text", "index", "count", "share", "number", "signed"]
"""Of a column. index: a whole number that counts nothing; share: of 1, shown in percent; signed: with its sign, as a
change."""

Mark = Literal["line", "steps", "filled", "bars", "points", "crosses", "band", "level"]


class Example(NamedTuple):
    """A place in a text: a token with what stands around it, or the reason why there is no text."""

    place: str
    before: str = ""
    token: str = ""
    after: str = ""
    reason: str = ""


class Value(NamedTuple):
    """A number in a table with half of its interval or its standard error, or with a mark that a note explains."""

    value: float | None
    error: float | None = None
    mark: str = ""


Cell = str | float | Value | None


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    kind: Kind = "text"
    digits: int | None = None
    """After the point; without them a share has none and another number four significant digits."""


@dataclass(frozen=True)
class Table:
    """Rows under typed columns; the first column names the row."""

    name: str
    """For `Result.frame`."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    is_long: bool = False
    """Shown only with `--full`, folded in the report."""
    look: Literal["rows", "shares", "signed", "facts"] = "rows"
    """shares, signed: a matrix, coloured from 0 or around 0 where colours are to be had. facts: names and values."""
    details: Sequence[Sequence[Example] | str] = ()
    """Of every row, in HTML: places in texts, or why there are none."""

    def frame(self) -> "pandas.DataFrame":
        """The values as they are; what an error belongs to is in a column of its own, "NAME error"."""
        from pandas import DataFrame

        columns: dict[str, list[Any]] = {}
        for column, cells in zip(self.columns, zip(*self.rows, strict=True), strict=False):
            columns[column.name] = [cell.value if isinstance(cell, Value) else cell for cell in cells]
            errors = [cell.error if isinstance(cell, Value) else None for cell in cells]
            if any(error is not None for error in errors):
                columns[f"{column.name} error"] = errors
        return DataFrame(columns, columns=None if columns else [column.name for column in self.columns])


def matrix(
    name: str, title: str, corner: str, names: Sequence[str], values: Sequence[Sequence[Cell]], number: Column,
    is_long: bool = True, look: Literal["shares", "signed"] = "shares",
) -> Table:  # fmt: skip
    """A table of every two of the names; `number`: what its columns are, but for their names."""
    columns = [Column(corner), *(replace(number, name=column) for column in names)]
    return Table(name, title, columns, [[row, *cells] for row, cells in zip(names, values, strict=True)], is_long, look)


@dataclass(frozen=True)
class Series:
    """What one panel of a chart shows under one name. NaN and None are gaps."""

    label: str
    """In the legend, once for all panels; "": not there."""
    y: Sequence[float | None]
    x: Sequence[float] | None = None
    """Without it 0, 1, 2, ...: layers. Of `steps` and `filled` the edges, one more than values."""
    mark: Mark = "line"
    """bars stack on those before them; band lies between `low` and `y`; level: a line across at its one value."""
    low: Sequence[float | None] = ()
    """Of a band, or of a line's or point's interval, with `high`."""
    high: Sequence[float | None] = ()
    corpus: str = ""
    """Gives the colour: each name has the same one in all figures."""
    tone: str | float = "main"
    """The colour of what is no corpus: main, light, contrast, ink, grey; a number from 0 to 1: light to dark. `light`
    makes a corpus's colour lighter."""
    is_dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Series over common axes."""

    name: str
    series: Sequence[Series]
    note: str = ""
    """A few words beside the name."""
    empty: str = ""
    """Said instead, where there is nothing to show."""
    top: float | None = None
    """Where its y axis ends, if not at what the data need."""


@dataclass(frozen=True)
class Grid:
    """A heat map."""

    name: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    texts: Sequence[Sequence[str]] = ()
    """In the cells, if not the values."""
    row_label: str = ""
    column_label: str = ""
    scale: str = ""
    """What the colours stand for; "": no scale beside it."""
    is_signed: bool = False
    high: float | None = None
    """The value of the darkest colour; None: the largest."""
    framed: Sequence[tuple[int, int]] = ()
    digits: int | None = None
    """Of the values; None: so many that the largest shows three."""
    errors: Sequence[Sequence[float | None]] = ()
    """Of the values, under them."""
    above: Sequence[str] = ()
    """Names over the columns, too."""


@dataclass(frozen=True)
class Chart:
    """A figure as data: panels in rows of up to four."""

    name: str
    title: str
    panels: Sequence[Panel | Grid]
    y_label: str = ""
    x_label: str = "layer, from the input to the output"
    x: Literal["layers", "number", "amount"] = "layers"
    y: Literal["count", "number", "share", "log"] = "number"
    share_x: bool = True
    share_y: bool = True
    num_columns: int | None = None
    caption: str = ""
    """For a page: what it shows, in words."""
    notes: Sequence[str] = ()
    """Below the panels, a line each."""
    is_on_request: bool = False
    """Drawn only when asked for by its name: not in the report."""
