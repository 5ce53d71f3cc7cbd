"""What a function's signature and docstring say, as the parameters and the help of a command."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click

from neurotally.analysis.options import NEEDED, Parameter, parameters
from neurotally.jobs.commands.options import PATH, OutputFile, Share, by_name


def click_parameters(function: Callable[..., Any]) -> list[click.Parameter]:
    """The options and arguments that a signature states."""
    return [_click_parameter(parameter) for parameter in parameters(function)]


def command_help(doc: str | None) -> str:
    """A function's docstring without its example in Python; that of the command is kept as it stands."""
    text = (doc or "").partition(">>>")[0].replace("\n    ", "\n").rstrip()
    return text.replace("\nExample:", "\n\b\nExample:")


def _click_parameter(parameter: Parameter) -> click.Parameter:
    option, stated = parameter.option, _stated(parameter.type)
    is_many = get_origin(stated) in (tuple, Sequence, Mapping)
    kind = get_args(stated)[0] if is_many else stated
    if option.is_argument:
        return click.Argument([parameter.name], type=_click_type(kind, parameter), metavar=option.metavar)
    names = [*(option.names or (f"--{parameter.name.replace('_', '-')}",)), parameter.name]
    is_needed = parameter.default is NEEDED
    if kind is bool:
        return click.Option(names, is_flag=True, help=option.help)
    return click.Option(
        names,
        callback=by_name if get_origin(stated) is Mapping else None,
        type=_click_type(kind, parameter),
        multiple=is_many,
        required=is_needed,
        default=None if is_needed or is_many else parameter.default,
        show_default=not is_needed and not is_many and parameter.default is not None,
        metavar=option.metavar,
        help=option.help,
    )


def _stated(kind: Any) -> Any:
    """Of several types the one that a command line gives: a path, or a text, or the only one beside None."""
    kinds = [one for one in get_args(kind) if one is not NoneType] if get_origin(kind) in (Union, UnionType) else [kind]
    return next((one for one in (Path, str) if one in kinds), kinds[0])


def _click_type(kind: Any, parameter: Parameter) -> Any:
    option = parameter.option
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if option.share:
        return Share(min_open=option.min is None)
    if option.suffixes:
        return OutputFile(*option.suffixes)
    if kind is int:
        return click.IntRange(min=option.min, max=option.max)
    return {Path: PATH, str: click.STRING, float: click.FLOAT}[kind]
