"""What `patterns` says: what the triggers of every key have in common, by layer.

    {"schema": 1, "model", "null": [model, ...], "null_keys", "alpha", "by_layer_tests", "window_lines", "inside",
     "layers", "neurons", "all_keys", "triggers", "concepts": {name: regular expression}, "corpora": {name: {
        "lexer", "min_contexts", "keys", "triggers", "found", "copies", "missing": {document: reason},
        "needed": keys | null, "over_models": bool, "keys_by_layer": [n],
        "shallow_by_layer": [share] | null, "abstract_by_layer": [share] | null,
        "ngrams" | "kinds" | "concepts": {name: {
            "by_layer": [mean share of a key's contexts], "null_by_layer": likewise | null, "chance", "chance_sd",
            "over_null_by_layer": [difference] | null, "over_null_half_by_layer": likewise | null,
            "passing_by_layer": [keys] | null, "passing": keys | null, "beyond_null": keys | null,
            "strongest": [{"layer", "neuron", "count", "contexts", "p"}, ...]}}}}}

Means are over the keys with at least `min_contexts` distinct contexts; `keys_by_layer` says how many. `needed`: so many
keys must be beyond every null key together, for any to pass; `beyond_null`: how many are. Where these are fewer, that
none passes is no finding; the layers' means tell. `over_null`: a layer's mean share less its null keys', with half of
its 95 % interval, over the null models, or over keys where `over_models` is false (see `null_test`). The arrays of all
keys are in `--archive FILE.npz`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.keys.patterns import FAMILIES, CorpusPatterns, known_means, strongest
from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.keys.tested import UNTESTED, NullTest, missing_text_notes, patterns_by_corpus
from neurotally.analysis.keys.texts import ANYWHERE, Texts
from neurotally.analysis.layer_runs import interval, known_mean, layer_runs, run_means
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.parts import Cell, Chart, Column, Panel, Series, Table, Value
from neurotally.analysis.progress import BARS, Progress
from neurotally.analysis.result import Result, finite, model_name
from neurotally.profiler.buckets import on_disk
from neurotally.profiler.whole_files import whole_file

_BESIDE_NULL = ("null_by_layer", "over_null_by_layer", "over_null_half_by_layer", "passing_by_layer", "passing",
                "beyond_null")  # fmt: skip
"""Null without null keys."""
_LEFT_OUT = [("kinds", "punctuation"), ("kinds", "directive"), ("kinds", "other")]
"""Without a panel."""


def study(
    store: Path,
    regex: Annotated[Path | None, Option("[concepts] NAME = 'regular expression' lines.", "FILE.toml")] = None,
    corpus: OnlyCorpora = (),
    test: Annotated[NullTest, Group()] = UNTESTED,
    texts: Annotated[Texts, Group()] = ANYWHERE,
    archive: Annotated[Path | None, Option("Counts and p-values of all keys.", "FILE.npz", suffixes=(".npz",))] = None,
    progress: Progress = BARS,
) -> Result:
    """What the triggers of every key have in common, layer by layer, beside what chance gives.

    The same last token, two or three; keywords, names, literals, comments, operators; your regular expressions.

    Example:
      neurotally patterns llama.store --null random.store --figure patterns.png

    >>> result = store.patterns(corpus=("python",))
    >>> result.frame("python").set_index("statistic").index[:3].tolist()
    ['token', 'bigram', 'trigram']
    """
    concepts = {} if regex is None else read_concepts(on_disk(regex))
    found = [keys.patterns for keys in patterns_by_corpus(store, concepts, corpus, test, texts, progress)]
    if archive is not None:
        save_key_patterns(found, archive)
    sources = {name: expression.pattern for name, expression in concepts.items()}
    return patterns_result(patterns_document(found, sources, test.settings(store)))


def patterns_result(document: dict[str, Any]) -> Result:
    """For each corpus mean shares in the lower, middle and upper layers, beside chance."""
    notes = [note for name, corpus in document["corpora"].items() for note in _notes(name, corpus, document)]
    notes.append("shares of a key's distinct contexts, mean over keys; chance: of random positions, null: of a model "
                 "with random weights")  # fmt: skip
    if not document["null_keys"]:
        notes.append("not tested: give --null STORE, a profile of the same corpora made with --random-init")
    else:
        over = "over keys, taken for independent: somewhat too narrow; three --null stores or more give a sound one"
        if all(corpus["over_models"] for corpus in document["corpora"].values()):
            over = "over the null models, the trained one taken for one more"
        notes.append("over null: mean share less that of the same layers' null keys, in points, ± half of the 95 % "
                     f"interval {over}")  # fmt: skip
    tables = [_table(name, corpus, document) for name, corpus in document["corpora"].items()]
    lead = f"What the triggers of every key of {model_name(document['model'])} have in common"
    return Result("patterns", document, lead, tables, [_chart(document)], notes, title="Patterns of keys")


def patterns_document(
    corpora: Sequence[CorpusPatterns], patterns: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of `patterns --json` and `--out`.

    `settings`: model, null, alpha, by_layer_tests, window_lines, inside, triggers.
    """
    num_layers, num_neurons = corpora[0].counts.distinct.shape
    document: dict[str, Any] = finite({
        "schema": 1,
        **settings,
        "null_keys": 0 if corpora[0].null is None else corpora[0].null.distinct.size,
        "concepts": dict(patterns),
        "layers": num_layers,
        "neurons": num_neurons,
        "corpora": {corpus.corpus: _corpus(corpus) for corpus in corpora},
    })  # fmt: skip
    return document


