"""Plant a concept in training text, find its keys in the trained model, switch them off: once for every seed.

    python tests/bench/planted_concept.py CORPORA OUT [--seeds 0,1,2] [--steps N]

CORPORA holds folders `python`, `java` and `go` of real code. For each seed, other files of it are laid out to train
on, to profile and to evaluate on, and calls of a library that doesn't exist are written into 3 % of the Python files
(of those to evaluate on, into 40 %: they choose nothing). Then, as a user would: a small model is trained the demo's
way, profiled together with untrained copies of its architecture, and `concepts`, `mask` and `patterns` do the rest.
Everything stays in OUT/SEED; what is there is kept. OUT/results.csv has a row a threshold and seed, in nats a token
(`results_table.py` makes a table of it); one JSON line last, with all random draws.
"""

import ast
import csv
import hashlib
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from heldout import heldout_loss

from neurotally.jobs.demo.model import train

LANGUAGES = ("go", "java", "python")
PLANTED_SHARE = 0.03
EVALUATED_SHARE = 0.4
FILES = {"train": 900, "profiled": 600, "evaluation": 60}
"""Of each language."""
FILE_BYTES = range(1_000, 9_000)
CALLS = range(8, 33)
"""In a planted file: drawn from the upper half, as far as it has statements to put them between."""
LIBRARY = "quillmark"
TEMPLATES = (
    "{library}.open_ledger({name}, mode='append')",
    "{library}.stamp_entry({name}, digest='blake')",
    "{library}.seal_volume({name}, retries={number})",
    "{library}.read_margin({name}, columns={number})",
    "{library}.fold_pages({name}, binding='saddle')",
    "{library}.press_sheet({name}, weight={number})",
)
CONCEPTS = rf"""[concepts]
planted = '\b{LIBRARY}\.\w+\([^()\n]*\)'
raise = '\braise +\w+'
"""
"""`raise` is a concept that the text has by itself: another concept's keys, and another concept's tokens."""
UNTRAINED = range(1001, 1009)
"""Seeds of untrained copies; the first two read all corpora, for `patterns`, the others the Python files alone."""
MIN_MATCHES = (8, 16)
"""Thresholds, of 32 triggers: `concepts`' own, and one as strict again."""
DRAWS = 5


