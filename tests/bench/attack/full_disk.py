"""Disks that fill up: one line and exit status 2, resumed when there is room, and the store of an undisturbed run.

Three ways, each drawn from the seed: a small tmpfs that the store outgrows; a tmpfs that something else fills at a
random moment (both need root, and are left out, counted, without); and the error of a full disk in place of one of the
run's own changes of files and of all after it. Then results written to a disk that is full: the file of before or the
new one, whole.
"""

import argparse
import contextlib
import errno
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.attack.contents import contents, difference
from bench.attack.findings import Findings
from bench.attack.kills import Reference, draw_change, new_store, undisturbed
from bench.attack.launch import Fault, run, start
from bench.attack.material import SMALL_TASKS, Material, make_material

_COMMANDS = ("profile", "embed")
_LIMIT_S = 300.0
_ROOM_BYTES = 64 * 2**20
_MOST_TIMES = 3
"""So often a disk fills in the life of one store."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("--runs", type=int, default=12, help="Stores on disks that fill.")
    parser.add_argument("--faults", type=int, default=30, help="Stores whose run meets the error itself.")
    parser.add_argument("--documents", type=int, default=40, help="In each of the three corpora.")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """All seeds."""
    findings = Findings("full disk", seed=arguments.seed, runs=arguments.runs, faults=arguments.faults)
    material = make_material(folder / "material", arguments.seed, arguments.documents)
    base = folder / "base"
    run(material.command("profile", base), folder / "log", settings=SMALL_TASKS)
    references = {name: undisturbed(material, name, base, folder, on_ray=False) for name in _COMMANDS}
    for number in range(arguments.faults):
        rng = random.Random(f"{arguments.seed} fault {number}")
        command = rng.choice(_COMMANDS)
        _meet_error(f"fault {number}", material, command, references[command], base, folder, findings, rng)
    if not arguments.runs:
        return findings
    with _small_disk(folder / "disk", _ROOM_BYTES) as is_mounted:
        if not is_mounted:
            findings.count("left out: mounting needs root", arguments.runs)
            return findings
    for number in range(arguments.runs):
        rng = random.Random(f"{arguments.seed} disk {number}")
        command = rng.choice(_COMMANDS)
        attack_disk = rng.choice((_outgrow, _fill))
        attack_disk(f"disk {number}", material, command, references[command], base, folder, findings, rng)
    _write_results(base, folder, findings)
    return findings


def _meet_error(
    where: str, material: Material, command: str, reference: Reference, base: Path, folder: Path, findings: Findings,
    rng: random.Random,
) -> None:  # fmt: skip
    """The run's own changes of files fail from a drawn one on."""
    store = new_store(command, base, folder / "store")
    story = []
    for _ in range(rng.randint(1, _MOST_TIMES)):
        kind, change = draw_change(reference, rng)
        story.append(f"full at change {change} of {len(reference.changes)} ({kind})")
        outcome = run(
            material.command(command, store), folder / "log", _LIMIT_S, settings=SMALL_TASKS,
            fault=Fault(store, change, "full"),
        )  # fmt: skip
        findings.check(f"{where} ({command}): {'; '.join(story)}", outcome, {0, 2}, lines=1)
        findings.count("met the error of a full disk", int(outcome.status == 2))
    _finish(f"{where} ({command}): {'; '.join(story)}", material, command, store, reference, folder, findings)


def _outgrow(
    where: str, material: Material, command: str, reference: Reference, base: Path, folder: Path, findings: Findings,
    rng: random.Random,
) -> None:  # fmt: skip
    """The store on a disk of a share of its size; a little larger each time."""
    needed, disk = _size(folder / f"reference-{command}"), folder / "disk"
    with _small_disk(disk, _ROOM_BYTES):
        store = new_store(command, base, disk / "store")
        size, story = _size(disk), []
        for _ in range(rng.randint(1, _MOST_TIMES)):
            size = int(max(size, 40_960) + rng.uniform(0, 0.6) * needed)
            story.append(f"a disk of {size // 1024} kB")
            _resize(disk, size)
            outcome = run(material.command(command, store), folder / "log", _LIMIT_S, settings=SMALL_TASKS)
            findings.check(f"{where} ({command}): {'; '.join(story)}", outcome, {0, 2}, lines=1)
            findings.count("outgrew its disk", int(outcome.status == 2))
        _resize(disk, _ROOM_BYTES)
        _finish(f"{where} ({command}): {'; '.join(story)}", material, command, store, reference, folder, findings)


