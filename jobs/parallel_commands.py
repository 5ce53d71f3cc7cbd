"""The commands about parallel corpora: embed, mexa."""

from pathlib import Path
from typing import Literal

import click

from neurotally.jobs.output import COUNT, FIGURE, JSON_FLAG, OUT, PATH, draw, show

_NAME = click.option("--name", default="parallel", show_default=True, help="Of the embeddings in the store.")


@click.command()
@click.argument("model", metavar="MODEL[@REVISION]")
@click.argument("store", type=PATH)
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
@click.option("--workers", type=COUNT, help="Default: one per GPU, else 1. More than one run as Ray actors.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="auto: the checkpoint's on a GPU, float32 on the CPU. The paper's: float32.",
)
@click.option("--address", metavar="RAY", help="Join the Ray cluster at this address.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model. Only if you trust it.")
@OUT
@JSON_FLAG
def embed(model: str, store: Path, parallel: Path, limit: int | None, common: bool, field: tuple[str, ...], bos: str,
          name: str, workers: int | None, device: str, dtype: str, address: str | None, trust_remote_code: bool,
          out: Path | None, as_json: bool) -> None:  # fmt: skip
    """Embed a parallel corpus at every layer: the position-weighted mean and the last token of each text.

    The same command goes on where it stopped. Texts longer than the model's context are left out, in all languages,
    and named.

    \b
    Example:
      neurotally embed meta-llama/Llama-3.1-8B llama.store --parallel snippets/ --limit 100
    """
    from neurotally.jobs.embed import embed as run_embed
    from neurotally.jobs.embed import embed_report, embed_text
    from neurotally.jobs.passes import PassRequest
    from neurotally.jobs.progress import Progress
    from neurotally.jobs.worker import ModelConfig
    from neurotally.profiler.corpus import check_names
    from neurotally.profiler.parallel import read_parallel

    check_names([name])
    texts = read_parallel(parallel, limit, common, field)
    group = f"embeddings/{name}"
    run_embed(PassRequest(ModelConfig(model, device, dtype, trust_remote_code), store, group, workers, address),
              texts, bos, Progress())  # fmt: skip
    report = embed_report(store, group)
    show(report, embed_text(report, store), as_json, out)


@click.command()
@click.argument("store", type=PATH)
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
    from neurotally.analysis.mexa import mexa as align
    from neurotally.analysis.mexa import read_embeddings
    from neurotally.analysis.mexa_figures import draw_mexa, draw_mexa_matrix
    from neurotally.analysis.mexa_report import mexa_document, mexa_table

    embeddings = read_embeddings(store, name, embedding)
    document = mexa_document(embeddings, align(embeddings.vector_LND, embeddings.text_Cn), leave_out)
    draw(figure, draw_mexa, document)
    draw(matrix_figure, draw_mexa_matrix, document)
    show(document, mexa_table(document), as_json, out)


PARALLEL_COMMANDS = (embed, mexa)
