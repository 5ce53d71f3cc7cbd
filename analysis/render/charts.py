"""Charts as figures: `draw` makes a matplotlib `Figure` of what a study describes, for a file or a notebook.

pyplot is never imported: no window, no backend and no setting of the caller's is touched. The colours can be told apart
with any common colour blindness. Made for 1 to 25 names and 4 to 80 layers; figures grow with their panels.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, FormatStrFormatter, MaxNLocator, PercentFormatter

from neurotally.analysis.parts import Chart, Column, Grid, Kind, Panel, Series, Value
from neurotally.analysis.render.numbers import cell_text, digits_of_three
from neurotally.profiler.whole_files import whole_file

_CONTRAST, INK, GREY = "#d95f02", "#222222", "#666666"
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d1f", "#7f7f7f")
"""Okabe and Ito's, told apart with any common colour blindness (their yellow made darker)."""
_TONES = {"main": "#0072b2", "light": "#92c5de", "contrast": _CONTRAST, "ink": INK, "grey": GREY}
_RAMP = ("#d6e6f4", "#b3d3e8", "#94c4df", "#6aaed6", "#4292c6", "#2070b4", "#0b4f94")
_MARKERS = ("o", "s", "^", "D")
_MOST_CELLS = 400
"""Of a heat map with numbers in them."""
_LONGEST_NAME = 22
_DPI = 160

Places = Mapping[str, int]
"""The place of every name in an order, whatever the case: it gives colour and marker, so that figures agree."""


def draw(chart: Chart, model: str = "", order: Sequence[str] = ()) -> Figure:
    """A chart as a figure. `model` is named on it; `order`: names that keep their colours in every figure."""
    figure, axes = _panels(chart)
    names = [*order, *(series.corpus for panel in chart.panels if isinstance(panel, Panel) for series in panel.series)]
    places = {name: at for at, name in enumerate(dict.fromkeys(name.casefold() for name in names if name))}
    shown: dict[str, tuple[Series, set[str]]] = {}
    for panel, ax in zip(chart.panels, axes, strict=True):
        if isinstance(panel, Grid):
            _draw_grid(figure, ax, panel)
            continue
        _draw_series(ax, panel, chart, places)
        for series in panel.series:
            if series.label and not panel.empty:
                shown.setdefault(series.label, (series, set()))[1].add(_color(series, places))
    _add_notes(figure, chart)
    plots = [ax for panel, ax in zip(chart.panels, axes, strict=True) if isinstance(panel, Panel)]
    if plots and chart.share_y:
        _y_axis(plots[0], chart)
    if plots:
        figure.supylabel(chart.y_label, fontsize=10, color=INK)
    handles = [_handle(series, colors, places) for series, colors in shown.values()]
    longest = max((len(label) for label in shown), default=0)
    num_columns = max(1, min(6, int(figure.get_figwidth() * 13 / (longest + 6))))
    title = textwrap.fill(chart.title, int(9 * figure.get_figwidth()))
    legend = figure.legend(handles=handles, title=f"{title}\n{model}" if model else title, title_fontsize=13,
                           alignment="left", fontsize=9, loc="outside upper left", ncols=num_columns, frameon=False,
                           borderpad=0.2)  # fmt: skip
    for text in (legend.get_title(), *legend.get_texts()):
        text.set(color=INK, parse_math=False)
    return figure


def _add_notes(figure: Figure, chart: Chart) -> None:
    """What the x axes show, and the notes, below all panels."""
    width = int(12 * figure.get_figwidth())
    lines = [line for note in chart.notes for line in textwrap.wrap(note, width, subsequent_indent="    ")]
    has_plots = any(isinstance(panel, Panel) for panel in chart.panels)
    if has_plots and not lines:
        figure.supxlabel(chart.x_label, fontsize=10, color=INK)
    elif lines:
        figure.set_figheight(figure.get_figheight() + 0.2 * len(lines))
        shown = [chart.x_label, "", *lines] if has_plots else lines
        figure.supxlabel("\n".join(shown), x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)


def _color(series: Series, places: Places) -> str:
    """Of a corpus its own; else what the tone says."""
    if series.corpus:
        return _COLORS[places[series.corpus.casefold()] % len(_COLORS)]
    if isinstance(series.tone, str):
        return _TONES[series.tone]
    return _RAMP[round(series.tone * (len(_RAMP) - 1))]


