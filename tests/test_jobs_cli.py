"""The command line: exit statuses, one-line errors, and that bad input loses nothing."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from filelock import FileLock

from neurotally.analysis.keys.tested import NullTest
from neurotally.analysis.keys.texts import Texts
from neurotally.analysis.languages.counts import read_counts
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.jobs.cli import cli
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler import store

Run = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith(("loading ", "memory: "))]
    assert code == 2
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("neurotally: ")
    assert message in lines[0]


@pytest.fixture
def profiled(run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path) -> tuple[Path, Path]:
    corpora = make_corpora({"python": 12, "c++": 8})
    assert run("profile", model_folder, tmp_path / "s", "--corpora", corpora, "--row-tokens", 64)[0] == 0
    return tmp_path / "s", corpora


def test_every_command_has_an_example_and_is_in_the_readme() -> None:
    root = Path(__file__).parent.parent
    readme = "\n".join(path.read_text() for path in [root / "README.md", *root.glob("*/README.md")])
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert "Example:" in (command.help or ""), name
        assert re.search(rf"(neurotally |`){name}\b", readme), name
        shared = {field.name for group in (Rule, Texts, NullTest) for field in fields(group)}
        shared |= {"figure", "full", "out", "as_json"}  # how every study is shown
        shared |= {"workers", "device", "dtype", "address", "trust_remote_code", "max_files", "document_tokens"}
        shared |= {"figure", "full", "out", "as_json"}  # of all that show a result
        assert len([parameter for parameter in command.params if parameter.name not in shared]) <= 15, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0].startswith("--")


def test_newer_names_stand_beside_the_old_ones(run: Run) -> None:
    """One name for one thing in all commands; each with the value of the old name."""
    names = {("profile", "corpus"): "--corpus-source", ("agreement", "corpus"): "--corpus-source",
             ("embed", "limit"): "--max-ids", ("lens", "limit"): "--max-ids", ("report", "neurons"): "--top-neurons",
             ("report", "triggers"): "--top"}  # fmt: skip
    for (command, parameter), name in names.items():
        made = cli.get_command(click.Context(cli), command)
        assert made is not None
        option = next(one for one in made.params if one.name == parameter)
        assert option.opts == [f"--{parameter}", name]
    refused(run("profile", "no-model", "s", "--corpus-source", "nothing"), "--corpus 'nothing': expected NAME=SOURCE")


def test_profile_status_and_lape(run: Run, profiled: tuple[Path, Path], tmp_path: Path) -> None:
    path, _ = profiled
    code, out, _ = run("status", path, "--json")
    document = json.loads(out)
    assert (code, document["state"]) == (0, "complete")
    assert document["corpora"]["python"]["documents_done"] == 12
    assert set(document["corpora"]["c++"]) == {
        "units", "units_done", "documents", "documents_done", "skipped", "tokens",
    }  # fmt: skip
    code, out, _ = run("lape", path, "--per-corpus", 5, "--out", tmp_path / "lape.json", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "lape.json").read_text())
    document = json.loads(out)
    assert document["model"]["fingerprint"] == store.store_attributes(path)["model"]["fingerprint"]
    assert document["corpora"] == ["c++", "python"]
    assert set(document) >= {"schema", "select", "quantile", "bar", "per_corpus", "specific", "exclusive"}
    for text in (run("lape", path)[1], run("status", path)[1]):
        assert "python" in text


@pytest.mark.slow
def test_a_filter_of_corpora_reaches_every_command(
    run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"c": 8, "go": 8, "python": 8})
    assert run("profile", model_folder, tmp_path / "s", "--corpora", corpora, "--row-tokens", 64, "--groups", 2)[0] == 0
    only = ("--corpus", "python", "--corpus", "c")
    for name, *more in (("lape",), ("lape", "--error-bars"), ("stability",), ("sweep",), ("profiles",),
                        ("compare", tmp_path / "s")):  # fmt: skip
        code, out, err = run(name, tmp_path / "s", *more, *only, "--json")
        assert (code, json.loads(out)["corpora"]) == (0, ["c", "python"]), (name, err)
        refused(run(name, tmp_path / "s", *more, *only, "--corpus", "perl"), "has no corpus 'perl'; it has c, go, pyt")
    heldout = (model_folder, tmp_path / "s", "--corpora", corpora, "--force", "--draws", 1)
    code, out, _ = run("ablate", *heldout, *only, "--quantile", 0.8, "--json")
    document = json.loads(out)
    assert (code, document["corpora"], document["compared"]) == (0, ["c", "python"], ["c", "python"])
    selection = lape(read_counts(tmp_path / "s", ["python", "c"]), Rule(0.8))
    assert document["bar"] == selection.threshold
    refused(run("ablate", *heldout, "--corpus", "perl", "--name", "b"), "has no corpus 'perl'; it has c, go, python")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figure", "x.gif"], "x.gif: expected a name that ends in .png or .pdf or .svg"),
        (["--overlap-figure", "x"], "x: expected a name that ends in .png"),
        (["--figure", "no/x.png"], "no/x.png: there is no folder no; make it first"),
        (["--out", "no/x.json"], "no/x.json: there is no folder no; make it first"),
        (["--out", "."], "is a directory"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_outputs_that_cannot_be_written_are_refused_before_any_work(
    run: Run, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("profiles", "no.store", *options), message)
    if "--overlap-figure" not in options:
        refused(run("ablate", "no-model", "no.store", "--corpora", "none", *options), message)


def test_skipped_documents_that_are_not_listed_are_counted(
    run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 4})
    for number in range(14):
        (corpora / "python" / f"empty{number}.py").touch()
    _, out, _ = run("profile", model_folder, tmp_path / "s", "--corpora", corpora)
    assert out.count("  skipped empty") == 5
    assert f"  and 9 more: document_status in {tmp_path}/s/corpora/python tells which\n" in out


@pytest.mark.parametrize("name", ["profile", "embed", "lens", "agreement", "ablate", "mask"])
@pytest.mark.slow
def test_a_second_writer_is_refused_before_pytorch_is_imported(name: str, tmp_path: Path) -> None:
    here = str(tmp_path)
    options = {"embed": ["--parallel", here], "lens": ["--parallel", here, "--few-shot", here],
               "mask": ["--neurons", here, "--corpora", here], "ablate": ["--corpora", here]}  # fmt: skip
    program = (
        "import sys; from neurotally.jobs.cli import _main; code = _main(sys.argv[1:]); "
        "print(code, {'torch', 'transformers'} & set(sys.modules))"
    )
    (tmp_path / "s" / ".run").mkdir(parents=True)
    with FileLock(tmp_path / "s" / ".run" / "lock"):
        done = subprocess.run(
            [sys.executable, "-c", program, name, "no-model", str(tmp_path / "s"), *options.get(name, [])],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.stdout == "2 set()\n"
    assert done.stderr.endswith("s is being written by another run; wait for it or stop it\n")


@pytest.mark.slow
def test_a_finished_store_says_so(run: Run, profiled: tuple[Path, Path], model_folder: Path) -> None:
    code, out, _ = run("profile", model_folder, profiled[0], "--corpora", profiled[1], "--row-tokens", 64)
    assert code == 0
    assert "is complete" in out


@pytest.mark.slow
def test_a_store_names_its_model(run: Run, profiled: tuple[Path, Path], model_folder: Path) -> None:
    path, corpora = profiled
    options = ["--corpora", corpora, "--quantile", 0.5, "--per-corpus", 4, "--draws", 1, "--force", "--json"]
    changes = []
    for places in ([path], [model_folder, path, "--name", "named"]):
        code, out, errors = run("ablate", *places, *options)
        assert code == 0, errors
        changes.append(json.loads(out)["change"])
    assert changes[0] == changes[1]
    assert changes[0][0][0] != 0


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        ({"id": None}, [], "names no model that can be loaded: expected MODEL before it"),
        ({"id": "m with random weights, seed 3", "random_init": 3}, [], "names no model that can be loaded"),
        ({"id": "m"}, ["--trust-remote-code"], "no code is run only because a store names it"),
    ],
)
def test_a_model_that_a_store_names_is_refused(
    run: Run, tmp_path: Path, edit: dict[str, Any], options: list[str], message: str
) -> None:
    store.create_store(tmp_path / "s", {"model": edit})
    code, _, errors = run("embed", tmp_path / "s", "--parallel", tmp_path, *options)
    assert code == 2
    assert message in errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected [MODEL[@REVISION]] STORE, got neither"),
        (["a", "b", "c"], "expected [MODEL[@REVISION]] STORE, got a b c"),
        (["new.store"], "new.store is no store that could name its model: expected MODEL before it"),
    ],
)
def test_a_pass_takes_a_model_and_a_store(run: Run, tmp_path: Path, given: list[str], message: str) -> None:
    code, _, errors = run("ablate", *given, "--corpora", tmp_path)
    assert (code, errors) == (2, f"neurotally: {message}\n")


def test_json_has_no_nan(run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    corpora = make_corpora({"python": 3})
    (corpora / "python" / "0" / "empty.py").touch()
    _, out, _ = run("profile", model_folder, tmp_path / "s", "--corpora", corpora, "--json")
    report = json.loads(out, parse_constant=pytest.fail)
    assert report["corpora"]["python"]["skipped"] == {"empty": 1}
    assert 0 < report["model_share"] <= 1


def broken_model(folder: Path, source: Path, kind: str) -> Path:
    from transformers import WhisperConfig

    shutil.copytree(source, folder)
    if kind == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "cut off weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "small vocabulary":
        config = json.loads((folder / "config.json").read_text())
        from transformers import LlamaConfig, LlamaForCausalLM

        LlamaForCausalLM(LlamaConfig(**{**config, "vocab_size": 500})).save_pretrained(folder)
    elif kind == "speech":
        WhisperConfig().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no tokenizer", "has no tokenizer"),
        ("no config", "has no config.json"),
        ("cut off weights", "can't load the model of"),
        ("small vocabulary", "the tokenizer gives ids up to 599, the model's vocabulary has 500"),
        ("speech", "transformers' AutoModelForSeq2SeqLM has no entry for whisper"),
    ],
)
def test_models_that_are_refused(
    run: Run, kind: str, message: str, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    folder = broken_model(tmp_path / "broken", model_folder, kind)
    corpora = make_corpora({"python": 3})
    refused(run("profile", folder, tmp_path / "s", "--corpora", corpora), message)
    assert not (tmp_path / "s" / "zarr.json").exists()


@pytest.mark.ray
def test_a_model_is_refused_by_ray_workers_too(run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    folder = broken_model(tmp_path / "broken", model_folder, "no tokenizer")
    result = run("profile", folder, tmp_path / "s", "--corpora", make_corpora({"python": 3}), "--workers", 2)
    refused(result, "has no tokenizer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpora", "{here}/nothing"], "no such folder"),
        (["--corpora", "{here}/empty"], "expected one subfolder a corpus, found none"),
        (["--corpora", "{here}/of_empty"], "is empty: no documents"),
        (["--corpus", "a={here}/nothing"], "no such corpus"),
        (["--corpus", "nonsense"], "expected NAME=SOURCE"),
        (["--corpus", "GO={here}", "--corpus", "go={here}"], "differ only in case"),
        ([], "no corpus"),
        (["--workers", "0"], "--workers"),
        (["--layout", "rows"], "--layout"),
    ],
)
def test_input_that_is_refused(run: Run, options: list[str], message: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "of_empty" / "python").mkdir(parents=True)
    options = [option.format(here=tmp_path) for option in options]
    refused(run("profile", model_folder, tmp_path / "s", *options), message)


@pytest.mark.slow
def test_stores_that_are_refused(
    run: Run, profiled: tuple[Path, Path], model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    path, corpora = profiled
    again = ["--corpora", corpora, "--row-tokens", 64]
    refused(run("profile", other_model_folder, path, *again), "another model: fingerprint is")
    refused(run("profile", model_folder, path, *again, "--groups", 4), "another config: groups is 4, the store has 10")
    (tmp_path / "file").touch()
    refused(run("profile", model_folder, tmp_path / "file", *again), "is a file")
    refused(run("profile", model_folder, corpora, *again), "a folder with other things in it")
    refused(run("lape", tmp_path / "nothing"), "no store")
    refused(run("lape", corpora), "no store")
    assert run("lape", path)[0] == 0


@pytest.mark.slow
def test_a_store_cut_off_in_the_middle_of_a_write(run: Run, profiled: tuple[Path, Path]) -> None:
    path, _ = profiled
    chunk = next((path / "corpora" / "python" / "active" / "c").rglob("0"), None)
    while chunk is not None and chunk.is_dir():
        chunk = chunk / "0"
    assert chunk is not None
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    refused(run("lape", path), "can't be read")
    chunk.unlink()
    refused(run("lape", path), "it was cut off")
    root = path / "zarr.json"
    root.write_text(root.read_text()[:100])
    for command in ("lape", "status"):
        refused(run(command, path), "was cut off")


def test_lape_needs_two_corpora_and_names_the_unfinished(
    run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    run("profile", model_folder, tmp_path / "s", "--corpora", make_corpora({"python": 3}))
    (tmp_path / "s" / ".run" / "corpora" / "go").mkdir(parents=True)
    refused(run("lape", tmp_path / "s"), "go is left out: unfinished")


@pytest.mark.slow
def test_a_full_disk_loses_nothing(run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        corpora = make_corpora({"a": 3, "b": 150})
        options = ["--corpora", corpora, "--row-tokens", 64]
        refused(run("profile", model_folder, disk / "s", *options), "the disk is full")
        assert store.committed_corpora(disk / "s") == ["a"]
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert run("profile", model_folder, disk / "s", *options)[0] == 0
        run("profile", model_folder, tmp_path / "s", *options)
        for corpus in ("a", "b"):
            here, there = (store.read_corpus(path, corpus, ["active"]) for path in (disk / "s", tmp_path / "s"))
            assert (here["active"] == there["active"]).all()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_import_and_lape(run: Run, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for name in ("en", "zh"):
        over_zero = torch.randint(0, 1000, (3, 50), dtype=torch.int32, generator=generator)
        torch.save({"n": 1000, "over_zero": over_zero}, tmp_path / name)
        expected[name] = over_zero.numpy()
    code, out, _ = run("import", tmp_path / "s", f"en={tmp_path}/en", f"zh={tmp_path}/zh")
    assert code == 0
    assert "en: 1,000 tokens, 3 layers x 50 neurons" in out
    for name, counts in expected.items():
        arrays = store.read_corpus(tmp_path / "s", name)
        assert set(arrays) == {"tokens", "active"}
        assert (arrays["active"][0] == counts).all()
    document = json.loads(run("lape", tmp_path / "s", "--json")[1])
    assert document["model"] is None
    refused(run("import", tmp_path / "s", f"en={tmp_path}/en"), "never changes")
    with FileLock(tmp_path / "s/.run/lock"):
        refused(run("import", tmp_path / "s", f"fr={tmp_path}/en"), "is being written by another run")
    store.write_arrays(tmp_path / "s/.run/import/fr", {"tokens": np.ones(1, np.uint64)}, {})  # of one that was killed
    assert run("import", tmp_path / "s", f"fr={tmp_path}/en")[0] == 0
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    refused(run("import", tmp_path / "folder", f"en={tmp_path}/en"), "with other things in it")


def test_an_import_runs_no_code(run: Run, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"n": 1, "over_zero": Evil()}, tmp_path / "evil")
    refused(run("import", tmp_path / "s", f"en={tmp_path}/evil"), "holds more than tensors and numbers")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "document",
    [{"n": 5}, {"n": 5, "over_zero": torch.ones(3)}, {"n": 5, "over_zero": torch.full((2, 3), 6)}, [1, 2]],
    ids=["missing", "not counts", "more than tokens", "a list"],
)
def test_imports_that_are_refused(run: Run, document: Any, tmp_path: Path) -> None:
    torch.save(document, tmp_path / "f")
    refused(run("import", tmp_path / "s", f"en={tmp_path}/f"), str(tmp_path / "f"))


@pytest.mark.parametrize("n", [10**30, float("inf"), 2**63], ids=str)
def test_counts_beyond_what_a_store_holds_are_refused(n: Any, run: Run, tmp_path: Path) -> None:
    torch.save({"n": n, "over_zero": torch.ones(2, 3, dtype=torch.int32)}, tmp_path / "en")
    refused(run("import", tmp_path / "s", f"en={tmp_path}/en"), f"{tmp_path}/en: ")


@pytest.mark.parametrize("option", ["--document-tokens", "--random-init", "--row-tokens", "--workers"])
def test_numbers_beyond_all_measure_are_refused(option: str, run: Run, model_folder: Path, tmp_path: Path) -> None:
    refused(run("profile", model_folder, tmp_path / "s", "--corpora", tmp_path, option, 10**30), option)


@pytest.mark.parametrize("options", [("lape", "--quantile"), ("lape", "--top-rate"), ("patterns", "--alpha")])
def test_no_share_is_not_a_number(options: tuple[str, str], run: Run, tmp_path: Path) -> None:
    command, option = options
    code, out, error = run(command, tmp_path, option, "nan")
    assert (code, out) == (2, "")
    assert "'nan' is not in the range 0 to 1" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_after_the_end_changes_nothing(number: signal.Signals) -> None:
    status, _, error = ended_command(
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n    return own(['--version'])"
    )
    assert (status, error) == (0, "")


@pytest.mark.slow
def test_what_is_to_be_done_at_the_end_is_done_and_the_rest_left() -> None:
    body = """
    import gc
    from neurotally.jobs.starting import import_pytorch
    class Kept:
        def __del__(self): print("taken down")
    atexit.register(lambda: print(os.path.exists(cli.folder.name)))
    import_pytorch()
    cli.kept, cli.folder = Kept(), tempfile.TemporaryDirectory()
    print(gc.isenabled(), gc.get_freeze_count() > 100_000, os.path.exists(cli.folder.name))
    sys.stdout.write("unfinished ")
    sys.stderr.write("lines")
    return 3
