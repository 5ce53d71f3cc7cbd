"""Sources of every kind: the same texts come out, and what can't be used is skipped by name."""

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neurotally.profiler.corpus import (
    Document,
    Manifest,
    Source,
    Status,
    check_names,
    list_documents,
    parse_source,
    read_documents,
)
from neurotally.profiler.errors import InputError
from neurotally.profiler.streaming import spool_dataset

TEXTS = ["def f():\n\treturn 'é'\r\n", "x", "日本\n" * 3000, "\ufeffbom", "no newline"]


def read_all(source: Source, manifest: Manifest) -> list[Document]:
    """Read in units of two documents, as workers do."""
    documents: list[Document] = []
    sizes = manifest.sizes.tolist()
    for first in range(0, len(sizes), 2):
        part = slice(first, first + 2)
        documents += read_documents(source, manifest.names[part], sizes[part], sum(sizes[:first]))
    return documents


def test_files_come_in_hash_order_with_their_exact_content(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"d{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"d{number % 2}" / f"{number}.py").write_bytes(text.encode())
    source = parse_source(str(tmp_path))
    manifest = list_documents(source)
    expected = {f"d{number % 2}/{number}.py": text for number, text in enumerate(TEXTS)}
    assert manifest.names == sorted(expected, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    documents = read_all(source, manifest)
    assert [document.text for document in documents] == [expected[name] for name in manifest.names]
    assert [d.sha256 for d in documents] == [hashlib.sha256(expected[n].encode()).digest() for n in manifest.names]
    assert list_documents(source, 3).names == manifest.names[:3]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.py", {"a.py", "src/b.py", "src/deep/c.py"}),
        ("**/*.py", {"a.py", "src/b.py", "src/deep/c.py"}),
        ("src/*.py", {"src/b.py", "src/deep/c.py"}),
        ("[ab].*", {"a.py", "src/b.py"}),
    ],
)
def test_globs(tmp_path: Path, glob: str, expected: set[str]) -> None:
    for name in ("a.py", "src/b.py", "src/deep/c.py", "src/d.md", ".git/e.py", "src/.f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "src", tmp_path / "link")
    os.symlink(tmp_path / "a.py", tmp_path / "link.py")
    assert set(list_documents(parse_source(f"{tmp_path}::{glob}")).names) == expected


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    contents = {"good": b"x", "empty": b"", "latin": b"\xe9", "grown": b"x", "gone": b"x"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    source = parse_source(str(tmp_path))
    manifest = list_documents(source)
    (tmp_path / "grown").write_bytes(b"xy")
    (tmp_path / "gone").unlink()
    statuses = dict(zip(manifest.names, (d.status for d in read_all(source, manifest)), strict=True))
    assert statuses == {
        "good": Status.COUNTED,
        "empty": Status.EMPTY,
        "latin": Status.NOT_UTF8,
        "grown": Status.CHANGED,
        "gone": Status.UNREADABLE,
    }


def test_names_from_data_never_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "corpus").mkdir()
    source = Source("folder", str(tmp_path / "corpus"), None, "folder")
    (document,) = read_documents(source, ["../secret"], [1], 0)
    assert document.text is None
    assert document.status is Status.UNREADABLE


@pytest.mark.parametrize("column", [None, "code", "body"])
def test_jsonl(tmp_path: Path, column: str | None) -> None:
    key = column or "content"
    lines = [json.dumps({"id": 1, key: text}).encode() for text in TEXTS]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join([*lines, b"not json", b'{"id": 2}', b'{"%s": null}' % key.encode()]))
    source = parse_source(f"{tmp_path}/c.jsonl" + (f"::{column}" if column else ""))
    documents = read_all(source, list_documents(source))
    assert [document.text for document in documents] == [*TEXTS, None, None, None]
    assert [document.status for document in documents[-3:]] == [Status.UNREADABLE] * 3


def test_json_that_spells_what_utf8_cannot(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "\\ud800"}\n')
    source = parse_source(f"{tmp_path}/c.jsonl")
    assert [d.status for d in read_all(source, list_documents(source))] == [Status.NOT_UTF8]


@pytest.mark.parametrize("rows_a_group", [2, 3, 100])
def test_parquet(tmp_path: Path, rows_a_group: int) -> None:
    table = pa.table({"id": list(range(7)), "text": [*TEXTS, None, ""]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=rows_a_group)
    source = parse_source(f"{tmp_path}/c.parquet")
    manifest = list_documents(source)
    assert manifest.sizes.tolist() == [*(len(text.encode()) for text in TEXTS), 0, 0]
    documents = read_all(source, manifest)
    assert [document.text for document in documents] == [*TEXTS, None, None]
    assert [document.status for document in documents[-2:]] == [Status.UNREADABLE, Status.EMPTY]


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="expected a text column text or content or code, it has"):
        list_documents(parse_source(f"{tmp_path}/c.parquet"))


def test_a_dataset_is_streamed_once_to_a_local_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in TEXTS))
    source = spool_dataset(f"hf:{tmp_path / 'data'}", tmp_path / "spool.parquet", 4)
    assert [document.text for document in read_all(source, list_documents(source))] == TEXTS[:4]
    (tmp_path / "data" / "train.jsonl").unlink()
    again = spool_dataset(f"hf:{tmp_path / 'data'}", tmp_path / "spool.parquet", 4)
    assert list_documents(again).names == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 101,
        "a/b",
        "a=b",
        ".a",
        "__a",
        "a\nb",
        "zarr.json",
        "日" * 90,
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        check_names([name])


def test_names_that_differ_only_in_case_are_refused() -> None:
    check_names(["c", "c++", "C#", "日本語"])
    with pytest.raises(InputError, match="'GO' and 'go' differ only in case"):
        check_names(["GO", "go"])


@pytest.mark.parametrize("text", ["/nowhere", "{here}/file.txt", "{here}/empty", "{here}/full::*.rs"])
def test_bad_sources_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.py").write_text("x")
    with pytest.raises(InputError):
        list_documents(parse_source(text.format(here=tmp_path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").chmod(0)
    source = parse_source(str(tmp_path))
    assert [d.status for d in read_all(source, list_documents(source))] == [Status.UNREADABLE]
