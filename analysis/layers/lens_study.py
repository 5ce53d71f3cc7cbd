"""What `lens` says: the gold token and the sets of tokens by layer, beside random sets; the document is `lens`'s.

Shown are the keywords of the languages that take part, English words and all keywords together; in full all sets.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.layer_runs import known_mean, layer_runs, run_means
from neurotally.analysis.layers.lens import LensResult, PromptLens, lens_document, rank, read_lens, read_prompt
from neurotally.analysis.options import GroupName, Option
from neurotally.analysis.parts import Cell, Chart, Column, Grid, Panel, Series, Table, Value
from neurotally.analysis.result import Result
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError

Document = Mapping[str, Any]

_GENERAL = ("all", "english", "english without keywords")
"""Sets of no one language, in lower case."""
_LISTED_PAIRS = 12
_PROMPT_POSITIONS, _PROMPT_ROWS = 20, 3
"""Of a prompt's heat map: so many beside each other, in so many rows."""
_CELL_CHARACTERS = 6


def study(
    store: Path,
    name: GroupName = "translation",
    sets: Annotated[
        tuple[str, ...],
        Option("Show this set of tokens; may be repeated. Left out: those of the pairs' languages.", "NAME",
               names=("--set",)),
    ] = (),
    prompt: Annotated[
        str | None, Option("Draw layers by tokens of this prompt, given by its number or pair and id.", "N|A-B/ID")
    ] = None,
) -> Result:  # fmt: skip
    """What each layer would predict next: the logit lens over few-shot translation, read by `lens` (arXiv 2506.01074).

    >>> store.lens().frame("gold")["pair"].tolist()[-2:]
    ['all pairs', 'all positions alike']
    """
    lens = read_lens(store, name)
    return lens_result(lens, sets, None if prompt is None else read_prompt(store, name, prompt), name)


def sections(store: Path) -> list[dict[str, Any]]:
    """One for every lens."""
    return [{"name": name} for name, of in stores.family_attributes(store, "lens").items() if "paper" in of]


def lens_result(
    lens: LensResult, sets: Sequence[str] = (), prompt: PromptLens | None = None, name: str = "translation"
) -> Result:
    """The gold token and the sets asked for, beside random sets; a prompt's figure first, if there is one."""
    document = lens_document(lens)
    chosen = _chosen(document, sets)
    charts = [] if prompt is None else [_prompt_chart(prompt)]
    charts += [_lens_chart(document, chosen), _panels_chart(document, chosen), _ranks_chart(document, chosen)]
    lead = "Logit lens: what every layer would predict, if it were the last, while the model translates code by example"
    return Result(
        "lens", document, lead, _tables(document, chosen), charts, _notes(document), findings=_findings(document),
        title="Logit lens" if name == "translation" else f"Logit lens: {name}", anchor=f"lens-{name}",
    )  # fmt: skip


def _chosen(document: Document, asked: Sequence[str]) -> list[str]:
    """The sets to show: those asked for, or of the languages that take part, or all."""
    names = list(document["sets"])
    if unknown := [name for name in asked if name not in names]:
        known = ", ".join(names) or "none: there were no keywords"
        raise InputError(f"--set {unknown[0]!r}: expected a set of tokens; there are: {known}")
    if asked:
        return list(dict.fromkeys(asked))
    languages = {name.casefold() for name in (*document["sources"], *document["targets"])}
    own = [name for name in names if {name.casefold(), name.casefold().split()[0]} & languages]
    return [name for name in names if name in own or name.casefold() in _GENERAL] if own else names


def _findings(document: Document) -> list[str]:
    """Sets that are more, or less, probable than all of their random sets."""
    last = document["draws"] + 1
    rank_of = {name: of["mean_rank"] for name, of in document["all"]["sets"].items()}
    return [
        f"{what} probable than all {last - 1} random sets of like frequency, over all layers (p = 1/{last} each): "
        + (", ".join(name for name, place in rank_of.items() if place == end) or "none")
        for what, end in (("more", 1), ("less", last))
        if any(place is not None for place in rank_of.values())
    ]


