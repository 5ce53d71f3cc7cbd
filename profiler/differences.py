"""The first difference between two descriptions, in one line that people can read."""

import re
from collections.abc import Iterator
from typing import Any

_HASH = re.compile("[0-9a-f]{32,}")
_SHOWN, _SHOWN_HASH = 60, 13


def first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Name the first of our settings that differs, with both values; None if all agree.

    One that people can read comes before a hash. Of dictionaries and lists, only what differs in them is named.
    """
    found = [text for key, value in ours.items() for text in _differences(key, value, theirs.get(key))]
    return min(found, key=lambda one: one[0])[1] if found else None


def _differences(name: str, ours: Any, theirs: Any) -> Iterator[tuple[bool, str]]:
    """(whether it is of hashes, in one line) of each."""
    if ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            yield from _differences(f"{name}.{key}", ours.get(key), theirs.get(key))
    elif isinstance(ours, dict) and theirs is None:
        yield False, f"{name} is new, the store has none"
    elif isinstance(theirs, dict) and ours is None:
        yield False, f"{name} is in the store, and was not asked for"
    elif isinstance(ours, list) and isinstance(theirs, list):
        yield False, _list_difference(name, ours, theirs)
    else:
        is_hash = all(isinstance(one, str) and _HASH.fullmatch(one) for one in (ours, theirs))
        yield is_hash, f"{name} is {_shown(ours)}, the store has {_shown(theirs)}"


def _list_difference(name: str, ours: list[Any], theirs: list[Any]) -> str:
    counts = f"{name} has {len(ours)} entries, the store {len(theirs)}"
    for what, some, others in (("new", ours, theirs), ("gone", theirs, ours)):
        if only := [one for one in some if one not in others]:
            more = f" and {len(only) - 1} more are" if len(only) > 1 else " is"
            return f"{counts}: {_shown(only[0])}{more} {what}"
    return f"{counts}, in another order"


def _shown(value: Any) -> str:
    """What fits a line: a hash's beginning says as much as all of it."""
    longest = _SHOWN_HASH if isinstance(value, str) and _HASH.fullmatch(value) else _SHOWN
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"
