"""Where a mixture of experts sends each corpus: tokens and routing weight by layer and expert. `routing` says

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "tokens": {name: n},
     "layers": [{"layer", "network", "experts": n, "tokens": {name: [...]}, "weight": {name: [...]},
                 "specialization": {name: nats}}], "left_out": {name: reason}}

for every layer with experts, lists by expert. A token goes to k experts, so that a layer's tokens are k times the
corpus's. `weight` is the sum of the routing weights by which the experts' outputs are multiplied. `specialization` is
the Kullback-Leibler divergence of the corpus's shares of the experts from their mean over corpora, in nats: 0 where it
is routed as the others are, at most the logarithm of the number of corpora.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import usable_corpora
from neurotally.analysis.options import OnlyCorpora
from neurotally.analysis.parts import Cell, Chart, Column, Grid, Table
from neurotally.analysis.result import Result, by_name, left_out_notes, model_key, model_name
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError
from neurotally.profiler.networks import networks_of


def sections(store: Path) -> list[dict[str, Any]]:
    """One section where the model has experts and a corpus is finished."""
    networks = networks_of(stores.store_attributes(store).get("model"))
    has_experts = any(network.experts is not None for network in networks)
    return [{}] if has_experts and stores.committed_corpora(store) else []


def study(store: Path, corpus: OnlyCorpora = ()) -> Result:
    """Which experts of a mixture each corpus's tokens are sent to, layer by layer.

    Example:
      neurotally routing qwen3moe.store --figure routing.png

    >>> store.routing().frame("layers")["layer"].tolist()
    [0, 0, 1, 1]
    """
    attributes = stores.store_attributes(store)
    networks = networks_of(attributes.get("model"))
    if all(network.experts is None for network in networks):
        raise InputError(f"{store} is of a model without experts: there is no routing to show")
    tokens, left_out = usable_corpora(store, corpus)
    by_corpus = {name: stores.read_corpus(store, name, ["site_tokens", "site_weight"]) for name in tokens}
    layers, first = [], 0
    for network in networks:
        part = slice(first, first + network.sites)
        first += network.sites
        if network.experts is not None:
            layers.append(_layer(network.layer, network.name, network.experts, by_corpus, part))
    document = {
        "schema": 1,
        "model": model_key(attributes.get("model")),
        "corpora": list(tokens),
        "tokens": tokens,
        "layers": layers,
        "left_out": left_out,
    }
    return _result(document, model_name(attributes.get("model")))


def specialization(tokens_CE: np.ndarray) -> np.ndarray:
    """float64 [C], nats: how far each corpus's shares of the experts are from their mean over corpora."""
    share_CE = tokens_CE / tokens_CE.sum(axis=1, keepdims=True)
    mean_E = share_CE.mean(axis=0)
    ratio_CE = np.divide(share_CE, mean_E, out=np.ones_like(share_CE), where=share_CE > 0)
    divergence_C: np.ndarray = (share_CE * np.log(ratio_CE)).sum(axis=1)
    return divergence_C


def _layer(layer: int, name: str, experts: int, by_corpus: Mapping[str, stores.Arrays], part: slice) -> dict[str, Any]:
    tokens_CE = np.stack([of["site_tokens"][:, part].sum(axis=0, dtype=np.uint64) for of in by_corpus.values()])
    return {
        "layer": layer,
        "network": name,
        "experts": experts,
        "tokens": by_name(by_corpus, tokens_CE.T),
        "weight": {name: of["site_weight"][part].tolist() for name, of in by_corpus.items()},
        "specialization": by_name(by_corpus, specialization(tokens_CE)),
    }


def _result(document: Mapping[str, Any], model: str) -> Result:
    corpora, layers = document["corpora"], document["layers"]
    shares = [{name: _shares(of["tokens"][name]) for name in corpora} for of in layers]
    rows: list[list[Cell]] = []
    experts: list[list[Cell]] = []
    for of, share in zip(layers, shares, strict=True):
        for name in corpora:
            busiest = int(np.argmax(share[name]))
            rows.append([of["layer"], name, of["specialization"][name], busiest, share[name][busiest],
                         sum(not tokens for tokens in of["tokens"][name])])  # fmt: skip
        experts += [
            [of["layer"], expert, name, of["tokens"][name][expert], share[name][expert], of["weight"][name][expert]]
            for expert in range(of["experts"]) for name in corpora
        ]  # fmt: skip
    where, which = max(
        ((of, name) for of in layers for name in corpora), key=lambda pair: pair[0]["specialization"][pair[1]]
    )
    finding = (
        f"{which} is routed least like the others in layer {where['layer']}: {where['specialization'][which]:.3f} nats "
        f"from their mean, of at most {np.log(len(corpora)):.3f}."
    )
    return Result(
        "routing",
        document,
        f"Where {model} sends each corpus's tokens",
        [
            Table("layers", "Routing by layer and corpus",
                  [Column("layer", "count"), Column("corpus"), Column("specialization", "number", 3),
                   Column("busiest expert", "count"), Column("its share", "share", 1),
                   Column("without tokens", "count")], rows),
            Table("experts", "Every expert",
                  [Column("layer", "count"), Column("expert", "count"), Column("corpus"), Column("tokens", "count"),
                   Column("share", "share", 1), Column("weight", "number", 1)], experts, is_long=True),
        ],
        [_chart(layers, shares)],
        [
            "specialization: Kullback-Leibler divergence, in nats, of a corpus's shares of the experts from their mean "
            "over corpora",
            *left_out_notes(document["left_out"]),
        ],
        findings=[finding],
        title="Routing to experts",
    )  # fmt: skip


def _chart(layers: Sequence[Mapping[str, Any]], shares: Sequence[Mapping[str, list[float]]]) -> Chart:
    grids = [
        Grid(f"layer {of['layer']}", list(share), [str(expert) for expert in range(of["experts"])],
             list(share.values()), texts=[[""] * of["experts"] for _ in share], column_label="expert",
             scale="share of the tokens")
        for of, share in zip(layers, shares, strict=True)
    ]  # fmt: skip
    return Chart("routing", "Share of each corpus's routed tokens, by expert", grids, num_columns=2)


def _shares(tokens_E: Sequence[int]) -> list[float]:
    all_tokens = sum(tokens_E)
    return [tokens / all_tokens for tokens in tokens_E]
