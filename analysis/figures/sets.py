"""Pictures of how sure, how stable and how alike neuron sets are, each drawn from the JSON document of its command.

    draw_error_bars   `lape --error-bars`: entropies of each corpus's neurons with their intervals
    draw_stability    `stability`: how much of each set less text recovers
    draw_sweep        `sweep`: sizes, overlap with the default, profiles by layer
    draw_profiles     `profiles`: neurons by layer, stacked by how many corpora share them
    draw_overlap      `profiles` and `compare`: overlap of every two corpora
    draw_compare      `compare`: the profiles of two stores, one over the other

Made for 2 to 13 corpora and 4 to 80 layers. As in `charts`, no pyplot, and colours that can be told apart with any
common colour blindness.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from neurotally.analysis.overlap import safe_divide
from neurotally.analysis.render.charts import (
    EXCLUSIVE,
    GREY,
    INK,
    SPECIFIC,
    clean_panel,
    head,
    label_matrix,
    name_panel,
    panel_grid,
)

Document = Mapping[str, Any]

_BLUE = "#2166ac"
_SHARED = ("#d6e6f4", "#94c4df", "#4292c6", "#0b4f94")
"""Light to dark: shared by few, by many."""
_WIDEST = 4
"""So many steps of sharing beyond exclusive fit the legend and the eye."""


def draw_stability(document: Document) -> Figure:
    """One panel a corpus: the share of its neurons that less text recovers, and how far two samples agree."""
    curve = document["curve"]
    figure, panels = panel_grid(len(document["corpora"]), share_x=False)
    for panel, name in zip(panels, document["corpora"], strict=True):
        _draw_curve(panel, name, document)
    panels[0].set_ylim(0, 1.04)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.supxlabel("tokens of the corpus", fontsize=10, color=INK)
    figure.supylabel("share of the specific neurons", fontsize=10, color=INK)
    handles = [
        Line2D([], [], color=_BLUE, linewidth=1.6, label="of all text's neurons, found from less text (mean)"),
        Patch(facecolor=SPECIFIC, alpha=0.6, label=f"least to most of {curve['orders']} orders"),
        Line2D([], [], color=EXCLUSIVE, marker="o", markersize=3.5, linewidth=1.4, linestyle="--",
               label="two samples without common text agree"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=":", label="random candidates"),
    ]  # fmt: skip
    title = f"How much text is enough?  (core: chosen by all {document['half_samples']} half-samples)"
    head(figure, handles, title, num_columns=2)
    return figure


def draw_sweep(document: Document) -> Figure:
    """A row for balanced and one for top: sizes and overlap with the default as heat maps, profiles as curves."""
    limits = {"balanced": ("per_corpus", document["per_corpus"]), "top": ("top_rate", document["top_rates"])}
    selects = [select for select, (_, values) in limits.items() if values]
    layout = ConstrainedLayoutEngine(wspace=0.05, hspace=0.06)
    figure = Figure(figsize=(16.5, 0.9 + 3.6 * len(selects)), layout=layout)
    rows = figure.subplots(len(selects), 4, squeeze=False)
    for axes, select in zip(rows, selects, strict=True):
        name, values = limits[select]
        grid = _grid(document, select, name, values)
        _draw_sizes(axes[0], document, select, values, grid)
        _draw_default_overlap(axes[1], document, select, values, grid)
        _draw_swept_profiles(axes[2], document, select, values, grid, along_limit=True)
        _draw_swept_profiles(axes[3], document, select, values, grid, along_limit=False)
    default = document["default"]
    limit = _limit_text(default["select"], default["per_corpus" if default["select"] == "balanced" else "top_rate"])
    title = f"What hangs on LAPE's settings?  The base: {default['select']}, {limit}, quantile {default['quantile']:g}"
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", color=INK)
    return figure


def draw_compare(document: Document) -> Figure:
    """One panel a corpus: its specific neurons' profiles in both stores, over relative depth if layers differ."""
    one, other = document["stores"]
    is_relative = document["relative_axis"]
    figure, panels = panel_grid(len(document["corpora"]))
    for panel, name in zip(panels, document["corpora"], strict=True):
        _draw_both(panel, name, document)
    panels[0].set_ylim(bottom=0)
    label = "depth, from the input (0) to the output (1)" if is_relative else "layer, from the input to the output"
    figure.supxlabel(label, fontsize=10, color=INK)
    unit = "density of specific neurons (1: evenly spread)" if is_relative else "% of the specific neurons"
    figure.supylabel(unit, fontsize=10, color=INK)
    handles = [
        Patch(facecolor=SPECIFIC, label=f"A  {_of_store(one)}"),
        Line2D([], [], color=EXCLUSIVE, linewidth=1.6, label=f"B  {_of_store(other)}"),
    ]
    head(figure, handles, "Where each corpus's neurons sit in two stores", 1)
    for text in figure.legends[0].get_texts():
        text.set_parse_math(False)
    return figure