"""
    assert ended_command(body) == (3, "True True True\nunfinished False\n", "lines")


@pytest.mark.slow
def test_an_error_of_ours_ends_with_its_traceback() -> None:
    status, out, error = ended_command("raise ValueError('ours')")
    assert (status, out) == (1, "")
    assert error.startswith("Traceback")
    assert error.endswith("ValueError: ours\n")


def ended_command(body: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a process whose command does this."""
    code = f"""
import atexit, os, sys, tempfile
from neurotally.jobs import cli
own = cli._main
def command(arguments):
    {body}
cli._main = command
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_whose_exception_is_swallowed_while_the_model_loads_stops_the_run(
    number: signal.Signals, code: int, run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As Python's compiler swallows it: a module that has no .pyc is compiled when it is imported."""
    load = ModelConfig.load

    def swallows(config: ModelConfig) -> Any:
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        return load(config)

    monkeypatch.setattr(ModelConfig, "load", swallows)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, out, errors = run("profile", model_folder, tmp_path / "s", "--corpora", make_corpora({"python": 5}))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, out) == (code, "")
    assert "the same command goes on from" in errors.splitlines()[-1]
    monkeypatch.setattr(ModelConfig, "load", load)
    assert run("profile", model_folder, tmp_path / "s", "--corpora", tmp_path / "corpora")[0] == 0
