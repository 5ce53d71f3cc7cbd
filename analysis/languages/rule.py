"""The settings of a LAPE selection in one value, so that they travel together and every document names them alike."""

from dataclasses import dataclass, replace
from typing import Any

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Select, Selection, lape


@dataclass(frozen=True)
class Rule:
    """How neurons are chosen; the defaults are `neurotally lape`'s."""

    quantile: float = 0.95
    select: Select = "balanced"
    per_corpus: int = 400
    """Read if balanced."""
    top_rate: float = 0.01
    """Read if top."""

    @classmethod
    def of(cls, selection: Selection) -> "Rule":
        """What a selection was chosen by."""
        rule = cls(selection.quantile, selection.select)
        limit: dict[str, Any] = {rule.limit_name: selection.limit}
        return replace(rule, **limit)

    def choose(self, counts: CorpusCounts) -> Selection:
        """LAPE with these settings; InputError as `lape` raises it."""
        return lape(
            counts.active_CLF, counts.tokens_C, counts.corpora, quantile=self.quantile, select=self.select,
            per_corpus=self.per_corpus, top_rate=self.top_rate,
        )  # fmt: skip

    @property
    def limit_name(self) -> str:
        """The setting that says how many: `per_corpus` or `top_rate`."""
        return "per_corpus" if self.select == "balanced" else "top_rate"

    @property
    def limit(self) -> float:
        """`per_corpus` if balanced, `top_rate` if top."""
        return self.per_corpus if self.select == "balanced" else self.top_rate

    def as_json(self) -> dict[str, Any]:
        """The keys of LAPE's document: select, quantile and the limit by its name."""
        return {"select": self.select, "quantile": self.quantile, self.limit_name: self.limit}

    def __str__(self) -> str:
        if self.select == "balanced":
            return f"the {self.per_corpus:,} candidates of lowest entropy of every corpus, quantile {self.quantile:g}"
        return f"the {100 * self.top_rate:g} % of neurons of lowest entropy, quantile {self.quantile:g}"
