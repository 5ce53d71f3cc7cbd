"""The commands that switch neurons off and measure what it costs: ablate (LAPE's), mask (any)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from neurotally.jobs.commands.options import (
    COUNT,
    FIGURE,
    FULL,
    JSON_FLAG,
    MODEL,
    ONLY_CORPUS,
    OUT,
    PATH,
    WRITTEN_STORE,
    Share,
    document_options,
    name_option,
    run_options,
)  # fmt: skip
from neurotally.jobs.commands.output import finish

_WAYS = ("activation", "coefficient", "weights", "weights-no-bias", "mean")  # of profiler.interventions.WAYS
_MAX_DRAWS = 1000
_DRAWS = 8  # jobs.passes.ablation.DRAWS


def _pass_options(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What both commands take: corpora, how, draws, where to run, what to print. `name`: the group's default."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            JSON_FLAG,
            OUT,
            FIGURE,
            FULL,
            run_options,
            name_option(name),
            click.option("--force", is_flag=True, help="Evaluate on documents that chose the neurons, too."),
            click.option("--leave-out-used", is_flag=True,
                         help="Leave out and count documents whose triggers chose the neurons, instead of refusing "
                              "them; those that LAPE counted are left out in any case."),
            document_options,
            click.option("--draws", type=click.IntRange(0, _MAX_DRAWS), default=_DRAWS, show_default=True,
                         help="Random sets of each of two kinds, for every set: each is a run of the model over all "
                              "text. With fewer than 3 nothing is judged; to pass at 5 %, a set must differ by 2.5 "
                              "standard deviations of 8 draws, 5.0 of 3, 2.1 of 20."),
            click.option("--how", type=click.Choice(_WAYS), default="activation", show_default=True,
                         help="Set the activation or the coefficient to 0, zero the key's weights with or without its "
                              "bias, or put the corpus's mean coefficient in its place."),
            click.option("--corpora", type=PATH, metavar="DIR", required=True,
                         help="Held-out files: one subfolder per corpus."),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


@click.command(short_help="What each corpus's neurons are worth")
@MODEL
@WRITTEN_STORE
@click.option("--neurons", type=PATH, metavar="FILE.json", help="A mask file instead of the store's own selection.")
@ONLY_CORPUS
@click.option("--per-corpus", type=COUNT, metavar="N", default=400, show_default=True,
              help="LAPE's balanced selection; for another one: `lape --out`, and --neurons.")  # fmt: skip
@click.option("--quantile", type=Share(min_open=False), default=0.95, show_default=True, help="The threshold.")
@_pass_options("ablate")
def ablate(model: str, store: Path, full: bool, figure: Path | None, out: Path | None, as_json: bool,
           **options: Any) -> None:  # fmt: skip
    """What switching off each corpus's neurons (LAPE) costs every corpus, on held-out files in DIR.

    Beside as many random neurons of the same layers, and as many random ones above LAPE's threshold: a corpus's
    neurons matter where they cost its text more than both do. Documents of the store are left out of DIR, and counted.
    The same command goes on where it stopped.

    \b
    Example:
      neurotally ablate codellama/CodeLlama-7b-hf llama.store --corpora heldout/ --figure ablation.png
    """
    from neurotally.jobs.passes.ablation import ablate as run

    finish(run(model, store, **options), as_json, out, full, {None: figure})


@click.command(short_help="What any sets of neurons are worth")
@MODEL
@WRITTEN_STORE
@click.option("--neurons", type=PATH, metavar="FILE.json", required=True,
              help="Named sets of neurons, as `lape --out` and `concepts --out` write them.")  # fmt: skip
@click.option("--regex", type=PATH, metavar="FILE.toml", help="[concepts] NAME = 'regular expression' lines.")
@_pass_options("mask")
def mask(model: str, store: Path, full: bool, figure: Path | None, out: Path | None, as_json: bool,
         **options: Any) -> None:  # fmt: skip
    """What switching off named sets of neurons costs: loss, perplexity and top-1 accuracy on held-out files in DIR.

    With --regex apart for tokens in each concept's matches, the rest of their lines, other tokens of the same files,
    and files without it. Beside as many random neurons of the same layers, and random ones of which as many are above
    LAPE's threshold. Files whose triggers chose the neurons are refused, or left out with --leave-out-used. The same
    command goes on where it stopped.

    \b
    Example:
      neurotally mask llama/ llama.store --neurons concepts.json --regex concepts.toml --corpora heldout/
    """
    from neurotally.jobs.passes.ablation import mask as run

    finish(run(model, store, **options), as_json, out, full, {None: figure})


MASKING_COMMANDS = (mask, ablate)
