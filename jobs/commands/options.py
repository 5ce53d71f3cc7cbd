"""Options that several commands share, each written once."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from neurotally.profiler.buckets import is_url, location
from neurotally.profiler.errors import InputError


class PathOrUrl(click.Path):
    """A path, or a URL of a bucket."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The location."""
        return location(value) if is_url(value) else super().convert(value, parameter, context)


class OutputFile(click.Path):
    """A file to be written at the end of a command, refused at its beginning where that can't be."""

    def __init__(self, *suffixes: str):
        """`suffixes`: those it may have; none: any."""
        super().__init__(dir_okay=False, writable=True, path_type=Path)
        self._suffixes = suffixes

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path, once its folder is there and its suffix is one of those expected."""
        path = Path(os.fsdecode(super().convert(value, parameter, context)))
        if self._suffixes and path.suffix.lower() not in self._suffixes:
            self.fail(f"{path}: expected a name that ends in {' or '.join(self._suffixes)}", parameter, context)
        if not path.parent.is_dir():
            self.fail(f"{path}: there is no folder {path.parent}; make it first", parameter, context)
        if not os.access(path.parent, os.W_OK):
            self.fail(f"{path}: no file can be written to the folder {path.parent}", parameter, context)
        return path


class Share(click.FloatRange):
    """A number from 0 to 1; not NaN, which compares with nothing."""

    def __init__(self, min_open: bool = True):
        """`min_open`: more than 0."""
        super().__init__(0, 1, min_open=min_open)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, parameter, context)
        if number != number:
            self.fail(f"{value!r} is not in the range 0 to 1", parameter, context)
        return number


def _model_and_store(context: click.Context, _parameter: click.Parameter, given: Sequence[str]) -> Path:
    """The store; the model becomes a parameter of its own.

    A store that another run writes is refused before the seconds in which PyTorch is imported.
    """
    from neurotally.jobs.store_writer import refuse_other_writer

    if len(given) not in (1, 2):
        raise click.UsageError(f"expected [MODEL[@REVISION]] STORE, got {' '.join(given) or 'neither'}", context)
    *model, path = given
    context.params["model"] = model[0] if model else None
    store = location(path)
    refuse_other_writer(store)
    return store


def by_name(_context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    """NAME=SOURCE texts, or what else the parameter's metavar says, as a dictionary."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or not source:
            option = f"{parameter.opts[0]} " if isinstance(parameter, click.Option) else ""
            raise InputError(f"{option}{text!r}: expected {(parameter.metavar or '').removesuffix('...')}")
        if name in found:
            raise InputError(f"corpus {name!r} is named twice")
        found[name] = source
    return found


PATH = PathOrUrl(path_type=Path)
OUTPUT = OutputFile()
PICTURE = OutputFile(".png", ".pdf", ".svg")
COUNT = click.IntRange(min=1, max=2**31 - 1)
STORE = click.argument("store", type=PATH)
MODEL = click.argument("model", metavar="MODEL[@REVISION]")
MODEL_AND_STORE = click.argument("store", nargs=-1, metavar="[MODEL[@REVISION]] STORE", callback=_model_and_store)
JSON_FLAG = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
OUT = click.option("--out", type=OUTPUT, metavar="FILE.json", help="Write the JSON document there.")
FULL = click.option("--full", is_flag=True, help="Print the long tables, too.")
FIGURE = click.option("--figure", type=PICTURE, metavar="FILE.png", help="Draw it (.png, .pdf or .svg).")

Command = Callable[..., None]


def as_parameters(*options: Callable[[Command], Command]) -> list[click.Parameter]:
    """What these decorators give a command."""

    def command() -> None: ...

    for option in reversed(options):
        command = option(command)
    return click.command()(command).params
