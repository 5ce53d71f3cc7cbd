"""Damaged stores, read by every command: what an undamaged one gives, or one line; never another number.

A finished store (two corpora with triggers, and the groups of `embed` and `ablate`) is read by status, lape, triggers,
patterns, report, mexa and profile. An unfinished one (two corpora done, one in its checkpoint, a pass in its parts) is
looked at by status and finished by the same command: the store of an undisturbed run, or one line. A result that
differs is let pass only where the output names what is damaged.
"""

import argparse
import itertools
import random
import re
import shutil
from pathlib import Path

from bench.attack.contents import contents, difference
from bench.attack.damages import Damage, finished_damages, unfinished_damages
from bench.attack.findings import Findings
from bench.attack.kills import undisturbed
from bench.attack.launch import Fault, Outcome, run
from bench.attack.material import SMALL_TASKS, Material, make_material

_CHEAP = ("status", "lape", "triggers")
_COSTLY = ("error bars", "patterns", "report", "mexa", "profile")
_LIMIT_S = 300.0
_IDLE_S = 15.0
_WRONG = re.compile(
    rb"can(?:'|&#39;|&#x27;)t be read|isn(?:'|&#39;|&#x27;)t the metadata"
    rb"|cut off|damaged|checksum|lacks|unreadable|was changed|, expected "
)
"""How outputs that go on without what is damaged say so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("--finished", type=int, default=300, help="Damages to the finished store.")
    parser.add_argument("--unfinished", type=int, default=150, help="Damages to the unfinished one.")
    parser.add_argument("--documents", type=int, default=24, help="In each of the three corpora.")
    parser.add_argument("--every-command", action="store_true", help="Read with all commands, not with 4 of 8.")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """Both stores."""
    findings = Findings("damage", seed=arguments.seed, finished=arguments.finished, unfinished=arguments.unfinished)
    material = make_material(folder / "material", arguments.seed, arguments.documents)
    rng = random.Random(arguments.seed)
    if arguments.finished:
        _read_finished(material, folder, arguments.finished, arguments.every_command, findings, rng)
    for command in ("profile", "lens") if arguments.unfinished else ():
        number = arguments.unfinished // 3 * (2 if command == "profile" else 1)
        _finish_unfinished(material, command, folder, number, findings, rng)
    return findings


def _read_finished(
    material: Material, folder: Path, number: int, every_command: bool, findings: Findings, rng: random.Random
) -> None:
    whole, store = folder / "whole", folder / "store"
    for command in ("profile", "embed", "ablate"):
        _must_run(material.command(command, whole), folder)
    commands = {
        "status": ["status", store, "--json"],
        "lape": ["lape", store, "--json"],
        "triggers": ["triggers", store, 0, 1, "--json"],
        "error bars": ["lape", store, "--error-bars", "--json"],
        "patterns": ["patterns", store, "--json"],
        "report": ["report", store, "--out", folder / "page.html"],
        "mexa": ["mexa", store, "--json"],
        "profile": material.command("profile", store),
    }
    shutil.copytree(whole, store)
    expected = {name: _result(_must_run(command, folder), folder) for name, command in commands.items()}
    for damage in itertools.islice(finished_damages(whole, rng), number):
        shutil.rmtree(store)
        shutil.copytree(whole, store)
        damage.apply(store)
        for name in (*_CHEAP, *(_COSTLY if every_command else [rng.choice(_COSTLY)])):
            (folder / "page.html").unlink(missing_ok=True)
            outcome = run(commands[name], folder / "log", _LIMIT_S, _IDLE_S, settings=SMALL_TASKS)
            _judge(f"{name} after {damage}", damage, outcome, _result(outcome, folder), expected[name], findings)
        findings.count("damages of a finished store")


def _finish_unfinished(
    material: Material, command: str, folder: Path, number: int, findings: Findings, rng: random.Random
) -> None:
    base, half, store = folder / "base", folder / "half", folder / "store"
    if command != "profile" and not base.exists():
        _must_run(material.command("profile", base), folder)
    reference = undisturbed(material, command, base, folder, on_ray=False)
    shutil.rmtree(half, ignore_errors=True)
    if command != "profile":
        shutil.copytree(base, half)
    parts = "open .run/corpora/python/checkpoint-N.N.partial" if command == "profile" else ".partial"
    at = [number for number, change in enumerate(reference.changes, 1) if parts in change and ".run/" in change]
    killed = run(
        material.command(command, half), folder / "log", settings=SMALL_TASKS, fault=Fault(half, at[len(at) // 2])
    )
    if killed.status != -9:
        raise RuntimeError(f"{command} wasn't killed half-way: {killed.err.decode()}")
    for damage in itertools.islice(unfinished_damages(half, rng), number):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(half, store)
        damage.apply(store)
        outcome = run(["status", store, "--json"], folder / "log", _LIMIT_S, _IDLE_S)
        findings.check(f"status after {damage}", outcome, {0, 2}, lines=1)
        outcome = run(material.command(command, store), folder / "log", _LIMIT_S, _IDLE_S, settings=SMALL_TASKS)
        findings.check(f"{command} after {damage}", outcome, {0, 2}, lines=1)
        findings.count("refused", int(outcome.status == 2))
        if outcome.status == 0:
            findings.count("finished")
            if differs := difference(contents(store), reference.contents):
                findings.fail("silent", f"{command} after {damage}", f"other than undisturbed: {differs}")
        findings.count("damages of an unfinished store")


def _judge(where: str, damage: Damage, outcome: Outcome, found: bytes, expected: bytes, findings: Findings) -> None:
    findings.check(where, outcome, {0, 2}, lines=1)
    if outcome.status == 2:
        findings.count("refused")
    elif found == expected:
        findings.count("the same as before")
    elif _names_it(outcome.err + found, damage):
        findings.count("another result that names the damage")
    elif outcome.status == 0:
        findings.fail("silent", where, f"another result, exit status 0: {_first_change(found, expected)}")


def _names_it(found: bytes, damage: Damage) -> bool:
    """Whether the output says of the damaged array, or of its group, that something is wrong with it."""
    said = (found[max(0, match.start() - 200) : match.end() + 200] for match in _WRONG.finditer(found))
    return any(name.encode() in near for near in said for name in damage.names)


def _first_change(found: bytes, expected: bytes) -> str:
    at = next((at for at, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
    return f"{expected[max(0, at - 40) : at + 40]!r} is {found[max(0, at - 40) : at + 40]!r}"


def _result(outcome: Outcome, folder: Path) -> bytes:
    """What the command said, and the page that it may have written."""
    page = folder / "page.html"
    return outcome.out + (page.read_bytes() if page.exists() else b"")


def _must_run(arguments: list[object], folder: Path) -> Outcome:
    (folder / "page.html").unlink(missing_ok=True)
    outcome = run(arguments, folder / "log", _LIMIT_S, _IDLE_S, settings=SMALL_TASKS)
    if outcome.status:
        raise RuntimeError(f"{arguments[0]} failed undisturbed: {outcome.err.decode()}")
    return outcome
