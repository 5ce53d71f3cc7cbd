"""Bad command lines and files: one line and exit status 2, or skipped by name and counted.

Nothing outside of what was named is opened (a canary's file is watched) or shown, no code of an input runs, no control
character reaches the terminal, nothing hangs, nothing takes more than 3 GiB. The cases are in cases_*.py, by subject.
"""

import argparse
import ctypes
import os
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from bench.attack import cases_corpora, cases_models, cases_options, cases_stores, cases_texts
from bench.attack.case import CANARY, Case, Place
from bench.attack.findings import Findings
from bench.attack.launch import run, start
from bench.attack.material import SMALL_TASKS, make_material

_SUBJECTS = {
    "options": cases_options.CASES,
    "corpora": cases_corpora.CASES,
    "models": cases_models.CASES,
    "stores": cases_stores.CASES,
    "texts": cases_texts.CASES,
}
_IDLE_S = 15.0
"""A run that computes nothing for so long hangs."""
_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("--sample", type=int, metavar="N", help="So many cases, drawn by the seed; default: all.")
    parser.add_argument("--only", default="", metavar="TEXT", help="Cases whose name, 'subject: what', holds this.")
    parser.add_argument("--quick", action="store_true", help="Leave out the cases that need much memory or time.")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """All cases, or a sample of them."""
    findings = Findings("bad inputs", seed=arguments.seed)
    os.environ["HF_HUB_OFFLINE"] = "1"
    material = make_material(folder / "material", arguments.seed, 8)
    finished = folder / "finished"
    for command in ("profile", "embed"):
        outcome = run(material.command(command, finished), folder / "log")
        if outcome.status:
            raise RuntimeError(f"{command} failed: {outcome.err.decode()}")
    cases = [(f"{subject}: {case.name}", case) for subject, of_subject in _SUBJECTS.items() for case in of_subject]
    cases = [(name, case) for name, case in cases if arguments.only in name]
    if arguments.quick:
        cases = [(name, case) for name, case in cases if not case.is_costly]
    if arguments.sample is not None:
        cases = random.Random(arguments.seed).sample(cases, min(arguments.sample, len(cases)))
    for name, case in cases:
        place = Place(folder / "place", material, finished)
        shutil.rmtree(place.folder, ignore_errors=True)
        place.put("outside/secret.py", f"x = {CANARY!r}\n")
        place.put("outside/folder/inner.py", f"y = {CANARY!r}\n")
        _try(name, case, place, folder, findings)
        findings.count("cases")
        findings.count(f"cases, {name.partition(':')[0]}")
    return findings


def _try(name: str, case: Case, place: Place, folder: Path, findings: Findings) -> None:
    arguments = case.arguments(place)
    with _Watch([place.secret, place.outside / "folder" / "inner.py"]) as watch:
        launch = start(arguments, folder / "log", SMALL_TASKS, cwd=place.folder)
        if case.during is not None:
            case.during(place, launch)
        outcome = launch.finish(case.limit_s, _IDLE_S)
    findings.check(name, outcome, case.allowed, lines=1)
    text = outcome.out + outcome.err
    if case.says and case.says.encode() not in text:
        findings.fail("other message", name, outcome.last_line)
    was_opened = watch.was_opened and not case.may_open_outside
    if was_opened or CANARY.encode() in text or _holds_canary(place):
        findings.fail("read outside", name, "a file that nobody named was opened" if was_opened else "shown")
    if place.marker.exists():
        findings.fail("ran code", name, "of an input")
    if outcome.status == 0 and (wrong := case.check(place, outcome)):
        findings.fail("silent", name, wrong)
    findings.count("refused" if outcome.status == 2 else "done" if outcome.status == 0 else "neither")


def _holds_canary(place: Place) -> bool:
    """Whether a page or a picture that the run wrote holds the canary's text."""
    pages = [path for path in place.folder.glob("*.html") if path.is_file() and not path.is_symlink()]
    return any(CANARY.encode() in path.read_bytes() for path in pages)


class _Watch:
    """Tells whether one of some files is opened, by whatever code, in this context (inotify)."""

    def __init__(self, paths: list[Path]):
        self._paths = paths
        self.was_opened = False

    def __enter__(self) -> "_Watch":
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        for path in self._paths:
            if libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_OPEN) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch")
        return self

    def __exit__(self, *_error: object) -> None:
        self.was_opened = any(True for _ in self._events())
        os.close(self._descriptor)

    def _events(self) -> Iterator[int]:
        try:
            read = os.read(self._descriptor, 4096)
        except BlockingIOError:
            return
        yield _EVENT.unpack_from(read)[1]