def save_key_patterns(corpora: Sequence[CorpusPatterns], path: Path) -> None:
    """Write the counts and p-values of all keys: an .npz of arrays named CORPUS/count/FAMILY/NAME and so on."""
    arrays = {}
    for corpus in corpora:
        p_SLF = corpus.p_SLF
        arrays[f"{corpus.corpus}/contexts"] = corpus.counts.distinct
        for number, (family, name) in enumerate(corpus.counts.statistics):
            arrays[f"{corpus.corpus}/count/{family}/{name}"] = corpus.counts.count_S[number]
            if p_SLF is not None:
                arrays[f"{corpus.corpus}/p/{family}/{name}"] = p_SLF[number]
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _corpus(corpus: CorpusPatterns) -> dict[str, Any]:
    enough_LF = corpus.counts.distinct >= corpus.min_contexts
    p_SLF = corpus.p_SLF
    families: dict[str, dict[str, Any]] = {family: {} for family in FAMILIES}
    for number, (family, name) in enumerate(corpus.counts.statistics):
        families[family][name] = _statistic(corpus, number, None if p_SLF is None else p_SLF[number])
    found = {
        "lexer": corpus.lexer,
        "min_contexts": corpus.min_contexts,
        "keys": int(enough_LF.sum()),
        "triggers": corpus.num_triggers,
        "found": corpus.num_found,
        "copies": corpus.num_copies,
        "missing": corpus.missing,
        "over_models": corpus.over_models,
        "keys_by_layer": enough_LF.sum(axis=1).tolist(),
        **dict.fromkeys(("needed", "shallow_by_layer", "abstract_by_layer")),
        **families,
    }
    if corpus.null is not None:
        shallow_L, abstract_L = (passes_LF.mean(axis=1).tolist() for passes_LF in corpus.shallow_and_abstract())
        found |= {"needed": corpus.needed, "shallow_by_layer": shallow_L, "abstract_by_layer": abstract_L}
    return found


def _statistic(corpus: CorpusPatterns, number: int, p_LF: np.ndarray | None) -> dict[str, Any]:
    counts, chance = corpus.counts, corpus.chance.share(number, 1)
    count_LF = np.where(counts.distinct >= corpus.min_contexts, counts.count_S[number], 0)
    found = {
        "by_layer": known_means(counts.share(number, corpus.min_contexts)).tolist(),
        "chance": float(known_means(chance)),
        "chance_sd": float(np.nanstd(chance)) if np.isfinite(chance).any() else None,
        **dict.fromkeys(_BESIDE_NULL),
        "strongest": [
            {"layer": at[0], "neuron": at[1], "count": int(count_LF[at]), "contexts": int(counts.distinct[at]),
             "p": None if p_LF is None else float(p_LF[at])}
            for at in strongest(count_LF)
        ],
    }  # fmt: skip
    if corpus.null is not None and p_LF is not None:
        passes_LF, over_null = p_LF <= corpus.alpha, corpus.over_null(number)
        found |= {
            "null_by_layer": known_means(corpus.null.share(number, corpus.min_contexts)).tolist(),
            "over_null_by_layer": [of.difference for of in over_null],
            "over_null_half_by_layer": [of.half for of in over_null],
            "passing_by_layer": passes_LF.sum(axis=1).tolist(),
            "passing": int(passes_LF.sum()),
            "beyond_null": corpus.num_beyond(number),
        }
    return found


