"""Results as HTML: `section` makes what a page shows of one, `result_html` what a notebook does.

A section has parts (facts, notes, tables, matrices, pictures, neurons), each drawn by `parts.html` by its `kind`. Texts
are plain strings: the template escapes them, and only `inline_svg` makes markup.
"""

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from neurotally.analysis.render.numbers import NOTHING, cell_text
from neurotally.analysis.result import Cell as Given
from neurotally.analysis.result import Column, Result, Value
from neurotally.analysis.result import Table as Tabled

_SEARCHED = 20
"""A table of more rows than this can be searched."""

_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_REFERENCE = re.compile(r"url\(#")
_HREF = "{http://www.w3.org/1999/xlink}href"


class Cell(NamedTuple):
    """What stands in a table, and what it is sorted by (None: last)."""

    text: str
    value: float | str | None
    is_row_head: bool = False

    @property
    def is_number(self) -> bool:
        """Numbers stand to the right."""
        return not isinstance(self.value, str)


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Notes:
    """Remarks, one a line."""

    kind: ClassVar[str] = "notes"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under a header, sortable; the first column names the row."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_folded: bool = False
    """Shown when asked for."""
    is_searchable: bool = False


@dataclass(frozen=True)
class Matrix:
    """A matrix whose cells are coloured by their shade: 0 to 1, or -1 (cold) to 1 (hot); None is blank."""

    kind: ClassVar[str] = "matrix"
    caption: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    texts: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float | None]]
    is_signed: bool = False
    is_folded: bool = False


@dataclass(frozen=True)
class Picture:
    """An SVG in the page, with what it shows in words."""

    kind: ClassVar[str] = "picture"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Trigger:
    """One trigger to read: the text before the token, the token, the text after it; or why there is no text."""

    coefficient: str
    place: str
    token: str | None
    before: str = ""
    after: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Neuron:
    """A neuron's row, and its triggers."""

    anchor: str
    corpus: str
    cells: Sequence[Cell]
    tokens: Sequence[tuple[str, int]]
    """The tokens of its triggers, and how many of them each is."""
    triggers: Sequence[Trigger]
    no_triggers: str = ""


@dataclass(frozen=True)
class Neurons:
    """Neurons with their triggers, searchable and sortable."""

    kind: ClassVar[str] = "neurons"
    caption: str
    header: Sequence[str]
    corpora: Sequence[str]
    neurons: Sequence[Neuron]


Part = Facts | Notes | Table | Matrix | Picture | Neurons


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    anchor: str
    title: str
    lead: str
    """What the reader sees here, in a sentence or two."""
    parts: Sequence[Part] = field(default_factory=tuple)


def section(result: Result) -> Section:
    """A result as a section of a page: findings, pictures, tables, notes."""
    anchor = result.anchor or result.study
    parts: list[Part] = [Notes(lines) for lines in (result.warnings, result.findings) if lines]
    for number, chart in enumerate(chart for chart in result.charts if not chart.is_on_request):
        svg = inline_svg(result.figure(chart.name), f"{anchor}-{number}", chart.caption or chart.title)
        parts.append(Picture(svg, chart.caption or chart.title))
    parts += [_part(table) for table in result.tables if table.rows]
    parts += [Notes(result.notes)] if result.notes else []
    return Section(anchor, result.title or result.study, result.lead, parts)


def result_html(result: Result) -> str:
    """A result as a notebook shows it: its lead, its tables and notes. Figures are drawn when asked for."""
    html: str = (
        environment()
        .get_template("parts.html")
        .module.parts(  # type: ignore[attr-defined]
            section(replace(result, charts=()))
        )
    )
    return f"<p>{escape(result.lead)}</p>{html}"


def environment() -> Environment:
    """Where the templates are; they escape everything."""
    return Environment(loader=PackageLoader("neurotally.analysis.render", ""), autoescape=True,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip


def _part(table: Tabled) -> Part:
    if table.look == "facts":
        return Facts(table.title, [(str(name), str(value)) for name, value in table.rows])
    if table.look == "rows":
        header = [column.name for column in table.columns]
        rows = [
            [_cell(column, cell)._replace(is_row_head=number == 0)
             for number, (column, cell) in enumerate(zip(table.columns, row, strict=True))]
            for row in table.rows
        ]  # fmt: skip
        return Table(table.title, header, rows, table.is_long, len(rows) > _SEARCHED)
    names = [cell_text(table.columns[0], row[0]) for row in table.rows]
    texts = [[_cell(column, cell).text for column, cell in zip(table.columns[1:], row[1:], strict=True)]
             for row in table.rows]  # fmt: skip
    value_RC = np.array([[_plain(cell) for cell in row[1:]] for row in table.rows], np.float64)
    most = float(np.max(np.abs(value_RC), initial=0, where=np.isfinite(value_RC))) or 1.0
    return Matrix(table.title, table.columns[0].name, names, [column.name for column in table.columns[1:]], texts,
                  _shades(value_RC / most), table.look == "signed", table.is_long)  # fmt: skip


def _cell(column: Column, cell: Given) -> Cell:
    value, text = _plain(cell), cell_text(column, cell)
    if isinstance(value, str):
        return Cell(text, value)
    return Cell("–" if text == NOTHING else text.replace("-", "−"), value)


def _plain(cell: Given) -> Any:
    return cell.value if isinstance(cell, Value) else cell


def word(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, text)


def row_head(text: str) -> Cell:
    """The cell that names its row."""
    return Cell(text, text, is_row_head=True)


def real(value: float | None, form: str = ".4f", half: float | None = None) -> Cell:
    """A cell of a number, and half of its interval; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return Cell("–", None)
    text = format(value, form)
    if half is not None and math.isfinite(half):
        text += f" ± {format(half, form.lstrip('+'))}"
    return Cell(text.replace("-", "−"), value)


def inline_svg(figure: Any, anchor: str, label: str) -> Markup:
    """A matplotlib figure as an <svg> of the page: text as text, colours as variables that a dark page can change.

    A colour #rrggbb becomes var(--c-rrggbb, #rrggbb); `page.css` has the dark ones.
    """
    from matplotlib import rc_context

    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": anchor}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    width = float(root.attrib["width"].removesuffix("pt"))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        _into_page(element, anchor)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": label, "style": f"--natural:{width:.0f}pt"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _into_page(element: Any, anchor: str) -> None:
    """Without namespaces, with ids of its own, its colours as variables."""
    element.tag = element.tag.rpartition("}")[2]
    if _HREF in element.attrib:
        target = element.attrib.pop(_HREF)
        element.attrib["href"] = f"#{anchor}-{target[1:]}" if target.startswith("#") else target
    for name, value in list(element.attrib.items()):
        if name == "id":
            value = f"{anchor}-{value}"
        elif name == "style":
            value = _COLOUR.sub(r"var(--c-\1,#\1)", value)
        element.attrib[name] = _REFERENCE.sub(f"url(#{anchor}-", value)


def _shades(share_RC: np.ndarray) -> list[list[float | None]]:
    return [[round(value, 3) if math.isfinite(value) else None for value in row] for row in share_RC.tolist()]
