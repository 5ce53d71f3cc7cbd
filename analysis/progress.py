"""How a study tells how far it is: bars of tqdm, or what the caller gives."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Progress(Protocol):
    """What a study needs of it; `neurotally.jobs.progress.Progress` is one."""

    def over(self, items: Iterable[_T], description: str, what: str, total: int) -> Iterator[_T]:
        """The items, `total` of them: each is done when the next one is asked for."""


class Bars:
    """Bars on a terminal and in a notebook."""

    def over(self, items: Iterable[_T], description: str, what: str, total: int) -> Iterator[_T]:
        """The items, `total` of them."""
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=description, unit=what, total=total, leave=False)


BARS = Bars()
