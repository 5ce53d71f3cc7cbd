"""Pictures of what switching neurons off costs: heat maps from the documents of `ablate` and `mask`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from neurotally.analysis.figures.charts import INK, color_bar, label_matrix

Matrix = Sequence[Sequence[float | None]]


def draw_ablation(document: Mapping[str, Any]) -> Figure:
    """Three heat maps: change, change over random, and that in standard errors. One where nothing was drawn."""
    names = document["corpora"]
    panels = [
        ("change", "nats per token", document["change"]),
        ("change over random", "nats per token", document["change_over_random"]),
        ("change over random, in standard errors", "standard errors", document["in_standard_errors"]),
    ]
    return _heat_maps(
        panels if document["draws"] else panels[:1], names, [names] * 3, "text of corpus",
        f"What switching off each corpus's neurons costs ({document['how']})",
    )  # fmt: skip


def draw_mask(document: Mapping[str, Any]) -> Figure:
    """Heat maps of the change over random (the change, where nothing was drawn) by set.

    On every concept's matches, on the classes of the set's own concept, and on every corpus.
    """
    key = "change_over_random" if document["draws"] else "change"
    what = "change over random" if document["draws"] else "change"
    names, effects = list(document["sets"]), document["effects"]
    panels, columns = [], []
    if document["concepts"]:
        matches = [[effects[name]["concepts"][one]["match"][key] for one in document["concepts"]] for name in names]
        panels.append((f"{what}: in concepts' matches", "nats per token", matches))
        columns.append(document["concepts"])
    if all(name in document["concepts"] for name in names):
        own = [[effects[name]["concepts"][name][kind][key] for kind in document["classes"]] for name in names]
        panels.append((f"{what}: by the tokens of its own concept", "nats per token", own))
        columns.append(document["classes"])
    by_corpus = [[effects[name]["corpora"][corpus][key] for corpus in document["corpora"]] for name in names]
    panels.append((f"{what}: all tokens", "nats per token", by_corpus))
    columns.append(document["corpora"])
    title = f"What switching off neurons costs ({document['how']})"
    return _heat_maps(panels, names, columns, "text", title)


def _heat_maps(
    panels: Sequence[tuple[str, str, Matrix]], rows: Sequence[str], columns: Sequence[Sequence[str]],
    column_label: str, title: str,
) -> Figure:  # fmt: skip
    """(name, unit, values [rows, columns]) side by side, each with its own scale, white at zero."""
    widths = [3.0 + 0.72 * len(names) for names in columns[: len(panels)]]
    figure = Figure(figsize=(sum(widths), max(3.8, 2.2 + 0.46 * len(rows))), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axes, (name, unit, values), names in zip(all_axes, panels, columns, strict=False):
        value_RC = np.array(values, np.float64).reshape(len(rows), len(names))
        limit = float(np.max(np.abs(value_RC), initial=0, where=np.isfinite(value_RC))) or 1.0
        axes.set_facecolor("#d9d9d9")
        image = axes.imshow(value_RC, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
        _write_cells(axes, value_RC, image, limit)
        _frame_own(axes, rows, names)
        label_matrix(axes, rows, names, "neurons switched off" if axes is all_axes[0] else "", column_label)
        axes.set_title(name, fontsize=10, color=INK)
        color_bar(figure, image, axes, unit)
    figure.suptitle(title, fontsize=12, color=INK, parse_math=False)
    return figure


def _write_cells(axes: Any, value_RC: np.ndarray, image: Any, limit: float) -> None:
    """Each value in its cell, all with the decimals that give the largest three digits."""
    decimals = min(5, max(0, 2 - math.floor(math.log10(limit)))) if limit < 100 else 0
    for (row, column), value in np.ndenumerate(value_RC):
        text = f"{value:+.{decimals}f}".replace("-", "−") if np.isfinite(value) else "n/a"
        ink = INK
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=ink)


def _frame_own(axes: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Frame the cell of each row in the column of its own name."""
    for row, name in enumerate(rows):
        if name in columns:
            corner = (columns.index(name) - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=1.6,
                                     clip_on=False, zorder=3))  # fmt: skip
