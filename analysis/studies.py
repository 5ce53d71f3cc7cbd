"""The studies: one line each. A study is a file with a function `study(store, ...) -> Result`, loaded when asked for.

From its line follow its command with `--json`, `--out`, `--figure` and `--full`, its section in the report, and its
method on `Store`. The file may also have

    FIGURES            {name: help}: charts beside the first that the command draws with `--NAME-figure`
    sections(store)    the keyword arguments of every section that the report gets from a store, if not one of none
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from neurotally.analysis.options import arguments
from neurotally.analysis.progress import Progress
from neurotally.analysis.result import Result, model_name


class Study(NamedTuple):
    """Where a study is, and what it is about in a few words."""

    where: str
    help: str
    in_report: bool = True
    has_command: bool = True
    """Not where the command of the pass shows it."""


STUDIES: Mapping[str, Study] = {
    "lape": Study("languages.lape_study", "The neurons specific to each corpus"),
    "stability": Study("languages.stability_study", "Would other text choose the same neurons?", in_report=False),
    "sweep": Study("languages.sweep", "LAPE at every setting of a grid", in_report=False),
    "profiles": Study("languages.profiles", "Where each corpus's neurons sit, and who shares them"),
    "activity": Study("languages.activity", "How often neurons are active: dead, rare, frequent"),
    "routing": Study("languages.routing", "Where a mixture of experts sends each corpus"),
    "compare": Study("languages.compare", "Two stores side by side", in_report=False),
    "losses": Study("masking.losses_study", "What `ablate` and `mask` found: the price of neurons"),
    "embed": Study("layers.embed_study", "Embed a parallel corpus at every layer", in_report=False, has_command=False),
    "mexa": Study("layers.mexa_study", "Which languages are aligned (MEXA)"),
    "lens": Study("layers.lens_study", "What each layer would predict next", has_command=False),
    "agreement": Study("layers.agreement", "When the next token is decided", has_command=False),
    "triggers": Study("keys.triggers", "The places that trigger a key", in_report=False),
    "patterns": Study("keys.patterns_study", "What keys' triggers have in common, by layer", in_report=False),
    "concepts": Study("keys.concepts", "The keys of named regular expressions", in_report=False),
}


def module(name: str) -> Any:
    """The file of a study."""
    return import_module(f"neurotally.analysis.{STUDIES[name].where}")


def study(name: str) -> Callable[..., Result]:
    """The function of a study."""
    function: Callable[..., Result] = module(name).study
    return function


def run(name: str, store: Path, /, *, progress: Progress | None = None, **values: Any) -> Result:
    """A study of a store, its parameters by their names; what is left out has its default.

    `progress` is for a study with a parameter of this name, which takes its time.
    """
    from neurotally.profiler.store import committed_corpora, store_attributes

    function = study(name)
    told = {"progress": progress} if progress and "progress" in signature(function).parameters else {}
    result = function(store, **arguments(function, values), **told)
    return result.of(model_name(store_attributes(store).get("model")), committed_corpora(store))
