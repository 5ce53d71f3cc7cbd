"""Where neurons sit, and what all pictures have in common: panels, axes, names, colours.

`draw_layers` shows where each corpus's neurons sit. As every function of `figures` that draws, it returns a matplotlib
`Figure` for `save_figure` or a notebook. pyplot is never imported: no window, no backend and no setting of the
caller's is touched. The colours can be told apart with any common colour blindness.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from neurotally.analysis.languages.lape import layer_counts
from neurotally.profiler.whole_files import whole_file

Neurons = np.ndarray | Sequence[Sequence[int]]
"""[n, 2] of (layer, neuron), as an array or as it stands in a JSON document."""

SPECIFIC = "#92c5de"
EXCLUSIVE = "#d95f02"
INK = "#222222"
GREY = "#666666"
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d1f", "#7f7f7f")
"""Okabe and Ito's, told apart with any common colour blindness (their yellow made darker)."""
_MARKERS = ("o", "s", "^", "D")
_LONGEST_NAME = 22
_DPI = 160


def draw_layers(
    specific: Mapping[str, Neurons],
    exclusive: Mapping[str, Neurons],
    num_layers: int,
    title: str = "Where each corpus's neurons sit",
) -> Figure:
    """One panel a corpus: how many of its specific, and of its exclusive neurons lie in each layer.

    All panels have the same axes. Made for 2 to 13 corpora and 4 to 80 layers; the figure grows with the corpora.
    """
    figure, panels = panel_grid(len(specific))
    handles: list[Any] = []
    for panel, name in zip(panels, specific, strict=True):
        handles = _draw_panel(panel, name, specific[name], exclusive[name], num_layers)
    panels[0].set_ylim(bottom=0)
    figure.supxlabel("layer, from the input to the output", fontsize=10, color=INK)
    figure.supylabel("neurons in the layer", fontsize=10, color=INK)
    head(figure, handles, title, num_columns=2)
    return figure


def panel_grid(number: int, share_x: bool = True, share_y: bool = True) -> tuple[Figure, list[Any]]:
    """A figure of `number` panels, up to four beside each other, that grows with them; all have the same axes."""
    num_columns = min(4, math.ceil(math.sqrt(number)))
    num_rows = math.ceil(number / num_columns)
    layout = ConstrainedLayoutEngine(wspace=0.04, hspace=0.04)
    figure = Figure(figsize=(max(7.0, 1.0 + 3.1 * num_columns), 1.3 + 2.0 * num_rows), layout=layout)
    panels = list(figure.subplots(num_rows, num_columns, sharex=share_x, sharey=share_y, squeeze=False).ravel())
    for panel in panels[number:]:
        panel.set_visible(False)
    for panel in panels[max(0, number - num_columns) : number]:
        panel.tick_params(labelbottom=True)  # the last panel of a column may have a hidden one below it
    return figure, panels[:number]


def head(figure: Figure, handles: Sequence[Any], title: str, num_columns: int) -> None:
    """The title and the legend, above the panels."""
    legend = figure.legend(handles=handles, title=title, title_fontsize=13, alignment="left", fontsize=9,
                           loc="outside upper left", ncols=num_columns, frameon=False, borderpad=0.2)  # fmt: skip
    legend.get_title().set(color=INK, parse_math=False)


def label_matrix(axes: Any, rows: Sequence[str], columns: Sequence[str], row_label: str, column_label: str) -> None:
    """Names along both axes of a heat map, and white lines between its cells."""
    longest = max(len(short_name(name)) for name in columns)
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if longest > 7 else {}
    axes.set_xticks(range(len(columns)), [short_name(name) for name in columns], fontsize=9, parse_math=False, **slant)
    axes.set_yticks(range(len(rows)), [short_name(name) for name in rows], fontsize=9, parse_math=False)
    axes.set_xlabel(column_label, fontsize=10, color=INK)
    axes.set_ylabel(row_label, fontsize=10, color=INK)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def clean_panel(panel: Any) -> None:
    """The look of every panel: few ticks, a light grid behind, no frame above and to the right."""
    panel.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)


def layer_axis(panel: Any, num_layers: int) -> None:
    """Layers across, half a layer of room at both ends."""
    panel.set_xlim(-0.5, num_layers - 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def color_bar(figure: Figure, image: Any, axes: Any, label: str, **options: Any) -> None:
    """What a heat map's colours stand for, beside the axes; `options` are matplotlib's."""
    bar = figure.colorbar(image, ax=axes, pad=0.02, **options)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def line_look(number: int) -> tuple[str, str]:
    """Colour and marker of a line: 32 before the first comes again."""
    return _COLORS[number % len(_COLORS)], _MARKERS[number // len(_COLORS) % len(_MARKERS)]


def name_panel(panel: Any, name: str, right: str = "") -> None:
    """The panel's name to the left, cut to what a few numbers to the right leave of 2.9 inches."""
    room = min(_LONGEST_NAME, int((2.9 - 0.065 * len(right)) / 0.1))
    panel.set_title(short_name(name, room), loc="left", fontsize=10, fontweight="bold", color=INK, parse_math=False)
    panel.set_title(right, loc="right", fontsize=8, color=GREY, parse_math=False)


def short_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name that fits its panel or axis."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure; the suffix tells the format (.png, .pdf, .svg)."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=_DPI, facecolor="white")


def _draw_panel(panel: Any, name: str, specific: Neurons, exclusive: Neurons, num_layers: int) -> list[Any]:
    """Fill one panel; returns the handles of the legend."""
    edges = np.arange(num_layers + 1) - 0.5
    handles = [
        panel.stairs(layer_counts(neurons, num_layers), edges, fill=True, color=color, label=label)
        for neurons, color, label in (
            (specific, SPECIFIC, "specific (first number)"),
            (exclusive, EXCLUSIVE, "of these, exclusive (second number)"),
        )
    ]
    name_panel(panel, name, f"{len(specific):,} / {len(exclusive):,}" if len(specific) else "")
    if not len(specific):
        panel.text(0.5, 0.5, "no neuron\npasses the bar", transform=panel.transAxes, ha="center", va="center",
                   fontsize=9, color=GREY)  # fmt: skip
    layer_axis(panel, num_layers)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    clean_panel(panel)
    return handles
