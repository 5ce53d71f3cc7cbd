"""The commands that show a result: of passes, and of studies. Each is made, when it is asked for, of what a signature
says: that of its function in `neurotally.jobs.door`, or of the study that its line in `neurotally.analysis.studies`
names.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from neurotally import jobs
from neurotally.analysis import studies
from neurotally.analysis.result import Result
from neurotally.jobs.commands.options import (
    FIGURE,
    FULL,
    JSON_FLAG,
    OUT,
    PICTURE,
    STORE,
    WRITTEN_STORE,
    as_parameters,
)  # fmt: skip
from neurotally.jobs.commands.output import show
from neurotally.jobs.commands.signatures import click_parameters, command_help
from neurotally.profiler.errors import InputError
from neurotally.profiler.visible import visible


class PassCommand(NamedTuple):
    """What the command of a pass has beside its function's signature."""

    help: str
    """In a few words."""
    charts: Mapping[str, str] = {}
    """{name: help}: those beside the first that the command draws with `--NAME-figure`."""
    shows: Sequence[Callable[..., Any]] = (FIGURE, FULL, OUT, JSON_FLAG)


PASSES: Mapping[str, PassCommand] = {
    "profile": PassCommand("What every neuron does on your corpora", shows=(JSON_FLAG,)),
    "mask": PassCommand("What any sets of neurons are worth"),
    "ablate": PassCommand("What each corpus's neurons are worth"),
    "embed": PassCommand("Embed a parallel corpus at every layer", shows=(OUT, JSON_FLAG)),
    "lens": PassCommand("What each layer would say next", {"panels": "Draw each set, by target language."}),
    "agreement": PassCommand("When the next token is decided", {"context": "Draw layers by context sizes."}),
}
_FIRST = ("demo", "profile", "status", "import")


class WithResults(click.Group):
    """A group whose commands of passes and studies are made when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self._helps())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name == "report":
            from neurotally.jobs.commands.report import report_command

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
    function, about = getattr(jobs, name), PASSES[name]
    own = as_parameters(click.argument("model", metavar="MODEL[@REVISION]"), WRITTEN_STORE)
    return _command(name, about.help, function, own, function, about.charts, about.shows)


def study_command(name: str) -> click.Command:
    """The command of a study."""
    module = studies.module(name)

    def run(store: Path, **values: Any) -> Result:
        from neurotally.jobs.progress import Progress

        return studies.run(name, store, progress=Progress(), **values)

    charts: dict[str, str] = getattr(module, "FIGURES", {})
    return _command(name, studies.STUDIES[name].help, module.study, as_parameters(STORE), run, charts)


def _command(
    name: str, about: str, signature: Callable[..., Any], own: Sequence[click.Parameter], run: Callable[..., Any],
    charts: Mapping[str, str], shows: Sequence[Callable[..., Any]] = (FIGURE, FULL, OUT, JSON_FLAG),
) -> click.Command:  # fmt: skip
    """A command of a signature's parameters, after some of its `own`, that calls `run` and shows what it returns."""

    def call(
        as_json: bool, figure: Path | None = None, full: bool = False, out: Path | None = None, **values: Any
    ) -> None:
        figures: dict[str | None, Path | None] = {None: figure}
        figures |= {chart: values.pop(_figure_name(chart)) for chart in charts}
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
        for chart, text in charts.items()
    ]
    params = [*own, *click_parameters(signature), *figures, *as_parameters(*shows)]
    return click.Command(name, callback=call, params=params, help=command_help(signature.__doc__), short_help=about)


def _figure_name(chart: str) -> str:
    return f"{chart.replace('-', '_')}_figure"
