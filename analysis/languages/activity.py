"""How often neurons are active: the rate of every layer, and the neurons that are dead, rare or frequent.

A neuron's rate in a corpus is the share of its tokens at which it is active. A neuron that was never active is called
dead, after Voita et al., "Neurons in Large Language Models: Dead, N-gram, Positional" (arXiv 2309.04827); which
rates are rare and which frequent is ours to say, by two parameters. `activity` says

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "layers": n, "neurons": n,
     "rare": share, "frequent": share, "tokens": {name: n},
     "by_layer": {"mean_rate": {name: [...]}, "dead": {name: [...]}, "rare": {name: [...]}, "frequent": {name: [...]},
                  "dead_everywhere": [...]}, "left_out": {name: reason}}

Lists by layer run from the input to the output and hold mean rates, or numbers of neurons. `rare` leaves out the dead;
`dead_everywhere` are dead in all these corpora.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, read_counts
from neurotally.analysis.options import OnlyCorpora, Option
from neurotally.analysis.overlap import safe_divide
from neurotally.analysis.parts import Cell, Chart, Column, Panel, Series, Table
from neurotally.analysis.result import Result, by_name, left_out_notes, model_key, model_name
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError

_KINDS = ("dead", "rare", "frequent")


def study(
    store: Path,
    corpus: OnlyCorpora = (),
    rare: Annotated[float, Option("Rare: active at fewer than this share of tokens.", share=True)] = 0.001,
    frequent: Annotated[float, Option("Frequent: active at more than this share of tokens.", share=True)] = 0.5,
) -> Result:
    """How often neurons are active, layer by layer: mean rates, and how many are dead, rare or frequent.

    Example:
      neurotally activity llama.store --figure activity.png

    >>> store.activity().frame("corpora")["corpus"].tolist()
    ['c++', 'python']
    """
    if rare > frequent:
        raise InputError(f"rare is {rare:.3g}, expected no more than frequent, {frequent:.3g}")
    counts = read_counts(store, corpus, fewest=1)
    _, num_layers, num_neurons = counts.active_CLF.shape
    document = {
        "schema": 1,
        "model": model_key(counts.model),
        "corpora": list(counts.corpora),
        "layers": num_layers,
        "neurons": num_neurons,
        "rare": rare,
        "frequent": frequent,
        "tokens": by_name(counts.corpora, counts.tokens_C),
        "by_layer": _by_layer(counts, rare, frequent),
        "left_out": counts.left_out,
    }
    return _result(document, counts.num_neurons, model_name(counts.model))


def sections(store: Path) -> list[dict[str, Any]]:
    """Of the report: one where there is a corpus."""
    return [{}] if stores.committed_corpora(store) else []


def _by_layer(counts: CorpusCounts, rare: float, frequent: float) -> dict[str, Any]:
    """`by_layer` of the document; mean rates are NaN where a layer has no neurons.

    Neurons of an expert that no token was routed to are dead.
    """
    rate_CLF, is_neuron_LF = counts.rates(), counts.is_neuron_LF
    is_dead_CLF = (counts.active_CLF == 0) & is_neuron_LF
    by_corpus = {
        "mean_rate": safe_divide(rate_CLF.sum(axis=2), is_neuron_LF.sum(axis=1)),
        "dead": is_dead_CLF.sum(axis=2),
        "rare": ((rate_CLF < rare) & ~is_dead_CLF & is_neuron_LF).sum(axis=2),
        "frequent": (rate_CLF > frequent).sum(axis=2),
    }
    everywhere_L = is_dead_CLF.all(axis=0).sum(axis=1)
    return {
        **{key: by_name(counts.corpora, of_CL.T) for key, of_CL in by_corpus.items()},
        "dead_everywhere": everywhere_L.tolist(),
    }


def _result(document: Mapping[str, Any], total: int, model: str) -> Result:
    """A row a corpus, rows by layer, and rates and dead neurons by layer."""
    by_layer, corpora = document["by_layer"], document["corpora"]
    numbers = [Column("mean rate", "share", 1), *(Column(kind, "count") for kind in _KINDS)]
    rows: list[list[Cell]] = [
        [name, document["tokens"][name], float(np.nanmean(np.array(by_layer["mean_rate"][name], float))),
         *(sum(by_layer[kind][name]) for kind in _KINDS)]
        for name in corpora
    ]  # fmt: skip
    layers: list[list[Cell]] = [
        [name, layer, by_layer["mean_rate"][name][layer], *(by_layer[kind][name][layer] for kind in _KINDS)]
        for name in corpora
        for layer in range(document["layers"])
        if np.isfinite(by_layer["mean_rate"][name][layer])
    ]
    everywhere = sum(by_layer["dead_everywhere"])
    where = corpora[0] if len(corpora) == 1 else f"these {len(corpora)} corpora"
    notes = [
        f"rare: active at fewer than {document['rare']:.3g} of tokens, the dead left out; frequent: at more than "
        f"{document['frequent']:.3g}",
        "were tokens independent, a neuron active at none of n would have a rate below 3/n, with 95 % confidence",
        *left_out_notes(document["left_out"]),
    ]
    return Result(
        "activity",
        document,
        f"How often the neurons of {model} are active",
        [
            Table("corpora", "Neurons by how often they are active",
                  [Column("corpus"), Column("tokens", "count"), *numbers], rows),
            Table("layers", "The same by layer", [Column("corpus"), Column("layer", "count"), *numbers], layers,
                  is_long=True),
        ],
        [_chart(by_layer, corpora)],
        notes,
        findings=[f"{everywhere:,} of {total:,} neurons are active at no token of {where}."],
        title="How often neurons are active",
    )  # fmt: skip


def _chart(by_layer: Mapping[str, Any], corpora: list[str]) -> Chart:
    panels = [
        Panel(title, [Series(name, by_layer[key][name], corpus=name) for name in corpora],
              empty="" if any(map(any, by_layer[key].values())) else f"no neuron is {what}")
        for key, title, what in (("mean_rate", "mean rate", "active"), ("dead", "dead neurons", "dead"),
                                 ("frequent", "frequent neurons", "frequent"))
    ]  # fmt: skip
    return Chart("activity", "How often neurons are active, by layer", panels, share_y=False)
