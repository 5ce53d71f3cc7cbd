"""The command `report`: one page of all that a store holds."""

from pathlib import Path
from typing import Literal

import click

from neurotally.jobs.output import COUNT, JSON_FLAG, PATH, show

Select = Literal["balanced", "top"]


@click.command()
@click.argument("store", type=PATH)
@click.option("--out", type=PATH, metavar="FILE.html", help="Default: STORE's name with .html, in this folder.")
@click.option("--neurons", type=COUNT, metavar="N", default=20, show_default=True,
              help="The N most specific neurons of every corpus, to read.")  # fmt: skip
@click.option("--triggers", type=COUNT, metavar="N", default=6, show_default=True, help="The N largest of each.")
@click.option("--select", type=click.Choice(["balanced", "top"]), default="balanced", show_default=True,
              help="How LAPE chooses; see `lape`.")  # fmt: skip
@click.option("--per-corpus", type=COUNT, metavar="N", default=400, show_default=True, help="With balanced.")
@click.option("--top-rate", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="With top.")
@click.option("--quantile", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="The bar; see `lape`.")
@click.option("--concepts", type=PATH, metavar="FILE.json", help="What `concepts --out` wrote: shown, too.")
@click.option("--corpora", type=PATH, metavar="DIR", help="Where the corpora are, if they have moved.")
@click.option("--corpus-source", multiple=True, metavar="NAME=SOURCE", help="Where one corpus is now.")
@click.option("--model", metavar="MODEL[@REVISION]", help="Where the tokenizer is, if it has moved.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the tokenizer.")
@JSON_FLAG
def report(store: Path, out: Path | None, neurons: int, triggers: int, select: Select, per_corpus: int,
           top_rate: float, quantile: float, concepts: Path | None, corpora: Path | None,
           corpus_source: tuple[str, ...], model: str | None, trust_remote_code: bool,
           as_json: bool) -> None:  # fmt: skip
    """One HTML page of all that STORE holds, to read and to pass on: it needs no network and no other file.

    Where it comes from, its corpora, LAPE with error bars, profiles, overlaps, what other passes left in the store,
    and every corpus's most specific neurons with their triggers. Texts come from where `triggers` finds them.

    \b
    Example:
      neurotally report llama.store --out llama.html
    """
    from neurotally.analysis.report import build_report
    from neurotally.analysis.report_concepts import read_concepts_document
    from neurotally.analysis.report_neurons import most_specific
    from neurotally.analysis.report_sections import read_material
    from neurotally.analysis.rule import Rule
    from neurotally.jobs.key_texts import TextRequest
    from neurotally.jobs.report_triggers import gather_triggers

    of_concepts = None if concepts is None else read_concepts_document(concepts, store)
    material = read_material(store, Rule(quantile, select, per_corpus, top_rate))
    request = TextRequest(store, corpora, corpus_source, model, trust_remote_code)
    found, missing = gather_triggers(request, most_specific(material, neurons), triggers)
    page = build_report(material, neurons, found, missing, of_concepts)
    target = out or Path(f"{store.resolve().name}.html")
    target.write_text(page.html, encoding="utf-8")
    size = target.stat().st_size
    sections = [section.anchor for section in page.sections]
    text = f"{target}: {size / 1e6:.1f} MB, with {', '.join(section.title for section in page.sections)}"
    notes = [note for note in (material.no_lape, material.no_bars, missing) if note]
    document = {"file": str(target), "bytes": size, "sections": sections, "notes": notes}
    show(document, "\n".join([text, *notes]), as_json)


REPORT_COMMANDS = (report,)
