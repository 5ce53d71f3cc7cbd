"""The commands about sets of neurons: stability, sweep, compare. They read stores and load no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from neurotally.jobs.commands.options import (
    COUNT,
    FIGURE,
    JSON_FLAG,
    ONLY_CORPUS,
    OUT,
    PATH,
    STORE,
    RuleOptions,
    Share,
    rule_options,
)  # fmt: skip
from neurotally.jobs.commands.output import draw, show

if TYPE_CHECKING:
    from neurotally.analysis.languages.lape import Selection


@click.command(short_help="Would other text choose the same neurons?")
@STORE
@ONLY_CORPUS
@rule_options
@click.option("--samples", type=COUNT, default=20, show_default=True, help="Half-samples; an even number.")
@click.option("--orders", type=COUNT, default=6, show_default=True, help="Orders for the curve; an even number.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of half-samples and orders.")
@FIGURE
@OUT
@JSON_FLAG
def stability(store: Path, corpus: tuple[str, ...], chosen_by: RuleOptions, samples: int, orders: int, seed: int,
              figure: Path | None, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """Which of LAPE's neurons would other text of the same kind choose, and how much text is enough?

    \b
    Example:
      neurotally stability llama.store --figure stability.png
    """
    from neurotally.analysis.figures.sets import draw_stability
    from neurotally.analysis.languages.counts import read_group_counts
    from neurotally.analysis.languages.stability import stability as resample
    from neurotally.analysis.languages.stability_report import stability_document, stability_table

    groups = read_group_counts(store, corpus)
    found = resample(groups, chosen_by.rule(), samples, orders, seed)
    _warn(found.selection)
    document = stability_document(groups, found)
    draw(figure, draw_stability, document)
    show(document, stability_table(groups, found), as_json, out)


@click.command(short_help="LAPE at every setting of a grid")
@STORE
@ONLY_CORPUS
@click.option(
    "--quantile",
    type=Share(),
    multiple=True,
    metavar="Q",
    help="Default: 0.9 0.925 0.95 0.975 0.99",
)
@click.option("--per-corpus", type=COUNT, multiple=True, metavar="N", help="Default: 100 200 400 800 1600")
@click.option(
    "--top-rate",
    type=Share(),
    multiple=True,
    metavar="R",
    help="Default: 0.0025 ... 0.04",
)
@click.option("--base-select", type=click.Choice(["balanced", "top"]), default="balanced", show_default=True,
              help="The setting that others are compared with; so the three below.")  # fmt: skip
@click.option("--base-per-corpus", type=COUNT, metavar="N", default=400, show_default=True)
@click.option("--base-top-rate", type=Share(), default=0.01, show_default=True)
@click.option("--base-quantile", type=Share(), default=0.95, show_default=True)
@FIGURE
@OUT
@JSON_FLAG
def sweep(store: Path, corpus: tuple[str, ...], quantile: tuple[float, ...], per_corpus: tuple[int, ...],
          top_rate: tuple[float, ...], base_select: Literal["balanced", "top"], base_per_corpus: int,
          base_top_rate: float, base_quantile: float, figure: Path | None, out: Path | None,
          as_json: bool) -> None:  # fmt: skip
    """LAPE at every setting of a grid: set sizes, overlaps, profiles by layer.

    Give --quantile, --per-corpus and --top-rate as often as you like. Each setting is compared with a base: lape's
    default, or what --base-select, --base-per-corpus, --base-top-rate and --base-quantile say.

    \b
    Example:
      neurotally sweep llama.store --quantile 0.95 --per-corpus 200 --per-corpus 400
    """
    from neurotally.analysis.figures.sets import draw_sweep
    from neurotally.analysis.languages.counts import read_counts
    from neurotally.analysis.languages.sweep import PER_CORPUS, QUANTILES, sweep_document, sweep_table
    from neurotally.analysis.languages.sweep import sweep as run

    counts = read_counts(store, corpus)
    base = RuleOptions(base_select, base_per_corpus, base_top_rate, base_quantile).rule()
    found = run(counts, quantile or QUANTILES, per_corpus or PER_CORPUS, top_rate or None, base)
    document = sweep_document(counts, found)
    draw(figure, draw_sweep, document)
    show(document, sweep_table(counts, found), as_json, out)


@click.command(short_help="Two stores side by side")
@STORE
@click.argument("other", type=PATH, metavar="STORE")
@ONLY_CORPUS
@rule_options
@FIGURE
@OUT
@JSON_FLAG
def compare(store: Path, other: Path, corpus: tuple[str, ...], chosen_by: RuleOptions, figure: Path | None,
            out: Path | None, as_json: bool) -> None:  # fmt: skip
    """Two stores side by side: do their neurons sit in the same places? Only corpora that both have.

    \b
    Example:
      neurotally compare codellama.store llama.store --figure compare.png
    """
    from neurotally.analysis.figures.sets import draw_compare
    from neurotally.analysis.languages.compare import compare as side_by_side
    from neurotally.analysis.languages.compare import compare_document, compare_table, store_labels
    from neurotally.analysis.languages.counts import read_counts

    counts = [read_counts(path, corpus) for path in (store, other)]
    labels = store_labels(counts, [str(store), str(other)])
    found = side_by_side(counts, labels, chosen_by.rule())
    for side in found.sides:
        _warn(side.selection, f"{side.label}: ")
    document = compare_document(found)
    draw(figure, draw_compare, document)
    show(document, compare_table(found), as_json, out)


def _warn(selection: "Selection", of: str = "") -> None:
    """Say on stderr where a corpus has fewer candidates than asked for."""
    from neurotally.analysis.languages.lape_study import candidates_warnings

    for warning in candidates_warnings(selection):
        click.echo(f"warning: {of}{warning}", err=True)


LANGUAGE_COMMANDS = (stability, sweep, compare)
