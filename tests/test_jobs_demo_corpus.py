"""The demo's corpus: real source from the installed packages, and what is left out of it, on made-up ones."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from neurotally.jobs.demo import corpus as demo_corpus
from neurotally.jobs.demo.corpus import FileSizes, Root, gather, installed_roots
from neurotally.profiler.errors import InputError

SIDES = ("train", "heldout", "evaluation")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source(seed: int, num_lines: int = 40, template: str = "value_{} = compute({}, {})") -> str:
    """Made-up text, like no other seed's."""
    draw = random.Random(seed).randrange
    return "".join(template.format(*(draw(10**9) for _ in range(3))) + "\n" for _ in range(num_lines))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, FileSizes]]:
    target = tmp_path_factory.mktemp("installed") / "corpus"
    return target, gather(target, progress=False)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 40 small Python files, where one language with a little text is enough."""
    for name in ("TRAIN_BYTES", "HELDOUT_BYTES", "HELDOUT_FILES", "EVALUATION_BYTES", "LANGUAGES"):
        monkeypatch.setattr(demo_corpus, f"MIN_{name}", 0)
    root = tmp_path / "root"
    for index in range(40):
        write(root / f"package{index % 4}" / f"file{index}.py", source(index))
    return root


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def names_in(target: Path, language: str = "python") -> set[str]:
    return {
        name.removeprefix(f"{side}/{language}/")
        for side in SIDES
        for name in contents(target)
        if name.startswith(f"{side}/{language}/")
    }


@pytest.mark.slow
def test_this_machine_has_four_languages_at_least(installed: tuple[Path, dict[str, FileSizes]]) -> None:
    target, gathered = installed
    assert {"python", "python-stubs", "c++", "english"} <= gathered.keys()
    for side in SIDES:
        assert sorted(path.name for path in (target / side).iterdir()) == list(gathered)
    for language, sizes in gathered.items():
        for side in SIDES:
            found = contents(target / side / language)
            assert sorted(map(len, found.values())) == sorted(sizes[side])
        assert demo_corpus.MIN_TRAIN_BYTES <= sum(sizes["train"]) < demo_corpus.TRAIN_BYTES + 48_000
        assert demo_corpus.MIN_HELDOUT_BYTES <= sum(sizes["heldout"]) < demo_corpus.HELDOUT_BYTES + 16_000


@pytest.mark.slow
def test_text_is_whole_lines_of_utf8(installed: tuple[Path, dict[str, FileSizes]]) -> None:
    for name, content in contents(installed[0]).items():
        content.decode()
        assert demo_corpus.MIN_FILE_BYTES <= len(content) <= demo_corpus.MAX_TRAIN_FILE_BYTES, name


@pytest.mark.slow
def test_no_text_is_on_two_sides(installed: tuple[Path, dict[str, FileSizes]]) -> None:
    target, gathered = installed
    for language in gathered:
        seen: set[bytes] = set()
        digests: list[bytes] = []
        for side in SIDES:
            texts = contents(target / side / language)
            for name, content in texts.items():
                lines = {line.strip() for line in content.splitlines() if len(line.strip()) >= 12}
                assert 2 * sum(map(len, lines - seen)) >= sum(map(len, lines)), f"{side}: {name}"
            seen |= {line.strip() for content in texts.values() for line in content.splitlines()}
            digests += [hashlib.sha256(content).digest() for content in texts.values()]
        assert len(set(digests)) == len(digests)
        assert len(names_in(target, language)) == len(digests)


@pytest.mark.slow
def test_no_folder_swamps_a_language(installed: tuple[Path, dict[str, FileSizes]]) -> None:
    parents = [name.rpartition("/")[0] for name in contents(installed[0] / "train" / "c++")]
    assert max(map(parents.count, set(parents))) <= demo_corpus.MAX_FILES_PER_FOLDER
    assert len(set(parents)) >= 20


def test_same_packages_give_the_same_corpus_anywhere(small: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else" / "where"
    for index in reversed(range(40)):
        name = f"package{index % 4}/file{index}.py"
        write(elsewhere / name, (small / name).read_bytes())
        os.utime(elsewhere / name, (index, index))
    first = gather(tmp_path / "first", [Root("site-packages", small)], progress=False)
    second = gather(tmp_path / "second", [Root("site-packages", elsewhere)], progress=False)
    assert first == second
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert len(contents(tmp_path / "first")) == 40


def test_installing_more_moves_no_file_to_the_other_side(small: Path, tmp_path: Path) -> None:
    gather(tmp_path / "before", [Root("site-packages", small)], progress=False)
    for index in range(40, 60):
        write(small / "new" / f"file{index}.py", source(index))
    gather(tmp_path / "after", [Root("site-packages", small)], progress=False)
    assert contents(tmp_path / "before").items() <= contents(tmp_path / "after").items()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tiny.py", "x = 1\n"),
        ("latin1.py", source(100).encode() + b"# caf\xe9\n"),
        ("nul.py", source(101) + "\0"),
        ("generated.py", "# Generated by the protocol buffer compiler.\n" + source(102)),
        ("modular.py", "# Do NOT edit this file manually\n" + source(103)),
        ("table.py", source(104) + "x = [" + "1234567, " * 200 + "]\n"),
        ("copy.py", source(0)),
        ("nearly.py", source(0) + source(105, num_lines=20)),
        (".hidden/file.py", source(106)),
        ("neurotally/file.py", source(107)),
        ("__pycache__/file.py", source(108)),
    ],
)
def test_left_out(small: Path, tmp_path: Path, name: str, text: str | bytes) -> None:
    write(small / name, text)
    gather(tmp_path / "corpus", [Root("site-packages", small)], progress=False)
    names = names_in(tmp_path / "corpus")
    assert len(names) == 40
    # Of two copies the hash decides which is taken.
    assert f"site-packages/{name}" not in names or name in ("copy.py", "nearly.py")


def test_a_long_file_is_cut_at_the_end_of_a_line(small: Path, tmp_path: Path) -> None:
    for index in range(200, 216):
        write(small / "long" / f"file{index}.py", source(index, num_lines=2000))
    gather(tmp_path / "corpus", [Root("stdlib", small)], progress=False)
    for side, limit in (("train", demo_corpus.MAX_TRAIN_FILE_BYTES), ("heldout", demo_corpus.MAX_HELDOUT_FILE_BYTES)):
        long = {name: text for name, text in contents(tmp_path / "corpus" / side).items() if "/long/" in name}
        assert long
        for name, text in long.items():
            assert limit - 100 < len(text) <= limit
            original = small / "long" / name.rpartition("/")[2]
            assert original.read_bytes().startswith(text)
            assert text.endswith(b"\n")


C = '/* A C header; class names:: in comments don\'t count. */\n#ifdef __cplusplus\nextern "C" {\n#endif\n'
PROSE = "".join(f"You may use it with or without {'so ' * i}small a fee.\n" for i in range(20))
CPP = "#include <vector>\nnamespace a {\n"


@pytest.mark.parametrize(
    ("name", "text", "language"),
    [
        ("api.h", C + source(1, template="int take_{}(long a{}, char *b{});"), "c"),
        ("vector.h", CPP + source(2, template="int take_{}(long a{}, char *b{});"), "c++"),
        ("plain.hpp", "#pragma once\nclass A;\n" + source(3), "c++"),
        ("module.c", C + source(4), "c"),
        ("kernel.cuh", source(5), "cuda"),
        ("fast.pyx", source(6), "cython"),
        ("lib.pxd", source(7), "cython"),
        ("stub.pyi", source(8), "python-stubs"),
        ("solve.f90", source(9), "fortran"),
        ("x-1.dist-info/METADATA", "Name: x\n\n" + PROSE, "english"),
        ("x-1.dist-info/licenses/LICENSE", PROSE, "english"),
        ("COPYING.txt", PROSE, "english"),
        ("words.txt", source(12, template="{}, {}, {}"), None),
        ("data.json", source(13), None),
    ],
)  # fmt: skip
def test_language_of_a_file(small: Path, tmp_path: Path, name: str, text: str, language: str | None) -> None:
    write(small / name, text)
    sizes = gather(tmp_path / "corpus", [Root("site-packages", small)], progress=False)
    found = {language for language, by_side in sizes.items() if any(by_side.values())}
    assert found - {"python"} == ({language} if language else set())


def test_metadata_gives_its_description_only(small: Path, tmp_path: Path) -> None:
    write(small / "x-1.dist-info" / "METADATA", f"Name: x\nSummary: it is for the user\n\n{PROSE}")
    gather(tmp_path / "corpus", [Root("site-packages", small)], progress=False)
    found = {name: text for name, text in contents(tmp_path / "corpus").items() if name.endswith("METADATA")}
    assert [text.decode() for text in found.values()] == [PROSE]


@pytest.mark.slow
def test_topics_of_the_language_reference_are_english(installed: tuple[Path, dict[str, FileSizes]]) -> None:
    assert any(name.startswith("stdlib/pydoc_data/topics/") for name in names_in(installed[0], "english"))


def test_too_few_languages_is_the_users_error_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "root" / "a.py", source(1))
    with pytest.raises(InputError, match="expected source in 4 languages"):
        gather(tmp_path / "corpus", [Root("stdlib", tmp_path / "root")], progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(InputError, match="exists already"):
        gather(tmp_path / "corpus", progress=False)


def test_roots_are_folders_without_repetition() -> None:
    roots = installed_roots()
    assert {"stdlib", "site-packages"} <= {root.name for root in roots}
    resolved = [root.path.resolve() for root in roots]
    assert len(set(resolved)) == len(resolved)
    assert all(path.is_dir() for path in resolved)