def _draw_curve(panel: Any, name: str, document: Document) -> None:
    curve = document["curve"]
    clean_panel(panel)
    recovered = curve["recovered"][name]
    if recovered["mean"][-1] is None:
        _nothing(panel, name)
        panel.set_xticks([])
        return
    tokens_K = curve["tokens"][name]
    panel.fill_between(tokens_K, recovered["least"], recovered["most"], color=SPECIFIC, alpha=0.6, linewidth=0)
    panel.plot(tokens_K, recovered["mean"], color=_BLUE, linewidth=1.6)
    agreement = [(x, y) for x, y in zip(tokens_K, curve["agreement"][name], strict=True) if y is not None]
    panel.plot(
        *zip(*agreement, strict=True), color=EXCLUSIVE, marker="o", markersize=3.5, linewidth=1.4, linestyle="--"
    )
    if document["by_chance"][name] is not None:
        panel.axhline(document["by_chance"][name], color=GREY, linewidth=1, linestyle=":")
    again = document["selected_again"][name]["mean"]
    core = len(document["core"][name]) / len(document["specific"][name])
    name_panel(panel, name, f"half: {100 * again:.0f} % again, core {100 * core:.0f} %")
    panel.set_xlim(0, 1.02 * tokens_K[-1])
    panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _grid(document: Document, select: str, name: str, values: Sequence[float]) -> dict[tuple[float, float], Document]:
    """Settings of one kind by (quantile, limit)."""
    found = {(of["quantile"], of[name]): of for of in document["settings"] if of["select"] == select}
    assert len(found) == len(values) * len(document["quantiles"]), "a full grid"
    return found


def _draw_sizes(axes: Any, document: Document, select: str, values: Sequence[float], grid: Mapping) -> None:
    size_QV = np.array([[grid[quantile, value]["distinct"] for value in values] for quantile in document["quantiles"]])
    shared_QV = np.array([[grid[quantile, value]["shared"] for value in values] for quantile in document["quantiles"]])
    share_QV = safe_divide(shared_QV, size_QV)
    texts = [[f"{size:,}\n{_percent(share)}" for size, share in zip(*rows, strict=True)]
             for rows in zip(size_QV, share_QV, strict=True)]  # fmt: skip
    _draw_grid(axes, document, select, values, share_QV, texts)
    axes.set_title(f"{select}: distinct neurons, % of them shared", fontsize=10, loc="left", color=INK)


def _draw_default_overlap(axes: Any, document: Document, select: str, values: Sequence[float], grid: Mapping) -> None:
    def mean(setting: Document, measure: str) -> float:
        found = [of[measure] for of in setting["with_default"].values() if of[measure] is not None]
        return float(np.mean(found)) if found else np.nan

    rows = [[grid[quantile, value] for value in values] for quantile in document["quantiles"]]
    contained_QV = np.array([[mean(setting, "contained") for setting in row] for row in rows])
    texts = [
        [f"{_percent(mean(setting, 'contained'))}\n{mean(setting, 'jaccard'):.2f}" for setting in row] for row in rows
    ]
    _draw_grid(axes, document, select, values, contained_QV, texts)
    axes.set_title("overlap with the base: contained, Jaccard", fontsize=10, loc="left", color=INK)


def _draw_grid(
    axes: Any, document: Document, select: str, values: Sequence[float], value_QV: np.ndarray, texts: Sequence
) -> None:
    """A heat map of shares, quantiles down and limits across; the default is framed."""
    quantiles = document["quantiles"]
    axes.set_facecolor("#d9d9d9")
    axes.imshow(value_QV, cmap="Blues", vmin=0, vmax=1.15, aspect="auto", interpolation="none")
    for (row, column), value in np.ndenumerate(value_QV):
        ink = "white" if value > 0.65 else INK
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=8.5, color=ink)
    names = [_limit_text(select, value, short=True) for value in values]
    limit_label = "neurons per corpus" if select == "balanced" else "share of all neurons"
    label_matrix(axes, [f"{quantile:g}" for quantile in quantiles], names, "quantile of the bar", limit_label)
    default = document["default"]
    limit = default.get("per_corpus" if select == "balanced" else "top_rate")
    if default["select"] == select and default["quantile"] in quantiles and limit in values:
        corner = (values.index(limit) - 0.5, quantiles.index(default["quantile"]) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=EXCLUSIVE, linewidth=2.2, clip_on=False, zorder=3))