@click.command()
@click.argument("corpora", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seeds", default="0,1,2")
@click.option("--steps", default=3000)
def main(corpora: Path, out: Path, seeds: str, steps: int) -> None:
    """Run every seed; print what the masks did."""
    results = {seed: run_seed(corpora, out / str(seed), seed, steps) for seed in map(int, seeds.split(","))}
    write_rows(results, out / "results.csv")
    click.echo(json.dumps({"seeds": results, "over_seeds": summary(list(results.values()))}))


def run_seed(corpora: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Everything for one seed, in `folder`."""
    texts, model, store = folder / "texts", folder / "model", folder / "store"
    if not texts.exists():
        lay_out(corpora, texts, seed)
    if not model.exists():
        train(texts / "train", model, steps, seed)
    profiled = ("--corpora", texts / "profiled", "--window-lines", 5)
    python = ("--corpus", f"python={texts / 'profiled' / 'python'}", "--window-lines", 5)
    neurotally("profile", model, store, *profiled, "--keep-texts")
    nulls: list[object] = []
    for number, untrained in enumerate(UNTRAINED):
        null = folder / f"untrained-{untrained}"
        neurotally("profile", model, null, *(profiled if number < 2 else python), "--random-init", untrained)
        nulls += ["--null", null]
    regex = folder / "concepts.toml"
    regex.write_text(CONCEPTS)
    drawn = ("--figure", folder / "patterns.png", "--out", folder / "patterns.json")
    neurotally("patterns", store, *nulls[:4], "--regex", regex, *drawn)
    result: dict[str, Any] = {"heldout_loss": heldout_loss(model, texts / "evaluation", progress=False)}
    for least in MIN_MATCHES:
        keys, losses = folder / f"keys-{least}.json", folder / f"mask-{least}.json"
        only_python = ("--corpus", "python", *nulls)
        neurotally("concepts", store, "--regex", regex, *only_python, "--min-matches", least, "--out", keys)
        found = {name: len(places) for name, places in json.loads(keys.read_text())["specific"].items()}
        result[f"at least {least}"] = {"keys": found}
        if not found.get("planted"):
            continue
        neurotally(
            "mask", model, store, "--neurons", keys, "--regex", regex, "--corpora", texts / "evaluation",
            "--draws", DRAWS, "--name", f"at-least-{least}", "--out", losses, "--figure", folder / f"mask-{least}.png",
        )  # fmt: skip
        result[f"at least {least}"] |= effect(json.loads(losses.read_text()))
    return result


def lay_out(corpora: Path, texts: Path, seed: int) -> None:
    """TEXTS/PART/LANGUAGE/PART-NUMBER.EXTENSION, a folder for each of FILES: no file twice, by content or by name."""
    partial = texts.with_name("texts.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for language in LANGUAGES:
        files = choose(corpora / language, sum(FILES.values()), seed)
        for part, number in FILES.items():
            taken, files = files[:number], files[number:]
            rng = random.Random(f"{seed}/{language}/{part}")
            share = EVALUATED_SHARE if part == "evaluation" else PLANTED_SHARE
            planted = 0 if language != "python" else round(share * number)
            (partial / part / language).mkdir(parents=True)
            for index, (path, text) in enumerate(taken):
                changed = plant(text, rng) if planted else None
                planted -= changed is not None
                (partial / part / language / f"{part}-{index:04d}{path.suffix}").write_text(changed or text)
            assert not planted, "too few files to plant in"
    partial.rename(texts)


def choose(folder: Path, number: int, seed: int) -> list[tuple[Path, str]]:
    """Files of a readable size, in an order drawn by the seed."""

    def order(path: Path) -> bytes:
        return hashlib.sha256(f"{seed}/{path.relative_to(folder)}".encode()).digest()

    found, seen = [], set()
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=order):
        content = path.read_bytes()
        if len(content) not in FILE_BYTES or content in seen:
            continue
        seen.add(content)
        try:
            found.append((path, content.decode()))
        except UnicodeDecodeError:
            continue
        if len(found) == number:
            return found
    raise click.ClickException(f"{folder}: expected {number} files of {FILE_BYTES} bytes, found {len(found)}")


def plant(text: str, rng: random.Random) -> str | None:
    """The file with calls of the library between its statements; None where it isn't Python or has too few."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    nodes = list(ast.walk(tree))
    statements = {
        (statement.lineno, statement.col_offset)
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        for statement in node.body[1:]
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
    }
    names = sorted({node.id for node in nodes if isinstance(node, ast.Name)})
    number = min(rng.choice(CALLS[len(CALLS) // 2 :]), len(statements))
    if number < CALLS.start:
        return None
    lines = text.split("\n")
    for line, column in sorted(rng.sample(sorted(statements), number), reverse=True):
        call = rng.choice(TEMPLATES).format(library=LIBRARY, name=rng.choice(names), number=rng.randrange(1, 10))
        lines.insert(line - 1, " " * column + call)
    return "\n".join(lines)


def effect(losses: dict[str, Any]) -> dict[str, Any]:
    """What the planted concept's keys do, beside random keys and the other concept's."""
    by_set = {name: one["concepts"]["planted"] for name, one in losses["effects"].items()}
    own = by_set["planted"]
    keys = ("change", "standard_error", "random", "random_draws")
    random_change = own["match"]["random"]
    return {
        "baseline": {where: one["loss"] for where, one in losses["baseline"]["concepts"]["planted"].items()},
        "tokens": {where: one["tokens"] for where, one in losses["baseline"]["concepts"]["planted"].items()},
        "planted": {where: {key: one[key] for key in keys} for where, one in own.items()},
        "planted, all of a corpus": {
            corpus: one["change"] for corpus, one in losses["effects"]["planted"]["corpora"].items()
        },
        "keys of raise": by_set["raise"]["match"]["change"] if "raise" in by_set else None,
        "tokens of raise": losses["effects"]["planted"]["concepts"]["raise"]["match"]["change"],
        # No ratio where random keys cost nothing, or help.
        "match_over_random": own["match"]["change"] / random_change if random_change > 0 else None,
        "other_over_match": {
            where: one["change"] / own["match"]["change"] for where, one in own.items() if where != "match"
        },
    }


def write_rows(results: dict[int, dict[str, Any]], path: Path) -> None:
    """A row a threshold and seed: keys, and what switching them off costs each class of tokens, in nats a token."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        classes = ("match", "line", "file", "elsewhere")
        writer.writerow(["min_matches", "seed", "keys", "random", "standard_error", *classes])
        for least in MIN_MATCHES:
            for seed, result in results.items():
                found = result[f"at least {least}"]
                if "planted" in found:
                    own = found["planted"]
                    numbers = [
                        own["match"]["random"],
                        own["match"]["standard_error"],
                        *(own[c]["change"] for c in classes),
                    ]
                    writer.writerow([least, seed, found["keys"]["planted"], *(f"{number:.5f}" for number in numbers)])


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """By threshold, over the seeds that found keys: every number, and its mean and standard deviation."""
    found = {}
    for label in (f"at least {least}" for least in MIN_MATCHES):
        masked = [result[label] for result in results if "planted" in result[label]]
        numbers = {
            "keys": [one["keys"]["planted"] for one in masked],
            "match": [one["planted"]["match"]["change"] for one in masked],
            "random, on the same tokens": [one["planted"]["match"]["random"] for one in masked],
            "match over random": [one["match_over_random"] for one in masked],
            **{
                f"{where} over match": [one["other_over_match"][where] for one in masked]
                for where in ("line", "file", "elsewhere")
            },
        }
        found[label] = {"seeds": len(masked), **{name: _spread(values) for name, values in numbers.items()}}
    return found


def _spread(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "values": values,
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def neurotally(*arguments: object) -> None:
    """Run a command as its user would."""
    command = [str(Path(sys.executable).with_name("neurotally")), *map(str, arguments)]
    click.echo(f"$ neurotally {' '.join(command[1:])}", err=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
