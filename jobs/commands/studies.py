"""The commands of the studies, each made of its line in `neurotally.analysis.studies` when it is asked for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from neurotally.analysis import studies
from neurotally.analysis.options import NEEDED, Parameter, parameters
from neurotally.jobs.commands.options import FIGURE, FULL, JSON_FLAG, OUT, PATH, PICTURE, OutputFile, Share, by_name
from neurotally.jobs.commands.output import finish


class WithStudies(click.Group):
    """A group whose commands are listed as they were added; those that read stores, after `import`, are made when
    asked for: they are what signatures in `neurotally.analysis` say."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self._helps())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name == "report":
            from neurotally.jobs.commands.report import report_command

            return report_command()
        is_study = cmd_name in studies.STUDIES and studies.STUDIES[cmd_name].has_command
        return study_command(cmd_name) if is_study else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help: without loading a study."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._helps().items()))

    def _helps(self) -> dict[str, str]:
        own = [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        made = [(name, study.help) for name, study in studies.STUDIES.items() if study.has_command]
        place = 1 + [name for name, _ in own].index("import")
        return dict([*own[:place], *made, ("report", "One HTML page of a store"), *own[place:]])


def study_command(name: str) -> click.Command:
    """The command of a study: its parameters, and what all studies print and draw."""
    module = studies.module(name)
    charts: dict[str, str] = getattr(module, "FIGURES", {})

    def run(store: Path, figure: Path | None, full: bool, out: Path | None, as_json: bool, **values: Any) -> None:
        from neurotally.jobs.progress import Progress

        figures: dict[str | None, Path | None] = {None: figure}
        figures |= {chart: values.pop(_figure_name(chart)) for chart in charts}
        finish(studies.run(name, store, progress=Progress(), **values), as_json, out, full, figures)

    for option in (JSON_FLAG, OUT, FULL, FIGURE):
        run = option(run)
    common: list[click.Parameter] = click.command()(run).params
    figures = [
        click.Option([f"--{chart}-figure", _figure_name(chart)], type=PICTURE, metavar="FILE.png", help=text)
        for chart, text in charts.items()
    ]
    return click.Command(
        name,
        callback=run,
        params=[click.Argument(["store"], type=PATH), *click_parameters(module.study), *figures, *common],
        help=command_help(module.study.__doc__),
        short_help=studies.STUDIES[name].help,
    )


def click_parameters(function: Callable[..., Any]) -> list[click.Parameter]:
    """The options and arguments that a signature states."""
    return [_click_parameter(parameter) for parameter in parameters(function)]


def _figure_name(chart: str) -> str:
    return f"{chart.replace('-', '_')}_figure"


def command_help(doc: str | None) -> str:
    """The study's docstring without its example in Python; that of the command is kept as it stands."""
    text = (doc or "").partition(">>>")[0].replace("\n    ", "\n").rstrip()
    return text.replace("\nExample:", "\n\b\nExample:")


def _click_parameter(parameter: Parameter) -> click.Parameter:
    option = parameter.option
    kind, is_many = _element(parameter.type)
    if option.is_argument:
        return click.Argument([parameter.name], type=_click_type(kind, parameter), metavar=option.metavar)
    names = [*(option.names or (f"--{parameter.name.replace('_', '-')}",)), parameter.name]
    is_needed = parameter.default is NEEDED
    if kind is bool:
        return click.Option(names, is_flag=True, help=option.help)
    return click.Option(
        names,
        callback=by_name if get_origin(parameter.type) is Mapping else None,
        type=_click_type(kind, parameter),
        multiple=is_many,
        required=is_needed,
        default=None if is_needed or is_many else parameter.default,
        show_default=not is_needed and not is_many and parameter.default is not None,
        metavar=option.metavar,
        help=option.help,
    )


def _element(kind: Any) -> tuple[Any, bool]:
    """The type without `| None`, and that of a sequence's elements; whether it is one."""
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) in (tuple, Sequence, Mapping):
        return get_args(kind)[0], True
    return kind, False


def _click_type(kind: Any, parameter: Parameter) -> Any:
    option = parameter.option
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if option.share:
        return Share()
    if option.suffixes:
        return OutputFile(*option.suffixes)
    if kind is int:
        return click.IntRange(min=option.min, max=2**31 - 1)
    return {Path: PATH, str: click.STRING, float: click.FLOAT}[kind]