def _draw_swept_profiles(
    axes: Any, document: Document, select: str, values: Sequence[float], grid: Mapping, along_limit: bool
) -> None:
    """Curves over the layers, darker as the varied number grows; the other is the default's or the middle one."""
    default = document["default"]
    quantiles = document["quantiles"]
    middle_limit = default.get("per_corpus" if select == "balanced" else "top_rate")
    limit = middle_limit if middle_limit in values else values[len(values) // 2]
    quantile = default["quantile"] if default["quantile"] in quantiles else quantiles[len(quantiles) // 2]
    keys = [(quantile, value) for value in values] if along_limit else [(each, limit) for each in quantiles]
    for index, key in enumerate(keys):
        count_L = np.sum(list(grid[key]["by_layer"]["specific"].values()), axis=0)
        color = _ramp(index, len(keys))
        label = _limit_text(select, key[1], short=True) if along_limit else f"{key[0]:g}"
        axes.plot(100 * count_L / max(1, count_L.sum()), color=color, linewidth=1.6, label=label)
    fixed = f"quantile {quantile:g}" if along_limit else _limit_text(select, limit)
    axes.set_title(f"profile of all corpora's neurons, {fixed}", fontsize=10, loc="left", color=INK)
    axes.set_xlabel("layer, from the input to the output", fontsize=9, color=INK)
    axes.set_ylabel("% of the specific neurons", fontsize=9, color=INK)
    varied = ("per corpus" if select == "balanced" else "top rate") if along_limit else "quantile"
    axes.legend(title=varied, fontsize=8, title_fontsize=8, frameon=False)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    clean_panel(axes)


def _draw_both(panel: Any, name: str, document: Document) -> None:
    is_relative = document["relative_axis"]
    for store, is_first in zip(document["stores"], (True, False), strict=True):
        count_L = np.array(store["by_layer"]["specific"][name], dtype=np.float64)
        scale = len(count_L) if is_relative else 100
        edges = np.linspace(0, 1, len(count_L) + 1) if is_relative else np.arange(len(count_L) + 1) - 0.5
        height_L = scale * count_L / max(1, count_L.sum())
        style = {"fill": True, "color": SPECIFIC} if is_first else {"color": EXCLUSIVE, "linewidth": 1.6}
        panel.stairs(height_L, edges, **style)
    overlap = document["profile_overlap"]["specific"][name]
    if overlap is not None:
        name_panel(panel, name, f"{100 * overlap:.0f} % overlap")
    elif any(any(store["by_layer"]["specific"][name]) for store in document["stores"]):
        name_panel(panel, name, "no neuron in one of them")
    else:
        _nothing(panel, name)
    panel.set_xlim(edges[0], edges[-1])
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=not is_relative))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=4))
    clean_panel(panel)


def _of_store(store: Document) -> str:
    chosen = sum(store["by_layer"]["distinct"])
    return f"{store['label']}: {store['layers']} layers of {store['neurons']:,}, {chosen:,} neurons chosen"


def _nothing(panel: Any, name: str) -> None:
    name_panel(panel, name)
    panel.text(0.5, 0.5, "no neuron\npasses the bar", transform=panel.transAxes, ha="center", va="center",
               fontsize=9, color=GREY)  # fmt: skip


def _limit_text(select: str, limit: float, short: bool = False) -> str:
    if select == "balanced":
        return f"{limit:,}" if short else f"{limit:,} per corpus"
    return f"{100 * limit:g} %" if short else f"top {100 * limit:g} %"


def _ramp(index: int, number: int) -> tuple[float, float, float, float]:
    """Colours from light blue to nearly black, which a grey print keeps apart too."""
    from matplotlib import colormaps

    color: tuple[float, float, float, float] = colormaps["Blues"](0.35 + 0.65 * index / max(1, number - 1))
    return color


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "n/a"
