"""Pictures of what switching neurons off costs: heat maps from the documents of `ablate` and `mask`."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from neurotally.analysis.masking.losses_report import not_empty, verdict_lines
from neurotally.analysis.render.charts import INK, color_bar, label_matrix

_SAME_LAYERS = "random of the same layers"
_ABOVE = "random above the threshold"

_FULL_Z = 4.0
"""No smaller z has the fullest colour: what chance gives looks pale."""

Matrix = Sequence[Sequence[float | None]]


def draw_ablation(document: Mapping[str, Any]) -> Figure:
    """Six heat maps: change, change over either kind of random neurons; below, z of both, and the smaller of them.

    One, the change, where nothing was drawn.
    """
    names, draws = document["corpora"], document["draws"]
    panels = [("change", "nats per token", document["change"])]
    if draws:
        over = document["random_candidates"] or dict.fromkeys(
            ("change_over_random", "z"), [[None] * len(names)] * len(names)
        )
        panels += [
            (f"change over {_SAME_LAYERS}", "nats per token", document["change_over_random"]),
            (f"change over {_ABOVE}", "nats per token", over["change_over_random"]),
            ("z, the smaller of both", "z", document["z_stricter"]),
            (f"z over {_SAME_LAYERS}", "z", document["z"]),
            (f"z over {_ABOVE}", "z", over["z"]),
        ]
    return _heat_maps(
        panels, names, [names] * len(panels), "text of corpus",
        f"What switching off each corpus's neurons costs ({document['how']})", verdict_lines(document),
    )  # fmt: skip


def draw_mask(document: Mapping[str, Any]) -> Figure:
    """Heat maps of the change over either kind of random neurons, and of the smaller z, by set.

    On every concept's matches, on the classes of the set's own concept, and on every corpus. The change alone where
    nothing was drawn; without sets that have no neuron.
    """
    effects = document["effects"]
    names = [name for name in document["sets"] if name in not_empty(document)] or list(document["sets"])
    concepts = document["concepts"]
    # By what a column of panels shows: the names of its columns, and the effects of a set.
    groups: list[tuple[str, Sequence[str], Callable[[str], Sequence[Mapping[str, Any]]]]] = []
    if concepts:
        groups.append(("in concepts' matches", concepts, lambda name: [
            effects[name]["concepts"][one]["match"] for one in concepts
        ]))  # fmt: skip
    if all(name in concepts for name in names):
        groups.append(("by the tokens of its own concept", document["classes"], lambda name: [
            effects[name]["concepts"][name][kind] for kind in document["classes"]
        ]))  # fmt: skip
    groups.append(("all tokens", document["corpora"], lambda name: list(effects[name]["corpora"].values())))
    values: list[tuple[str, str, Callable[[Mapping[str, Any]], float | None]]] = [
        (f"change over {_SAME_LAYERS}", "nats per token", lambda one: one["change_over_random"]),
        (f"change over {_ABOVE}", "nats per token", lambda one: one["candidates"]["change_over_random"]),
        ("z, the smaller of both", "z", lambda one: one["z_stricter"]),
    ] if document["draws"] else [("change", "nats per token", lambda one: one["change"])]  # fmt: skip
    panels = [
        (f"{what}\n{where}", unit, [[read(one) for one in effects_of(name)] for name in names])
        for what, unit, read in values
        for where, _, effects_of in groups
    ]
    columns = [group[1] for group in groups] * len(values)
    title = f"What switching off neurons costs ({document['how']})"
    return _heat_maps(panels, names, columns, "text", title, verdict_lines(document), len(values))


def _heat_maps(
    panels: Sequence[tuple[str, str, Matrix]], rows: Sequence[str], columns: Sequence[Sequence[str]],
    column_label: str, title: str, lines: Sequence[str], num_rows: int | None = None,
) -> Figure:  # fmt: skip
    """(name, unit, values [rows, columns]), each with its own scale, white at zero; below them the lines.

    In `num_rows` rows of panels; None: in one, or two of three.
    """
    num_rows = num_rows or math.ceil(len(panels) / 3)
    across = len(panels) // num_rows
    widths = [3.0 + 0.72 * len(names) for names in columns[:across]]
    height = max(3.8, 2.2 + 0.46 * len(rows))
    text = [part for line in lines for part in textwrap.wrap(line, int(13 * sum(widths)), subsequent_indent="    ")]
    figure = Figure(figsize=(sum(widths), height * num_rows + 0.2 * len(text)), layout="constrained")
    all_axes = figure.subplots(num_rows, across, squeeze=False, width_ratios=widths)
    for place, (axes, (name, unit, values), names) in enumerate(zip(all_axes.flat, panels, columns, strict=True)):
        value_RC = np.array(values, np.float64).reshape(len(rows), len(names))
        least = _FULL_Z if unit == "z" else 0.0
        limit = float(np.max(np.abs(value_RC), initial=least, where=np.isfinite(value_RC))) or 1.0
        axes.set_facecolor("#d9d9d9")
        image = axes.imshow(value_RC, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
        _write_cells(axes, value_RC, image, limit, 1 if unit == "z" else None)
        _frame_own(axes, rows, names)
        label_matrix(axes, rows, names, "" if place % across else "neurons switched off", column_label)
        axes.set_title(name, fontsize=10, color=INK)
        color_bar(figure, image, axes, unit)
    figure.suptitle(title, fontsize=12, color=INK, parse_math=False)
    if text:
        figure.supxlabel("\n".join(text), x=0.01, ha="left", fontsize=9, color=INK, parse_math=False)
    return figure


def _write_cells(axes: Any, value_RC: np.ndarray, image: Any, limit: float, decimals: int | None) -> None:
    """Each value in its cell; `decimals` None: all with those that give the largest three digits."""
    if decimals is None:
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
