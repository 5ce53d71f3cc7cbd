"""LAPE: which neurons belong to which corpus, from counts alone.

    p[c,l,f]      = active[c,l,f] / tokens[c]      how often the neuron is active in corpus c, float64; in a mixture of
                                                   experts, of the tokens that were routed to its expert
    threshold     = the k-th smallest p of all corpora, layers and neurons, k = round(M · quantile), 1-indexed
    q[c,l,f]      = p[c,l,f] / Σ_c p[c,l,f]
    entropy[l,f]  = -Σ_c q ln q                    0 ln 0 = 0; +inf where no corpus has p > threshold

A neuron with p > threshold (strictly) in corpus c is a candidate of c. Two ways to choose among candidates:

    balanced   of every corpus the `per_corpus` candidates of lowest entropy (Kargaran et al., arXiv 2506.01074)
    top        of all neurons the share `top_rate` of lowest entropy; each belongs to every corpus that it is
               a candidate of (Tang et al., arXiv 2402.16438)

Ties at the cut go by (entropy, layer, neuron). Chosen neurons are *specific* to their corpora; those specific to
one corpus only are *exclusive* to it. A neuron that is never active has q = 0 and would have the lowest entropy of
all: only the threshold keeps it out. The order of corpora has no influence, not even in the last bit.

Shapes: C corpora, L layers, F neurons per layer, N = L·F, P neurons that pass the threshold in some corpus.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.options import Option
from neurotally.profiler.errors import InputError

Select = Literal["balanced", "top"]
Rates = Literal["conditional", "joint"]
Sets = Mapping[str, np.ndarray]
"""By corpus: int64 [n, 2] of (layer, neuron), ascending."""

NO_NEURON = "no neuron\nabove the threshold"
"""In a panel of a corpus without candidates."""
_BLOCK = 2**16
"""So many neurons at a time: 12 corpora of them are 6 MB."""


@dataclass(frozen=True)
class Rule:
    """How neurons are chosen; the defaults are `neurotally lape`'s."""

    quantile: Annotated[
        float, Option("The threshold: an activation rate must exceed this quantile of all rates.", share=True)
    ] = 0.95
    select: Annotated[
        Select, Option("LAPE's choice. balanced: as many for each corpus. top: the lowest entropies over all.")
    ] = "balanced"
    per_corpus: Annotated[int, Option("With balanced.", "N", min=1)] = 400
    top_rate: Annotated[float, Option("With top: share of all neurons.", share=True)] = 0.01
    rates: Annotated[
        Rates,
        Option(
            "Rates over the tokens that reach a neuron, routed to its expert or read by its stack, or over all (joint)."
        ),
    ] = "conditional"

    def as_json(self) -> dict[str, Any]:
        """The keys of LAPE's document: select, quantile and per_corpus or top_rate, whichever it reads."""
        limit = "per_corpus" if self.select == "balanced" else "top_rate"
        document = {"select": self.select, "quantile": self.quantile, limit: getattr(self, limit)}
        return document if self.rates == "conditional" else {**document, "rates": self.rates}

    def __str__(self) -> str:
        if self.select == "balanced":
            return f"the {self.per_corpus:,} candidates of lowest entropy of every corpus, quantile {self.quantile:g}"
        return f"the {100 * self.top_rate:g} % of neurons of lowest entropy, quantile {self.quantile:g}"


DEFAULT = Rule()