def _tables(document: Document, chosen: Sequence[str]) -> list[Table]:
    runs = layer_runs(document["layers"], 4)
    pairs = list(document["pairs"].items())
    languages = [(f"from {name}", of) for name, of in document["sources"].items()]
    languages += [(f"to {name}", of) for name, of in document["targets"].items()]
    short, long = (languages, pairs) if len(pairs) > _LISTED_PAIRS else (pairs, languages)
    every = [("all pairs", document["all"]), ("all positions alike", document["pooled"])]
    others = [name for name in document["sets"] if name not in chosen]
    return [
        _gold_table("gold", "The gold token: the next one that the translation has", [*short, *every]),
        _sets_table(document, "sets", "Sets of tokens: the probability of all of a set's, beside random sets", chosen),
        _gold_table("more-gold", f"The gold token, by {'pair' if long is pairs else 'language'}", long, is_long=True),
        _sets_table(document, "other-sets", "Sets of tokens of other languages", others, is_long=True),
        *_run_tables(document, runs),
    ]


def _gold_table(name: str, title: str, found: Sequence[tuple[str, Mapping[str, Any]]], is_long: bool = False) -> Table:
    columns = [Column("pair"), Column("snippets", "count"), Column("positions", "count"),
               Column("mean over layers", "number", 4), Column("in the last", "number", 4),
               Column("rank in the last", "number", 1), Column("in its top 10", "share", 1)]  # fmt: skip
    rows: list[list[Cell]] = [
        [pair, of["snippets"], of["positions"], known_mean(of["gold_probability"]), of["gold_probability"][-1],
         of["gold_rank"][-1], of["gold_top10"][-1]]
        for pair, of in found
    ]  # fmt: skip
    return Table(name, title, columns, rows, is_long)


def _sets_table(document: Document, name: str, title: str, sets: Sequence[str], is_long: bool = False) -> Table:
    """A set's probability over all layers and at its largest, beside its random sets' mean and spread."""
    columns = [Column("set"), Column("tokens", "count"), Column("m/V", "number", 4),
               Column("mean over layers", "number", 4), Column("random", "number", 4), Column("rank", "count"),
               Column("largest", "number", 4), Column("at layer", "count"), Column("random there", "number", 4),
               Column("first rank", "number", 1), Column("in texts", "share", 2),
               Column("random in texts", "share", 2)]  # fmt: skip
    return Table(name, title, columns, [_set_row(document, of) for of in sets], is_long)


def _set_row(document: Document, name: str) -> list[Cell]:
    about, of = document["sets"][name], document["all"]["sets"][name]
    control, last = of["control"], document["draws"] + 1
    mass_L = np.array(of["mass"], np.float64)
    row: list[Cell] = [name, about["tokens"], about["uniform"], known_mean(of["mass"])]
    spread = None if control["draws"] is None else float(np.array(control["draws"]).mean(axis=1).std(ddof=1))
    row += [Value(known_mean(control["mass"]), spread)]
    row += [None if of["mean_rank"] is None else Value(of["mean_rank"], mark=f" of {last}")]
    if np.isfinite(mass_L).all():
        layer = int(mass_L.argmax())
        at_layer = None if control["mass_sd"] is None else control["mass_sd"][layer]
        row += [mass_L[layer], layer, Value(control["mass"][layer], at_layer)]
    else:
        row += [None] * 3
    return [*row, known_mean(of["rank_top10"]), about["share"], about["drawn_share"]]


def _run_tables(document: Document, runs: Mapping[str, np.ndarray]) -> list[Table]:
    """By runs of layers: the gold token, each set's probability and rank beside random, and its tokens' ranks."""
    found = {**document["pairs"], "all pairs": document["all"]}
    gold: list[list[Cell]] = [[pair, *run_means(of["gold_probability"], runs)] for pair, of in found.items()]
    columns = [Column("set")]
    for span in runs:
        columns += [Column(span, "number", 4), Column(f"random, {span}", "number", 4), Column(f"rank, {span}", "count")]
    sets = document["all"]["sets"]
    masses: list[list[Cell]] = [
        [name, *(cell for run in runs.values() for cell in _beside_random(document, of, run))]
        for name, of in sets.items()
    ]
    ranks = [[name, *run_means(of["rank_top10"], runs), *run_means(of["hit"], runs)] for name, of in sets.items()]
    rank_columns = [Column("set"), *(Column(span, "number", 1) for span in runs),
                    *(Column(f"among them, {span}", "share") for span in runs)]  # fmt: skip
    return [
        Table("gold-layers", "The gold token's probability, by layers", [Column("pair"), *(
            Column(span, "number", 4) for span in runs)], gold, is_long=True),
        Table("sets-layers", "The sets' probability, by layers", columns, masses, is_long=True),
        Table("ranks", "Rank of a set's best token in the top 10 (11: none), and how often there is one",
              rank_columns, ranks, is_long=True),
    ]  # fmt: skip


