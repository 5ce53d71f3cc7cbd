"""Results as HTML: `section` makes what a page shows of one, `result_html` what a notebook does, `page` the page.

A page asks the network for nothing: styles, script and pictures stand in it, and its Content-Security-Policy forbids
the rest. Texts of corpora are untrusted: the templates escape all of them, only `inline_svg` makes markup, and the
policy lets no script run but the page's own, known by its hash.
"""

import base64
import hashlib
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from neurotally.analysis.parts import Example, Table, Value
from neurotally.analysis.render.numbers import NOTHING, cell_text
from neurotally.profiler.visible import visible

if TYPE_CHECKING:
    from neurotally.analysis.result import Result

_MOST_CHARACTERS = 280
"""So much text on either side of a place's token: some five lines."""
_MOST_TOKEN = 120
_MOST_TOKENS = 8
"""Named before the places are opened."""
_PICTURES = {9: "⇥", 10: "⏎", 32: "␣"}
"""White space in a list of tokens shows."""

_COLOUR = re.compile(r"#([0-9a-f]{6})\b")
_HREF = "{http://www.w3.org/1999/xlink}href"


class Section(NamedTuple):
    """A part of the page with a heading of its own."""

    anchor: str
    title: str
    html: Markup


def section(result: "Result") -> Section:
    """A result as a section of a page: findings, pictures, tables, notes."""
    anchor, title = result.anchor or result.study, result.title or result.study
    pictures = []
    for number, chart in enumerate(chart for chart in result.charts if not chart.is_on_request):
        caption = chart.caption or chart.title
        pictures.append((inline_svg(result.figure(chart.name), f"{anchor}-{number}", caption), caption))
    return Section(anchor, title, _macros().section(result, anchor, title, pictures))


def result_html(result: "Result") -> str:
    """A result as a notebook shows it: its lead, its tables and notes. Figures are drawn when asked for."""
    return f"<p>{escape(result.lead)}</p>{_macros().parts(result, result.study)}"


def page(title: str, tiles: Sequence[tuple[str, str]], summary: str, sections: Sequence[Section]) -> str:
    """The page; `tiles`: the names and numbers that it begins with, `summary`: a paragraph below them."""
    templates = _templates()
    assert templates.loader is not None
    style, script = (templates.loader.get_source(templates, name)[0] for name in ("page.css", "page.js"))
    made_by = "neurotally"
    with suppress(PackageNotFoundError):
        made_by += f" {version('neurotally')}"
    return templates.get_template("page.html").render(
        title=title,
        tiles=tiles,
        summary=summary,
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made_by=made_by,
    )


@cache
def _templates() -> Environment:
    """They escape everything."""
    templates = Environment(loader=PackageLoader("neurotally.analysis.render", ""), autoescape=True,
                            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    templates.globals |= {"cells": _cells, "most": _most, "readable": _readable, "tokens": _tokens}
    return templates


def _macros() -> Any:
    return _templates().get_template("parts.html").module


class _Cell(NamedTuple):
    """What stands in a table, and what it is sorted by and coloured by (None: last, blank)."""

    text: str
    value: float | str | None


def _cells(table: Table) -> list[list[_Cell]]:
    rows = []
    for row in table.rows:
        cells = []
        for column, cell in zip(table.columns, row, strict=True):
            value, text = cell.value if isinstance(cell, Value) else cell, cell_text(column, cell)
            if not isinstance(value, str):
                value = value if value is not None and math.isfinite(value) else None
                text = "–" if text == NOTHING else text.replace("-", "−")
            cells.append(_Cell(text, value))
        rows.append(cells)
    return rows


def _most(rows: Sequence[Sequence[_Cell]]) -> float:
    """The largest number in a matrix, whatever its sign; 1 where there is none but 0."""
    values = [cell.value for row in rows for cell in row[1:]]
    return max((abs(value) for value in values if not isinstance(value, str | None)), default=0) or 1


def _readable(examples: Sequence[Example]) -> list[Example]:
    """Places with as much text as is read at a glance, and nothing in it that could turn or hide the rest."""
    return [
        Example(
            visible(place),
            visible(before if len(before) <= _MOST_CHARACTERS else "…" + before[-_MOST_CHARACTERS:]),
            visible(token if len(token) <= _MOST_TOKEN else token[:_MOST_TOKEN] + "…"),
            visible(after.removesuffix("\n") if len(after) <= _MOST_CHARACTERS else after[:_MOST_CHARACTERS] + "…"),
            reason,
        )
        for place, before, token, after, reason in examples
    ]


def _tokens(examples: Sequence[Example]) -> list[tuple[str, int]]:
    """The most frequent tokens, and how often each is there."""
    tokens = Counter(example.token for example in examples if not example.reason)
    return [(token.translate(_PICTURES), number) for token, number in tokens.most_common(_MOST_TOKENS)]


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
        element.attrib[name] = value.replace("url(#", f"url(#{anchor}-")