def _marker(series: Series, places: Places) -> str:
    """None while there are as many colours as names; 32 names look different."""
    place = places.get(series.corpus.casefold(), 0)
    return "" if place < len(_COLORS) else _MARKERS[place // len(_COLORS) % len(_MARKERS)]


class _NotebookFigure(Figure):
    """A figure that notebooks show, also where nobody has asked for `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def _panels(chart: Chart) -> tuple[Figure, list[Any]]:
    """The figure and an axes a panel: as large as the widest heat map needs."""
    grids = [panel for panel in chart.panels if isinstance(panel, Grid)]
    number = len(chart.panels)
    num_columns = chart.num_columns or min(4, math.ceil(math.sqrt(number)))
    num_rows = math.ceil(number / num_columns)
    width, height = (6.4, 4.0) if number == 1 else (3.1, 2.0)
    for grid in grids:
        lines = [text.split("\n") for row in _cell_texts(grid) for text in row]
        cell = 0.17 + 0.075 * max((len(line) for text in lines for line in text), default=3)
        row = 0.3 if all(len(text) == 1 for text in lines) else 0.5
        width = max(width, min(16.0, 2.4 + cell * len(grid.columns)))
        height = max(height, min(14.0, 1.5 + row * len(grid.rows)) + (0.6 if grid.above else 0))
    layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.04)
    figure = _NotebookFigure(figsize=(max(7.0, 1.0 + width * num_columns), 1.3 + height * num_rows), layout=layout)
    share = not grids
    axes = list(figure.subplots(num_rows, num_columns, sharex=share and chart.share_x, sharey=share and chart.share_y,
                                squeeze=False).ravel())  # fmt: skip
    for ax in axes[number:]:
        ax.set_visible(False)
    for ax in axes[max(0, number - num_columns) : number]:
        ax.tick_params(labelbottom=True)  # the last panel of a column may have a hidden one below it
    return figure, axes[:number]


def _draw_series(ax: Any, panel: Panel, chart: Chart, places: Places) -> None:
    """Fill one panel."""
    ax.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    room = min(_LONGEST_NAME, int((2.9 - 0.065 * len(panel.note)) / 0.1))  # what the note leaves of 2.9 inches
    ax.set_title(_short_name(panel.name, room), loc="left", fontsize=10, fontweight="bold", color=INK, parse_math=False)
    ax.set_title(panel.note, loc="right", fontsize=8, color=GREY, parse_math=False)
    if chart.x == "layers":
        num_layers = max((len(series.y) for series in panel.series if series.mark != "level"), default=1)
        ax.set_xlim(-0.5, num_layers - 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    elif chart.x == "amount":
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if panel.empty:
        ax.text(0.5, 0.5, panel.empty, transform=ax.transAxes, ha="center", va="center", fontsize=9, color=GREY)
        return
    below: Any = 0
    for series in panel.series:
        below = _draw_mark(ax, series, places, below)
    if not chart.share_y:
        _y_axis(ax, chart)
    if panel.top is not None:
        ax.set_ylim(0, panel.top)


def _y_axis(ax: Any, chart: Chart) -> None:
    if chart.y == "count":
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        ax.set_ylim(bottom=0)
    elif chart.y == "share":
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(bottom=0)
    elif chart.y == "log":
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        ax.tick_params(which="minor", labelsize=8)


def _draw_mark(ax: Any, series: Series, places: Places, below: Any) -> Any:
    """Draw one series; what the next bars stand on."""
    color, alpha, number = _color(series, places), _alpha(series), len(series.y)
    x = np.arange(number) if series.x is None else np.asarray(series.x, dtype=np.float64)
    y, low, high = (np.array(values, dtype=np.float64) for values in (series.y, series.low, series.high))  # None is NaN
    if series.mark in ("steps", "filled"):
        edges = np.arange(number + 1) - 0.5 if series.x is None else x
        is_filled = series.mark == "filled"
        ax.stairs(y, edges, fill=is_filled, color=color, linewidth=None if is_filled else 1.6, alpha=alpha)
    elif series.mark == "bars":
        ax.bar(x, np.nan_to_num(y), width=1.0, bottom=below, color=color, linewidth=0, alpha=alpha)
        return below + np.nan_to_num(y)
    elif series.mark == "line":
        if len(low):
            ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        ax.plot(x, y, color=color, linewidth=1.5, linestyle="--" if series.is_dashed else "-",
                marker=_marker(series, places), markersize=3.5, alpha=alpha)  # fmt: skip
    elif series.mark == "band":
        ax.fill_between(x, low, y, color=color, alpha=0.35, linewidth=0)
    elif series.mark == "level":
        if np.isfinite(y[0]):
            ax.axhline(y[0], color=color, linewidth=1, linestyle=":")
    else:
        style = {"marker": "x", "markersize": 4} if series.mark == "crosses" else {
            "marker": ".", "markersize": 5, "markeredgewidth": 0}  # fmt: skip
        if len(low):
            ax.vlines(x, low, high, color=color, linewidth=1)
        ax.plot(x, y, linestyle="", color=color, alpha=alpha, **style)
    return below


def _alpha(series: Series) -> float | None:
    return 0.4 if series.corpus and series.tone == "light" else None


def _handle(series: Series, colors: set[str], places: Places) -> Any:
    """What stands for a series in the legend: grey where panels show it in colours of their own."""
    (color,) = colors if len(colors) == 1 else (GREY,)
    if series.mark in ("filled", "bars", "band"):
        return Patch(facecolor=color, alpha=0.35 if series.mark == "band" else _alpha(series), label=series.label)
    style = {"line": "--" if series.is_dashed else "-", "steps": "-", "level": ":"}.get(series.mark, "")
    marker = {"points": "o", "crosses": "x"}.get(series.mark, _marker(series, places))
    return Line2D([], [], color=color, linestyle=style, marker=marker, markersize=3.5, label=series.label)


def _draw_grid(figure: Figure, ax: Any, grid: Grid) -> None:
    """A heat map; every cell with its text where there is room."""
    value_RC = np.array(grid.values, dtype=np.float64).reshape(len(grid.rows), len(grid.columns))
    high = grid.high or _largest(grid) or 1.0
    colors, low = ("RdBu_r", -high) if grid.is_signed else ("Blues", 0.0)
    ax.set_facecolor("#d9d9d9")
    image = ax.imshow(value_RC, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="none")
    for row, texts in enumerate(_cell_texts(grid)):
        for column, text in enumerate(texts):
            ink = "white" if abs(value_RC[row, column]) > 0.6 * high else INK
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=ink, linespacing=1.1,
                    parse_math=False)  # fmt: skip
    _label_matrix(ax, grid.rows, grid.columns, grid.row_label, grid.column_label)
    if grid.above:
        above = ax.secondary_xaxis("top")
        _name_columns(above, grid.above, "left")
        above.tick_params(length=0)
        above.spines[:].set_visible(False)
    ax.set_title(grid.name, fontsize=10, loc="left", color=INK, parse_math=False)
    for row, column in grid.framed:
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_CONTRAST, linewidth=2,
                               clip_on=False, zorder=3))  # fmt: skip
    if grid.scale:
        bar = figure.colorbar(image, ax=ax, pad=0.02)
        bar.set_label(grid.scale, fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)


def _largest(grid: Grid) -> float:
    """The largest value, whatever its sign; 0 without any."""
    size_RC = np.abs(np.array(grid.values, dtype=np.float64))
    return float(np.max(size_RC, initial=0, where=np.isfinite(size_RC)))


def _cell_texts(grid: Grid) -> Sequence[Sequence[str]]:
    """What is written in the cells: values and errors all with as many digits. Nothing where cells are too many."""
    if grid.texts or len(grid.rows) * len(grid.columns) > _MOST_CELLS:
        return grid.texts
    digits = digits_of_three(_largest(grid)) if grid.digits is None else grid.digits
    kind: Kind = "signed" if grid.is_signed else "number"
    texts = []
    for row, values in enumerate(grid.values):
        errors = grid.errors[row] if grid.errors else [None] * len(values)
        cells = [Value(value, error) for value, error in zip(values, errors, strict=True)]
        texts.append([cell_text(Column("", kind, digits), cell).replace("-", "−").replace(" ± ", "\n± ")
                      for cell in cells])  # fmt: skip
    return texts


def _label_matrix(axes: Any, rows: Sequence[str], columns: Sequence[str], row_label: str, column_label: str) -> None:
    """Names along both axes of a heat map, and white lines between its cells."""
    _name_columns(axes, columns, "right")
    axes.set_yticks(range(len(rows)), [_short_name(name) for name in rows], fontsize=9, parse_math=False)
    axes.set_xlabel(column_label, fontsize=10, color=INK)
    axes.set_ylabel(row_label, fontsize=10, color=INK)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _name_columns(axes: Any, names: Sequence[str], side: str) -> None:
    """Names along an x axis; long ones stand aslant, with this side at their place."""
    shown = [_short_name(name) for name in names]
    slant = {"rotation": 40, "ha": side, "rotation_mode": "anchor"} if max(map(len, shown)) > 7 else {}
    axes.set_xticks(range(len(names)), shown, fontsize=9, parse_math=False, **slant)


def _short_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name that fits its panel or axis."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure; the suffix tells the format (.png, .pdf, .svg)."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=_DPI, facecolor="white")
