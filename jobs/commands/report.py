"""The command `report`: one page of all that a store holds."""

from pathlib import Path

import click

from neurotally.jobs.commands.options import (
    COUNT,
    JSON_FLAG,
    OUTPUT,
    PATH,
    STORE,
    RuleOptions,
    TextOptions,
    rule_options,
    text_options,
)
from neurotally.jobs.commands.output import show
from neurotally.profiler.whole_files import write_whole


@click.command(short_help="One HTML page of a store")
@STORE
@click.option("--out", type=OUTPUT, metavar="FILE.html", help="Default: STORE's name with .html, in this folder.")
@click.option("--neurons", "--top-neurons", "neurons", type=COUNT, metavar="N", default=20, show_default=True,
              help="The N most specific neurons of every corpus, to read.")  # fmt: skip
@click.option(
    "--triggers",
    "--top",
    "triggers",
    type=COUNT,
    metavar="N",
    default=6,
    show_default=True,
    help="The N largest triggers of each.",
)
@rule_options
@click.option("--concepts", type=PATH, metavar="FILE.json", help="What `concepts --out` wrote: shown, too.")
@text_options
@JSON_FLAG
def report(store: Path, out: Path | None, neurons: int, triggers: int, chosen_by: RuleOptions, concepts: Path | None,
           texts: TextOptions, as_json: bool) -> None:  # fmt: skip
    """One HTML page of all that STORE holds, to read and to pass on: it needs no network and no other file.

    Where it comes from, its corpora, LAPE with error bars, profiles, overlaps, what other passes left in the store,
    and every corpus's most specific neurons with their triggers. Texts come from where `triggers` finds them.

    \b
    Example:
      neurotally report llama.store --out llama.html
    """
    from neurotally.analysis.report.concepts import read_concepts_document
    from neurotally.analysis.report.neurons import most_specific
    from neurotally.analysis.report.page import build_report
    from neurotally.analysis.report.sections import read_material
    from neurotally.jobs.progress import Progress
    from neurotally.jobs.trigger_entries import gather_triggers

    progress = Progress()
    of_concepts = None if concepts is None else read_concepts_document(concepts, store)
    with progress.loading(f"the counts of {store}"):
        material = read_material(store, chosen_by.rule())
    found, missing = gather_triggers(texts.request(store), most_specific(material, neurons), triggers, progress)
    page = build_report(material, neurons, found, missing, of_concepts)
    target = out or Path(f"{store.resolve().name}.html")
    write_whole(target, page.html)
    size = target.stat().st_size
    sections = [section.anchor for section in page.sections]
    text = f"{target}: {size / 1e6:.1f} MB, with {', '.join(section.title for section in page.sections)}"
    notes = [note for note in (material.no_lape, material.no_bars, missing) if note]
    document = {"file": str(target), "bytes": size, "sections": sections, "notes": notes}
    show(document, "\n".join([text, *notes]), as_json)


REPORT_COMMANDS = (report,)
