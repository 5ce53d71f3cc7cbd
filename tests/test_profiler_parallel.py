"""Parallel corpora in every form they come in, and the published one."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from neurotally.profiler.corpus.parallel import read_parallel
from neurotally.profiler.errors import InputError

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "parallel" / "code_snippets.zip"
TEXTS = {"C": {"1-2": "int x;\n", "10-1": "int y;", "9-9": " /* é */\r\n"},
         "Python": {"1-2": "x = 0\n", "10-1": "", "9-9": "# é\n\n"}}  # fmt: skip


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def by_file(suffix: str = ".txt") -> dict[str, str]:
    return {f"{language}/{id_}{suffix}": text for language, ids in TEXTS.items() for id_, text in ids.items()}


def test_a_folder_a_language_a_file_an_id(tmp_path: Path) -> None:
    found = read_parallel(lay_out(tmp_path, {**by_file(), "C/.hidden": "?", "__MACOSX/C/1-2.c": "?"}))
    assert found.texts == TEXTS
    assert found.languages == ("C", "Python")
    assert found.ids == ("1-2", "10-1", "9-9")
    assert not found.left_out
    assert [list(ids) for ids in found.texts.values()] == [["1-2", "10-1", "9-9"]] * 2


def test_limit_takes_the_first_ids_in_sorted_order_and_reads_no_other(tmp_path: Path) -> None:
    (lay_out(tmp_path, by_file()) / "C" / "9-9.txt").write_bytes(b"\xff")
    found = read_parallel(tmp_path, limit=2)
    assert found.ids == ("1-2", "10-1") == tuple(found.texts["C"])
    with pytest.raises(InputError, match=r"9-9\.txt is not UTF-8"):
        read_parallel(tmp_path)


@pytest.mark.parametrize("around", ["", "code/"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_records_with_fields(tmp_path: Path, packed: bool, around: str) -> None:
    files = {
        f"{around}{name}.json": json.dumps({"idx": "?", "code": "?", "snippet": text, "comment": f"{name}\n"})
        for name, text in by_file("").items()
    }
    path = tmp_path / "source"
    if packed:
        path = tmp_path / "source.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        lay_out(path, files)
    assert read_parallel(path).texts == TEXTS
    found = read_parallel(path, fields=["english=C::comment"])
    assert found.languages == ("C", "Python", "english")
    assert found.texts["english"]["9-9"] == "C/9-9\n"


def test_lines(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(1, 12)]
    lines[3] = " a\fb "
    found = read_parallel(lay_out(tmp_path, {"de.txt": "\n".join(lines) + "\n", "en.txt": "\r\n".join(lines)}))
    assert list(found.texts["de"].values()) == list(found.texts["en"].values()) == lines
    assert found.ids[0] == "0000001"
    assert found.ids[-1] == "0000011"


def test_records_a_line(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "a"}, {"text": "b"}]
    as_lines = "".join(json.dumps(row) + "\n" for row in rows)
    found = read_parallel(lay_out(tmp_path, {"de.jsonl": as_lines, "en.jsonl": as_lines}))
    assert found.texts == {"de": (expected := {"0000002": "b", "7": "a"}), "en": expected}


def test_one_file_with_a_field_a_language(tmp_path: Path) -> None:
    rows = [{"id": "b", "C": "1", "Java": "2"}, {"id": "a", "C": "3", "Java": "4"}]
    path = lay_out(tmp_path, {"x.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}) / "x.jsonl"
    assert read_parallel(path).texts == {"C": {"a": "3", "b": "1"}, "Java": {"a": "4", "b": "2"}}


def test_an_id_that_a_language_lacks(tmp_path: Path) -> None:
    (lay_out(tmp_path, by_file()) / "Python" / "9-9.txt").unlink()
    with pytest.raises(InputError, match=r"id '9-9' of 'C' is missing in 'Python'; 1 of 3 ids .* keeps the 2"):
        read_parallel(tmp_path, limit=1)
    found = read_parallel(tmp_path, common=True)
    assert found.ids == ("1-2", "10-1")
    assert found.left_out == ("9-9",)


def test_what_identifies_a_corpus(tmp_path: Path) -> None:
    sources = {
        "same": by_file(".py"), "same again": by_file(".json_"),
        "other text": {**by_file(), "C/1-2.txt": "?"}, "other id": {**by_file(), "C/x.txt": "", "Python/x.txt": ""},
    }  # fmt: skip
    sha256 = [read_parallel(lay_out(tmp_path / name, files)).sha256 for name, files in sources.items()]
    assert sha256[0] == sha256[1]
    assert len(set(sha256)) == 3


MISTAKES = {
    "nothing there": ({}, {}, "expected a folder, a .txt or a .jsonl file for each language"),
    "a file beside": ({"readme.md": "?"}, {}, "expected a folder, a .txt or a .jsonl"),
    "one language": ({"C/a.c": "", "x.zip": "?"}, {}, r"found 'C' alone; is x\.zip in it meant\?"),
    "an id twice": ({"C/a.c": "", "C/a.h": ""}, {}, "a.h: id 'a' is there twice"),
    "a line's id twice": ({"C.jsonl": '{"id": 1, "text": "a"}\n' * 2}, {}, "C.jsonl, line 2: id '1' is there twice"),
    "a language twice": ({"C/a.c": "", "C.txt": "a"}, {}, "language 'C' is there twice"),
    "a folder for an id": ({"C/x/a.c": "", "Java/a.java": ""}, {}, "expected a file for each id, found a folder"),
    "no id in common": ({"C/a.c": "", "D/b.d": ""}, {"common": True}, "no id is in all of its languages"),
    "no JSON": ({"C/a.json": "{"}, {}, "a.json is no JSON"),
    "no object": ({"C/a.json": "[]"}, {}, "expected a JSON object, it is list"),
    "no text": ({"C/a.json": '{"idx": 1}'}, {}, r"expected a field snippet or .*, it has \['idx'\]"),
    "a number": ({"C/a.json": '{"snippet": 1}'}, {}, "expected text in 'snippet', it is int"),
    "half a character": ({"C/a.json": '{"snippet": "\\ud800"}'}, {}, "'snippet' is no Unicode text"),
    "field of plain text": ({"C/a.c": ""}, {"fields": ["x=C::comment"]}, "a field 'comment', it is plain"),
    "field misspelt": ({"C/a.c": ""}, {"fields": ["x=C:comment"]}, "expected NAME=LANGUAGE::FIELD"),
    "field of nowhere": ({"C/a.c": ""}, {"fields": ["x=D::comment"]}, "has no language 'D'"),
    "field in the way": ({"C/a.c": ""}, {"fields": ["C=C::comment"]}, "there is a language 'C' already"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_line(mistake: str, tmp_path: Path) -> None:
    files, options, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as error:
        read_parallel(lay_out(tmp_path, files), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none", "x.csv", "x.zip"])
def test_a_path_that_is_no_corpus(name: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"x.csv": "?", "x.zip": "?"})
    with pytest.raises(InputError, match=name):
        read_parallel(tmp_path / name)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"{PUBLISHED} is absent: the snippets published with 2506.01074")
@pytest.mark.slow
def test_the_published_snippets() -> None:
    found = read_parallel(PUBLISHED)
    assert found.languages == ("C", "C#", "C++", "Java", "Javascript", "PHP", "Python")
    assert len(found.ids) == 581

    def count(condition: Any) -> int:
        return sum(condition(id_) for id_ in found.ids)

    identical = {("C", "C++"): 261, ("C#", "Java"): 210, ("C++", "Java"): 155, ("C", "Java"): 147, ("C", "C#"): 114,
                 ("C++", "C#"): 127, ("C++", "Javascript"): 112, ("Javascript", "Java"): 105}  # fmt: skip
    for (one, other), expected in identical.items():
        assert count(lambda id_, a=one, b=other: found.texts[a][id_] == found.texts[b][id_]) == expected
    stripped = {"C": 87, "C++": 40, "C#": 5, "Java": 24, "Javascript": 33, "PHP": 15, "Python": 14}
    for language, expected in stripped.items():
        text_by_id = found.texts[language]
        assert count(lambda id_, texts=text_by_id: texts[id_] != texts[id_].strip()) == expected


@pytest.mark.parametrize("kind", ["a line", "lines", "an id", "ids"])
@pytest.mark.slow
def test_a_zip_that_unpacks_to_too_much_is_refused(kind: str, tmp_path: Path) -> None:
    from neurotally.profiler.corpus import parallel

    files = {
        "a line": {"C.txt": b"0" * (parallel._MAX_UNPACKED_BYTES + 1), "Python.txt": b"x"},
        "lines": {"C.jsonl": b"{}\n" * (parallel._MAX_UNPACKED_LINES // 2 + 1),
                  "Python.jsonl": b"{}\n" * (parallel._MAX_UNPACKED_LINES // 2)},
        "an id": {"C/1.c": b"0" * (parallel._MAX_UNPACKED_BYTES + 1), "Python/1.py": b"x"},
        "ids": {f"{name}/{id_}": b"0" * (parallel._MAX_UNPACKED_BYTES // 8 + 1) for name in "ab" for id_ in range(4)},
    }[kind]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert (tmp_path / "bomb.zip").stat().st_size < 4e6
    with pytest.raises(InputError, match=r"bomb\.zip unpacks to more than 256 MiB or 1,000,000 lines; .* unpack it"):
        read_parallel(tmp_path / "bomb.zip")


def test_a_zip_that_lies_about_its_sizes_or_is_damaged_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("C/1", b"0" * 100_000)
        archive.writestr("Python/1", b"x")
    whole = (tmp_path / "a.zip").read_bytes()
    declared = (100_000).to_bytes(4, "little")
    assert whole.count(declared) == 2
    (tmp_path / "lies.zip").write_bytes(whole.replace(declared, (10).to_bytes(4, "little")))
    (tmp_path / "damaged.zip").write_bytes(whole[:45] + b"\xff" * 10 + whole[55:])
    for name in ("lies", "damaged"):
        with pytest.raises(InputError, match=f"can't read .*{name}.zip"):
            read_parallel(tmp_path / f"{name}.zip")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"id": "\\ud800", "text": "x"}', "'id' is no Unicode text"),
        ('{"id": 1, "text": ' + "[" * 200_000 + "]" * 200_000 + "}", "is no JSON: maximum recursion"),
        ('{"id": ' + "9" * 10_000 + ', "text": "x"}', "is no JSON: Exceeds the limit"),
    ],
    ids=["a surrogate", "nested", "a huge number"],
)
def test_records_that_are_refused_in_one_line(record: str, message: str, tmp_path: Path) -> None:
    lay_out(tmp_path, {"C.jsonl": record, "Python.jsonl": '{"id": 1, "text": "x"}'})
    with pytest.raises(InputError, match=message) as caught:
        read_parallel(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_lone_folder_of_text_files_is_one_language_and_refused(tmp_path: Path) -> None:
    lay_out(tmp_path / "p", {"C/1.txt": "int x;", "C/2.txt": "int y;"})
    with pytest.raises(InputError, match="expected two languages or more, found 'C' alone"):
        read_parallel(tmp_path / "p")


def test_links_are_refused_by_name(tmp_path: Path) -> None:
    secret = lay_out(tmp_path, {"secret.txt": "secret"}) / "secret.txt"
    for language in ("C", "Python"):
        lay_out(tmp_path / "p", {f"{language}/1.txt": "x"})
        (tmp_path / "p" / language / "2.txt").symlink_to(secret)
    with pytest.raises(InputError, match=r"C/2.txt is a link, and links aren't followed"):
        read_parallel(tmp_path / "p")
