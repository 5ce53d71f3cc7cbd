"""Matches are those of `re`, and no expression takes for ever."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from neurotally.profiler.corpus import matches
from neurotally.profiler.errors import InputError

EXPRESSIONS = [
    r"^\s*def (\w+)", r"\bfor\b", r"[A-Z]\w+$", r"(?i)ERROR", r"x*", r"\w+(?=\()", r"(['\"]).*?\1", r"a{e}",
    r"[[:alpha:]]", r"(?s)/\*.*?\*/", r"\s+", r"é|[à-ÿ]", "def main\\(", r"\w+",
]  # fmt: skip
TEXTS = [
    "def f(x):\n    return 'é' + \"a{e}\"  # Error\n\nclass Naïve:\n  pass", "", "\n\n", "e\u0301 \u0939\u093f\u0928",
    "x" * 5000, "for for_ for\x0cfor\r/* a\n */ [:a] aaé",
]  # fmt: skip
SLOW = "a" * 40 + "b"


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.slow
def test_matches_are_those_of_re(expression: str) -> None:
    with pytest.warns(FutureWarning) if "[[" in expression else contextlib.nullcontext():
        pattern = re.compile(expression, re.MULTILINE)
    expected = [[match.span() for match in pattern.finditer(text) if match.group()] for text in TEXTS]
    found = matches.find_spans("name", pattern, TEXTS, "a.py")
    assert [[tuple(span) for span in spans.tolist()] for spans in found] == expected
    assert all(spans.dtype == "int64" for spans in found)


@pytest.mark.parametrize(("expression", "text"), [(r"(a+)+$", SLOW), (r"\s+$", " " * 500_000 + "x")])
@pytest.mark.slow
def test_an_expression_that_takes_too_long_is_named(
    expression: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matches, "LIMIT_S", 0.3)
    pattern = re.compile(expression)
    with pytest.raises(InputError) as caught:
        matches.find_spans("slow", pattern, ["b", text], "dir/a.py")
    assert str(caught.value).startswith(f"the expression 'slow', {expression!r}, takes more than 0.3 s over dir/a.py")
    assert matches.find_spans("slow", pattern, ["b  "], "b.py")[0].shape == (0 if "a" in expression else 1, 2)


@pytest.mark.slow
def test_a_match_that_another_thread_waits_for_can_be_stopped() -> None:
    failed: list[BaseException] = []

    def match() -> None:
        try:
            matches.find_spans("x", re.compile("(a+)+$"), [SLOW], "a.py")
        except RuntimeError as error:
            failed.append(error)

    thread = threading.Thread(target=match)
    matches.find_spans("x", re.compile("b"), ["b"], "a.py")
    thread.start()
    time.sleep(0.3)
    matches.stop_matching()
    thread.join(5)
    assert not thread.is_alive()
    assert len(failed) == 1
    matches.stop_matching()  # nothing is being matched
    assert matches.find_spans("x", re.compile("b"), ["ab"], "a.py")[0].tolist() == [[1, 2]]


def test_threads_take_turns() -> None:
    found: dict[int, Any] = {}

    def match(number: int) -> None:
        for _ in range(20):
            found[number] = matches.find_spans("x", re.compile("b+"), ["a" * number + "bb"], "a.py")[0].tolist()

    threads = [threading.Thread(target=match, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [[number, number + 2]] for number in range(4)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_signal_ends_both_processes_in_the_middle_of_a_match(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import re, signal
from neurotally.profiler.corpus import matches
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun without it
matches.LIMIT_S = 3
matches.find_spans("x", re.compile("b"), ["b"], "a.py")
print(matches._MATCHER._process.pid, flush=True)
matches.find_spans("x", re.compile("(a+)+$"), [{SLOW!r}], "a.py")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    time.sleep(0.5)
    os.kill(process.pid, number)
    assert process.wait(20) == -number  # where the match ended first, an error would: 1
    process.stdout.close()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
