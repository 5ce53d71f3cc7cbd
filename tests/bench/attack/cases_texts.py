"""Bad parallel corpora, archives, prompts, keywords, regular expressions, masks and published counts."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from bench.attack.case import DONE, EITHER, Case, Place, deep

Arguments = Callable[[Place], list[object]]
_ESCAPE = "\x1b[31mred\x07"
_GOOD = {"C/1.txt": "int x;\n", "C/2.txt": "int y;\n", "Python/1.txt": "x = 1\n", "Python/2.txt": "y = 2\n"}


def _embed(path: object, place: Place, *options: object) -> list[object]:
    return ["embed", place.material.model, place.new, "--parallel", path, *options]


def _parallel(*options: object, **changes: str | bytes | None) -> Arguments:
    """A folder of good texts, changed: other content for a file, None for none."""

    def arguments(place: Place) -> list[object]:
        for name, content in {**_GOOD, **changes}.items():
            if content is not None:
                place.put(f"parallel/{name}", content)
        return _embed(place.folder / "parallel", place, *options)

    return arguments


def _special(change: Callable[[Place, Path], object]) -> Arguments:
    """Good texts, and something odd among them."""

    def arguments(place: Place) -> list[object]:
        command = _parallel()(place)
        change(place, place.folder / "parallel")
        return command

    return arguments


def _archive(fill: Callable[[zipfile.ZipFile], object]) -> Arguments:
    def arguments(place: Place) -> list[object]:
        with zipfile.ZipFile(place.folder / "texts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in _GOOD.items():
                archive.writestr(name, content)
            fill(archive)
        return _embed(place.folder / "texts.zip", place)

    return arguments


def _bomb(archive: zipfile.ZipFile) -> None:
    """Four GiB of text in four MB."""
    for number in range(3, 7):
        for language in ("C", "Python"):
            with archive.open(f"{language}/{number}.txt", "w") as file:
                for _ in range(64):
                    file.write(b"a" * 2**23)


def _linked_member(archive: zipfile.ZipFile) -> None:
    for language in ("C", "Python"):
        member = zipfile.ZipInfo(f"{language}/3.txt")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "../outside/secret.py")


def _upward_members(archive: zipfile.ZipFile) -> None:
    archive.writestr("../outside/x.txt", "x")
    archive.writestr("/etc/x.txt", "x")
    archive.writestr("C/../../x.txt", "x")


def _cut_archive(place: Place) -> list[object]:
    command = _archive(lambda archive: None)(place)
    path = place.folder / "texts.zip"
    path.write_bytes(path.read_bytes()[:-30])
    return command


def _damaged_archive(place: Place) -> list[object]:
    command = _archive(lambda archive: archive.writestr("C/3.txt", os.urandom(5000).hex()))(place)
    path = place.folder / "texts.zip"
    content = bytearray(path.read_bytes())
    content[600:640] = bytes(40)
    path.write_bytes(bytes(content))
    return command


def _lens(**changes: object) -> Arguments:
    """The pass with one of its inputs replaced; `{here}` stands for the folder."""

    def arguments(place: Place) -> list[object]:
        place.put("few/c_fewshot.txt", b"\xff")
        place.put("few/java_fewshot.txt", "")
        place.put("few/python_fewshot.txt", "x = 1\n")
        for name, content in {
            "list": "[]",
            "deep": deep(),
            "none": "{x",
            "numbers": '{"name": "C", "keywords": [1]}',
            "name": '{"name": 5, "keywords": []}',
            "latin": b"\xff",
            "escape": json.dumps({"name": _ESCAPE, "keywords": ["int"]}),
        }.items():
            place.put(f"words-{name}/x.json", content)
        place.put("latin.txt", b"\xff")
        base: dict[str, object] = {
            "--parallel": place.material.folder / "parallel",
            "--few-shot": place.material.folder / "few",
            "--keywords": place.material.folder / "words",
        }
        options = {**base, **{f"--{name.replace('_', '-')}": value for name, value in changes.items()}}
        flat = [str(part).format(here=place.folder) for pair in options.items() for part in pair]
        return ["lens", place.material.model, place.new, *flat]

    return arguments


def _regex(command: str, content: str | bytes, *texts: str) -> Arguments:
    """A file of expressions, for `patterns`, `concepts` or `mask`; `texts`: documents to mask, too."""

    def arguments(place: Place) -> list[object]:
        place.put("concepts.toml", content)
        if command != "mask":
            return [command, place.finished, "--regex", place.folder / "concepts.toml"]
        for number, text in enumerate((*texts, "x = 1\n")):
            place.put(f"heldout/python/{number}.py", text)
        mask = place.put("mask.json", json.dumps({"model": None, "specific": {"python": [[0, 1]]}}))
        return [
            "mask",
            place.material.model,
            place.new,
            "--neurons",
            mask,
            "--regex",
            place.folder / "concepts.toml",
            "--corpora",
            place.folder / "heldout",
        ]

    return arguments


def _hostile(command: str) -> Arguments:
    """An expression that backtracks for ever on one of the texts."""
    content = "[concepts]\nx = '''(a+)+$'''\ny = '''(\\w+\\s?)*=$'''\n"
    if command == "mask":
        return _regex("mask", content, "a" * 60 + "!\n", "word " * 40 + "!\n")

    def arguments(place: Place) -> list[object]:
        from bench.attack.launch import run

        for number in range(6):
            place.put(f"corpora/python/{number}.py", f"x{number} = 1\n" + "a" * 60 + "!\n" + "word " * 40 + "!\n")
        run(place.profile("--corpora", place.folder / "corpora"), place.folder / "log")
        return [command, place.new, "--regex", place.put("concepts.toml", content)]

    return arguments


def _mask(content: str | bytes, *options: object) -> Arguments:
    """A mask file, for `ablate`."""

    def arguments(place: Place) -> list[object]:
        place.put("heldout/python/a.py", "def f(x):\n    return x * 3\n")
        return [
            "ablate",
            place.material.model,
            place.new,
            "--neurons",
            place.put("mask.json", content),
            "--corpora",
            place.folder / "heldout",
            *options,
        ]

    return arguments


def _specific(neurons: object, **more: object) -> str:
    return json.dumps({"model": None, "specific": {"python": neurons}, **more})


def _import(*, name: str = "en", document: object = None, content: bytes | None = None) -> Arguments:
    def arguments(place: Place) -> list[object]:
        import torch

        if content is not None:
            place.put("counts", content)
        else:
            torch.save(document, place.folder / "counts")
        return ["import", place.new, f"{name}={place.folder / 'counts'}"]

    return arguments


def _counts(**changes: object) -> dict[str, object]:
    import torch

    return {"n": 100, "over_zero": torch.ones(2, 3, dtype=torch.int32), **changes}


def _tensor(kind: str) -> object:
    import torch

    return {
        "float": torch.ones(2, 3),
        "flat": torch.ones(3, dtype=torch.int32),
        "below 0": -torch.ones(2, 3, dtype=torch.int32),
        "empty": torch.ones(0, 0, dtype=torch.int32),
        "wrapped": torch.full((2, 3), 2**40),
        "sparse": torch.ones(2, 3, dtype=torch.int32).to_sparse(),
        "complex": torch.ones(2, 3, dtype=torch.complex64),
    }[kind]


_EXPRESSIONS: dict[str, str | bytes] = {
    "empty": "",
    "no TOML": "{x",
    "a list": "concepts = [1]",
    "a number": "[concepts]\nx = 5",
    "not closed": "[concepts]\nx = '('",
    "not UTF-8": b"\xff",
    "many parentheses": f"[concepts]\nx = '{'(' * 50_000}{')' * 50_000}'",
    "a huge repeat": "[concepts]\nx = 'a{1,99999999999}'",
    "deeply nested TOML": "x = " + "[" * 100_000,
    "an escape sequence": '[concepts]\n"\\u001b[31m" = "("',
    "binary": bytes(range(256)),
    "no concepts": "[other]\nx = 'a'",
}
_MASKS: dict[str, str | bytes] = {
    "empty": "",
    "no JSON": "{x",
    "a list": "[]",
    "null": "null",
    "deeply nested": deep(),
    "not UTF-8": b"\xff",
    "no sets": '{"model": null}',
    "a layer too many": _specific([[2, 0]]),
    "a neuron too many": _specific([[0, 48]]),
    "below 0": _specific([[-1, 0]]),
    "huge": _specific([[10**30, 0]]),
    "fractions": _specific([[0.5, 1]]),
    "text": _specific("x"),
    "triples": _specific([[0, 1, 2]]),
    "true": _specific([[True, False]]),
    "not a number": '{"model": null, "specific": {"python": [[NaN, 0]]}}',
    "of another model": _specific([[0, 1]], model={"id": "x", "fingerprint": "y"}),
    "of a corpus named upwards": json.dumps({"model": None, "specific": {"../../x": [[0, 1]]}}),
    "empty set": _specific([]),
    "an escape sequence": json.dumps({"model": None, "specific": {_ESCAPE: [[0, 1]]}}),
}

CASES = [
    Case("parallel, nothing", lambda place: _embed(place.folder / "no", place)),
    Case("parallel, a file", lambda place: _embed(place.put("x.txt"), place)),
    Case("parallel, an empty folder", lambda place: _embed(place.put("p/.keep").parent, place)),
    Case("parallel, one language", _parallel(**{"Python/1.txt": None, "Python/2.txt": None})),
    Case("parallel, an id lacking", _parallel(**{"Python/2.txt": None})),
    Case("parallel, an id twice", _parallel(**{"Python/2.py": "x"})),
    Case("parallel, not UTF-8", _parallel(**{"Python/2.txt": b"\xff"})),
    Case("parallel, empty texts", _parallel(**{"Python/2.txt": ""}), EITHER),
    Case("parallel, all texts empty", _parallel(**dict.fromkeys(_GOOD, "")), EITHER),
    Case("parallel, an escape sequence in a name", _parallel(**{f"{_ESCAPE}/1.txt": "x"})),
    Case("parallel, a folder for a text", _parallel(**{"Python/2.txt": None, "Python/2/x": "x"})),
    Case("parallel, deeply nested JSON", _parallel(**{"Python/2.txt": None, "Python/2.json": deep()})),
    Case(
        "parallel, deeply nested in a record",
        _parallel(**{"Python/2.txt": None, "Python/2.json": f'{{"text": {deep()}}}'}),
    ),
    Case("parallel, a record of a number", _parallel(**{"Python/2.txt": None, "Python/2.json": '{"text": 5}'})),
    Case(
        "parallel, a number of 5,000 digits",
        _parallel(**{"Python/2.txt": None, "Python/2.json": '{"text": ' + "9" * 5000 + "}"}),
    ),
    Case("parallel, a lone surrogate", _parallel(**{"Python/2.txt": None, "Python/2.json": '{"text": "\\ud800"}'})),
    Case(
        "parallel, an escape sequence in a field",
        _parallel(**{"Python/2.txt": None, "Python/2.json": '{"\\u001b[31m": "x"}'}),
    ),
    Case("parallel, a long text", _parallel(**{"Python/2.txt": "x = 1\n" * 300_000}), EITHER, is_costly=True),
    Case("parallel, --limit 0", _parallel("--limit", 0)),
    Case("parallel, --field of nothing", _parallel("--field", "x=Nope::y")),
    Case("parallel, --field without parts", _parallel("--field", "x")),
    Case("parallel, --field twice a name", _parallel("--field", "C=C::comment")),
    *[
        Case(f"parallel, --name {name!r}", _parallel("--name", name))
        for name in ("../x", "a/b", "", _ESCAPE, ".x", "a" * 200)
    ],
    Case(
        "parallel, a FIFO",
        _special(lambda place, folder: [os.mkfifo(folder / language / "3.txt") for language in ("C", "Python")]),
    ),
    Case(
        "parallel, links out",
        _special(
            lambda place, folder: [
                (folder / language / "3.txt").symlink_to(place.secret) for language in ("C", "Python")
            ]
        ),
        EITHER,
    ),
    Case(
        "parallel, a linked folder out",
        _special(lambda place, folder: (folder / "Rust").symlink_to(place.outside)),
        EITHER,
    ),
    Case(
        "parallel, a loop of links",
        _special(lambda place, folder: (folder / "Rust").symlink_to(folder / "Rust")),
        EITHER,
    ),
    Case("parallel, records", lambda place: _embed(place.put("p.jsonl", '{"C": "x", "Python": "y"}\n'), place), DONE),
    Case(
        "parallel, records of lists", lambda place: _embed(place.put("p.jsonl", '{"C": ["x"], "Python": "y"}\n'), place)
    ),
    Case(
        "parallel, records cut off",
        lambda place: _embed(place.put("p.jsonl", '{"C": "x", "Python": "y"}\n{"C"'), place),
    ),
    Case(
        "parallel, an id twice in records",
        lambda place: _embed(place.put("p.jsonl", '{"id": 1, "C": "x", "P": "y"}\n' * 2), place),
    ),
    Case("zip, good", _archive(lambda archive: None), DONE),
    Case("zip, empty file", lambda place: _embed(place.put("x.zip", ""), place)),
    Case("zip, no zip", lambda place: _embed(place.put("x.zip", "PK\x03\x04" + "x" * 100), place)),
    Case("zip, cut", _cut_archive),
    Case("zip, damaged", _damaged_archive),
    Case("zip, members upwards", _archive(_upward_members), EITHER),
    Case("zip, a link in it", _archive(_linked_member), EITHER),
    Case("zip, 4 GiB in 4 MB", _archive(_bomb), EITHER, limit_s=300, is_costly=True),
    Case(
        "zip, 60,000 members",
        _archive(lambda archive: [archive.writestr(f"C/x{n}.txt", "") for n in range(60_000)]),
        is_costly=True,
    ),
    Case("lens, few-shot nothing", _lens(few_shot="{here}/no")),
    Case("lens, few-shot not UTF-8", _lens(few_shot="{here}/few")),
    *[
        Case(f"lens, keywords {what}", _lens(keywords=f"{{here}}/words-{what}"))
        for what in ("list", "deep", "none", "numbers", "name", "latin")
    ],
    Case("lens, keywords with an escape sequence", _lens(keywords="{here}/words-escape"), EITHER),
    Case("lens, keywords nothing", _lens(keywords="{here}/no")),
    *[
        Case(f"lens, --english {what}", _lens(english=f"{{here}}/{name}"))
        for what, name in (("nothing", "no.txt"), ("not UTF-8", "latin.txt"), ("a folder", "few"))
    ],
    *[Case(f"lens, --pairs {pairs!r}", _lens(pairs=pairs)) for pairs in ("", "x", "C-Nope", "C-C", _ESCAPE)],
    Case("lens, --limit huge", _lens(limit=10**30), EITHER),
    Case("lens, --prompt alone", _lens(prompt="1")),
    *[
        Case(f"{command} --regex {what}", _regex(command, content))
        for what, content in _EXPRESSIONS.items()
        for command in ("patterns", "mask")
    ],
    *[
        Case(f"{command} --regex hostile", _hostile(command), EITHER, limit_s=90, is_costly=True)
        for command in ("patterns", "concepts", "mask")
    ],
    Case("concepts --regex nothing", lambda place: ["concepts", place.finished, "--regex", place.folder / "no.toml"]),
    *[Case(f"mask {what}", _mask(content)) for what, content in _MASKS.items()],
    Case("mask given as text", _mask(_specific([[0, 1]]), "--draws", "x")),
    Case("mask with --draws -1", _mask(_specific([[0, 1]]), "--draws", "-1")),
    Case("mask with --draws huge", _mask(_specific([[0, 1]]), "--draws", 10**12), EITHER, is_costly=True),
    Case("mask good", _mask(_specific([[0, 1]]), "--draws", "1"), DONE),
    Case("import, no torch file", _import(content=b"x" * 100)),
    Case("import, empty", _import(content=b"")),
    Case("import, a list", _import(document=[1])),
    Case("import, a name upwards", lambda place: _import(name="../x", document=_counts())(place)),
    Case("import, a huge n", lambda place: _import(document=_counts(n=10**30))(place)),
    Case("import, n below 0", lambda place: _import(document=_counts(n=-1))(place)),
    Case("import, n not a number", lambda place: _import(document=_counts(n=float("nan")))(place)),
    *[
        Case(
            f"import, {kind} counts", lambda place, kind=kind: _import(document=_counts(over_zero=_tensor(kind)))(place)
        )
        for kind in ("float", "flat", "below 0", "empty", "wrapped", "complex")
    ],
    Case("import, sparse counts", lambda place: _import(document=_counts(over_zero=_tensor("sparse")))(place), EITHER),
]
