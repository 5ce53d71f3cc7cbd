"""What every study gives: one `Result`, from which text, HTML, data frames and figures are rendered.

    document   what `--json` prints: plain lists, numbers and strings, null for NaN; the contract
    lead       one line that says what this is
    findings   what was found, in a few sentences
    tables     typed columns and raw values; those that are long are shown only when asked for
    charts     figures described as data
    notes      what a reader of the tables must know

A study fills these in and knows nothing of how they look; `neurotally.analysis.render` knows nothing of studies.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from neurotally.analysis.parts import Chart, Example, Table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Result:
    """What a study found. `print` shows it as text, a notebook as HTML."""

    study: str
    document: Any
    """A dictionary; of `triggers` a list of them."""
    lead: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    """Notes that a reader may not miss: the commands say them on stderr, too."""
    examples: Sequence[Example] = ()
    """Places in texts."""
    findings: Sequence[str] = ()
    """What was found, in a few sentences: said first."""
    title: str = ""
    """Of its section in the report."""
    anchor: str = ""
    """Of the same, if not the study's name."""
    model: str = ""
    """The model's name, on every figure."""
    corpora: tuple[str, ...] = ()
    """All of the store: their order gives each its colour."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "document", finite(self.document))

    def frame(self, name: str | None = None) -> "pandas.DataFrame":
        """A table as a pandas DataFrame: the first, or the one of that name."""
        return _named(self.tables, name, "table").frame()

    def figure(self, name: str | None = None) -> "Figure":
        """A figure as matplotlib's `Figure`: the first, or the one of that name."""
        from neurotally.analysis.render.charts import draw

        return draw(_named(self.charts, name, "figure"), self.model, self.corpora)

    def text(self, full: bool = False) -> str:
        """What the command prints; `full`: the long tables, too."""
        from neurotally.analysis.render.text import result_text

        return result_text(self, full)

    def of(self, model: str, corpora: Sequence[str]) -> "Result":
        """The same, with the names of its model and of all corpora of its store."""
        return replace(self, model=self.model or model, corpora=tuple(corpora))

    def _repr_html_(self) -> str:
        from neurotally.analysis.render.html import result_html

        return result_html(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Result of {self.study}: {self.lead}>"


def finite(value: Any) -> Any:
    """The same document with None for numbers that JSON can't spell: NaN and the infinite."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_name(names: Iterable[str], values: Any) -> dict[str, Any]:
    """An array's values as plain lists by name; the names are along its last axis."""
    return dict(zip(names, values.T.tolist(), strict=True))


def left_out_notes(left_out: Mapping[str, str]) -> list[str]:
    """Which corpora aren't in a result, and why."""
    return [f"left out: {name} ({reason})" for name, reason in left_out.items()]


def model_key(model: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The `model` of every JSON document: id and fingerprint; None for imported counts."""
    return None if model is None else {key: model.get(key) for key in ("id", "fingerprint")}


def model_name(model: Mapping[str, Any] | None) -> str:
    """The model's id, for headings."""
    return str((model or {}).get("id") or "imported counts")


def _named(things: Sequence[Any], name: str | None, kind: str) -> Any:
    """The first of them, or the one of that name; a KeyError that says which there are."""
    for thing in things:
        if name is None or thing.name == name:
            return thing
    has = ", ".join(thing.name for thing in things) or "none"
    raise KeyError(f"no {kind}{'' if name is None else f' {name!r}'} here; there are: {has}")