@dataclass(frozen=True, eq=False)
class Selection:
    """The neurons that LAPE chose, and the numbers it chose them by."""

    corpora: tuple[str, ...]
    rule: Rule
    threshold: float
    num_neurons: int
    """Of all layers."""
    entropy_LF: np.ndarray
    """float64, nats; +inf where no corpus passes the threshold."""
    num_candidates: Mapping[str, int]
    """Neurons with p > threshold, by corpus."""
    num_sole_candidates: Mapping[str, int]
    """Of these, neurons with p > threshold in no other corpus: the other reading of "exclusive"."""
    specific: Sets
    """Empty for a corpus without candidates."""
    exclusive: Sets
    """The part of `specific` that is specific to no other corpus."""
    num_tied_out: Mapping[str, int]
    """Candidates left out though their entropy is that of the last one chosen: the cut went by layer there."""

    @property
    def too_few_candidates(self) -> dict[str, int]:
        """If balanced: the corpora with candidates, but fewer than were to be chosen, so that all were; how many."""
        if self.rule.select != "balanced":
            return {}
        return {name: number for name, number in self.num_candidates.items() if 0 < number < self.rule.per_corpus}

    @property
    def without_candidates(self) -> list[str]:
        """The corpora in which no neuron passes the threshold; their sets are empty."""
        return [name for name, number in self.num_candidates.items() if not number]


def lape(counts: CorpusCounts, rule: Rule = DEFAULT) -> Selection:
    """Choose the neurons that belong to each corpus.

    Raises InputError for fewer than two corpora, a corpus without tokens, and settings that leave nothing to choose
    from.
    """
    names, by_layer, num_neurons = counts.corpora, counts.active_CLF.shape[1:], counts.num_neurons
    assert len(set(names)) == len(names) == len(counts.active_CLF) == len(counts.tokens_C), "of every corpus"
    _check_corpora(counts.tokens_C, names)
    limit = _limit(rule, num_neurons)
    p_CN = counts.rates(rule.rates).reshape(len(names), -1)
    threshold = threshold_of(p_CN, rule.quantile, len(names) * num_neurons)
    passing_P = np.flatnonzero((p_CN > threshold).any(axis=0))
    is_candidate_CP = p_CN[:, passing_P] > threshold
    entropy_P = _entropies(p_CN, passing_P)
    del p_CN
    chosen = _choose(is_candidate_CP, entropy_P, rule, limit)
    num_corpora_P = np.bincount(np.concatenate(chosen), minlength=len(passing_P))
    neurons_P2 = np.stack(np.unravel_index(passing_P, by_layer), axis=1)
    entropy_N = np.full(math.prod(by_layer), np.inf)
    entropy_N[passing_P] = entropy_P
    is_sole_P = is_candidate_CP.sum(axis=0) == 1

    def by_corpus(values: Iterable[Any]) -> dict[str, Any]:
        return dict(zip(names, values, strict=True))

    return Selection(
        corpora=names,
        rule=rule,
        threshold=threshold,
        num_neurons=num_neurons,
        entropy_LF=entropy_N.reshape(by_layer),
        num_candidates=by_corpus(is_candidate_CP.sum(axis=1).tolist()),
        num_sole_candidates=by_corpus(is_candidate_CP[:, is_sole_P].sum(axis=1).tolist()),
        specific=by_corpus(neurons_P2[positions] for positions in chosen),
        exclusive=by_corpus(neurons_P2[positions[num_corpora_P[positions] == 1]] for positions in chosen),
        num_tied_out=by_corpus(
            int((entropy_P[is_candidate_P] <= entropy_P[positions].max(initial=-np.inf)).sum()) - len(positions)
            for is_candidate_P, positions in zip(is_candidate_CP, chosen, strict=True)
        ),
    )


def threshold_of(p: np.ndarray, quantile: float, num_rates: int) -> float:
    """The value that a neuron's rate must exceed: a quantile of all rates.

    `p`: float64 of any shape, none negative; of these `num_rates` are of neurons, and the others 0.
    """
    rank = threshold_rank(num_rates, quantile)
    # Zeros apart: with 90 % of them (the dead neurons of a ReLU model) NumPy's SIMD partition is ten times slower.
    positive_M = p[p > 0]
    num_zeros = num_rates - len(positive_M)
    if rank <= num_zeros:
        return 0.0
    positive_M.partition(rank - num_zeros - 1)
    return float(positive_M[rank - num_zeros - 1])


