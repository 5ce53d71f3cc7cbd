"""What switching neurons off costs: differences of losses, with standard errors over documents.

The loss of some tokens is a ratio over documents, Σ nats / Σ tokens, and so is a difference of two losses over the
same documents: with d_i the difference of nats in document i and n_i its tokens,

    R = Σ d_i / Σ n_i        SE(R)² = m/(m-1) · Σ (d_i - R n_i)² / (Σ n_i)²        over the m documents with n_i > 0

the linearised ("delta method") error, paired by document, of five documents or more. Accuracy likewise, with hits for
nats. Of two or more random draws the mean is taken and their spread (standard deviation) told; the error of a change
over random holds the draws fixed: `judgement` counts both. Perplexity is exp(loss).

A set has two controls, both of as many neurons: `random` ones of the same layers, and random `candidates`, of which as
many are above LAPE's threshold (`mask_sets`).

Shapes: S sets, D documents, X classes of tokens, K concepts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neurotally.analysis.masking.judgement import MIN_DOCUMENTS, Judgement, exclusive_factor, judge
from neurotally.analysis.masking.mask_sets import CONTROLS, MIN_OTHERS
from neurotally.profiler import store
from neurotally.profiler.networks import layer_widths, networks_of

FAMILY = "loss"
CLASSES = ("match", "line", "file", "elsewhere")
"""Of a concept: tokens in its matches, the rest of those lines, other tokens of the same files, other files."""


class Ratio(NamedTuple):
    """A ratio over documents and its standard error; NaN where there is none."""

    value: float
    error: float


class Scored(NamedTuple):
    """The scored tokens of one class in some documents: a cell of the results."""

    nats_SD: np.ndarray
    hits_SD: np.ndarray
    scored_D: np.ndarray

    @property
    def tokens(self) -> int:
        """Scored tokens."""
        return int(self.scored_D.sum())

    @property
    def documents(self) -> int:
        """Documents with scored tokens."""
        return int(np.count_nonzero(self.scored_D))


class Control(NamedTuple):
    """What a set is compared with."""

    randoms: list[int]
    """The numbers of its draws."""
    factor: float
    """See `judgement.judge`."""
    not_judged: str
    """Why there are no draws, or none to judge by; "" where there are."""


NO_CONTROL = Control([], 1.0, "no draws")


class Change(NamedTuple):
    """What switching a set off does to a cell, in nats per token; and to accuracy, a share."""

    change: Ratio
    accuracy: Ratio
    draws: list[float]
    """The change by each random draw."""
    over_random: Ratio
    """Beyond the mean of the draws; NaN without draws."""
    judgement: Judgement
    """Whether it costs more than the draws do."""

    @property
    def random(self) -> float:
        """The mean of the draws; NaN without."""
        return float(np.mean(self.draws)) if self.draws else np.nan

    @property
    def spread(self) -> float:
        """The standard deviation of the draws; NaN for fewer than two."""
        return float(np.std(self.draws, ddof=1)) if len(self.draws) > 1 else np.nan

    @property
    def over_random_with_draws(self) -> Ratio:
        """With an error that also holds how uncertain the mean of the draws is; NaN for fewer than two."""
        error = np.hypot(self.over_random.error, self.spread / np.sqrt(max(1, len(self.draws))))
        return Ratio(self.over_random.value, float(error))


@dataclass(frozen=True, eq=False)
class Losses:
    """The group of a loss pass."""

    corpora: list[str]
    sets: list[dict[str, Any]]
    """kind, of, draw, neurons, by_layer; the first is the baseline."""
    concepts: list[str]
    attributes: Mapping[str, Any]
    model: Mapping[str, Any]
    nats_SDX: np.ndarray
    hits_SDX: np.ndarray
    scored_DX: np.ndarray
    has_concept_DK: np.ndarray
    corpus_D: np.ndarray

    def numbers(self, kind: str, of: str) -> list[int]:
        """The sets of a kind that belong to the specific set `of`."""
        return [number for number, one in enumerate(self.sets) if (one["kind"], one["of"]) == (kind, of)]

    @property
    def specific(self) -> list[str]:
        """The names of the sets asked about."""
        return [one["of"] for one in self.sets if one["kind"] == "specific"]

    def control(self, kind: str, of: str) -> Control:
        """The control `kind` of a specific set, with why it can't be judged by: too few draws show in each cell."""
        assert kind in CONTROLS
        (own,) = (self.sets[number] for number in self.numbers("specific", of))
        if not own["neurons"]:
            return NO_CONTROL._replace(not_judged="the set is empty")
        randoms = self.numbers(kind, of)
        if not randoms:
            why = self.attributes.get("not_drawn", {}).get(kind, {}).get(of, "no draws")
            return NO_CONTROL._replace(not_judged=why)
        if any(self.sets[number]["neurons"] != own["neurons"] for number in randoms):
            return NO_CONTROL._replace(not_judged="fewer neurons are left to draw from than the set has")
        if kind == "candidates":
            return Control(randoms, 1.0, "")
        width_L = layer_widths(networks_of(self.model), len(own["by_layer"]), self.model["num_neurons"]).tolist()
        in_layer = [(number, width) for number, width in zip(own["by_layer"], width_L, strict=True) if number]
        if any(width - number < MIN_OTHERS * number for number, width in in_layer):
            return NO_CONTROL._replace(not_judged="too few others in a layer to draw from")
        return Control(randoms, max(exclusive_factor(one, width - one) for one, width in in_layer), "")

    def cell(self, corpus: str | None = None, concept: str | None = None, kind: str = "") -> Scored:
        """All tokens, or a concept's of one class; of all corpora, or of one."""
        cell = self._columns(0) if concept is None else self._class(self.concepts.index(concept), kind)
        if corpus is None:
            return cell
        here_D = self.corpus_D == self.corpora.index(corpus)
        return Scored(*(values[..., here_D] for values in cell))

    def _class(self, concept: int, kind: str) -> Scored:
        match, line = 1 + 2 * concept, 2 + 2 * concept
        if kind in ("match", "line"):
            return self._columns(match if kind == "match" else line)
        whole, has_D = self._columns(0), self.has_concept_DK[:, concept].astype(bool)
        if kind == "elsewhere":
            return Scored(*(values * ~has_D for values in whole))
        assert kind == "file"
        rest = self._columns(match, line)
        return Scored(*((values - less) * has_D for values, less in zip(whole, rest, strict=True)))

    def _columns(self, *columns: int) -> Scored:
        arrays = (self.nats_SDX, self.hits_SDX, self.scored_DX)
        return Scored(*(array[..., list(columns)].sum(axis=-1) for array in arrays))


