"""The commands about parallel corpora: embed, mexa."""

from pathlib import Path
from typing import Literal

import click

from neurotally.jobs.commands.options import (
    COUNT,
    FIGURE,
    JSON_FLAG,
    MODEL,
    OUT,
    PATH,
    STORE,
    RunOptions,
    name_option,
    run_options,
)  # fmt: skip
from neurotally.jobs.commands.output import draw, show

_NAME = name_option("parallel")


@click.command()
@MODEL
@STORE
@click.option(
    "--parallel",
    type=PATH,
    required=True,
    metavar="DIR",
    help="A folder a language with a file an id, or NAME.txt or NAME.jsonl a language; a .zip of these; or "
    "a FILE.jsonl with a field a language.",
)
@click.option("--limit", type=COUNT, metavar="N", help="The first N ids, in sorted order.")
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
@_NAME
@run_options
@OUT
@JSON_FLAG
def embed(model: str, store: Path, parallel: Path, limit: int | None, common: bool, field: tuple[str, ...], bos: str,
          name: str, run: RunOptions, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """Embed a parallel corpus at every layer: the position-weighted mean and the last token of each text.

    The same command goes on where it stopped. Texts longer than the model's context are left out, in all languages,
    and named.

    \b
    Example:
      neurotally embed meta-llama/Llama-3.1-8B llama.store --parallel snippets/ --limit 100
    """
    from neurotally.jobs.passes.embed import embed as run_embed
    from neurotally.jobs.passes.embed import embed_report, embed_text
    from neurotally.jobs.progress import Progress
    from neurotally.profiler.parallel import read_parallel

    request = run.request(model, store, "embeddings", name)
    run_embed(request, read_parallel(parallel, limit, common, field), bos, Progress())
    report = embed_report(store, request.group)
    show(report, embed_text(report, store), as_json, out)


@click.command()
@STORE
@_NAME
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
    help="Not in the means over languages, as English in the paper; as often as you like.",
)
@click.option("--matrix-figure", type=PATH, metavar="FILE.png", help="Draw pivots by languages.")
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


PARALLEL_COMMANDS = (embed, mexa)
