"""The passes as functions: the examples of their docstrings, and what they do before a model is loaded."""

import doctest
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neurotally import jobs
from neurotally.analysis.result import Result
from neurotally.jobs import known_model
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler import store
from neurotally.profiler.errors import InputError


@pytest.fixture
def place(
    model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder of the examples, with a `my.store` of two corpora."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "model")
    shutil.move(make_corpora({"c++": 8, "python": 8}), "sources")
    shutil.move(make_corpora({"c++": 8, "python": 8}, seed=1), "heldout")
    for language, line in {"C": "int x = {};", "Python": "x = {}"}.items():
        Path("snippets", language).mkdir(parents=True)
        Path("prompts").mkdir(exist_ok=True)
        Path("prompts", f"{language.lower()}_fewshot.txt").write_text(f"{line.format(7)}\n")
        for number in range(4):
            Path("snippets", language, f"{number}.txt").write_text(line.format(number))
    Path("neurons.json").write_text(json.dumps({"model": None, "specific": {"loops": [[0, 1], [1, 5]]}}))
    jobs.profile("model/", "my.store", corpora="sources/", triggers=8)
    return tmp_path


@pytest.mark.parametrize("name", jobs.__all__)
@pytest.mark.slow
def test_examples(name: str, place: Path) -> None:
    if name == "profile":
        shutil.rmtree("my.store")
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(jobs, name), name)
    runner = doctest.DocTestRunner()
    runner.run(example)
    assert runner.summarize().failed == 0
    assert runner.summarize().attempted > 1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ablation'"):
        jobs.ablation  # noqa: B018


PASSES: dict[str, dict[str, Any]] = {
    "profile": {"corpora": "sources", "triggers": 8},
    "embed": {"parallel": "snippets"},
    "lens": {"parallel": "snippets", "few_shot": "prompts", "draws": 2},
    "agreement": {"corpora": "heldout", "context_sizes": [5], "lines": []},
    "ablate": {"corpora": "heldout", "per_corpus": 3, "quantile": 0.5, "draws": 2},
    "mask": {"corpora": "heldout", "neurons": "neurons.json", "draws": 2},
}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every model that is loaded."""
    loaded: list[str] = []
    load = ModelConfig.load

    def noted(model: ModelConfig) -> Any:
        loaded.append(model.spec)
        return load(model)

    monkeypatch.setattr(ModelConfig, "load", noted)
    return loaded


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.slow
def test_what_is_finished_is_noticed_before_a_model_is_loaded(name: str, place: Path, loads: list[str]) -> None:
    def run(*arguments: str, **options: Any) -> Any:
        found = getattr(jobs, name)(*arguments, **options)
        return found.document if isinstance(found, Result) else found

    first = run("model", "my.store", **PASSES[name])
    assert loads == ([] if name == "profile" else ["model"])
    root = store.store_attributes(Path("my.store"))
    loads.clear()
    again = run("model", "my.store", **PASSES[name])
    Path("model").rename("moved")
    assert run("moved", "my.store", **PASSES[name]) == again
    assert loads == []
    assert again == first
    assert store.store_attributes(Path("my.store")) == root
    if name != "profile":
        other = {"embed": {"limit": 2}, "agreement": {"document_tokens": 3}}.get(name, {"draws": 3})
        with pytest.raises(InputError, match=r"is another one: .*; use another --name"):
            run("moved", "my.store", **{**PASSES[name], **other})
        assert loads == []


CHANGES: dict[str, Callable[[], object]] = {
    "weights": lambda: _flip(Path("model/model.safetensors"), -3),
    "header": lambda: _flip(Path("model/model.safetensors"), 40),
    "config": lambda: Path("model/config.json").write_text(Path("model/config.json").read_text() + "\n"),
    "another file": lambda: Path("model/chat_template.jinja").write_text(""),
    "the store's facts": lambda: _edit_facts("max_row_tokens", 7),
    "the store's key": lambda: _edit_facts("key", "0" * 64),
}


def _flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def _edit_facts(key: str, value: Any) -> None:
    attributes = store.store_attributes(Path("my.store"))
    verified = attributes["verified"]
    (verified if key == "key" else verified["facts"])[key] = value
    store.replace_attributes(Path("my.store"), attributes)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whole_bytes", [2**25, 2**10], ids=["small files", "large files"])
@pytest.mark.slow
def test_a_checkpoint_that_looks_different_is_loaded(
    change: str, whole_bytes: int, place: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_model, "_WHOLE_BYTES", whole_bytes)
    jobs.profile("model", "my.store", **PASSES["profile"])
    loads.clear()
    jobs.profile("model", "my.store", **PASSES["profile"])
    assert loads == []
    CHANGES[change]()
    try:
        jobs.profile("model", "my.store", **PASSES["profile"])
    except InputError:
        assert change in ("weights", "header")
    assert loads == ["model"]
    loads.clear()
    if change not in ("weights", "header"):  # remembered again
        jobs.profile("model", "my.store", **PASSES["profile"])
        assert loads == []


@pytest.mark.slow
def test_another_way_to_ask_is_loaded(place: Path, loads: list[str]) -> None:
    with pytest.raises(InputError, match="dtype is 'bfloat16', the store has 'float32'"):
        jobs.profile("model", "my.store", **PASSES["profile"], dtype="bfloat16")
    assert loads == ["model"]


@pytest.mark.slow
def test_a_finished_profile_of_fresh_weights_makes_none(place: Path, loads: list[str]) -> None:
    for _ in range(2):
        jobs.profile("model", "null.store", **PASSES["profile"], random_init=3)
    assert len(loads) == 1
    jobs.profile("model", "other.store", **PASSES["profile"], random_init=4)
    with pytest.raises(InputError, match="another model: fingerprint"):
        jobs.profile("model", "null.store", **PASSES["profile"], random_init=4)
    with pytest.raises(InputError, match="another model: fingerprint"):
        jobs.profile("model", "null.store", **PASSES["profile"])


@pytest.mark.slow
def test_a_hub_model_is_known_by_its_commit(place: Path, tmp_path: Path) -> None:
    """In a process of its own, whose hub is a cache without a network."""
    commit = "0123456789abcdef" * 2 + "01234567"
    cached = tmp_path / "hub" / "hub" / "models--some--model"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree("model", cached / "snapshots" / commit)
    program = (
        "from neurotally.jobs import profile\n"
        "from neurotally.jobs.model_config import ModelConfig\n"
        "load = ModelConfig.load\n"
        "ModelConfig.load = lambda model: (print('loads', model.spec), load(model))[1]\n"
        "for _ in range(2): profile('some/model', 'my.store', corpora='sources', triggers=8)\n"
        "import pathlib\n"
        f"cached = pathlib.Path({str(cached)!r})\n"
        f"(cached / 'snapshots' / {commit!r}).rename(cached / 'snapshots' / ('f' * 40))\n"
        "(cached / 'refs' / 'main').write_text('f' * 40)\n"
        "for _ in range(2): profile('some/model', 'my.store', corpora='sources', triggers=8)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "loads some/model\n" * 2, done.stderr
