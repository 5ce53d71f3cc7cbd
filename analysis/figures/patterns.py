"""Pictures of what keys have in common, drawn from the documents of `patterns` and `concepts`.

`draw_patterns` has a panel for every statistic and a line for every corpus, by layer; dashed what null keys give,
around the line the 95 % interval of its distance from these, and a mark at the left edge for random positions.
`draw_concepts` has a panel a concept: its keys in each layer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurotally.analysis.render.charts import (
    GREY,
    INK,
    SPECIFIC,
    clean_panel,
    head,
    layer_axis,
    line_look,
    name_panel,
    panel_grid,
    short_name,
)

Document = Mapping[str, Any]

_LEFT_OUT = ("punctuation", "directive", "other")
_FAMILIES = ("ngrams", "kinds", "concepts")


def draw_patterns(document: Document) -> Figure:
    """One panel a statistic: mean share of a key's contexts by layer, one line a corpus."""
    statistics = list(
        dict.fromkeys(
            (family, name)
            for corpus in document["corpora"].values()
            for family in _FAMILIES
            for name in corpus[family]
            if name not in _LEFT_OUT or family != "kinds"
        )
    )
    figure, panels = panel_grid(len(statistics) + 2 * bool(document["null_keys"]), share_y=False)
    for panel, (family, name) in zip(panels, statistics, strict=False):
        _draw_statistic(panel, document, family, name)
    if document["null_keys"]:
        _draw_passing(panels[-2], document, "shallow_by_layer", "shallow keys")
        _draw_passing(panels[-1], document, "abstract_by_layer", "abstract keys")
    figure.supxlabel("layer, from the input to the output", fontsize=10, color=INK)
    figure.supylabel("share of a key's distinct trigger contexts, mean over keys", fontsize=10, color=INK)
    head(figure, _handles(document), "What the keys' triggers have in common", num_columns=4)
    return figure


def draw_concepts(document: Document) -> Figure:
    """One panel a concept: how many of its keys lie in each layer."""
    concepts = document["by_layer"]
    figure, panels = panel_grid(len(concepts), share_y=False)
    edges = [layer - 0.5 for layer in range(document["layers"] + 1)]
    for panel, (name, by_layer) in zip(panels, concepts.items(), strict=True):
        panel.stairs(by_layer, edges, fill=True, color=SPECIFIC)
        name_panel(panel, name, f"{sum(by_layer):,} keys")
        panel.set_ylim(0, 1.05 * max(1, *by_layer))
        panel.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        layer_axis(panel, document["layers"])
        clean_panel(panel)
        if not sum(by_layer):
            panel.text(0.5, 0.5, "no key passes", transform=panel.transAxes, ha="center", va="center", fontsize=9,
                       color=GREY)  # fmt: skip
    figure.supxlabel("layer, from the input to the output", fontsize=10, color=INK)
    figure.supylabel("keys in the layer", fontsize=10, color=INK)
    tested = "more than null keys" if document["null_keys"] else "not tested against null keys"
    label = f"at least {document['min_matches']} of {document['triggers']} triggers match, {tested}"
    head(figure, [Patch(color=SPECIFIC, label=label)], "Where each concept's keys sit", num_columns=1)
    return figure


def _draw_statistic(panel: Any, document: Document, family: str, name: str) -> None:
    for number, corpus in enumerate(document["corpora"].values()):
        found = corpus[family].get(name)
        if found is None:
            continue
        color, marker = line_look(number)
        panel.plot(np.array(found["by_layer"], np.float64), color=color, marker=marker, markersize=3, linewidth=1.4)
        if found["null_by_layer"] is not None:
            panel.plot(np.array(found["null_by_layer"], np.float64), color=color, linewidth=1, linestyle=(0, (3, 2)))
            share_L, half_L = (np.array(found[key], np.float64) for key in ("by_layer", "over_null_half_by_layer"))
            panel.fill_between(range(len(share_L)), share_L - half_L, share_L + half_L, color=color, alpha=0.2,
                               linewidth=0)  # fmt: skip
        if found["chance"] is not None:
            panel.plot([-0.5], [found["chance"]], color=color, marker=5, markersize=6, clip_on=False, linestyle="")
    name_panel(panel, {"ngrams": f"same {name}", "kinds": name, "concepts": f"/{name}/"}[family])
    _share_axis(panel, document["layers"])


def _draw_passing(panel: Any, document: Document, key: str, title: str) -> None:
    for number, corpus in enumerate(document["corpora"].values()):
        color, marker = line_look(number)
        panel.plot(range(document["layers"]), corpus[key], color=color, marker=marker, markersize=3, linewidth=1.4)
    needed = max((corpus["needed"] for corpus in document["corpora"].values()), default=0)
    name_panel(panel, title, f"{needed:,} needed for any")
    _share_axis(panel, document["layers"])


def _handles(document: Document) -> list[Any]:
    handles: list[Any] = []
    for number, (name, corpus) in enumerate(document["corpora"].items()):
        color, marker = line_look(number)
        label = f"{short_name(name)} ({corpus['keys']:,} keys)"
        handles.append(Line2D([], [], color=color, marker=marker, markersize=4, linewidth=1.4, label=label))
    if document["null_keys"]:
        label = f"untrained model ({document['null_keys']:,} null keys)"
        handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (3, 2)), label=label))
        handles.append(Patch(color=GREY, alpha=0.2, label="95 % interval of the distance from these"))
    handles.append(Line2D([], [], color=GREY, marker=5, markersize=6, linestyle="", label="random positions"))
    return handles


def _share_axis(panel: Any, num_layers: int) -> None:
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=4))
    layer_axis(panel, num_layers)
    clean_panel(panel)
