"""The same statistics of the same files by other tools and by neurotally: tokens a second of the whole process.

    python tests/bench/bench_peers.py MODEL FILES [--shape NAME] [--rounds N] [--csv FILE]

MODEL is a folder of a Llama, FILES a folder of at least 400 files; `--shape` takes random weights of a shape that
`neurotally bench` knows, with MODEL's tokenizer, since a small model's process is mostly its start. Of each of 400
files the first 512 tokens are read. The peers' programs lie in `peers/`, as each tool's documentation would have them
written, and get what a careful user would give them: files sorted by length, the body without its LM head, the number
of files a batch that is best for each. All have the same statistics but the papers' chain, which counts only.

A round runs each once; given are medians of the whole process, from its start to its result on the disk, peak memory,
and the lines of the program that aren't shared with the others or blank. Counts must agree: a matrix product rounds by
the shape of its batch, so that a few of a hundred million may differ.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peers.common import TOKENS
from result_rows import append_rows
from results_table import peers_table
from tqdm import tqdm

from neurotally.jobs.bench.models import SHAPES
from neurotally.profiler import store
from neurotally.profiler.model.load import device_name

PEERS = Path(__file__).with_name("peers")
PROGRAMS = {
    "plain hooks": ("hooks", "torch"),
    "nnsight": ("nnsight_trace", "nnsight"),
    "TransformerLens": ("transformer_lens_bridge", "transformer_lens"),
    "papers' chain, counts only": ("lape_counts", "torch"),
}
"""By name: the program, and the module that it needs."""
OURS = "neurotally"
FILES = 400
SIZES = (1, 4, 16)
MAY_DIFFER = 1e-6
"""Of all counts."""


class Run(NamedTuple):
    """One run of one program."""

    seconds: float
    peak_bytes: int
    tokens: int
    active_LF: np.ndarray


def main() -> None:
    """Run all, compare their counts, print a table and add to a CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", type=Path)
    parser.add_argument("--shape", choices=[name for name, of in SHAPES.items() if of["model_type"] == "llama"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = lay_out(options.files, Path(folder) / "corpora" / "code")
        model = random_model(options.shape, options.model, Path(folder) / "model") if options.shape else options.model
        rows = measure(model, files, Path(folder), options.rounds)
    for row in rows:
        row |= {"shape": options.shape or options.model.name, "rounds": options.rounds, **machine()}
    print(peers_table(rows))
    if options.csv is not None:
        append_rows(options.csv, rows)


def lay_out(files: Path, folder: Path) -> Path:
    """Copy the first files of a folder, so that all read the same."""
    folder.mkdir(parents=True)
    found = sorted(path for path in files.rglob("*") if path.is_file() and path.stat().st_size)[:FILES]
    if len(found) < FILES:
        raise SystemExit(f"{files} has {len(found)} files, expected at least {FILES}")
    for number, path in enumerate(found):
        shutil.copyfile(path, folder / f"{number:04}{path.suffix}")
    return folder


def random_model(shape: str, tokenizer: Path, folder: Path) -> Path:
    """A Llama of this shape with random weights, as a folder."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = {**SHAPES[shape], "vocab_size": len(loaded), "max_position_embeddings": TOKENS}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


def measure(model: Path, files: Path, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each program."""
    names = [name for name, (_, needs) in PROGRAMS.items() if find_spec(needs) is not None]
    if absent := set(PROGRAMS) - set(names):
        print(f"left out, since not installed: {', '.join(sorted(absent))}", file=sys.stderr)
    size_of = {
        name: min(SIZES, key=lambda size, name=name: run_peer(name, size, model, files, folder).seconds)
        for name in tqdm(names, desc="best sizes")
    }
    runs: dict[str, list[Run]] = {name: [] for name in (*names, OURS)}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name in names:
            runs[name].append(run_peer(name, size_of[name], model, files, folder))
        runs[OURS].append(run_ours(model, files.parent, folder))
    ours = runs[OURS][0]
    for name, (one, *_) in runs.items():
        differ = np.abs(one.active_LF - ours.active_LF).sum() / ours.active_LF.sum()
        if one.tokens != ours.tokens or differ > MAY_DIFFER:
            raise SystemExit(f"{name}: {one.tokens} tokens, {differ:.1e} of all counts differ; ours {ours.tokens}")
    return [
        {
            "program": name,
            "files_a_batch": size_of.get(name, ""),
            "seconds": statistics.median(run.seconds for run in of),
            "tokens_per_s": ours.tokens / statistics.median(run.seconds for run in of),
            "ratio": statistics.median(a.seconds / b.seconds for a, b in zip(of, runs[OURS], strict=True)),
            "peak_mb": max(run.peak_bytes for run in of) / 1e6,
            "lines": 1 if name == OURS else lines_of(PEERS / f"{PROGRAMS[name][0]}.py"),
        }
        for name, of in runs.items()
    ]  # fmt: skip


def run_peer(name: str, size: int, model: Path, files: Path, folder: Path) -> Run:
    """One run of a peer's program."""
    result = folder / "result.npz"
    program = PEERS / f"{PROGRAMS[name][0]}.py"
    seconds, peak = run([sys.executable, str(program), str(model), str(files), str(size), str(result)])
    with np.load(result) as found:
        return Run(seconds, peak, int(found["tokens"]), found["active"])


def run_ours(model: Path, corpora: Path, folder: Path) -> Run:
    """One run of the command."""
    result = folder / "store"
    shutil.rmtree(result, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("neurotally")), "profile", str(model), str(result)]
    options = ["--corpora", str(corpora), "--document-tokens", str(TOKENS), "--device", "cpu", "--workers", "1"]
    seconds, peak = run([*command, *options])
    (corpus,) = store.committed_corpora(result)
    arrays = store.read_corpus(result, corpus)
    return Run(seconds, peak, int(arrays["tokens"].sum()), arrays["active"].sum(0).astype(np.int64))


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory, in bytes, of a process and of what it waits for."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-3000:]}")
    return seconds, 1024 * used.ru_maxrss


def lines_of(program: Path) -> int:
    """Lines that aren't blank."""
    return sum(bool(line.strip()) for line in program.read_text().splitlines())


def machine() -> dict[str, Any]:
    """Where it was measured, and with which versions."""
    packages = [name for name in ("torch", "transformers", "nnsight", "transformer_lens") if find_spec(name)]
    return {
        "device": device_name("cpu"), "threads": torch.get_num_threads(),
        "versions": " ".join(f"{name}={version(name)}" for name in packages),
    }  # fmt: skip


if __name__ == "__main__":
    main()
