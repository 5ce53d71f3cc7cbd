"""What many files cost beside the model: a profile of one corpus of real files, killed half-way and gone on with.

    python tests/bench/bench_files.py FOLDER [--files 5000 20000 50000] [--file-bytes 256] [--workers 2]
                                      [--streamed] [--csv files.csv]

The files below FOLDER are copied, cut to their first bytes so that a run takes minutes (0: whole). The model is the
demo's, with fresh weights. A checkpoint is written after every unit. With --streamed the files are the records of a
dataset, streamed as from the hub (hf:). Prints a JSON line for each number of files:

    plan_s, plan_cpu_s     listing the files, or streaming the dataset to the disk, and cutting it into units
    driver_mib             peak of the driver, which went on, and ended
    worker_mib             the same of the largest worker
    write_s                of one checkpoint, in the mean, with the commit among them
    status_s, ..._cpu_s    `neurotally status`, while the run goes on, all of the command
    resume_s, ..._cpu_s    from the start of the command to the first unit handed out: imports, Ray and model, too; CPU
                           time of the driver
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.result_rows import append_rows

from neurotally.jobs.corpora import list_corpus
from neurotally.jobs.demo.model import _new_model, train_tokenizer
from neurotally.profiler.model.load import device_name

PROFILE = """
import json, resource, sys
from neurotally.jobs import profile
model, store, corpus, workers = sys.argv[1:]
done = profile(model, store, corpus={"all": corpus}, workers=int(workers), device="cpu", checkpoint_every_s=0.0)
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"write_s": done["write_s"], "driver_mib": peak_mib, "skipped": done["corpora"]["all"]["skipped"]}))
"""


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, nargs="+", default=[5_000, 20_000, 50_000])
    parser.add_argument("--file-bytes", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--streamed", action="store_true")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_model(arguments.folder, Path(scratch) / "model")
        for number in arguments.files:
            folder = Path(scratch) / str(number)
            lay_out(arguments.folder, folder / "texts", number, arguments.file_bytes)
            source = f"hf:{as_dataset(folder)}" if arguments.streamed else str(folder / "texts")
            found = {
                "device": device_name("cpu"), "source": "streamed" if arguments.streamed else "folder",
                "files": number, "file_bytes": arguments.file_bytes, "workers": arguments.workers,
                **measure(folder, source, Path(scratch) / "model", arguments.workers),
            }  # fmt: skip
            print(json.dumps(found), flush=True)
            if arguments.csv is not None:
                append_rows(arguments.csv, [found])


def make_model(texts: Path, folder: Path) -> None:
    """The demo's tokenizer, trained on some of the texts, and its model as it is before training."""
    some = [file.read_text(errors="replace") for file in every_so_many(texts, 200)]
    tokenizer = train_tokenizer(some, progress=False)
    tokenizer.save_pretrained(folder)
    _new_model(len(tokenizer), tokenizer.bos_token_id, seed=0).save_pretrained(folder)


def every_so_many(folder: Path, number: int) -> list[Path]:
    """So many of the files below a folder, spread over all in name order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if number > len(files):
        raise SystemExit(f"{folder} has {len(files)} files, expected {number}")
    return [files[index * len(files) // number] for index in range(number)]


def lay_out(source: Path, target: Path, number: int, file_bytes: int) -> None:
    """Copies of so many files, with their folders."""
    for file in every_so_many(source, number):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes()[: file_bytes or None])


def as_dataset(folder: Path) -> Path:
    """The files as the records of a dataset."""
    files = sorted(path for path in (folder / "texts").rglob("*") if path.is_file())
    (folder / "dataset").mkdir()
    with (folder / "dataset" / "train.jsonl").open("w") as records:
        for file in files:
            records.write(json.dumps({"text": file.read_text(errors="replace")}) + "\n")
    return folder / "dataset"


def measure(folder: Path, source: str, model: Path, workers: int) -> dict[str, Any]:
    """All of one number of files."""
    path = folder / "store"
    start, cpu = time.perf_counter(), time.process_time()
    listed = list_corpus("all", source, None, path)
    tasks = [listed.task(unit) for unit in listed.units(2 * 2**20, 10)]
    found: dict[str, Any] = {
        "units": len(tasks), "plan_s": round(time.perf_counter() - start, 2),
        "plan_cpu_s": round(time.process_time() - cpu, 2),
    }  # fmt: skip
    command = [sys.executable, "-c", PROFILE, str(model), str(path), source, str(workers)]
    with started(command) as process:
        while units_done(path) < len(tasks) // 2:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        start, cpu = time.perf_counter(), cpu_of_children()
        status = "from neurotally.jobs.cli import main; main()"
        subprocess.run([sys.executable, "-c", status, "status", str(path)], check=True, capture_output=True)
        found["status_s"] = round(time.perf_counter() - start, 2)
        found["status_cpu_s"] = round(cpu_of_children() - cpu, 2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (path / ".run" / "progress.json").unlink()  # of the killed run: the next one writes its own when it goes on
    left, start, worker_bytes = len(tasks) - units_done(path), time.perf_counter(), 0
    with started(command) as process:
        while not (path / ".run" / "progress.json").exists():
            assert process.poll() is None, "it ended before it went on"
            time.sleep(0.02)
        found["resume_s"] = round(time.perf_counter() - start, 2)
        found["resume_cpu_s"] = round(sum(psutil.Process(process.pid).cpu_times()[:2]), 2)
        while process.poll() is None:
            worker_bytes = max([worker_bytes, *sizes_of_workers(process.pid)])
            time.sleep(0.2)
        assert process.stdout is not None
        done = json.loads(process.stdout.read())
    shutil.rmtree(path)
    return found | {
        "write_s": round(done["write_s"] / (left + 1), 3), "driver_mib": done["driver_mib"],
        "worker_mib": worker_bytes // 2**20, "skipped": sum(done["skipped"].values()),
    }  # fmt: skip


def started(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """In a session of its own."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def units_done(path: Path) -> int:
    """By the checkpoint that counts."""
    try:
        return int(json.loads((path / ".run/corpora/all/current.json").read_text())["units_done"])
    except FileNotFoundError:
        return 0


def cpu_of_children() -> float:
    """Seconds, of those that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def sizes_of_workers(driver: int) -> Iterator[int]:
    """Resident bytes of each process that holds a model."""
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.name().startswith("ray::") or "ActorWorker" in " ".join(process.cmdline()):
                yield process.memory_info().rss
        except psutil.Error:  # it has ended
            continue


if __name__ == "__main__":
    main()
