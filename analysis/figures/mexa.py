"""Pictures of MEXA, drawn from the JSON document of `neurotally mexa`.

    draw_mexa          alignment by layer: one panel a pivot, one line a language; before them the means by pivot: the
                       paper's, over all other languages, and over these without ids whose texts are the same
    draw_mexa_matrix   every pivot with every language: the mean over layers, the same over ids whose texts differ, and
                       the share of identical pairs

As in `charts`, no pyplot, and colours that can be told apart with any common colour blindness.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from neurotally.analysis.render.charts import (
    GREY,
    INK,
    clean_panel,
    color_bar,
    head,
    label_matrix,
    name_panel,
    panel_grid,
    short_name,
)

Document = Mapping[str, Any]

_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#a6a300")
"""Okabe and Ito's, the yellow darkened; further languages have them again, dashed and dotted."""
_STYLES = ("-", "--", ":", "-.")


def draw_mexa(document: Document) -> Figure:
    """The score by layer: three means over languages for each pivot, then each pivot's own lines."""
    languages = document["languages"]
    means = {
        "paper_mean": ("paper's mean", "with itself, no English" if document["english"] else "with itself"),
        "without_self": ("mean over all others", "English too" if document["english"] else ""),
        "without_self_of_different": ("mean over others", "texts that differ"),
    }
    figure, panels = panel_grid(len(languages) + len(means))
    for panel, (key, (title, right)) in zip(panels, means.items(), strict=False):
        _draw_lines(panel, title, document[key], languages, right=right)
    for panel, pivot in zip(panels[len(means) :], languages, strict=True):
        _draw_lines(panel, f"pivot {pivot}", document["scores"][pivot], languages, pivot)
    panels[0].set_ylim(0, 1.02)
    figure.supxlabel(f"layer: 0 the token embeddings, {document['layers'] - 1} after the final norm", fontsize=10,
                     color=INK)  # fmt: skip
    figure.supylabel("share of ids that are aligned", fontsize=10, color=INK)
    title = f"MEXA, {document['embedding']} embeddings of {document['ids']} ids (BOS: {document['bos']})"
    handles = [
        Line2D([], [], **_look(number), label=short_name(name).replace("$", r"\$"))
        for number, name in enumerate(languages)
    ]
    head(figure, handles, title, num_columns=min(len(languages), 8 if len(languages) > 3 else 4))
    return figure


def draw_mexa_matrix(document: Document) -> Figure:
    """Heat maps pivot x language: mean over layers, that of ids whose texts differ, share of identical pairs."""
    languages = document["languages"]
    size = len(languages)
    figure = Figure(figsize=(3 * max(4.2, 1.8 + 0.62 * size), max(3.8, 1.9 + 0.5 * size)), layout="constrained")
    titles = {
        "mean_over_layers": f"aligned, mean over {document['layers']} layers",
        "mean_over_layers_of_different": "of ids whose texts differ",
        "identical": "byte-identical",
    }
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        value_CC = np.array([[document[key][pivot][name] for name in languages] for pivot in languages], float)
        axes.set_facecolor("#d9d9d9")
        image = axes.imshow(value_CC, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
        for (row, column), value in np.ndenumerate(value_CC):
            ink = "white" if value > 0.6 else INK
            text = f"{value:.2f}" if np.isfinite(value) else "–"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        label_matrix(axes, languages, languages, "pivot", "language")
        axes.set_title(title, fontsize=10, color=INK)
    color_bar(figure, image, figure.axes, "share of ids")
    figure.suptitle(f"MEXA, {document['embedding']} embeddings of {document['ids']} ids", fontsize=12, color=INK)
    return figure


def _draw_lines(
    panel: Any, name: str, by_language: Mapping[str, Sequence[float | None]], languages: Sequence[str], own: str = "",
    right: str = "",
) -> None:  # fmt: skip
    """A line for each language that there is one of; the pivot's own is thin and grey."""
    for number, language in enumerate(languages):
        if language not in by_language:
            continue
        score_L = np.array(by_language[language], np.float64)
        look = {"color": GREY, "linewidth": 0.8, "linestyle": "-"} if language == own else _look(number)
        panel.plot(np.arange(len(score_L)), score_L, **look)
    name_panel(panel, name, right)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
    clean_panel(panel)


def _look(number: int) -> dict[str, Any]:
    style = _STYLES[number // len(_COLORS) % len(_STYLES)]
    return {"color": _COLORS[number % len(_COLORS)], "linestyle": style, "linewidth": 1.4}
