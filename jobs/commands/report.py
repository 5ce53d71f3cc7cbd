"""The command `report`: one page of all that a store holds."""

from pathlib import Path
from typing import Any

import click

from neurotally.jobs.commands.options import JSON_FLAG, OUTPUT, STORE, as_parameters
from neurotally.jobs.commands.output import show
from neurotally.jobs.commands.signatures import click_parameters, command_help
from neurotally.profiler.whole_files import write_whole


def report_command() -> click.Command:
    """The command, made of the signature of `neurotally.analysis.report.page.report`."""
    from neurotally.analysis.report.page import report

    def run(store: Path, out: Path | None, as_json: bool, **values: Any) -> None:
        from neurotally.analysis.options import arguments
        from neurotally.jobs.progress import Progress

        made = report(store, **arguments(report, values), progress=Progress())
        target = out or Path(f"{store.resolve().name}.html")
        write_whole(target, made.html)
        size = target.stat().st_size
        sections = [section.anchor for section in made.sections]
        text = f"{target}: {size / 1e6:.1f} MB, with {', '.join(section.title for section in made.sections)}"
        document = {"file": str(target), "bytes": size, "sections": sections, "notes": list(made.notes)}
        show(document, "\n".join([text, *made.notes]), as_json)

    help_of_out = "Default: STORE's name with .html, in this folder."
    out = click.option("--out", type=OUTPUT, metavar="FILE.html", help=help_of_out)
    params = [*as_parameters(STORE, out), *click_parameters(report), *as_parameters(JSON_FLAG)]
    return click.Command("report", callback=run, params=params, help=command_help(report.__doc__))