def _beside_random(document: Document, of: Mapping[str, Any], run: np.ndarray) -> list[Cell]:
    """Over some layers: a set's probability, its random sets' mean and spread, and its rank among them."""
    mass, drawn = (known_mean([values[layer] for layer in run]) for values in (of["mass"], of["control"]["mass"]))
    if of["control"]["draws"] is None or mass is None:
        return [mass, Value(drawn), None]
    mean_D = np.array(of["control"]["draws"])[:, run].mean(axis=1)
    place = Value(rank(mass, mean_D), mark=f" of {document['draws'] + 1}")
    return [mass, Value(drawn, float(mean_D.std(ddof=1))), place]


def _lens_chart(document: Document, chosen: Sequence[str]) -> Chart:
    """The paper's figure: the gold token, English and each language's keywords in one panel."""
    of = document["all"]
    series = [Series("gold token", of["gold_probability"], tone="ink")]
    for name in chosen:
        mass_L = of["sets"][name]["mass"]
        if name.casefold() == "all":
            series.append(Series("all keywords", mass_L, tone="grey", is_dashed=True))
        else:
            label = name if name.casefold() in _GENERAL else f"{name} keywords"
            series.append(Series(label, mass_L, corpus=name))
    title = f"Logit lens over few-shot translation, {of['positions']:,} positions"
    return Chart("lens", title, [Panel("", series)], "probability, mean over pairs", y="share",
                 caption="Probability of the gold token and of sets of tokens, layer by layer")  # fmt: skip


def _panels_chart(document: Document, chosen: Sequence[str]) -> Chart:
    """A panel a quantity: a line for each target language, one over all; around random sets least to most."""
    panels = [Panel("gold token", _by_target(document, "gold_probability"), "probability")]
    for name in chosen:
        about, of = document["sets"][name], document["all"]["sets"][name]
        place = "" if of["mean_rank"] is None else f", rank {of['mean_rank']} of {document['draws'] + 1}"
        series = [*_random_series(document, name), *_by_target(document, "mass", name)]
        panels.append(Panel(name, series, f"{about['tokens']:,} tokens{place}"))
    return Chart("panels", "The logit lens over few-shot translation, by target language", panels,
                 "probability, mean over positions, snippets and pairs", y="share", share_y=False,
                 is_on_request=True)  # fmt: skip


def _ranks_chart(document: Document, chosen: Sequence[str]) -> Chart:
    """The gold token's rank by target language, and how high a set's first token stands."""
    sets = [Series(f"{name} keywords", document["all"]["sets"][name]["rank_top10"], corpus=name) for name in chosen]
    panels = [Panel("gold token", _by_target(document, "gold_rank"), "mean rank")]
    panels += [Panel("sets of tokens", sets, "11: none in the top 10")] if sets else []
    return Chart("ranks", "Ranks in the logit lens over few-shot translation", panels, "rank, log scale",
                 y="log", share_y=False, is_on_request=True)  # fmt: skip


def _by_target(document: Document, key: str, set_name: str | None = None) -> list[Series]:
    """A line a target language and one over all: of their means, or of a set's."""
    means = {f"to {name}": of for name, of in document["targets"].items()} | {"all pairs": document["all"]}
    if set_name is not None:
        means = {label: of["sets"][set_name] for label, of in means.items()}
    lines = [Series(f"to {name}", means[f"to {name}"][key], corpus=name) for name in document["targets"]]
    return [*lines, Series("all pairs", means["all pairs"][key], tone="ink")]


