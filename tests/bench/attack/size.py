"""A corpus of many files: time to list it, memory of driver and workers, what `status` and a checkpoint take.

    python tests/bench/attack size FOLDER... [--files 50000]

The files below the folders, hard-linked, become one corpus of so many files, and again two of a tenth and of two
fifths, to compare with. A tiny model reads the first tokens of each, on two workers of Ray, so that the driver's memory
is the driver's alone; the same command is then given once more on the finished store.
Fails where memory grows by more than 200 MB from a tenth to the whole, listing takes more than 10 s, or `status` more
than 2 s; times are of this machine, and it may be busy.
"""

import argparse
import contextlib
import json
import math
import os
import time
from pathlib import Path

import psutil
from bench.attack.findings import Findings
from bench.attack.launch import Launch, Outcome, left_behind, run, start
from bench.attack.material import make_material

_LIMIT_S = 3600.0
_LISTING = """
import json, sys, time
from pathlib import Path
from neurotally.jobs.corpora import list_corpus
start = time.perf_counter()
plan = list_corpus("big", sys.argv[1], None, Path(sys.argv[1]))
print(json.dumps([len(plan.manifest.names), time.perf_counter() - start]))
"""
_MOST_GROWTH_BYTES, _MOST_LISTING_S, _MOST_S = 200 * 2**20, 10.0, 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--document-tokens", type=int, default=16)
    parser.add_argument("--stop-after", type=float, default=_LIMIT_S, metavar="SECONDS",
                        help="Interrupt a run after so long, and measure what there is.")  # fmt: skip
    parser.add_argument("--checkpoint-every", type=float, default=10.0, metavar="SECONDS")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """The corpus of a tenth, that of two fifths, the whole."""
    findings = Findings("size", files=arguments.files, document_tokens=arguments.document_tokens)
    os.environ["RAY_TMPDIR"] = str(folder)
    material = make_material(folder / "material", arguments.seed, 4)
    measured = {}
    for number in (arguments.files // 10, 2 * arguments.files // 5, arguments.files):
        corpus = _link_files(arguments.folders, folder / f"corpora-{number}" / "big", number)
        listing = _list(corpus, folder)
        command = [
            "profile", material.model, folder / f"store-{number}", "--corpora", corpus.parent, "--row-tokens", 64,
            "--triggers", 4, "--workers", 2, "--document-tokens", arguments.document_tokens, "--json",
        ]  # fmt: skip
        settings = {"neurotally.jobs.door:profile": {"checkpoint_every_s": arguments.checkpoint_every}}
        launch = start(command, folder / "log", settings, fresh=True)
        peaks, status_s, seen = _watch(launch, folder / f"store-{number}", folder, arguments.stop_after, findings)
        outcome = launch.finish(120.0)
        findings.check(f"{number} files", outcome, {0, 130})
        for process in left_behind(seen, {launch.run_id or ""}):
            findings.fail("process left behind", f"{number} files", process)
        measured[number] = {
            "files": listing[0],
            "listing_s": listing[1],
            "driver_bytes": peaks["driver"],
            "worker_bytes": peaks["worker"],
            "status_s": status_s,
            "run_s": outcome.seconds,
            "write_s": _write_seconds(outcome),
            "checkpoint_bytes": _checkpoint_bytes(folder / f"store-{number}"),
            "again_s": run(command, folder / "log").seconds,
        }
        print(json.dumps(measured[number]))
    small, _, large = measured.values()
    _judge(small, large, findings)
    return findings


def _judge(small: dict[str, float], large: dict[str, float], findings: Findings) -> None:
    growth = large["driver_bytes"] - small["driver_bytes"]
    findings.count("files listed", int(large["files"]))
    findings.count("listing, ms", round(1e3 * large["listing_s"]))
    findings.count("driver's memory, MB", round(large["driver_bytes"] / 1e6))
    findings.count("driver's memory with a tenth of the files, MB", round(small["driver_bytes"] / 1e6))
    findings.count("status while it runs, ms", round(1e3 * large["status_s"]))
    findings.count("whole run, s", round(large["run_s"]))
    if not math.isnan(large["write_s"]):  # of a run that wasn't stopped
        findings.count("writing, all checkpoints and the commit, ms", round(1e3 * large["write_s"]))
    for kind in ("driver", "worker"):
        by_file = (large[f"{kind}_bytes"] - small[f"{kind}_bytes"]) / (large["files"] - small["files"])
        findings.count(f"growth of a {kind}, bytes a file", round(by_file))
    findings.count("the same command again, ms", round(1e3 * large["again_s"]))
    if growth > _MOST_GROWTH_BYTES:
        findings.fail("memory", "driver", f"grew by {growth / 1e6:.0f} MB")
    if large["listing_s"] > _MOST_LISTING_S:
        findings.fail("slow", "listing", f"{large['listing_s']:.1f} s")
    if large["status_s"] > _MOST_S:
        findings.fail("slow", "status", f"{large['status_s']:.1f} s")


def _link_files(folders: list[Path], target: Path, number: int) -> Path:
    """The first `number` files below the folders, in name order, linked below `target`."""
    found = (Path(root, name) for top in folders for root, _, names in sorted(os.walk(top)) for name in sorted(names))
    target.mkdir(parents=True)
    for index, path in zip(range(number), found, strict=False):
        link = target / str(index % 100) / f"{index}-{path.name}"
        link.parent.mkdir(exist_ok=True)
        try:
            os.link(path, link)
        except OSError:  # another disk
            link.write_bytes(path.read_bytes())
    return target


def _list(corpus: Path, folder: Path) -> tuple[int, float]:
    """Documents listed, and in how many seconds, without the imports."""
    import subprocess
    import sys

    listed = subprocess.run([sys.executable, "-c", _LISTING, str(corpus)], capture_output=True, check=True, cwd=folder)
    number, seconds = json.loads(listed.stdout)
    return number, seconds


def _watch(
    launch: Launch, store: Path, folder: Path, stop_after_s: float, findings: Findings
) -> tuple[dict[str, int], float, set[psutil.Process]]:
    """(peak memory by kind, seconds of the slowest `status`, processes seen) until the run ends or is stopped."""
    launch.wait_ready()
    peaks, status_s, seen = {"driver": 0, "worker": 0}, 0.0, set()
    began = time.monotonic()
    while not launch.poll():
        for process in (processes := launch.processes()):
            with contextlib.suppress(psutil.Error):
                kind = "driver" if process.pid == launch.pid else "worker" if "Worker" in process.name() else ""
                if kind:
                    peaks[kind] = max(peaks[kind], process.memory_info().rss)
        seen.update(processes[1:])
        if (store / "zarr.json").exists():
            status = run(["status", store, "--json"], folder / "status-log")
            findings.check("status while it runs", status, {0})
            status_s = max(status_s, status.seconds)
        if time.monotonic() - began > stop_after_s:
            os.kill(launch.pid, 2)
            break
        time.sleep(1.0)
    return peaks, status_s, seen


def _write_seconds(outcome: Outcome) -> float:
    """What the run says its checkpoints and commit took; NaN where it was stopped."""
    return json.loads(outcome.out)["write_s"] if outcome.status == 0 else float("nan")


def _checkpoint_bytes(store: Path) -> int:
    return sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
