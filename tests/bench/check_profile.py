"""Check a real profile against plain hooks, one document at a time, and against itself however it ran.

    python tests/bench/check_profile.py MODEL CORPORA [--max-files N] [--dtype float32|bfloat16] [--layout concat]
                                        [--rectangles]

Profiles CORPORA (a folder of one subfolder a corpus) with 1, 2 and 3 workers, and once killed with -9 twice and
resumed; compares every array of the four stores to the bit; then counts the same documents with plain forward
hooks and prints the differences, one JSON line last. A matrix product rounds by the shape of its batch, so a lone
document differs from the same document beside others in the last bits, and triggers closer than that swap places;
`--rectangles` hooks the batches of the profile itself, where nothing but the order of additions may differ.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from reference import HookCount, corpus_order, everything, top

from neurotally.jobs.status import status
from neurotally.kernels.statistics import NO_DOCUMENT
from neurotally.profiler import store

KILL_AT = (0.2, 0.6)
"""Share of all units at which the driver, its workers and Ray are killed: the first two tries of the killed run."""
CHECKPOINT_S = 1.0


def main() -> None:
    """Run all checks and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--max-files", type=int, default=150)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layout", choices=["documents", "concat"], default="documents")
    parser.add_argument("--rectangles", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("1", "2", "3", "killed")]
        for workers, path in zip((1, 2, 3), paths, strict=False):
            start(arguments, path, workers).wait()
        for share in KILL_AT:
            process = start(arguments, paths[3], 2)
            wait_until(process, paths[3], share)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        start(arguments, paths[3], 2).wait()
        stores = [everything(path) for path in paths]
        equal = {path.name: stored == stores[0] for path, stored in zip(paths, stores, strict=True)}
        found = {"stores_equal_to_the_bit": equal, "arrays": len(stores[0]), "corpora": {}}
        for corpus in store.committed_corpora(paths[0]):
            found["corpora"][corpus] = compare(arguments, paths[0], corpus)
    print(json.dumps(found))


def start(arguments: argparse.Namespace, path: Path, workers: int) -> subprocess.Popen:
    """Start a profile in a session of its own."""
    code = f"from neurotally.jobs import profile; profile.__kwdefaults__['checkpoint_every_s'] = {CHECKPOINT_S}; "
    code += "from neurotally.jobs.cli import main; main()"
    command = [sys.executable, "-c", code, "profile", arguments.model, path, "--corpora", arguments.corpora]
    command += ["--max-files", arguments.max_files, "--dtype", arguments.dtype, "--layout", arguments.layout]
    return subprocess.Popen([*map(str, command), "--workers", str(workers)], start_new_session=True)


def wait_until(process: subprocess.Popen, path: Path, share: float) -> None:
    """Wait until checkpoints and commits hold this share of all units."""
    while process.poll() is None:
        time.sleep(0.05)
        if (path / "zarr.json").exists():
            corpora = status(path)["corpora"].values()
            done = sum(corpus["units_done"] for corpus in corpora)
            if corpora and done >= share * sum(corpus["units"] for corpus in corpora):
                print(f"killing it with {done} units done", file=sys.stderr)
                return
    raise SystemExit("the run ended before it could be killed: give it more files")


