"""Where regular expressions match, with a limit on the time that they take.

Python's `re` takes for ever over some expressions, such as `(a+)+$`; meanwhile nothing else in the process runs, no
signal handler either. So a process beside this one matches, with the same `re`: the system ends it when it has
computed for too long over one text.
"""

import atexit
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neurotally.profiler.errors import InputError

LIMIT_S = 10.0
"""Seconds of computing that an expression may take over one text."""
_SCRIPT = Path(__file__).with_name("matcher.py")


def find_spans(name: str, pattern: re.Pattern[str], texts: Sequence[str], document: str) -> list[np.ndarray]:
    """int64 [matches, 2] for each text: first character of each match that isn't empty and one past its last.

    InputError naming the expression and the `document` that the texts are from, if one takes longer than LIMIT_S.
    """
    try:
        found = _MATCHER.ask((pattern.pattern, pattern.flags, list(texts), LIMIT_S))
    except TimeoutError as error:
        raise InputError(
            f"the expression {name!r}, {pattern.pattern!r}, takes more than {LIMIT_S:g} s over {document}: simplify it"
        ) from error
    return [np.array(spans, np.int64).reshape(-1, 2) for spans in found]


def stop_matching() -> None:
    """End a match that another thread waits for, for a run that has failed; the next match is an ordinary one."""
    _MATCHER.stop()


class _Matcher:
    """The process beside this one, started when first asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: tuple[str, int, list[str], float]) -> list[Sequence[int]]:
        """Its answer; TimeoutError if it was ended by its timer."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.end()
                command = [sys.executable, "-I", str(_SCRIPT)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                pickle.dump(request, process.stdin)
                process.stdin.flush()
                answer: list[Sequence[int]] = pickle.load(process.stdout)
            except BaseException as error:
                self.end()
                if isinstance(error, (EOFError, BrokenPipeError, pickle.UnpicklingError)):
                    status = process.returncode
                    if status == -signal.SIGPROF:
                        raise TimeoutError from error
                    what = "the process that matches regular expressions"
                    raise RuntimeError(f"{what} ended with status {status}") from error
                raise  # interrupted: what is left of the answer must not be taken for the next
            return answer

    def stop(self) -> None:
        """End the process from any thread; one that waits for its answer sees a RuntimeError."""
        if (process := self._process) is not None:
            process.kill()
            process.wait()

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            process, self._process = self._process, None
            if process.poll() is None:
                process.kill()
            process.communicate()


_MATCHER = _Matcher()
atexit.register(_MATCHER.end)
