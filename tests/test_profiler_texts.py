"""Texts are found again, verified, and their places are right, whatever a file's lines look like."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tokenizer

from neurotally.analysis.keys.places import find_line
from neurotally.jobs import profile
from neurotally.jobs.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Manifest
from neurotally.profiler.corpus.sources import parse_source
from neurotally.profiler.corpus.texts import (
    CorpusTexts,
    TokenText,
    corpus_texts,
    load_tokenizer,
    read_tokens,
    remembered_source,
)
from neurotally.profiler.corpus.windows import cut_windows, read_windows
from neurotally.profiler.errors import InputError

FILES = {
    "tabs.py": "def f(x):\n\treturn\tx\n\n\n\tif x:\n\t\tpass\n",
    "crlf.py": "import os\r\n\r\ndef f():\r\n    return os\r\n",
    "unicode.py": "é = '数据 🎉🎉'\nprint(é)  # naïve\u2028still line 2\x0bstill\x0cline 2\nlast = 'ß'\n",
    "no_final_newline.py": "a = 1\nb = 2",
    "lone_cr.py": "a = 1\rb = 2\rc = [a,\r\n\rb]",
    "mixed.py": "\r\n\n\r\r\n x\n\r\ny",
    "bom.py": "\ufeffimport os\nx = 1\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "corpora" / "python" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "corpora"


def run(model: Path, path: Path, corpora: Path, **options: Any) -> Path:
    options = {"row_tokens": 64, "groups": 3, "triggers": 4, **options}
    profile(str(model), path, corpora=corpora, progress=Progress(quiet=True), **options)
    return path


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """By reading what is before with Python's universal newlines; a break is one character."""
    before = io.TextIOWrapper(io.BytesIO(text[:offset].encode()), encoding="utf-8", newline=None).read()
    if text[offset - 1 : offset + 1] == "\r\n":  # between the two: still at the break
        before = before[:-1]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_line_and_column_of_every_token(name: str, model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    texts, tokenizer = corpus_texts(path, "python"), load_tokenizer(path)
    number = texts.names.index(name)
    (document,) = read_tokens(texts, [number], tokenizer)
    assert isinstance(document, TokenText)
    encoded = tokenizer(FILES[name], return_offsets_mapping=True)
    assert document.ids_T.tolist() == encoded["input_ids"]
    for position, (start, end) in enumerate(encoded["offset_mapping"][1:], 1):
        found = find_line(document.text, *document.span_T2[position].tolist())
        assert (found["line"], found["column"]) == line_and_column(FILES[name], start), (position, start)
        with_breaks = FILES[name][start:end].replace("\r\n", "\n").replace("\r", "\n")
        assert found["token"] == with_breaks
        lines = io.StringIO(FILES[name], newline=None).read().split("\n")
        is_short = len(lines) - (not lines[-1]) <= 5
        around = lines if is_short else lines[max(0, found["line"] - 3) : found["line"] + 2]
        assert found["text"].removesuffix("\n").split("\n") == around or found["text"] == "\n".join(around)


def test_byte_tokens_that_split_a_character_share_it() -> None:
    tokenizer = make_tokenizer(vocabulary=258, bos=False)  # bytes alone
    texts = "x🎉y"
    ids = tokenizer(texts)["input_ids"]
    assert len(ids) == 6
    corpus = CorpusTexts(Path("none"), "c", ["a"], np.array([6]), np.zeros((1, 32), np.uint8), np.zeros(1, np.uint8),
                         np.array([6], np.uint32), None, None, None)  # fmt: skip
    from neurotally.profiler.corpus.texts import Text, _tokenised

    (document,) = _tokenised(corpus, [Text(0, texts, None)], tokenizer)
    assert isinstance(document, TokenText)
    assert document.span_T2.tolist() == [[0, 1], [1, 2], [1, 2], [1, 2], [1, 2], [2, 3]]


def test_offsets_that_leave_out_white_space_get_it_back() -> None:
    from neurotally.profiler.corpus.texts import closed_gaps

    # "a", "\n\n" trimmed to nothing at its end, "b" trimmed of a leading space
    assert closed_gaps(np.array([[0, 0], [0, 1], [3, 3], [4, 5]])).tolist() == [[0, 0], [0, 1], [1, 3], [4, 5]]


def test_changed_and_missing_files_are_named_and_others_found(model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    (folder / "python" / "tabs.py").write_bytes(FILES["tabs.py"].replace("pass", "exit").encode())  # as many bytes
    (folder / "python" / "crlf.py").unlink()
    (folder / "python" / "bom.py").write_bytes(b"longer than it was before it changed")
    texts = corpus_texts(path, "python")
    found = {texts.names[one.number]: one for one in texts.read(range(len(FILES)))}
    assert {name for name, one in found.items() if one.text is None} == {"tabs.py", "crlf.py", "bom.py"}
    assert "changed" in str(found["tabs.py"].reason)
    assert "changed" in str(found["bom.py"].reason)
    assert "gone" in str(found["crlf.py"].reason)
    assert found["unicode.py"].text == FILES["unicode.py"]


def test_a_moved_folder_is_named_by_the_caller(model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    assert store.corpus_attributes(path, "python")["source_path"] == str(folder / "python")
    folder.rename(tmp_path / "moved")
    assert {one.reason for one in corpus_texts(path, "python").read([0, 1])} == {
        "it isn't in the store, and gone or changed where the store says it was"
    }
    source = parse_source(str(tmp_path / "moved" / "python"))
    assert all(one.text for one in corpus_texts(path, "python", source).read(range(len(FILES))))


@pytest.mark.parametrize("window_lines", [None, 2])
@pytest.mark.slow
def test_kept_texts_stand_alone(window_lines: int | None, model_folder: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "python" / "empty.py").write_bytes(b"")
    (folder / "python" / "latin.py").write_bytes("é = 1\n".encode("latin-1"))
    path = run(model_folder, tmp_path / "s", folder, keep_texts=True, window_lines=window_lines)
    assert store.store_attributes(path)["config"]["keep_texts"] is True
    for file in (folder / "python").iterdir():
        file.unlink()
    folder.joinpath("python").rmdir()
    texts = corpus_texts(path, "python")
    counted = np.flatnonzero(texts.status_D == 0).tolist()
    parts: dict[str, list[tuple[int, str]]] = {}
    for one in texts.read(counted):
        text = str(one.text)
        assert hashlib.sha256(text.encode()).digest() == bytes(texts.sha256_D32[one.number])
        name, _, lines = texts.names[one.number].partition("#L")
        parts.setdefault(name, []).append((int(lines.partition("-")[0] or 1), text))
    assert {name: "".join(text for _, text in sorted(of)) for name, of in parts.items()} == FILES
    skipped = store.read_corpus(path, "python")["document_text"][texts.status_D != 0]
    assert skipped.tolist() == ["", ""]


def test_other_settings_of_texts_are_refused(model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    (folder / "more").mkdir()
    (folder / "more" / "a.py").write_text("a = 1\n")
    with pytest.raises(InputError, match="keep_texts is True, the store has None"):
        run(model_folder, path, folder, keep_texts=True)
    with pytest.raises(InputError, match="--window-lines needs --layout documents"):
        run(model_folder, tmp_path / "t", folder, window_lines=5, layout="concat")


@pytest.mark.slow
def test_records(model_folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = [text for text in FILES.values()]
    pq.write_table(pa.table({"text": values}), tmp_path / "x.parquet", row_group_size=3)
    lines = [json.dumps({"n": number, "text": text}) for number, text in enumerate(values)]
    (tmp_path / "y.jsonl").write_text("\n".join(lines) + "\n")
    corpus = {"x": tmp_path / "x.parquet", "y": tmp_path / "y.jsonl"}
    quiet = Progress(quiet=True)
    profile(str(model_folder), tmp_path / "s", corpus=corpus, row_tokens=64, groups=2, progress=quiet)
    for name in "xy":
        texts = corpus_texts(tmp_path / "s", name)
        assert [one.text for one in texts.read([1, 4, 6])] == [values[1], values[4], values[6]]
    pq.write_table(pa.table({"text": values[:5]}), tmp_path / "x.parquet")
    reasons = [one.reason for one in corpus_texts(tmp_path / "s", "x").read([1, 4, 6])]
    assert reasons[:2] == [None, None]
    assert "changed" in str(reasons[2])


@pytest.mark.slow
def test_another_tokenizer_is_refused(model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    make_tokenizer(vocabulary=400).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="isn't the one"):
        load_tokenizer(path, str(tmp_path / "other"))
    with pytest.raises(InputError, match="can't load the tokenizer"):
        load_tokenizer(path, str(tmp_path / "nothing"))


@pytest.mark.parametrize("num_lines", [1, 2, 5, 100])
def test_windows_are_the_file_cut_at_its_lines(num_lines: int, folder: Path) -> None:
    (folder / "python" / "copy.py").write_bytes(FILES["tabs.py"].encode())
    (folder / "python" / "latin.py").write_bytes("a = 1\né = 1\n".encode("latin-1"))
    source = parse_source(str(folder / "python"))
    names = [*FILES, "copy.py", "latin.py"]
    windows = cut_windows(Path(source.path), Manifest(names, np.zeros(len(names), np.uint64)), num_lines)
    documents = list(read_windows(Path(source.path), windows.names, windows.sizes.tolist()))
    by_file: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, document, is_repeat in zip(windows.names, documents, windows.is_repeat_D, strict=True):
        file, _, lines = name.rpartition("#L")
        if file == "latin.py":
            assert document.text is None
            assert lines == "1-2"
            continue
        assert document.text is not None
        first, last = map(int, lines.split("-"))
        assert first == len(by_file.setdefault(file, [])) * num_lines + 1
        by_file[file].append(document.text)
        universal = io.StringIO(document.text, newline=None).read()
        assert last - first + 1 == len(universal.removesuffix("\n").split("\n")) <= num_lines
        assert is_repeat == (document.text in seen)
        seen.add(document.text)
    expected = {**FILES, "copy.py": FILES["tabs.py"]}
    assert {name: "".join(parts) for name, parts in by_file.items()} == expected


def test_what_lies_at_paths_that_a_store_names_is_not_told(model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "there").write_text("secret")
    (tmp_path / "private" / "file.txt").write_text("secret")

    def reasons(source_path: Path, name: str) -> set[str | None]:
        texts = corpus_texts(path, "python")
        source = remembered_source({"source_path": str(source_path), "selector": None})
        names = [name] * len(texts.names)
        return {one.reason for one in replace(texts, names=names, source=source).read(range(3))}

    told = [
        reasons(tmp_path / "private", "there"), reasons(tmp_path / "private", "nothing"),
        reasons(tmp_path / "nothing", "there"), reasons(tmp_path / "private" / "file.txt", "x"),
    ]  # fmt: skip
    assert told == [{"it isn't in the store, and gone or changed where the store says it was"}] * 4


def test_code_is_not_taken_from_where_a_store_says(model_folder: Path, folder: Path, tmp_path: Path) -> None:
    path = run(model_folder, tmp_path / "s", folder)
    with pytest.raises(InputError, match=f"--trust-remote-code needs --model: .* {model_folder}, only because a store"):
        load_tokenizer(path, trust_remote_code=True)
    assert load_tokenizer(path, str(model_folder), trust_remote_code=True) is not None
    assert load_tokenizer(path) is not None