def compare(arguments: argparse.Namespace, path: Path, corpus: str) -> dict[str, float]:
    """The largest differences between a corpus of the store and the hooks' count."""
    arrays = store.read_corpus(path, corpus)
    row_tokens = store.store_attributes(path)["config"]["row_tokens"]
    count = HookCount(arguments.model, getattr(torch, arguments.dtype))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    files = corpus_order(arguments.corpora / corpus)[: arguments.max_files]
    shape = arrays["coefficient_sum"].shape
    num_neurons, k = shape[0] * shape[1], arrays["trigger_value"].shape[-1]
    maxima = np.zeros((len(files), num_neurons), np.float32)
    positions = np.zeros((len(files), num_neurons), np.int64)
    made = rows(arrays, files, tokenizer, row_tokens, arguments.layout)
    if arguments.rectangles:
        batches = together(arrays, made, store.store_attributes(path)["config"]["token_budget"])
    else:
        batches = [([row], len(row)) for row in made]
    counted = (
        (row, coefficient.astype(np.float32))
        for batch, width in batches
        for row, coefficient in zip(
            batch, count.rectangle([[t for t, _, _ in row] for row in batch], width), strict=True
        )
    )
    for row, coefficient in tqdm(counted, total=len(made), desc=f"hooks: {corpus}"):
        coefficient[:, [token in tokenizer.all_special_ids for token, _, _ in row]] = -1
        flat = coefficient.transpose(0, 2, 1).reshape(num_neurons, -1)
        column = flat.argmax(1) if arguments.layout == "concat" else None
        for number in {number for _, number, _ in row}:
            of_document = np.array([n == number for _, n, _ in row])
            best = np.where(of_document, flat, -1).argmax(1) if column is None else column
            value = np.where(of_document[best], flat[np.arange(num_neurons), best], 0)
            better = value > maxima[number]
            maxima[number][better] = value[better]
            positions[number][better] = np.array([position for _, _, position in row])[best][better]
    same, off, swapped = 0, 0.0, 0.0
    for neuron in range(num_neurons):
        expected = top([(float(maxima[n, neuron]), n, int(positions[n, neuron])) for n in range(len(files))], k)
        documents = arrays["trigger_document"].reshape(num_neurons, k)[neuron, : len(expected)]
        places = arrays["trigger_position"].reshape(num_neurons, k)[neuron, : len(expected)]
        same += [(c[1], c[2]) for c in expected] == list(zip(documents.tolist(), places.tolist(), strict=True))
        chosen = maxima[documents[documents != NO_DOCUMENT], neuron]
        swapped = max([swapped, *(abs(v / c[0] - 1) for v, c in zip(chosen.tolist(), expected, strict=False))])
        values = arrays["trigger_value"].reshape(num_neurons, k)[neuron, : len(expected)]
        off = max([off, *(abs(v / c[0] - 1) for v, c in zip(values.tolist(), expected, strict=True))])
    relative = [np.abs(arrays[name] - expected) / count.scales[name] for name, expected in count.sums.items()]
    cells = count.active.size * count.tokens
    return {
        "tokens": int(arrays["tokens"].sum()),
        "tokens_by_hooks": count.tokens,
        "active": int(arrays["active"].sum()),
        "flips_per_million_counts": 1e6
        * float(np.abs(arrays["active"].sum(0).astype(int) - count.active).sum())
        / cells,
        "largest_difference_of_sums_over_sum_of_absolutes": max(float(part.max()) for part in relative),
        "share_of_sums_within_1e-4": float(np.mean([part <= 1e-4 for part in relative])),
        "neurons": num_neurons,
        "neurons_with_equal_triggers": same,
        "largest_relative_difference_of_a_trigger_value": off,
        # Where a list differs: how far apart, by the hooks, the documents are that changed places.
        "largest_relative_gap_of_a_swap": swapped,
    }


def together(arrays: store.Arrays, made: list[list], budget: int) -> list[tuple[list[list], int]]:
    """The rectangles of the profile, unit by unit: rows, longest first, within the budget; and their widths."""
    batches = []
    for unit in range(len(arrays["unit_tokens"])):
        left = sorted((row for row in made if arrays["document_unit"][row[0][1]] == unit), key=len, reverse=True)
        while left:
            height = max(1, budget // len(left[0]))
            batch, left = left[:height], left[height:]
            batches.append((batch, max(len(batch[0]), -(-64 // len(batch)))))
    return batches


def rows(arrays: store.Arrays, files: list[Path], tokenizer: object, row_tokens: int, layout: str) -> list[list]:
    """The rows that the layout asks for, each a list of (token, document, position)."""
    made = []
    places: list[list] = [[] for _ in range(len(arrays["unit_tokens"]) if layout == "concat" else len(files))]
    for number, path in enumerate(files):
        if arrays["document_status"][number]:
            continue
        ids = tokenizer(path.read_bytes().decode())["input_ids"]  # type: ignore[operator]
        run = int(arrays["document_unit"][number]) if layout == "concat" else number
        places[run] += [(token, number, position) for position, token in enumerate(ids)]
    for run_places in places:
        made += [run_places[first : first + row_tokens] for first in range(0, len(run_places), row_tokens)]
    return made


if __name__ == "__main__":
    main()