def threshold_rank(num_values: int, quantile: float) -> int:
    """k of "the threshold is the k-th smallest value", from 1: round(M · quantile), half to even as Python rounds."""
    if not 0 < quantile <= 1:
        raise InputError(f"quantile: expected a number above 0 and at most 1, got {quantile!r}")
    rank = round(num_values * quantile)
    if rank < 1:
        raise InputError(f"quantile {quantile!r} of {num_values} values is below the smallest; choose a larger one")
    return rank


def layer_counts(neurons: np.ndarray | Sequence[Sequence[int]], num_layers: int) -> np.ndarray:
    """How many of the neurons, [n, 2] of (layer, neuron), lie in each layer: int64 [L]."""
    layer_n = np.asarray(neurons, dtype=np.int64).reshape(-1, 2)[:, 0]
    return np.bincount(layer_n, minlength=num_layers)


def _check_corpora(tokens_C: np.ndarray, names: Sequence[str]) -> None:
    if len(names) < 2:
        raise InputError(f"LAPE compares corpora: expected at least two, got {', '.join(names) or 'none'}")
    if empty := [name for name, tokens in zip(names, tokens_C.tolist(), strict=True) if tokens <= 0]:
        raise InputError(f"no tokens in {', '.join(empty)}; LAPE needs text in every corpus")


def _limit(rule: Rule, num_neurons: int) -> int:
    """The number of neurons to choose: by corpus if balanced, of all if top."""
    if rule.select == "balanced":
        if rule.per_corpus < 1:
            raise InputError(f"neurons per corpus: expected at least 1, got {rule.per_corpus!r}")
        return rule.per_corpus
    if rule.select != "top":
        raise InputError(f"select: expected 'balanced' or 'top', got {rule.select!r}")
    if not 0 < rule.top_rate <= 1:
        raise InputError(f"top rate: expected a number above 0 and at most 1, got {rule.top_rate!r}")
    if (limit := round(rule.top_rate * num_neurons)) < 1:
        raise InputError(f"top rate {rule.top_rate!r} of {num_neurons} neurons is none; choose a larger one")
    return limit


def _entropies(p_CN: np.ndarray, neuron_P: np.ndarray) -> np.ndarray:
    """The entropy over corpora of the neurons `neuron_P`, each with some p > 0."""
    entropy_P = np.empty(len(neuron_P))
    tiny = np.finfo(np.float64).tiny
    for start in range(0, len(neuron_P), _BLOCK):
        p_CB = p_CN[:, neuron_P[start : start + _BLOCK]]
        p_CB.sort(axis=0)  # float sums depend on the order of corpora; sorted, neurons that tie do so exactly
        q_CB = p_CB / p_CB.sum(axis=0)
        # 0 minus, so that a neuron of one corpus has 0.0, not -0.0; the maximum makes 0 ln 0 a 0.
        entropy_P[start : start + _BLOCK] = 0 - (q_CB * np.log(np.maximum(q_CB, tiny))).sum(axis=0)
    return entropy_P


def _choose(is_candidate_CP: np.ndarray, entropy_P: np.ndarray, rule: Rule, limit: int) -> list[np.ndarray]:
    """Positions in P of each corpus's specific neurons, ascending."""
    if rule.select == "balanced":
        candidates = [np.flatnonzero(is_candidate_P) for is_candidate_P in is_candidate_CP]
        return [positions[_lowest(entropy_P[positions], limit)] for positions in candidates]
    chosen = _lowest(entropy_P, limit)
    return [chosen[is_candidate_P[chosen]] for is_candidate_P in is_candidate_CP]


def _lowest(entropy_n: np.ndarray, limit: int) -> np.ndarray:
    """Positions of the `limit` lowest values, ascending by position; at the cut the first of equals."""
    if len(entropy_n) <= limit:
        return np.arange(len(entropy_n))
    cut = np.partition(entropy_n, limit - 1)[limit - 1]
    below = np.flatnonzero(entropy_n < cut)
    at_the_cut = np.flatnonzero(entropy_n == cut)
    return np.sort(np.concatenate([below, at_the_cut[: limit - len(below)]]))
