"""Engines decide where the tasks of a run are done: what all of them share.

An engine takes tasks while it has room and gives results in whatever order they come. What a task and a result
are is the pass's own matter; both travel between processes. All engines call the same functions: those of the pass's
`Runner`.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from neurotally.profiler.model.load import ModelFacts

IN_FLIGHT = 2
"""Tasks that a worker holds: one is computed while the next is read and tokenised."""
GROUPS_AT_ONCE = 2
"""Of those with large sums: tasks of the next begin while the last ones of this are computed."""
MAX_FAILURES = 3
"""A task that raises so often stops the job."""
MAX_CRASHES = 5
"""A task that takes so many workers down stops the job."""


class JobError(RuntimeError):
    """The job can't go on; names the task and the cause. The store keeps all that was committed."""


class Task(Protocol):
    """A piece of work: one unit, one group of prompts. `str` of it names it to people."""

    @property
    def key(self) -> str:
        """Identifies it among the run's tasks."""

    @property
    def size(self) -> int:
        """How long it takes beside the others: bytes or characters of its text."""


class Outcome(NamedTuple):
    """A finished task."""

    key: str
    result: Any
    """What the pass makes of it; has `tokens`, the number that the model read, and `restarts`: how often the token
    budget was halved, since the device ran out of memory."""
    prepare_s: float
    """Seconds of reading and tokenising, beside the model."""
    model_s: float
    """Seconds in which the model and its kernels ran."""


class Runner(Protocol):
    """What a worker does with the tasks of one pass: pure functions of the pass's settings and the task."""

    def prepare(self, task: Any) -> Any:
        """Read and tokenise; runs in a thread beside `compute`."""

    def compute(self, task: Any, prepared: Any) -> Any:
        """Run the model over what was prepared: the `result` of an Outcome."""


class Listener(Runner, Protocol):
    """The runner of a pass whose reducers have news."""

    def hear(self, about: str, news: Any) -> None:
        """Take over what is known of all results so far; may come at any time, from another thread."""


MakeRunner = Callable[[Any], Runner]
"""A pass with its settings, to be put on what `ModelConfig.load` gives; travels between processes."""


class Engine(Protocol):
    """Where tasks run."""

    num_workers: int

    def start(self) -> "ModelFacts":
        """Load the model on every worker; what it is."""

    def configure(self, make_runner: MakeRunner) -> None:
        """Fix the pass; before the first `submit`."""

    def has_room(self) -> bool:
        """Whether another task would find a worker that is idle, or that can prepare it meanwhile."""

    def submit(self, task: Task) -> None:
        """Hand over a task."""

    def tell(self, about: str, news: Any) -> None:
        """Let all workers hear it, soon; what was told about the same before is forgotten."""

    def next_result(self, timeout_s: float) -> Outcome | None:
        """A finished task, or None if none came in time. Raises JobError or InputError."""

    def close(self) -> None:
        """End all workers."""


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - start


def failed_task(task: Task, error: BaseException) -> JobError:
    """The error of a task that raised too often."""
    return JobError(f"{task} failed {MAX_FAILURES} times: {type(error).__name__}: {error}")