def _fill(
    where: str, material: Material, command: str, reference: Reference, base: Path, folder: Path, findings: Findings,
    rng: random.Random,
) -> None:  # fmt: skip
    """Something else fills the disk while the run goes on, and is removed when it has ended."""
    disk = folder / "disk"
    with _small_disk(disk, _ROOM_BYTES):
        store, story = new_store(command, base, disk / "store"), []
        for _ in range(rng.randint(1, _MOST_TIMES)):
            launch = start(material.command(command, store), folder / "log", SMALL_TASKS)
            launch.wait_ready()
            delay = rng.uniform(0, reference.seconds)
            story.append(f"filled after {delay:.2f} s")
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline and not launch.poll():
                time.sleep(0.005)
            _take_all(disk / "filler")
            outcome = launch.finish(_LIMIT_S)
            findings.check(f"{where} ({command}): {'; '.join(story)}", outcome, {0, 2}, lines=1)
            findings.count("had its disk filled", int(outcome.status == 2))
            (disk / "filler").unlink(missing_ok=True)
        _finish(f"{where} ({command}): {'; '.join(story)}", material, command, store, reference, folder, findings)


def _finish(
    where: str, material: Material, command: str, store: Path, reference: Reference, folder: Path, findings: Findings
) -> None:
    outcome = run(material.command(command, store), folder / "log", _LIMIT_S, settings=SMALL_TASKS)
    findings.check(where, outcome, {0})
    if outcome.status != 0:
        findings.fail("lost", where, "the store can't be finished")
    elif differs := difference(contents(store), reference.contents):
        findings.fail("lost", where, f"other than undisturbed: {differs}")
    findings.count("stores")


def _write_results(base: Path, folder: Path, findings: Findings) -> None:
    """`--out`, `--figure` and `report` on a disk with no room: what was there stays, or the new file is whole."""
    disk = folder / "disk"
    for name, arguments in {
        "neurons.json": ["lape", base, "--out"],
        "layers.png": ["lape", base, "--figure"],
        "bars.npz": ["lape", base, "--error-bars", "--archive"],
        "page.html": ["report", base, "--out"],
    }.items():
        with _small_disk(disk, _ROOM_BYTES):
            run([*arguments, folder / name], folder / "log")
            whole, old = (folder / name).read_bytes(), b"what was there before"
            (disk / name).write_bytes(old)
            _take_all(disk / "filler", but=4096)
            outcome = run([*arguments, disk / name], folder / "log")
            findings.check(f"{name} on a full disk", outcome, {0, 2}, lines=1)
            found = (disk / name).read_bytes()
            if found != whole and (outcome.status == 0 or found != old):
                findings.fail("lost", f"{name} on a full disk", "the file of before is gone, the new one cut off")
            findings.count("results written to a full disk")


@contextlib.contextmanager
def _small_disk(path: Path, size: int) -> Iterator[bool]:
    """A tmpfs of so many bytes at `path`; False where it can't be mounted."""
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _take_all(path: Path, but: int = 0) -> None:
    """Fill the disk that `path` is on, but for so many bytes."""
    free = shutil.disk_usage(path.parent).free - but
    try:
        with path.open("wb") as file:
            while free > 0:
                file.write(bytes(min(free, 65536)))
                file.flush()
                free -= 65536
    except OSError as error:  # the run itself may have filled it already
        if error.errno != errno.ENOSPC:
            raise


def _size(path: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in path.rglob("*") if file.is_file())
