"""Pictures of the logit lens and of layer agreement, drawn from their documents.

`draw_lens`: the gold token's probability and rank, and each token set's probability, by layer. `draw_prompt`: the first
token of every layer at every position of one prompt. `draw_agreement`: a panel a variant, a line a corpus, by layer.
`draw_contexts`: a heat map a corpus, layers by context size.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from neurotally.analysis.layers.lens import PromptLens
from neurotally.analysis.render.charts import (
    GREY,
    INK,
    clean_panel,
    color_bar,
    head,
    layer_axis,
    line_look,
    name_panel,
    panel_grid,
    short_name,
)

Document = Mapping[str, Any]

_DASHED = (0, (3, 2))
_BAND = "#d9d9d9"
_VARIANTS = {
    "ffn-raw": "FFN, raw",
    "ffn-norm": "FFN, normed",
    "residual-raw": "residual, raw",
    "residual-norm": "residual, normed",
}
_MOST_POSITIONS = 60
_CELL_CHARACTERS = 6
_LAYERS = "layer, from the input to the output"


def draw_lens(document: Document) -> Figure:
    """One panel a quantity, by layer: a line for each target language, a thick one over all, dashed random sets.

    Around these a band, from the smallest to the largest of the draws; dotted what uniform tokens expect.
    """
    names = list(document["sets"])
    figure, panels = panel_grid(2 + len(names), share_y=False)
    for panel, key, title in ((panels[0], "gold_probability", "gold token"), (panels[1], "gold_rank", "its rank")):
        _draw_lines(panel, document, lambda means, key=key: means[key])
        name_panel(panel, title, "probability" if key == "gold_probability" else "mean, log scale")
    panels[1].set_yscale("log")
    panels[1].set_ylim(bottom=1)
    for panel, name in zip(panels[2:], names, strict=True):
        _draw_lines(panel, document, lambda means, name=name: means["sets"][name]["mass"])
        _draw_control(panel, document, name)
    for panel in panels:
        if panel is not panels[1]:
            panel.set_ylim(bottom=0)
            panel.yaxis.set_major_locator(MaxNLocator(nbins=4))
        layer_axis(panel, document["layers"])
        clean_panel(panel)
    figure.supxlabel(_LAYERS, fontsize=10, color=INK)
    figure.supylabel("probability, mean over positions, snippets and pairs", fontsize=10, color=INK)
    handles = [Line2D([], [], color=INK, linewidth=2, label=f"all pairs ({_counts(document['all'])})")]
    for number, (name, means) in enumerate(document["targets"].items()):
        handles.append(_handle(number, f"to {short_name(name)} ({means['positions']:,})"))
    if names:
        handles += _control_handles(document)
    head(figure, handles, "The logit lens over few-shot translation", num_columns=4)
    return figure


def draw_prompt(prompt: PromptLens) -> Figure:
    """Layers by positions of one prompt: each cell its first token, coloured by its probability."""
    shown = min(_MOST_POSITIONS, len(prompt.gold_n))
    probability_Ln = prompt.probability_nL[:shown].T
    layers = len(probability_Ln)
    figure = Figure(figsize=(max(6.0, 2.2 + 0.62 * shown), max(3.2, 2.4 + 0.3 * layers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        probability_Ln, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower", interpolation="none"
    )
    for (layer, position), value in np.ndenumerate(probability_Ln):
        axes.text(position, layer, _cell(prompt.first_nL[position][layer]), ha="center", va="center", fontsize=7,
                  color="white" if value > 0.55 else INK, parse_math=False)  # fmt: skip
    axes.set_xticks(range(shown), [_cell(text) for text in prompt.input_n[:shown]], fontsize=8, rotation=60,
                    ha="right", rotation_mode="anchor", parse_math=False)  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("the token before; above, the token that comes next", fontsize=10, color=INK)
    axes.set_ylabel("layer", fontsize=10, color=INK)
    above = axes.secondary_xaxis("top")
    above.set_xticks(range(shown), [_cell(text) for text in prompt.gold_n[:shown]], fontsize=8, rotation=60,
                     ha="left", rotation_mode="anchor", parse_math=False)  # fmt: skip
    for axis in (axes, above):
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    of = f", the first {shown} of {len(prompt.gold_n)} positions" if shown < len(prompt.gold_n) else ""
    figure.suptitle(f"{prompt.pair}, {prompt.id}{of}", fontsize=12, color=INK, parse_math=False)
    color_bar(figure, image, axes, "probability of the layer's first token")
    return figure


def draw_agreement(document: Document) -> Figure:
    """One panel a variant: agreement by layer over whole documents, a line a corpus; dotted, with the next token."""
    figure, panels = panel_grid(len(document["variants"]))
    for panel, variant in zip(panels, document["variants"], strict=True):
        for number, corpus in enumerate(document["corpora"].values()):
            color, marker = line_look(number)
            panel.plot(np.array(corpus["agreement"][variant][0], np.float64), color=color, marker=marker, markersize=3)
            panel.plot(np.array(corpus["gold"][variant][0], np.float64), color=color, linewidth=1, linestyle=":")
        name_panel(panel, _VARIANTS[variant])
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        layer_axis(panel, document["layers"])
        clean_panel(panel)
    panels[0].set_ylim(0, None)  # all share it, and only now is everything drawn
    figure.supxlabel(_LAYERS, fontsize=10, color=INK)
    figure.supylabel("share of positions", fontsize=10, color=INK)
    handles = [
        _handle(number, f"{short_name(name)} ({corpus['positions'][0]:,} positions)")
        for number, (name, corpus) in enumerate(document["corpora"].items())
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=1, linestyle=":", label="the token that comes next"))
    head(figure, handles, "Positions at which a layer's first token is the model's", num_columns=3)
    return figure


def draw_contexts(document: Document) -> Figure:
    """One heat map a corpus and variant: layers by context size, the share in each cell, positions below the size."""
    corpora, variants = document["corpora"], document["variants"]
    columns, layers = len(document["contexts"]), document["layers"]
    size = (1.6 + len(variants) * max(3.2, 1.2 + 0.5 * columns), 1.4 + len(corpora) * max(2.2, 1.1 + 0.22 * layers))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(corpora), len(variants), squeeze=False)
    image = None
    for row, (name, corpus) in zip(panels, corpora.items(), strict=True):
        for axes, variant in zip(row, variants, strict=True):
            share_LC = np.array(corpus["agreement"][variant], np.float64).T
            axes.set_facecolor("#d9d9d9")
            image = axes.imshow(share_LC, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower",
                                interpolation="none")  # fmt: skip
            labels = [
                f"{context['label']}\n{positions:,}"
                for context, positions in zip(document["contexts"], corpus["positions"], strict=True)
            ]
            axes.set_xticks(range(columns), labels, fontsize=7, rotation=60, ha="right", rotation_mode="anchor")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.tick_params(length=0, labelsize=7)
            axes.spines[:].set_visible(False)
            name_panel(axes, name, _VARIANTS[variant])
    figure.supxlabel("what the model sees, and positions", fontsize=10, color=INK)
    figure.supylabel(_LAYERS, fontsize=10, color=INK)
    figure.suptitle("Agreement with the model's first token, by context", fontsize=12, color=INK)
    assert image is not None
    color_bar(figure, image, panels, "share of positions", format=PercentFormatter(1))
    return figure


def _draw_lines(panel: Any, document: Document, of: Any) -> None:
    for number, means in enumerate(document["targets"].values()):
        color, marker = line_look(number)
        panel.plot(np.array(of(means), np.float64), color=color, marker=marker, markersize=2.5, linewidth=1)
    panel.plot(np.array(of(document["all"]), np.float64), color=INK, linewidth=2)


def _draw_control(panel: Any, document: Document, name: str) -> None:
    about, of = document["sets"][name], document["all"]["sets"][name]
    panel.plot(np.array(of["control"]["mass"], np.float64), color=GREY, linewidth=1.2, linestyle=_DASHED)
    if of["control"]["draws"] is not None:
        draw_DL = np.array(of["control"]["draws"])
        panel.fill_between(range(draw_DL.shape[1]), draw_DL.min(axis=0), draw_DL.max(axis=0), color=_BAND, linewidth=0)
    if about["uniform"] is not None:
        panel.axhline(about["uniform"], color=GREY, linewidth=0.8, linestyle=":")
    rank = "" if of["mean_rank"] is None else f", rank {of['mean_rank']} of {document['draws'] + 1}"
    name_panel(panel, name, f"{about['tokens']:,} tokens{rank}")


def _control_handles(document: Document) -> list[Any]:
    if not document["matched"]:
        label = "one uniform draw of as many tokens, unmatched"
        return [Line2D([], [], color=GREY, linewidth=1.2, linestyle=_DASHED, label=label)]
    draws = document["draws"]
    label = f"random tokens of like frequency, mean of {draws} draws"
    return [
        Line2D([], [], color=GREY, linewidth=1.2, linestyle=_DASHED, label=label),
        Patch(color=_BAND, label="least to most of the draws"),
        Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="uniform tokens (m/V)"),
    ]


def _counts(means: Mapping[str, Any]) -> str:
    return f"{means['snippets']:,} prompts, {means['positions']:,} positions"


def _handle(number: int, label: str) -> Line2D:
    color, marker = line_look(number)
    return Line2D([], [], color=color, marker=marker, markersize=3, linewidth=1.2, label=label)


def _cell(text: str) -> str:
    """A token's text in a cell: its spaces marked where nothing else shows, cut to 6 characters."""
    shown = text.strip() or text.replace(" ", "␣")
    shown = shown.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    shown = "".join(character if character.isprintable() else "�" for character in shown)
    return shown if len(shown) <= _CELL_CHARACTERS else shown[: _CELL_CHARACTERS - 1] + "…"