def read_losses(path: Path, name: str) -> Losses:
    """Read the group `loss/NAME`; InputError where it isn't there."""
    names = ["nats", "hits", "scored", "has_concept", "document_corpus"]
    arrays = store.read_group(path, f"{FAMILY}/{name}", names)
    attributes = store.group_attributes(path, f"{FAMILY}/{name}")
    return Losses(
        corpora=attributes["corpora"],
        sets=attributes["sets"],
        concepts=attributes["concepts"],
        attributes=attributes,
        model=store.store_attributes(path).get("model") or {},
        nats_SDX=arrays["nats"],
        hits_SDX=arrays["hits"].astype(np.int64),
        scored_DX=arrays["scored"].astype(np.int64),
        has_concept_DK=arrays["has_concept"],
        corpus_D=arrays["document_corpus"],
    )


def ratio(difference_D: np.ndarray, tokens_D: np.ndarray) -> Ratio:
    """Σ difference / Σ tokens over documents with tokens, and its linearised standard error: NaN for very few."""
    used_D = tokens_D > 0
    total, number = float(tokens_D.sum()), int(np.count_nonzero(used_D))
    if not number:
        return Ratio(np.nan, np.nan)
    value = float(difference_D[used_D].sum() / total)
    if number < MIN_DOCUMENTS:
        return Ratio(value, np.nan)
    residual_m = difference_D[used_D] - value * tokens_D[used_D]
    return Ratio(value, float(np.sqrt(number / (number - 1) * (residual_m**2).sum()) / total))


def change(cell: Scored, number: int, control: Control = NO_CONTROL) -> Change:
    """What switching off set `number` does, beside its control."""
    nats_SD, hits_SD, scored_D = cell
    own_D, randoms = nats_SD[number], control.randoms
    cost = ratio(own_D - nats_SD[0], scored_D)
    draws = [ratio(nats_SD[one] - nats_SD[0], scored_D).value for one in randoms]
    beyond_D = own_D - nats_SD[randoms].mean(axis=0) if randoms else np.full(len(scored_D), np.nan)
    return Change(
        change=cost,
        accuracy=ratio(hits_SD[number] - hits_SD[0], scored_D),
        draws=draws,
        over_random=ratio(beyond_D, scored_D),
        judgement=Judgement(np.nan, control.not_judged)
        if control.not_judged
        else judge(cost.value, draws, beyond_D, scored_D, control.factor),
    )


def in_errors(value: Ratio) -> float:
    """A value in standard errors; NaN where there is no error."""
    return value.value / value.error if value.error > 0 else np.nan
