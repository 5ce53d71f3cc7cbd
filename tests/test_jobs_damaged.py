"""Working state that was damaged, edited or left behind: refused by name, done again, or tidied up; never counted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import CONFIG, FACTS, bits, forked, make_corpus, run_pass, run_profile

from neurotally.jobs.status import status, status_text
from neurotally.jobs.store_identity import open_store
from neurotally.jobs.store_writer import writer_lock
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.worker import Worker


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole stores of a corpus and of a pass, and those of both after three of four tasks."""
    folder = tmp_path_factory.mktemp("made")
    make_corpus(folder)
    for run, name in ((run_profile, "corpus"), (run_pass, "pass")):
        run(folder / name)
        with pytest.raises(InputError, match="as far as that"):
            run(folder / f"begun-{name}", until=3)
    return folder


@pytest.fixture
def begun(made: Path, tmp_path: Path) -> Path:
    """A copy: STORE/.run/corpora/a holds a checkpoint of three of four units."""
    shutil.copytree(made / "corpora", tmp_path / "corpora")
    shutil.copytree(made / "begun-corpus", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def begun_pass(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "begun-pass", tmp_path / "store")
    return tmp_path / "store"


def refusal(run: Callable[[Path], None], path: Path) -> str:
    before = bits(path)
    with pytest.raises(InputError) as caught:
        run(path)
    assert "\n" not in str(caught.value)
    assert bits(path) == before
    return str(caught.value)


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


@pytest.mark.slow
def test_a_commit_that_fails_keeps_the_last_units(begun: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "publish", full)
        with pytest.raises(OSError, match="No space"):
            run_profile(begun)
    assert status(begun)["corpora"]["a"]["units_done"] == 4
    run_profile(begun)
    assert bits(begun) == bits(made / "corpus")


@pytest.mark.slow
def test_a_save_that_a_signal_cuts_short_may_go_on_beside_the_next_one(
    begun: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zarr writes in threads of its own, which outlive the interrupted call for a moment."""
    write, cut_short = store.write_arrays, list[Path]()

    def interrupted_once(path: Path, arrays: Any, attributes: Any, **options: Any) -> None:
        if not cut_short:
            cut_short.append(path)
            write(path, arrays, attributes, **options)
            raise KeyboardInterrupt
        shutil.rmtree(cut_short[0], ignore_errors=True)
        write(cut_short[0], arrays, attributes, **options)
        write(path, arrays, attributes, **options)

    path = begun.parent / "again"
    monkeypatch.setattr(store, "write_arrays", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        run_profile(path, until=3)
    with pytest.raises(InputError, match="as far as that"):
        run_profile(path, until=3)
    monkeypatch.undo()
    assert cut_short[0].name.startswith("checkpoint-3.")
    assert status(path)["corpora"]["a"]["units_done"] == 3
    run_profile(path)
    assert bits(path) == bits(made / "corpus")


OF_THE_PLAN = ("document_name", "document_bytes", "document_unit", "unit_group")
"""No unit changes them."""


@pytest.mark.parametrize(
    "name",
    [
        name for name, spec in sorted(store.SCHEMA.items())
        if name not in (*OF_THE_PLAN, "document_text", "weighted_coefficient_sum") and "site" not in spec.dimensions
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_checkpoint_that_lacks_an_array_is_refused(name: str, begun: Path) -> None:
    shutil.rmtree(begun / ".run" / "corpora" / "a" / "checkpoint-3" / name)
    message = refusal(run_profile, begun)
    assert f"checkpoint-3 lacks the array {name}" in message
    assert message.endswith(f"remove {begun / '.run' / 'corpora' / 'a'} to begin it again")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("units_done", 2), ("units_done", 4), ("units_done", "3"), ("units_done", -1), ("folder", "checkpoint-2"),
        ("folder", "../../../corpora/a"), ("restarted_units", []), ("restarted_units", [0]), ("restarted_units", None),
        ("tokens", 22), ("skipped", 1), ("documents_done", 2),
    ],
)  # fmt: skip
def test_an_edited_ledger_is_refused(key: str, value: Any, begun: Path) -> None:
    edit(begun / ".run" / "corpora" / "a" / "current.json", lambda current: current.update({key: value}))
    assert "current.json" in refusal(run_profile, begun)


@pytest.mark.parametrize("moved", [False, True], ids=["same folder", "folder renamed"])
def test_a_unit_is_not_counted_twice(moved: bool, begun: Path) -> None:
    """`units_done` one less, also where the folder's name and all other entries were edited to agree."""
    folder = begun / ".run" / "corpora" / "a"
    change = {"units_done": 2, "documents_done": 2}
    if moved:
        (folder / "checkpoint-3").rename(folder / "checkpoint-2")
        edit(folder / "checkpoint-2" / "zarr.json", lambda node: node["attributes"]["noted"].update(change))
        edit(folder / "current.json", lambda current: current.update(folder="checkpoint-2"))
    edit(folder / "current.json", lambda current: current.update(change))
    message = refusal(run_profile, begun)
    if moved:
        assert "checkpoint-2 doesn't agree with what is noted of it: units_done is 2, unit_tokens has 3" in message


@pytest.mark.parametrize("name", ["plan.json", "current.json"])
@pytest.mark.parametrize("content", ["", '{"half', "[]", "{}", "\x00" * 9])
def test_damaged_files_of_a_run_are_named(name: str, content: str, begun: Path) -> None:
    file = begun / ".run" / "corpora" / "a" / name
    file.write_text(content)
    message = refusal(run_profile, begun)
    assert f"{file} is damaged" in message
    assert f"remove {file.parent}" in message
    if name == "current.json":
        with pytest.raises(InputError, match=r"current.json is damaged"):
            status(begun)


@pytest.mark.parametrize("value", ["text", None, [], {}, [1], -1, 1.5])
def test_status_and_runs_take_no_value_for_one_of_another_kind(value: Any, begun: Path) -> None:
    folder = begun / ".run" / "corpora" / "a"
    for name in ("plan.json", "current.json"):
        before = (folder / name).read_text()
        for key in json.loads(before):
            edit(folder / name, lambda document, key=key: document.update({key: value}))
            try:
                said = status_text(status(begun))
            except InputError as error:
                said = str(error)
            assert said.startswith("stopped\n") or f"{folder / name} is damaged" in said
            (folder / name).write_text(before)
    if value != {}:
        edit(folder / "plan.json", lambda plan: plan.update(identity=value))
        assert f"{folder / 'plan.json'} is damaged: 'identity' is " in refusal(run_profile, begun)


def test_a_store_of_other_kernels_is_refused_and_so_is_one_that_does_not_say(tmp_path: Path) -> None:
    config = {"dtype": "float32", **CONFIG.to_json()}
    assert open_store(tmp_path / "s", FACTS, {**config, "kernels": "compiled"}) == []
    with pytest.raises(InputError, match=r"computed with the compiled kernels, these are the plain ones.*install a C"):
        open_store(tmp_path / "s", FACTS, config)
    edit(tmp_path / "s" / "zarr.json", lambda root: root["attributes"]["config"].pop("kernels"))
    with pytest.raises(InputError, match="another config: kernels is 'plain', the store has None"):
        open_store(tmp_path / "s", FACTS, config)


def test_a_worker_with_other_kernels_is_refused(model_folder: Path) -> None:
    from dataclasses import replace

    from neurotally.profiler.model.load import load_model

    model = load_model(str(model_folder))
    other = "plain" if model.facts.kernels == "compiled" else "compiled"
    with pytest.raises(
        InputError, match=f"computes with the {model.facts.kernels} kernels, the others with the {other}"
    ):
        Worker(model, replace(CONFIG, kernels=other))
    Worker(model, replace(CONFIG, kernels=model.facts.kernels))


@pytest.mark.parametrize("place", np.linspace(0, 0.999, 12).tolist())
@pytest.mark.slow
def test_a_flipped_part_of_a_pass_is_done_again(place: float, begun_pass: Path, made: Path) -> None:
    part = sorted((begun_pass / ".run" / "numbers").rglob("*.npz"))[0]
    content = bytearray(part.read_bytes())
    content[int(place * len(content))] ^= 0x55
    part.write_bytes(bytes(content))
    run_pass(begun_pass)
    assert bits(begun_pass) == bits(made / "pass")


def test_a_damaged_plan_of_a_pass_is_named(begun_pass: Path) -> None:
    (plan,) = (begun_pass / ".run" / "numbers").rglob("plan.json")
    plan.write_text('{"tasks": 4}')
    assert f"{plan} is damaged: it lacks 'identity'; remove {plan.parent}" in refusal(run_pass, begun_pass)


@pytest.mark.parametrize("name", ["lock", "corpora", "corpora/b", "lens/a", ""])
def test_a_link_in_the_working_state_is_refused(name: str, tmp_path: Path) -> None:
    store.create_store(tmp_path / "store", {"model": None})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    link = tmp_path / "store" / ".run" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere / "precious" if name == "lock" else elsewhere)
    with pytest.raises(InputError, match="is a link"), writer_lock(tmp_path / "store"):
        pass
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"precious": "kept"}


def test_what_a_run_left_behind_is_removed(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(made / "pass", path)
    left = store.run_folder(path, "numbers/all")
    left.mkdir(parents=True)
    (left / "plan.json").write_text('{"identity": {}, "tasks": 4}')
    (path / ".zarr.77.partial.json").write_text("{")
    assert status(path)["state"] == "complete"
    with writer_lock(path):
        pass
    assert sorted(entry.name for entry in path.iterdir()) == [".run", "numbers", "zarr.json"]
    assert [entry.name for entry in (path / ".run").iterdir()] == ["lock"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
def test_status_of_a_store_that_another_user_may_only_read(begun: Path) -> None:
    def as_nobody() -> None:
        os.chdir(begun.parent)
        os.setuid(65534)
        with pytest.raises(PermissionError):
            (begun.parent / "new").touch()
        assert status(Path("store"))["corpora"]["a"]["units_done"] == 3

    begun.parent.chmod(0o755)
    assert forked(as_nobody) == 0
