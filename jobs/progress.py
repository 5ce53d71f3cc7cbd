"""Progress on stderr, with rate and time left: bars on a terminal, a line now and then elsewhere.

While a run goes on its state also lies in STORE/.run/progress.json, for `neurotally status`.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from neurotally.profiler.store import RUN_FOLDER
from neurotally.profiler.visible import visible
from neurotally.profiler.whole_files import replace_json

if TYPE_CHECKING:
    from neurotally.jobs.ledger import Ledger
    from neurotally.profiler.units import Unit

_LINE_EVERY_S = 30.0
_FILE_EVERY_S = 1.0

_T = TypeVar("_T")


def time_left(seconds: float) -> str:
    """How long it takes yet, for people: "40 s left", "12 min left", "1 h 05 min left", "2 d 3 h left"."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s left"
    if minutes < 60:
        return f"{minutes} min left"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min left"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h left"


class Progress:
    """Tells a person how a run goes."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self.on_terminal = sys.stderr.isatty() and not quiet
        self._bar: tqdm | None = None

    def note(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            tqdm.write(visible(text), file=sys.stderr)

    @contextlib.contextmanager
    def listing(self, num_corpora: int) -> Iterator[Callable[[str], None]]:
        """While corpora are listed; call with each name when it is done."""
        with tqdm(total=num_corpora, desc="listing", unit="corpus", leave=False, disable=not self.on_terminal) as bar:

            def listed(name: str) -> None:
                bar.set_postfix_str(visible(name))
                bar.update()

            yield listed

    @contextlib.contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """While workers start and load the model."""
        self.note(f"loading {model} …")
        yield

    @contextlib.contextmanager
    def counting(self, description: str, what: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """While a pass's tasks run; call with the tokens of each when it is done."""
        tokens, start = 0, time.monotonic()
        with self._steps(description, what, total, done, leave=True) as step:

            def finished(num_tokens: int) -> None:
                nonlocal tokens
                tokens += num_tokens
                step(f"{tokens / max(time.monotonic() - start, 1e-9):,.0f} tokens/s")

            yield finished

    def over(self, items: Iterable[_T], description: str, what: str, total: int) -> Iterator[_T]:
        """The items, `total` of them: each is done when the next one is asked for."""
        with self._steps(description, what, total, 0, leave=False) as step:
            for item in items:
                yield item
                step("")

    @contextlib.contextmanager
    def _steps(
        self, description: str, what: str, total: int, done: int, leave: bool
    ) -> Iterator[Callable[[str], None]]:
        """While steps are done; call after each, with what else is to be said."""
        start = line_at = time.monotonic()
        before = done
        with tqdm(
            total=total, initial=done, desc=visible(description), unit=what, disable=not self.on_terminal,
            dynamic_ncols=True, leave=leave,
        ) as bar:  # fmt: skip

            def step(said: str) -> None:
                nonlocal done, line_at
                done, now = done + 1, time.monotonic()
                left = (total - done) * (now - start) / (done - before)
                bar.set_postfix_str(said, refresh=False)
                bar.update()
                if not self.on_terminal and now - line_at >= _LINE_EVERY_S:
                    line_at = now
                    self.note(", ".join(filter(None, (f"{description}: {what} {done}/{total}", said, time_left(left)))))

            yield step

    @contextlib.contextmanager
    def running(self, ledgers: Mapping[str, "Ledger"], store: Path) -> Iterator[None]:
        """While units run."""
        self._file = store / RUN_FOLDER / "progress.json"
        self._corpora: dict[str, Any] = {name: ledger.progress() for name, ledger in ledgers.items()}
        self._tokens = 0
        self._bytes_left = sum(int(ledger.plan.manifest.sizes.sum()) - ledger.bytes_done for ledger in ledgers.values())
        self._bytes_done = 0
        self._start = self._line_at = time.monotonic()
        self._file_at = 0.0
        before = sum(ledger.bytes_done for ledger in ledgers.values())
        self._bar = tqdm(
            total=before + self._bytes_left, initial=before, desc="profiling", unit="B", unit_scale=True,
            disable=not self.on_terminal, dynamic_ncols=True,
        )  # fmt: skip
        try:
            self._write()
            yield
        finally:
            self._bar.close()
            self._file.unlink(missing_ok=True)

    def unit_done(self, ledger: "Ledger", unit: "Unit", tokens: int) -> None:
        """A unit was added."""
        num_bytes = int(ledger.plan.manifest.sizes[unit.first : unit.end].sum())
        name = ledger.plan.name
        self._corpora[name] = ledger.progress()
        self._tokens += tokens
        self._bytes_done += num_bytes
        self._bytes_left -= num_bytes
        assert self._bar is not None
        self._bar.set_description(name, refresh=False)
        self._bar.set_postfix_str(f"{self._tokens_per_s:,.0f} tokens/s", refresh=False)
        self._bar.update(num_bytes)
        now = time.monotonic()
        if now - self._file_at >= _FILE_EVERY_S:
            self._write()
            self._file_at = now
        if not self.on_terminal and now - self._line_at >= _LINE_EVERY_S:
            self._line_at = now
            self.note(
                f"{name}: unit {ledger.units_done}/{len(ledger.units)}, {self._tokens_per_s:,.0f} tokens/s, "
                f"{time_left(self._seconds_left or 0)}"
            )

    @property
    def _tokens_per_s(self) -> float:
        return self._tokens / max(time.monotonic() - self._start, 1e-9)

    @property
    def _seconds_left(self) -> float | None:
        if not self._bytes_done:
            return None
        return self._bytes_left * (time.monotonic() - self._start) / self._bytes_done

    def _write(self) -> None:
        document = {
            "corpora": self._corpora,
            "tokens_per_s": round(self._tokens_per_s, 1),
            "seconds_left": self._seconds_left,
        }
        replace_json(self._file, document)
