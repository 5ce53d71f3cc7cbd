"""triggers, patterns, concepts: on real stores, against a brute-force topk, and what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import HookCount, corpus_order
from test_profiler_texts import FILES, line_and_column
from transformers import AutoTokenizer

from neurotally.profiler import store
from neurotally.profiler.corpus import matches

Run = Callable[..., tuple[int, str, str]]
TOP = 4


@pytest.fixture
def corpora(make_corpora: Any, tmp_path: Path) -> Path:
    """Short cuts of argparse, the odd files of `test_profiler_texts`, and copies of some."""
    folder: Path = make_corpora({"python": 25})
    for name, text in FILES.items():
        (folder / "python" / name).write_bytes(text.encode())
        (folder / "python" / f"copy_of_{name}").write_bytes(text.encode())
    return folder


def profile(run: Run, model: Path, path: Path, corpora: Path, *options: object) -> None:
    fixed = ("--row-tokens", 64, "--groups", 3, "--triggers", TOP)
    code, _, errors = run("profile", model, path, "--corpora", corpora, *fixed, *options)
    assert code == 0, errors


def brute_force(model: Path, units: list[tuple[str, int, str]]) -> dict[tuple[int, int], list[Any]]:
    """(layer, neuron): all (value, name, line, column, position, token), best first, over (name, first line, text).

    A row is 64 tokens that start afresh; of units with one text only the first counts.
    """
    tokenizer, count = AutoTokenizer.from_pretrained(model), HookCount(model, torch.float32)
    best: dict[tuple[int, int], list[Any]] = {(layer, neuron): [] for layer in range(2) for neuron in range(48)}
    seen = set()
    for name, first, text in units:
        if text in seen:
            continue
        seen.add(text)
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        coefficient_LTF = np.concatenate([count.row(ids[at : at + 64]) for at in range(0, len(ids), 64)], axis=1)
        values, positions = torch.from_numpy(coefficient_LTF[:, 1:].astype(np.float32)).topk(1, dim=1)
        for layer, neuron in best:
            value, position = float(values[layer, 0, neuron]), int(positions[layer, 0, neuron]) + 1
            start, end = offsets[position]
            line, column = line_and_column(text, start)
            token = text[start:end].replace("\r\n", "\n").replace("\r", "\n")
            if value > 0:
                best[layer, neuron].append((value, name, first - 1 + line, column, position, token))
    return {key: sorted(entries, key=lambda entry: -entry[0]) for key, entries in best.items()}


def cut(files: list[tuple[str, str]], num_lines: int) -> list[tuple[str, int, str]]:
    """Windows by Python's own reading of lines, with every line's ending kept."""
    units = []
    for name, text in files:
        lines = list(_lines(text))
        for first in range(0, len(lines), num_lines):
            part = lines[first : first + num_lines]
            units.append((f"{name}#L{first + 1}-{first + len(part)}", first + 1, "".join(part)))
    return units


def _lines(text: str) -> Any:
    import io

    yield from io.StringIO(text, newline="")  # universal newlines, untranslated


@pytest.mark.parametrize("window_lines", [None, 1, 5])
@pytest.mark.slow
def test_triggers_equal_a_brute_force_topk(
    window_lines: int | None, run: Run, model_folder: Path, corpora: Path, tmp_path: Path
) -> None:
    options = ("--window-lines", window_lines) if window_lines else ()
    profile(run, model_folder, tmp_path / "s", corpora, *options)
    root = corpora / "python"
    files = [(path.relative_to(root).as_posix(), path.read_bytes().decode()) for path in corpus_order(root)]
    units = cut(files, window_lines) if window_lines else [(name, 1, text) for name, text in files]
    expected = brute_force(model_folder, units)
    whole_lists = 0
    for layer, neuron in [(layer, neuron) for layer in range(2) for neuron in range(0, 48, 7)]:
        code, out, _ = run("triggers", tmp_path / "s", layer, neuron, "--json")
        entries = json.loads(out)
        assert code == 0
        # Texts that begin alike tie, up to the rounding of two shapes of batch: which of them comes first is free.
        best = expected[layer, neuron][:TOP]
        if window_lines is None:  # copies are left out when the list is read, so it may be shorter
            assert len(entries) <= len(best)
        else:
            assert len(entries) == len(best)
        whole_lists += len(entries) == TOP
        values = [entry["coefficient"] for entry in entries]
        np.testing.assert_allclose(values, [entry[0] for entry in best[: len(entries)]], rtol=1e-5)
        of_unit = {entry[1]: entry for entry in expected[layer, neuron]}
        for entry in entries:
            found = (entry["document"], entry["line"], entry["column"], entry["position"], entry["token"])
            assert found == of_unit[entry["document"]][1:]
            assert entry["coefficient"] == pytest.approx(of_unit[entry["document"]][0], rel=1e-5)
        assert len({entry["document"] for entry in entries}) == len(entries)
        for entry in entries:
            assert entry["text"][entry["text_start"] :].startswith(entry["token"])
            assert entry["line"] - entry["text_line"] == entry["text"][: entry["text_start"]].count("\n")
            assert entry["corpus"] == "python"
    assert whole_lists > 5


@pytest.mark.slow
def test_triggers_of_lost_texts(run: Run, model_folder: Path, corpora: Path, tmp_path: Path) -> None:
    profile(run, model_folder, tmp_path / "s", corpora)
    before = json.loads(run("triggers", tmp_path / "s", 1, 3, "--json", "--top", 3)[1])
    assert len(before) == 3
    lost = corpora / "python" / before[0]["document"]
    lost.unlink()
    after = json.loads(run("triggers", tmp_path / "s", 1, 3, "--json", "--top", 3)[1])
    assert after[1:] == before[1:]
    assert (after[0]["document"], after[0]["text"], after[0]["line"]) == (before[0]["document"], None, None)
    assert "gone" in after[0]["reason"]
    text = run("triggers", tmp_path / "s", 1, 3, "--top", 3)[1]
    assert f"{before[0]['document']}  token" in text
    assert f"{before[1]['document']}:{before[1]['line']}:{before[1]['column']}\n" in text
    assert f"«{before[1]['token']}" in text
    shutil.move(corpora, tmp_path / "moved")
    refused(run("triggers", tmp_path / "s", 1, 3), "none of")
    after[0]["reason"] = "gone, or can't be read"
    assert (
        json.loads(run("triggers", tmp_path / "s", 1, 3, "--json", "--top", 3, "--corpora", tmp_path / "moved")[1])
        == after
    )
    source = f"python={tmp_path / 'moved' / 'python'}"
    assert (
        json.loads(run("triggers", tmp_path / "s", 1, 3, "--json", "--top", 3, "--corpus-source", source)[1]) == after
    )


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("neurotally: ")
    assert message in err


@pytest.mark.slow
def test_patterns_and_concepts(run: Run, model_folder: Path, corpora: Path, tmp_path: Path) -> None:
    profile(run, model_folder, tmp_path / "s", corpora)
    for seed in (1, 2):
        profile(run, model_folder, tmp_path / f"null{seed}", corpora, "--random-init", seed)
    attributes = [store.store_attributes(tmp_path / name)["model"] for name in ("s", "null1", "null2")]
    assert len({of["fingerprint"] for of in attributes}) == 3
    assert attributes[1]["id"] == f"{model_folder} with random weights, seed 1"
    assert not list((tmp_path / "null1" / ".run").glob("untrained*"))
    (tmp_path / "c.toml").write_text("[concepts]\ndef = '^\\s*def '\nself = '\\bself\\b'\n")
    nulls = ("--null", tmp_path / "null1", "--null", tmp_path / "null2")
    code, out, _ = run("patterns", tmp_path / "s", *nulls, "--regex", tmp_path / "c.toml", "--json",
                       "--figure", tmp_path / "p.png", "--archive", tmp_path / "p.npz")  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert document["null_keys"] == 2 * 2 * 48
    python = document["corpora"]["python"]
    assert python["lexer"] == "Python"
    assert python["found"] == python["triggers"]
    assert set(python["concepts"]) == {"def", "self"}
    assert (tmp_path / "p.png").stat().st_size > 1000
    check_concept_counts(run, tmp_path)
    assert run("patterns", tmp_path / "s")[0] == 0
    code, out, _ = run("concepts", tmp_path / "s", *nulls, "--regex", tmp_path / "c.toml", "--min-matches", 2, "--json",
                       "--out", tmp_path / "c.json", "--figure", tmp_path / "c.png", "--by-layer")  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(out)
    refused(run("patterns", tmp_path / "s", "--null", tmp_path / "s"), "is of a trained model")
    refused(run("patterns", tmp_path / "s", *nulls[:2], *nulls[:2]), "has the keys of another --null")
    profile(run, model_folder, tmp_path / "null3", corpora, "--random-init", 3, "--document-tokens", 20)
    refused(run("patterns", tmp_path / "s", "--null", tmp_path / "null3"), "document_tokens is None")


def check_concept_counts(run: Run, tmp_path: Path) -> None:
    """Counts of all keys against the texts that `triggers` prints."""
    import re

    with np.load(tmp_path / "p.npz") as archive:
        counts, contexts = archive["python/count/concepts/self"], archive["python/contexts"]
    for neuron in range(0, 48, 5):
        entries = json.loads(run("triggers", tmp_path / "s", 0, neuron, "--json")[1])
        distinct = {(entry["text"], entry["text_start"], entry["token"]) for entry in entries}
        assert contexts[0, neuron] == len(distinct)
        assert counts[0, neuron] == sum(re.search(r"\bself\b", text) is not None for text, _, _ in distinct)


@pytest.mark.slow
def test_bad_input_is_one_line(run: Run, model_folder: Path, corpora: Path, tmp_path: Path) -> None:
    path, none = tmp_path / "s", tmp_path / "none"
    profile(run, model_folder, path, corpora)
    fixed = ("--corpora", corpora, "--row-tokens", 64)
    assert run("profile", model_folder, none, *fixed, "--triggers", 0)[0] == 0
    (tmp_path / "bad.toml").write_text("[concepts]\nbroken = '(unclosed'\n")
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "good.toml").write_text("[concepts]\nx = 'x'\n")
    refused(run("concepts", path, "--regex", tmp_path / "bad.toml"), "'broken' doesn't compile")
    refused(run("patterns", path, "--regex", tmp_path / "bad.toml"), "'broken' doesn't compile")
    refused(run("concepts", path, "--regex", tmp_path / "empty.toml"), "has no concepts")
    refused(run("concepts", path, "--regex", tmp_path / "nothing.toml"), "can't be read")
    for command in (
        ("triggers", none, 0, 0),
        ("patterns", none),
        ("concepts", none, "--regex", tmp_path / "good.toml"),
    ):
        refused(run(*command), "has no triggers")
    refused(run("triggers", path, 2, 0), "no neuron 0 in layer 2")
    refused(run("triggers", path, 0, 48), "no neuron 48 in layer 0")
    refused(run("triggers", path, 0, 0, "--corpus", "go"), "no finished corpus 'go'")
    refused(run("triggers", tmp_path / "nowhere", 0, 0), "is no store")
    profile(run, model_folder, tmp_path / "null", corpora, "--random-init", 7, "--triggers", 3)
    refused(run("patterns", path, "--null", tmp_path / "null"), "triggers is 4, the store has 3")
    refused(run("triggers", path, 0, 0, "--model", tmp_path / "nothing"), "can't load the tokenizer")
    refused(
        run("profile", model_folder, tmp_path / "t", *fixed, "--window-lines", 5, "--layout", "concat"),
        "layout documents",
    )
    (tmp_path / "r.jsonl").write_text('{"text": "a"}\n')
    refused(
        run("profile", model_folder, tmp_path / "t", "--corpus", f"r={tmp_path / 'r.jsonl'}", "--window-lines", 5),
        "records",
    )


@pytest.mark.parametrize("command", ["patterns", "concepts", "mask"])
@pytest.mark.slow
def test_an_expression_that_takes_for_ever_is_named_with_the_document(
    command: str, run: Run, model_folder: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpora / "python" / "slow.py").write_text("x = '" + "a" * 60 + "'\n")
    profile(run, model_folder, tmp_path / "s", corpora)
    monkeypatch.setattr(matches, "LIMIT_S", 0.3)
    (tmp_path / "c.toml").write_text("[concepts]\nslow = '(a+)+$'\n")
    (tmp_path / "mask.json").write_text(json.dumps({"model": None, "specific": {"slow": [[0, 1]]}}))
    options = ["--regex", tmp_path / "c.toml"]
    if command == "mask":
        mask = ["mask", model_folder, tmp_path / "s", "--neurons", tmp_path / "mask.json", "--draws", 1]
        code, out, err = run(*mask, "--corpora", corpora, *options, "--force")
        result = code, out, err.splitlines()[-1]
    else:
        result = run(command, tmp_path / "s", *options)
    refused(result, "the expression 'slow', '(a+)+$', takes more than 0.3 s over slow.py")


EVIL = "\x1b]0;owned\x07\x1b[31m\u202e\x9b31m\r"


@pytest.mark.slow
def test_names_and_texts_cannot_command_the_terminal(
    run: Run, model_folder: Path, corpora: Path, tmp_path: Path
) -> None:
    folder = corpora / "python"
    for number in range(5):
        (folder / f"{EVIL}{number}.py").write_text(f"evil = '{EVIL}{number}'\n" * 4)
    (folder / f"{EVIL}empty.py").touch()
    code, out, err = run("profile", model_folder, tmp_path / "s", "--corpora", corpora, "--row-tokens", 64)
    assert code == 0
    attributes = store.store_attributes(tmp_path / "s")
    attributes["model"]["id"] = f"{EVIL}model"
    store.replace_attributes(tmp_path / "s", attributes)
    shown = out + err
    for neuron in range(48):
        shown += "".join(run("triggers", tmp_path / "s", 1, neuron, "--model", model_folder)[1:])
    shown += "".join(run("triggers", tmp_path / "s", 1, 0)[1:])  # can't load the tokenizer of …
    shown += "".join(run("lape", tmp_path / EVIL)[1:])
    shown += "".join(run("profile", f"{EVIL}model", tmp_path / "new", "--corpora", corpora)[1:])
    assert not set(shown) & set(EVIL.replace("0;owned", "").replace("31m", "").replace("[", "").replace("]", ""))
    assert "␛]0;owned␇␛[31m‹U+202E›‹U+009B›31m␍empty.py" in shown
    assert "'␛" in shown
    assert "the tokenizer of ␛" in shown
    assert "loading ␛" in shown