def _random_series(document: Document, name: str) -> list[Series]:
    """A set's random sets: their mean, least to most of them, and what uniform tokens expect."""
    about, control = document["sets"][name], document["all"]["sets"][name]["control"]
    label = f"random tokens of like frequency, mean of {document['draws']} draws"
    series = []
    if control["draws"] is not None:
        draw_DL = np.array(control["draws"])
        series.append(Series("least to most of the draws", draw_DL.max(axis=0).tolist(), mark="band", tone="grey",
                             low=draw_DL.min(axis=0).tolist()))  # fmt: skip
    series.append(Series("uniform tokens (m/V)", [about["uniform"]], mark="level", tone="grey"))
    return [*series, Series(label, control["mass"], tone="grey", is_dashed=True)]


def _prompt_chart(prompt: PromptLens) -> Chart:
    """Layers by positions of one prompt: each cell its top-1 prediction, coloured by its probability."""
    positions, num_layers = len(prompt.gold_n), prompt.probability_nL.shape[1]
    layers = range(num_layers)[::-1]
    shown = min(positions, _PROMPT_POSITIONS * _PROMPT_ROWS)
    grids = []
    for first in range(0, shown, _PROMPT_POSITIONS):
        at = range(first, min(shown, first + _PROMPT_POSITIONS))
        grids.append(Grid(
            "", [f"layer {layer}" for layer in layers], [_cell(prompt.input_n[n]) for n in at],
            [[float(prompt.probability_nL[n, layer]) for n in at] for layer in layers],
            [[_cell(prompt.top_nL[n][layer]) for n in at] for layer in layers],
            column_label="the token before; above, the token that comes next", scale="probability", high=1,
            above=[_cell(prompt.gold_n[n]) for n in at],
        ))  # fmt: skip
    of = f", the first {shown} of {positions} positions" if shown < positions else ""
    return Chart("prompt", f"Each layer's top-1 prediction: {prompt.pair}, {prompt.id}{of}", grids, num_columns=1)


def _notes(document: Document) -> list[str]:
    notes = ["means over a snippet's positions, then snippets, then pairs; over the full vocabulary, by layer from 0"]
    if document["sets"]:
        notes += _random_notes(document)
    for name, entries in document["empty_sets"].items():
        notes.append(f"no set {name!r}: none of its {entries} entries is one token of this tokenizer")
    skipped: Counter[str] = Counter()
    for reasons in document["skipped"].values():
        skipped.update({reason: len(ids) for reason, ids in reasons.items()})
    notes += [f"skipped: {number:,} prompts ({reason}), named in the JSON document"
              for reason, number in skipped.items()]  # fmt: skip
    if document["paper"]:
        notes.append("--paper: prefixes decoded and encoded again, as in the reference; the last token isn't predicted")
    return notes


def _random_notes(document: Document) -> list[str]:
    """What the random sets are, and how far they can be trusted."""
    draws = document["draws"]
    notes = [
        f"random: mean ± standard deviation over {draws} sets of as many tokens of like frequency, none a keyword; "
        "m/V: what as many tokens of the whole vocabulary expect; in texts: share of the parallel texts' tokens",
        f"rank: 1 of {draws + 1}: more probable than all its random sets; p = rank / {draws + 1} of being more "
        f"probable than random tokens, ({draws + 2} - rank) / {draws + 1} of being less; one set and run at a time",
        "first rank: of a set's best token in a layer's top 10, 11 where there is none, mean over layers; sets overlap",
    ]
    without = [name for name, of in document["all"]["sets"].items() if of["mean_rank"] is None]
    return notes + ([f"too large for random sets: {', '.join(without)}"] if without else [])


def _cell(text: str) -> str:
    """A token's text in a cell: its spaces marked where nothing else shows, cut to 6 characters."""
    shown = text.strip() or text.replace(" ", "␣")
    shown = shown.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    shown = "".join(character if character.isprintable() else "�" for character in shown)
    return shown if len(shown) <= _CELL_CHARACTERS else shown[: _CELL_CHARACTERS - 1] + "…"
