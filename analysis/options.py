"""What a study asks for, stated once in its signature: command-line options and keyword arguments follow from it.

    def study(store: Path, rule: Annotated[Rule, Group()] = Rule(), top: Annotated[int, Option("How many.")] = 5)

`store` comes first. An annotated dataclass is a group: its fields become parameters of the study, their defaults those
of the group that is the default; with a prefix, so that one statement serves twice. What isn't annotated with an
`Option` is no parameter.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

NEEDED = inspect.Parameter.empty
"""In place of a default."""


@dataclass(frozen=True)
class Option:
    """One parameter: what the command line says of it."""

    help: str = ""
    metavar: str | None = None
    min: int | None = None
    """Of a whole number."""
    share: bool = False
    """A number above 0, or from `min` on where this is 0, at most 1."""
    names: tuple[str, ...] = ()
    """The option's names, if not the parameter's with dashes."""
    suffixes: tuple[str, ...] = ()
    """Of a file that is written."""
    is_argument: bool = False
    """On the command line by its place."""
    max: int | None = 2**31 - 1
    """Of a whole number."""


@dataclass(frozen=True)
class Group:
    """The fields of a dataclass, as parameters."""

    prefix: str = ""


class Parameter(NamedTuple):
    """One parameter of a study, groups taken apart."""

    name: str
    type: Any
    default: Any
    option: Option
    field: tuple[str, str] | None
    """Of a group: the study's parameter, and the field."""


def parameters(study: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a study after `store`, or of a group, in order."""
    found: list[Parameter] = []
    hints = get_type_hints(study, include_extras=True)
    for name, stated in inspect.signature(study).parameters.items():
        kind, about = _annotated(hints[name])
        if isinstance(about, Option):
            found.append(Parameter(name, kind, stated.default, about, None))
        elif isinstance(about, Group):
            for of in parameters(kind):
                flat = f"{about.prefix}_{of.name}" if about.prefix else of.name
                found.append(Parameter(flat, of.type, getattr(stated.default, of.name), of.option, (name, of.name)))
    return found


def arguments(study: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What to call a study with: the values by parameter, groups put together, defaults filled in."""
    unknown = set(values) - {parameter.name for parameter in parameters(study)}
    if unknown:
        raise TypeError(f"unexpected argument {', '.join(sorted(unknown))}")
    call: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for parameter in parameters(study):
        value = values.get(parameter.name, parameter.default)
        if value is NEEDED:
            raise TypeError(f"missing argument {parameter.name!r}")
        if parameter.field is None:
            call[parameter.name] = value
        else:
            group, field = parameter.field
            groups.setdefault(group, {})[field] = value
    stated = inspect.signature(study).parameters
    return call | {group: replace(stated[group].default, **own) for group, own in groups.items()}


def signature(study: Callable[..., Any]) -> inspect.Signature:
    """The signature of the study as a method of `Store`: groups taken apart, `store` left out."""
    found = [
        inspect.Parameter(parameter.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=parameter.default,
                          annotation=parameter.type)
        for parameter in parameters(study)
    ]  # fmt: skip
    return inspect.Signature(found, return_annotation=inspect.signature(study).return_annotation)


def _annotated(hint: Any) -> tuple[Any, Any]:
    """The type and what it is annotated with, if anything."""
    if get_origin(hint) is Annotated:
        kind, about, *_ = get_args(hint)
        return kind, about
    return hint, None


OnlyCorpora = Annotated[tuple[str, ...], Option("Only this corpus of the store; may be repeated.", "NAME")]
GroupName = Annotated[str, Option("The name that the pass gave its group in the store.")]
WindowLines = Annotated[int, Option("The lines around a trigger, its own in the middle.", "LINES", min=1)]