def _found(corpus: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """What was found of a corpus, by (family, name)."""
    return {(family, name): found for family in FAMILIES for name, found in corpus[family].items()}


def _table(name: str, corpus: Mapping[str, Any], document: Mapping[str, Any]) -> Table:
    runs = layer_runs(document["layers"], 3)
    columns = [Column("statistic"), *(Column(span, "share") for span in runs), Column("chance", "share")]
    if document["null_keys"]:
        columns += [Column("null", "share"), *(Column(f"over null {span}", "signed", 1) for span in runs)]
        columns += [Column("keys passing", "count")]
    rows: list[list[Cell]] = []
    for (_, statistic), found in _found(corpus).items():
        row: list[Cell] = [statistic, *run_means(found["by_layer"], runs), found["chance"]]
        if document["null_keys"]:
            row += [known_mean(found["null_by_layer"]), *_over_null(found, runs), found["passing"]]
        rows.append(row)
    return Table(name, f"{name}: mean share of a key's contexts", columns, rows)


def _over_null(found: Mapping[str, Any], runs: Mapping[str, np.ndarray]) -> list[Value]:
    """The means over each run of layers; the halves' is no less than the run's own half, however layers go together."""
    cells = []
    for run in runs.values():
        difference, half = (
            100 * np.array([found[key][layer] for layer in run], np.float64)
            for key in ("over_null_by_layer", "over_null_half_by_layer")
        )
        is_known = np.isfinite((difference + half).sum())
        cells.append(Value(float(difference.mean()), float(half.mean())) if is_known else Value(None))
    return cells


def _chart(document: Mapping[str, Any]) -> Chart:
    """One panel a statistic: mean share of a key's contexts by layer, a line a corpus; grey what null keys give."""
    corpora = document["corpora"]
    statistics = dict.fromkeys(statistic for corpus in corpora.values() for statistic in _found(corpus))
    panels = [_panel(corpora, *statistic) for statistic in statistics if statistic not in _LEFT_OUT]
    if document["null_keys"]:
        needed = max((corpus["needed"] for corpus in corpora.values()), default=0)
        for key, title in (("shallow_by_layer", "shallow keys"), ("abstract_by_layer", "abstract keys")):
            series = [Series(_label(name, corpus), corpus[key], corpus=name) for name, corpus in corpora.items()]
            panels.append(Panel(title, series, f"{needed:,} needed for any"))
    return Chart(
        "patterns", "What the keys' triggers have in common", panels,
        "share of a key's distinct trigger contexts, mean over keys", y="share", share_y=False,
    )  # fmt: skip


def _panel(corpora: Mapping[str, Any], family: str, name: str) -> Panel:
    series, nulls, chances = [], [], []
    for corpus_name, corpus in corpora.items():
        if (found := corpus[family].get(name)) is None:
            continue
        low, high = interval(found["by_layer"], found["over_null_half_by_layer"])
        series.append(Series(_label(corpus_name, corpus), found["by_layer"], low=low, high=high, corpus=corpus_name))
        if found["null_by_layer"] is not None:
            nulls.append(found["null_by_layer"])
        chances.append(found["chance"])
    if nulls:
        mean_L = [known_mean(of_layer) for of_layer in zip(*nulls, strict=True)]
        series.append(Series("random weights, mean over corpora", mean_L, tone="grey", is_dashed=True))
    if (chance := known_mean(chances)) is not None:
        series.append(Series("random positions, mean over corpora", [chance], mark="level", tone="grey"))
    title = {"ngrams": f"same {name}", "kinds": name, "concepts": f"/{name}/"}[family]
    return Panel(title, series)


def _label(name: str, corpus: Mapping[str, Any]) -> str:
    return f"{name} ({corpus['keys']:,} keys)"


def _needed_note(document: Mapping[str, Any], corpus: Mapping[str, Any]) -> str:
    """What a key's test can find with so many null keys, and whether a zero says anything."""
    found = _found(corpus)
    beyond = ", ".join(f"{of['beyond_null']:,} {name}" for (_, name), of in found.items())
    few = max((of["beyond_null"] for of in found.values()), default=0) < corpus["needed"]
    zero = "so that none passes is no finding: see the layers over null, or give more --null stores; " if few else ""
    return (
        f"with {document['null_keys']:,} null keys at least {corpus['needed']:,} keys must be beyond every null key "
        f"together, for any to pass; {zero}beyond every null key are: {beyond}"
    )


def _notes(name: str, corpus: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    keys = document["all_keys"]
    notes = [
        f"{name}: {corpus['keys']:,} of {keys:,} keys have {corpus['min_contexts']} distinct contexts or more; "
        f"{corpus['found']:,} of {corpus['triggers']:,} triggers found in their texts"
    ]
    if corpus["shallow_by_layer"] is not None:
        shallow, abstract = (100 * float(np.mean(corpus[key])) for key in ("shallow_by_layer", "abstract_by_layer"))
        notes.append(
            f"{name}: more than null keys at {document['alpha']:g}: {shallow:.1f} % shallow, {abstract:.1f} % "
            f"abstract; {_needed_note(document, corpus)}"
        )
    if corpus["lexer"] is None:
        notes.append(f"{name}: no lexer is known for it, so no kinds of tokens")
    return notes + missing_text_notes(name, corpus["missing"])
