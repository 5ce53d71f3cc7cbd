"""The commands that measure what layers hold: embed, lens, agreement."""

from pathlib import Path
from typing import Any

import click

from neurotally.jobs.commands.options import (
    CORPORA,
    CORPUS,
    COUNT,
    FIGURE,
    FULL,
    JSON_FLAG,
    MODEL,
    OUT,
    PATH,
    PICTURE,
    WRITTEN_STORE,
    document_options,
    name_option,
    run_options,
)  # fmt: skip
from neurotally.jobs.commands.output import finish
from neurotally.profiler.errors import InputError

_PARALLEL = name_option("parallel")


@click.command(short_help="Embed a parallel corpus at every layer")
@MODEL
@WRITTEN_STORE
@click.option(
    "--parallel",
    type=PATH,
    required=True,
    metavar="DIR",
    help="A folder a language with a file an id, or NAME.txt or NAME.jsonl a language; a .zip of these; or "
    "a FILE.jsonl with a field a language.",
)
@click.option("--limit", "--max-ids", "limit", type=COUNT, metavar="N", help="The first N ids, in sorted order.")
@click.option("--common", is_flag=True, help="Leave out ids that some language lacks; else they are an error.")
@click.option(
    "--field",
    multiple=True,
    metavar="NAME=LANGUAGE::FIELD",
    help="A further language, from another field of a language's records: english=C::comment.",
)
@click.option(
    "--bos",
    type=click.Choice(["counted", "read", "none"]),
    default="counted",
    show_default=True,
    help="counted: as in the paper. read: the model reads it, the mean leaves it out. none: not read.",
)
@_PARALLEL
@run_options
@OUT
@JSON_FLAG
def embed(model: str, store: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Embed a parallel corpus at every layer: the position-weighted mean and the last token of each text.

    The same command goes on where it stopped. Texts longer than the model's context are left out, in all languages,
    and named.

    \b
    Example:
      neurotally embed meta-llama/Llama-3.1-8B llama.store --parallel snippets/ --limit 100
    """
    from neurotally.jobs.passes.embed import embed as run

    finish(run(model, store, **options), as_json, out)


@click.command(short_help="What each layer would say next")
@MODEL
@WRITTEN_STORE
@click.option("--parallel", type=PATH, required=True, metavar="DIR", help="A parallel corpus, as `embed` reads it.")
@click.option("--few-shot", type=PATH, required=True, metavar="DIR", help="LANGUAGE_fewshot.txt files, lower case.")
@click.option("--pairs", default="all", show_default=True, metavar="all|A-B,...", help="Directed: source-target.")
@click.option(
    "--limit", "--max-ids", "limit", type=COUNT, default=100, show_default=True, help="The first so many ids."
)
@click.option("--keywords", type=PATH, metavar="DIR", help="A .json file for each language: name, keywords, builtins.")
@click.option("--english", type=PATH, metavar="FILE", help="English words, one a line.")
@click.option("--draws", type=click.IntRange(2, 1000), default=20, show_default=True, metavar="N",
              help="Random sets for each set of tokens.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random sets.")
@click.option("--paper", is_flag=True, help="The reference's double BOS, clean-up of spaces and last positions.")
@name_option("translation")
@run_options
@click.option("--prompt", metavar="N|A-B/ID", help="With --figure: layers by tokens of this prompt.")
@click.option("--set", "sets", multiple=True, metavar="NAME",
              help="Show this set of tokens, as often as you like. Default: of the pairs' languages.")  # fmt: skip
@click.option("--panels-figure", type=PICTURE, metavar="FILE.png", help="Draw each set, by target language.")
@FIGURE
@FULL
@OUT
@JSON_FLAG
def lens(model: str, store: Path, prompt: str | None, panels_figure: Path | None, figure: Path | None, full: bool,
         out: Path | None, as_json: bool, **options: Any) -> None:  # fmt: skip
    """What each layer would say next: the logit lens over few-shot translation (arXiv 2506.01074).

    For every layer and position the first tokens, the gold token, and how probable keywords and English words are.
    The same command goes on where it stopped.

    \b
    Example:
      neurotally lens meta-llama/Llama-3.1-8B llama.store --parallel snippets.zip --few-shot prompts/ \\
          --keywords keywords/ --figure lens.png
    """
    from neurotally.jobs.passes.lens import lens as run

    if prompt is not None and figure is None:
        raise InputError("--prompt: expected --figure FILE.png with it")
    result = run(model, store, prompt=prompt, **options)
    finish(result, as_json, out, full, {None: figure, "panels": panels_figure})


def _sizes(_context: click.Context, option: click.Parameter, text: str) -> list[int]:
    """Whole numbers above 0 with commas between; none of them for `none`."""
    parts = [] if text == "none" else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option.opts[0]} {text!r}: expected whole numbers above 0 with commas between, or none")
    return [int(part) for part in parts]


@click.command(short_help="When the next token is decided")
@MODEL
@WRITTEN_STORE
@CORPORA
@CORPUS
@click.option(
    "--variants",
    default="all",
    show_default=True,
    metavar="all|V,...",
    help="Of ffn-raw (the paper's), ffn-norm, residual-raw, residual-norm.",
)
@click.option(
    "--context-sizes",
    callback=_sizes,
    metavar="N,...",
    default="1,2,5,10,20,50,100,200,500,1000",
    show_default=True,
    help="Truncated inputs of so many tokens; none: no such inputs.",
)
@click.option(
    "--lines",
    callback=_sizes,
    metavar="N,...",
    default="1,5,10,20,50",
    show_default=True,
    help="Truncated inputs of so many lines; none: no such inputs.",
)
@click.option(
    "--positions",
    type=COUNT,
    metavar="N",
    default=4,
    show_default=True,
    help="Drawn in each document, for truncated inputs.",
)
@document_options
@click.option("--head-bias", is_flag=True, help="Add the output embedding's bias, where there is one.")
@name_option("agreement")
@run_options
@click.option("--context-figure", type=PICTURE, metavar="FILE.png", help="Draw layers by context sizes.")
@FIGURE
@FULL
@OUT
@JSON_FLAG
def agreement(model: str, store: Path, context_figure: Path | None, figure: Path | None, full: bool,
              out: Path | None, as_json: bool, **options: Any) -> None:  # fmt: skip
    """How often each layer's own first token is the model's (arXiv 2407.04868), by layer and by context size.

    The same command goes on where it stopped.

    \b
    Example:
      neurotally agreement NinedayWang/PolyCoder-2.7B polycoder.store --corpora sources/ --max-files 200 \\
          --figure agreement.png --context-figure contexts.png
    """
    from neurotally.jobs.passes.agreement import agreement as run

    finish(run(model, store, **options), as_json, out, full, {None: figure, "context": context_figure})


LAYER_COMMANDS = (embed, lens, agreement)
