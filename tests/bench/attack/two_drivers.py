"""Two drivers on one new store at almost the same time: one does the work, the other is refused or finds it done.

The second starts up to a second later than the first; `profile` beside `profile`, or beside `embed`.
"""

import argparse
import random
import shutil
import time
from pathlib import Path

from bench.attack.contents import contents, difference
from bench.attack.findings import Findings
from bench.attack.launch import run, start
from bench.attack.material import SMALL_TASKS, make_material

_LIMIT_S = 180.0
_MOST_APART_S = 1.0
_WAIT = {"neurotally.jobs.store_writer:writer_lock": {"wait_s": 0.3}}
"""Short, so that the second driver doesn't simply wait for the first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--documents", type=int, default=40, help="In each of the three corpora.")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """All seeds."""
    findings = Findings("two drivers", seed=arguments.seed, runs=arguments.runs)
    material, settings = make_material(folder / "material", arguments.seed, arguments.documents), SMALL_TASKS | _WAIT
    whole = folder / "whole"
    for command in ("profile", "embed"):
        run(material.command(command, whole), folder / "log", _LIMIT_S, settings=settings)
    reference, store = contents(whole), folder / "store"
    for number in range(arguments.runs):
        rng = random.Random(f"{arguments.seed} {number}")
        shutil.rmtree(store, ignore_errors=True)
        commands = rng.choice((("profile", "profile"), ("profile", "embed"), ("embed", "profile")))
        launches = []
        for at, command in enumerate(commands):
            launches.append(start(material.command(command, store), folder / f"log-{at}", settings))
            time.sleep(0 if at else rng.choice((0.0, rng.uniform(0, _MOST_APART_S))))
        outcomes = [launch.finish(_LIMIT_S) for launch in launches]
        where = f"run {number} ({' and '.join(commands)})"
        for outcome in outcomes:
            findings.check(where, outcome, {0, 2}, lines=1)
            if outcome.status == 2 and "being written by another run" not in outcome.last_line:
                findings.fail("refused for another reason", where, outcome.last_line)
        findings.count("refused", sum(outcome.status == 2 for outcome in outcomes))
        if all(outcome.status == 2 for outcome in outcomes):
            findings.fail("both refused", where, outcomes[0].last_line)
        for command in ("profile", "embed"):
            findings.check(
                where, run(material.command(command, store), folder / "log", _LIMIT_S, settings=settings), {0}
            )
        if differs := difference(contents(store), reference):
            findings.fail("lost", where, f"other than undisturbed: {differs}")
        findings.count("stores")
    return findings
