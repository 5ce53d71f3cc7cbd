"""The commands about what layers hold: embed, mexa, lens, agreement. `mexa` reads what `embed` left."""

from pathlib import Path
from typing import Any, Literal

import click

from neurotally.jobs.commands.options import (
    CORPORA,
    CORPUS,
    COUNT,
    FIGURE,
    JSON_FLAG,
    MODEL,
    OUT,
    PATH,
    PICTURE,
    STORE,
    WRITTEN_STORE,
    document_options,
    name_option,
    run_options,
)  # fmt: skip
from neurotally.jobs.commands.output import draw, show
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
    from neurotally.jobs.passes.embed import embed_text

    document = run(model, store, **options)
    show(document, embed_text(document, store), as_json, out)


@click.command(short_help="Which languages are aligned (MEXA)")
@STORE
@_PARALLEL
@click.option(
    "--embedding",
    type=click.Choice(["weighted", "last"]),
    default="weighted",
    show_default=True,
    help="The position-weighted mean, or the last token.",
)
@click.option(
    "--leave-out",
    multiple=True,
    metavar="LANGUAGE",
    help="Not in the means over languages; as often as you like. (The paper's mean has no English in any case.)",
)
@click.option("--matrix-figure", type=PICTURE, metavar="FILE.png", help="Draw pivots by languages.")
@FIGURE
@OUT
@JSON_FLAG
def mexa(store: Path, name: str, embedding: Literal["weighted", "last"], leave_out: tuple[str, ...],
         matrix_figure: Path | None, figure: Path | None, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """How well the model aligns the languages of a parallel corpus, layer by layer (MEXA, arXiv 2410.05873).

    The share of ids whose two texts are closer to each other than to any other id's; reads what `embed` left.

    \b
    Example:
      neurotally mexa llama.store --figure mexa.png
    """
    from neurotally.analysis.figures.mexa import draw_mexa, draw_mexa_matrix
    from neurotally.analysis.layers.mexa import mexa as align
    from neurotally.analysis.layers.mexa import read_embeddings
    from neurotally.analysis.layers.mexa_report import mexa_document, mexa_table

    embeddings = read_embeddings(store, name, embedding)
    document = mexa_document(embeddings, align(embeddings.vector_LND, embeddings.text_Cn), leave_out)
    draw(figure, draw_mexa, document)
    draw(matrix_figure, draw_mexa_matrix, document)
    show(document, mexa_table(document), as_json, out)


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
@FIGURE
@OUT
@JSON_FLAG
def lens(model: str, store: Path, name: str, prompt: str | None, figure: Path | None, out: Path | None,
         as_json: bool, **options: Any) -> None:  # fmt: skip
    """What each layer would say next: the logit lens over few-shot translation (arXiv 2506.01074).

    For every layer and position the first tokens, the gold token, and how probable keywords and English words are.
    The same command goes on where it stopped.

    \b
    Example:
      neurotally lens meta-llama/Llama-3.1-8B llama.store --parallel snippets.zip --few-shot prompts/ \\
          --keywords keywords/ --figure lens.png
    """
    from neurotally.analysis.figures.lens import draw_lens, draw_prompt
    from neurotally.analysis.layers.lens import lens_table, read_prompt
    from neurotally.jobs.passes.lens import lens as run

    if prompt is not None and figure is None:
        raise InputError("--prompt: expected --figure FILE.png with it")
    document = run(model, store, name=name, prompt=prompt, **options)
    if prompt is None:
        draw(figure, draw_lens, document)
    else:
        draw(figure, draw_prompt, read_prompt(store, name, prompt))
    show(document, lens_table(document), as_json, out)


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
@OUT
@JSON_FLAG
def agreement(model: str, store: Path, context_figure: Path | None, figure: Path | None, out: Path | None,
              as_json: bool, **options: Any) -> None:  # fmt: skip
    """How often each layer's own first token is the model's (arXiv 2407.04868), by layer and by context size.

    The same command goes on where it stopped.

    \b
    Example:
      neurotally agreement NinedayWang/PolyCoder-2.7B polycoder.store --corpora sources/ --max-files 200 \\
          --figure agreement.png --context-figure contexts.png
    """
    from neurotally.analysis.figures.lens import draw_agreement, draw_contexts
    from neurotally.analysis.layers.agreement import agreement_table
    from neurotally.jobs.passes.agreement import agreement as run

    document = run(model, store, **options)
    draw(figure, draw_agreement, document)
    draw(context_figure, draw_contexts, document)
    show(document, agreement_table(document), as_json, out)


LAYER_COMMANDS = (embed, mexa, lens, agreement)
