"""The commands that show a result: of passes, and of studies. Each is made, when it is asked for, of what a signature
says: that of its function in `neurotally.jobs.door`, or of the study that its line in `neurotally.analysis.studies`
names.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from neurotally import jobs
from neurotally.analysis import studies
from neurotally.analysis.options import arguments
from neurotally.analysis.result import Result, finite
from neurotally.jobs.commands.options import (
    FIGURE,
    FULL,
    JSON_FLAG,
    MODEL,
    MODEL_AND_STORE,
    OUT,
    OUTPUT,
    PICTURE,
    STORE,
    as_parameters,
)  # fmt: skip
from neurotally.jobs.commands.signatures import click_parameters, command_help
from neurotally.jobs.starting import import_pytorch
from neurotally.profiler.errors import InputError
from neurotally.profiler.visible import visible
from neurotally.profiler.whole_files import write_whole


class Shown(NamedTuple):
    """What a command has beside the signature that it is made of."""

    help: str
    """In a few words."""
    charts: Mapping[str, str] = {}
    """{name: help}: those beside the first that the command draws with `--NAME-figure`."""
    options: Sequence[Callable[..., Any]] = (FIGURE, FULL, OUT, JSON_FLAG)
    """Those that say how the result is shown."""


PASSES: Mapping[str, Shown] = {
    "inspect": Shown("What a model is, and what a run of it would need", options=(OUT, JSON_FLAG)),
    "profile": Shown("What every neuron does on your corpora", options=(JSON_FLAG,)),
    "mask": Shown("What switching off any sets of neurons costs"),
    "ablate": Shown("What switching off each corpus's neurons costs"),
    "embed": Shown(studies.STUDIES["embed"].help, options=(OUT, JSON_FLAG)),
    "lens": Shown(studies.STUDIES["lens"].help, {"panels": "Draw each set, by target language."}),
    "agreement": Shown(studies.STUDIES["agreement"].help, {"context": "Draw layers by context sizes."}),
}
_FIRST = ("demo", "inspect", "profile", "status", "import")


class WithResults(click.Group):
    """A group whose commands of passes and studies are made when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self._helps())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name == "report":
            return report_command()
        if cmd_name in PASSES:
            return pass_command(cmd_name)
        is_study = cmd_name in studies.STUDIES and studies.STUDIES[cmd_name].has_command
        return study_command(cmd_name) if is_study else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help: without loading a study or a pass."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._helps().items()))

    def _helps(self) -> dict[str, str]:
        made = {name: study.help for name, study in studies.STUDIES.items() if study.has_command}
        helps = {name: one.help for name, one in PASSES.items()}
        helps |= {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        helps |= {**made, "report": "One HTML page of a store"}
        first = [*_FIRST, *made, "report"]
        return {name: helps[name] for name in [*first, *(name for name in helps if name not in first)]}


def pass_command(name: str) -> click.Command:
    """The command of a pass."""
    function = getattr(jobs, name)

    def run(**values: Any) -> Any:
        import_pytorch()
        return function(**values)

    return _command(name, PASSES[name], function, MODEL if name == "inspect" else MODEL_AND_STORE, run)


def study_command(name: str) -> click.Command:
    """The command of a study."""
    module = studies.module(name)

    def run(store: Path, **values: Any) -> Result:
        from neurotally.jobs.progress import Progress

        return studies.run(name, store, progress=Progress(), **values)

    shown = Shown(studies.STUDIES[name].help, getattr(module, "FIGURES", {}))
    return _command(name, shown, module.study, STORE, run)


def report_command() -> click.Command:
    """The command, made of the signature of `neurotally.analysis.report.page.report`."""
    from neurotally.analysis.report.page import report

    def run(store: Path, out: Path | None, as_json: bool, **values: Any) -> None:
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


def _command(
    name: str, shown: Shown, signature: Callable[..., Any], store: Callable[..., Any], run: Callable[..., Any]
) -> click.Command:
    """A command of the argument `store` and a signature's parameters that calls `run` and shows what it returns."""

    def call(
        as_json: bool, figure: Path | None = None, full: bool = False, out: Path | None = None, **values: Any
    ) -> None:
        figures: dict[str | None, Path | None] = {None: figure}
        figures |= {chart: values.pop(_figure_name(chart)) for chart in shown.charts}
        if values.get("prompt") is not None and figure is None:
            raise InputError("--prompt: expected --figure FILE.png with it")
        result = run(**values)
        if not isinstance(result, Result):
            from neurotally.jobs.passes.neurons import profile_text

            return show(result, profile_text(result, values["store"]), as_json)
        for warning in result.warnings:
            click.echo(visible(f"warning: {warning}"), err=True)
        for chart, path in figures.items():
            if path is not None:
                from neurotally.analysis.render.charts import save_figure

                save_figure(result.figure(chart), path)
        show(result.document, "" if as_json else result.text(full), as_json, out)

    figures = [
        click.Option([f"--{chart}-figure", _figure_name(chart)], type=PICTURE, metavar="FILE.png", help=text)
        for chart, text in shown.charts.items()
    ]
    params = [*as_parameters(store), *click_parameters(signature), *figures, *as_parameters(*shown.options)]
    help_text = command_help(signature.__doc__)
    return click.Command(name, callback=call, params=params, help=help_text, short_help=shown.help)


def _figure_name(chart: str) -> str:
    return f"{chart.replace('-', '_')}_figure"


def show(document: Any, text: str, as_json: bool, out: Path | None = None) -> None:
    """Print a document as JSON or as text; `out` gets the JSON. Names and texts in it can't command the terminal."""
    as_text = json.dumps(finite(document), allow_nan=False)
    if out is not None:
        write_whole(out, as_text + "\n")
    click.echo(as_text if as_json else visible(text))
