"""What an attack finds: counts of what was tried, failures by kind, a table and one JSON line."""

import json
import re
import time
from collections import Counter
from collections.abc import Collection
from typing import Any

from bench.attack.launch import Outcome

MOST_SHOWN = 60
_MOST_MEMORY = 3 * 2**30
_NOTES = (
    "neurotally: ", "loading ", "memory: ", "warning: ", "stopping after the work in hand", "a worker died; its ",
    "'[Errno ", "Retrying in ",  # the hub, out of reach
)  # fmt: skip
"""How lines on stderr may begin."""
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")


class Findings:
    """Of one attack."""

    def __init__(self, attack: str, **settings: Any):
        self._attack = attack
        self._settings = settings
        self._start = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.examples: list[str] = []

    def count(self, what: str, number: int = 1) -> None:
        """Something was tried, or held."""
        self.counts[what] += number

    def fail(self, kind: str, where: str, detail: str) -> None:
        """Something was lost, silent, loud or slow."""
        self.kinds[kind] += 1
        line = f"{kind}: {where}: {detail}"
        if len(self.examples) < MOST_SHOWN:
            self.examples.append(line)
        print(f"  {ascii(line)[1:-1]}", flush=True)

    def add(self, other: "Findings") -> None:
        """Those of another attack."""
        self.counts.update(other.counts)
        self.kinds.update(other.kinds)
        self.examples += other.examples

    def check(self, where: str, outcome: Outcome, allowed: Collection[int], lines: int | None = None) -> bool:
        """What holds for every run. `lines`: how many lines of its own a refusal may print; None: no matter."""
        before = self.kinds.total()
        text = outcome.err + outcome.out
        if outcome.status is None:
            self.fail("hang", where, f"ended after {outcome.seconds:.0f} s; {outcome.last_line}")
        elif b"Traceback (most recent call last)" in text or b"panicked at" in text:
            self.fail("traceback", where, f"exit status {outcome.status}; {outcome.last_line}")
        elif b"set NEUROTALLY_DEBUG=1" in outcome.err:
            self.fail("bare exception", where, f"exit status {outcome.status}; {outcome.last_line}")
        elif outcome.status not in allowed:
            self.fail("status", where, f"exit status {outcome.status}; {outcome.last_line}")
        elif outcome.status in (1, 2) and not outcome.last_line.startswith("neurotally: "):
            self.fail("no message", where, outcome.last_line)
        if found := _CONTROL.search(text):
            self.fail("control character", where, repr(found.group()))
        if outcome.peak_bytes > _MOST_MEMORY:
            self.fail("memory", where, f"{outcome.peak_bytes / 2**30:.1f} GiB")
        if lines is not None and outcome.status == 2:
            said = outcome.err.decode(errors="replace").splitlines()
            others = [line for line in said if not line.startswith(_NOTES)]
            if others or sum(line.startswith("neurotally: ") for line in said) != lines:
                self.fail("not one line", where, f"{len(said)} lines: {ascii((others or said)[0])[:200]}")
        return self.kinds.total() == before

    def finish(self) -> int:
        """Print the table and the JSON line; the exit status."""
        seconds = round(time.monotonic() - self._start, 1)
        width = max(map(len, [*self.counts, *self.kinds, "failures"]))
        print(f"\n{self._attack}, {seconds:.0f} s")
        for name, number in (*sorted(self.counts.items()), *sorted(self.kinds.items())):
            mark = "  FAILED" if name in self.kinds else ""
            print(f"  {name:<{width}} {number:>7}{mark}")
        print(f"  {'failures':<{width}} {self.kinds.total():>7}")
        document = {
            "attack": self._attack,
            **self._settings,
            "seconds": seconds,
            "counts": dict(sorted(self.counts.items())),
            "failures": dict(sorted(self.kinds.items())),
            "examples": self.examples,
        }
        print(json.dumps(document), flush=True)
        return int(bool(self.kinds))
