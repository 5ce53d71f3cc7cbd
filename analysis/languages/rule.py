"""The settings of a LAPE selection in one value, so that they travel together and every document names them alike."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from neurotally.analysis.languages.lape import Select, Selection, lape
from neurotally.analysis.options import Option

if TYPE_CHECKING:
    from neurotally.analysis.languages.counts import CorpusCounts


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

    @classmethod
    def of(cls, selection: Selection) -> "Rule":
        """What a selection was chosen by."""
        rule = cls(selection.quantile, selection.select)
        limit: dict[str, Any] = {rule.limit_name: selection.limit}
        return replace(rule, **limit)

    def choose(self, counts: "CorpusCounts") -> Selection:
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


DEFAULT = Rule()
