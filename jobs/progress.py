"""Progress on stderr, with rate and time left: bars on a terminal or in a notebook, a line now and then elsewhere.

While a run goes on its state also lies in progress.json beside its working state, for `neurotally status`.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import auto

from neurotally.profiler.store import work_folder
from neurotally.profiler.visible import visible
from neurotally.profiler.whole_files import replace_json

if TYPE_CHECKING:
    from neurotally.jobs.engines.engine import Task
    from neurotally.jobs.reducers.reducer import Reducer

_FILE_EVERY_S = 1.0
_IN_NOTEBOOK = auto.notebook_tqdm is not auto.std_tqdm

_T = TypeVar("_T")
_Advance = Callable[[float, str, str], float]
"""(what was done, what the bar says, what the line says) -> seconds left."""
Took = Callable[["Reducer", "Task", int], None]
"""Called when a task's result is there, with the tokens that the model read."""


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

    def __init__(self, quiet: bool = False, *, line_every_s: float = 30.0):
        self._quiet = quiet
        self._line_every_s = line_every_s
        self.shows_bars = (sys.stderr.isatty() or _IN_NOTEBOOK) and not quiet

    def note(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            auto.tqdm.write(visible(text), file=sys.stderr)

    def over(self, items: Iterable[_T], description: str, what: str, total: int) -> Iterator[_T]:
        """The items, `total` of them: each is done when the next one is asked for."""
        with self._measured(description, total, 0, unit=what, leave=False) as advance:
            for number, item in enumerate(items, 1):
                yield item
                advance(1, "", f"{description}: {what} {number}/{total}")

    @contextlib.contextmanager
    def running(self, reducers: Sequence["Reducer"], store: Path) -> Iterator[Took]:
        """While tasks run; call with each that is done."""
        file = work_folder(store) / "progress.json"
        groups = {reducer.plan.group: reducer.progress() for reducer in reducers}
        total = sum(task.size for reducer in reducers for task in reducer.plan.tasks)
        done = total - sum(task.size for reducer in reducers for task in reducer.todo)
        tokens, start, file_at = 0, time.monotonic(), 0.0

        def write(tokens_per_s: float, seconds_left: float | None) -> None:
            rate = round(tokens_per_s, 1)
            replace_json(file, {"groups": groups, "tokens_per_s": rate, "seconds_left": seconds_left})

        with self._measured("", total, done, unit="B", unit_scale=True) as advance:

            def took(reducer: "Reducer", task: "Task", num_tokens: int) -> None:
                nonlocal tokens, file_at
                tokens += num_tokens
                plan, now = reducer.plan, time.monotonic()
                groups[plan.group] = reducer.progress()
                tokens_per_s = tokens / max(now - start, 1e-9)
                at = f"{plan.group.removeprefix('corpora/')}: {plan.what} {reducer.num_done}/{len(plan.tasks)}"
                rate = f"{tokens_per_s:,.0f} tokens/s"
                left = advance(task.size, f"{at}, {rate}", f"{at}, {rate}")
                if now - file_at >= _FILE_EVERY_S:
                    write(tokens_per_s, left)
                    file_at = now

            try:
                write(0.0, None)
                yield took
            finally:
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _measured(
        self, description: str, total: float, done: float, leave: bool = True, **of_the_bar: Any
    ) -> Iterator[_Advance]:
        """While something is done, `done` of `total` before."""
        before = done
        start = line_at = time.monotonic()
        with auto.tqdm(
            total=total, initial=done, desc=visible(description) or None, leave=leave, disable=not self.shows_bars,
            dynamic_ncols=True, **of_the_bar,
        ) as bar:  # fmt: skip

            def advance(size: float, on_bar: str, line: str) -> float:
                nonlocal done, line_at
                done, now = done + size, time.monotonic()
                left = (total - done) * (now - start) / max(done - before, 1e-9)
                bar.set_postfix_str(visible(on_bar), refresh=False)
                bar.update(size)
                if not self.shows_bars and now - line_at >= self._line_every_s:
                    line_at = now
                    self.note(f"{line}, {time_left(left)}")
                return left

            yield advance
