"""The main job, end to end: against an independent count with plain hooks, and the same to the bit however it ran."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lay_out
from launching import Launch
from ray.cluster_utils import Cluster
from reference import HookCount, check_sums, corpus_order, everything, top
from transformers import AutoTokenizer

from neurotally.jobs import profile
from neurotally.jobs.progress import Progress
from neurotally.jobs.status import status, status_text
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.worker import Worker


def run(model: Path, path: Path, corpora: Path, **options: Any) -> None:
    options = {"row_tokens": 64, "groups": 3, "triggers": 4, "progress": Progress(quiet=True), **options}
    profile(str(model), path, corpora=corpora, **options)


@pytest.mark.slow
def test_equals_plain_hooks_one_document_at_a_time(model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    corpora = make_corpora({"python": 40})
    run(model_folder, tmp_path / "s", corpora)
    arrays = store.read_corpus(tmp_path / "s", "python")
    tokenizer, count = AutoTokenizer.from_pretrained(model_folder), HookCount(model_folder, torch.float32)
    candidates: list[list[tuple[float, int, int]]] = [[] for _ in range(2 * 48)]
    files = corpus_order(corpora / "python")
    for number, path in enumerate(files):
        ids = tokenizer(path.read_bytes().decode())["input_ids"]
        assert ids[0] == 0
        rows = [count.row(ids[start : start + 64]) for start in range(0, len(ids), 64)]
        coefficient = np.concatenate(rows, axis=1).astype(np.float32)
        coefficient[:, 0] = -1  # BOS is never a trigger
        for index, values in enumerate(coefficient.transpose(0, 2, 1).reshape(96, -1)):
            candidates[index].append((float(values.max()), number, int(values.argmax())))
        assert arrays["document_tokens"][number] == len(ids)
        assert bytes(arrays["document_hash"][number]) == hashlib.sha256(path.read_bytes()).digest()
    assert arrays["document_name"].tolist() == [path.relative_to(corpora / "python").as_posix() for path in files]
    assert arrays["tokens"].sum() == count.tokens == arrays["unit_tokens"].sum()
    assert arrays["special_tokens"].sum() == len(files)
    assert np.abs(arrays["active"].sum(0).astype(int) - count.active).sum() <= 1e-6 * count.active.size * count.tokens
    check_sums(arrays, count, 1e-5)
    values = arrays["trigger_value"].reshape(96, 4)
    for index in range(96):
        expected = top(candidates[index], 4)
        assert arrays["trigger_document"].reshape(96, 4)[index, : len(expected)].tolist() == [c[1] for c in expected]
        assert arrays["trigger_position"].reshape(96, 4)[index, : len(expected)].tolist() == [c[2] for c in expected]
        np.testing.assert_allclose(values[index, : len(expected)], [c[0] for c in expected], rtol=1e-5)
        assert np.isnan(values[index, len(expected) :]).all()


@pytest.mark.slow
def test_concat_equals_hooks_over_the_same_rows(model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    corpora = make_corpora({"python": 30})
    run(model_folder, tmp_path / "s", corpora, layout="concat", document_tokens=100)
    arrays = store.read_corpus(tmp_path / "s", "python")
    tokenizer, count = AutoTokenizer.from_pretrained(model_folder), HookCount(model_folder, torch.float32)
    texts = [path.read_bytes().decode() for path in corpus_order(corpora / "python")]
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for unit in range(len(arrays["unit_tokens"])):
        places = [
            (token, number, position)
            for number in np.flatnonzero(arrays["document_unit"] == unit)
            for position, token in enumerate(tokenizer(texts[number])["input_ids"][:100])
        ]
        for start in range(0, len(places), 64):
            row = places[start : start + 64]
            coefficient = count.row([token for token, _, _ in row]).astype(np.float32)
            coefficient[:, [token == 0 for token, _, _ in row]] = -1
            for index, values in enumerate(coefficient.transpose(0, 2, 1).reshape(96, -1)):
                _, number, position = row[int(values.argmax())]
                candidate = (float(values.max()), int(number), position)
                held = best.get((index, int(number)), (-1.0, 0, 0))
                best[index, int(number)] = max(held, candidate, key=lambda c: (c[0], -c[2]))
    assert arrays["tokens"].sum() == count.tokens
    assert np.abs(arrays["active"].sum(0).astype(int) - count.active).sum() <= 1e-6 * count.active.size * count.tokens
    check_sums(arrays, count, 1e-5)
    for index in range(96):
        expected = top([best[key] for key in sorted(best) if key[0] == index], 4)
        assert arrays["trigger_document"].reshape(96, 4)[index, : len(expected)].tolist() == [c[1] for c in expected]
        assert arrays["trigger_position"].reshape(96, 4)[index, : len(expected)].tolist() == [c[2] for c in expected]


@pytest.mark.slow
def test_bfloat16_sums(model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    corpora = make_corpora({"python": 20})
    run(model_folder, tmp_path / "s", corpora, dtype="bfloat16")
    arrays = store.read_corpus(tmp_path / "s", "python")
    tokenizer, count = AutoTokenizer.from_pretrained(model_folder), HookCount(model_folder, torch.bfloat16)
    for path in corpus_order(corpora / "python"):
        ids = tokenizer(path.read_bytes().decode())["input_ids"]
        for start in range(0, len(ids), 64):
            count.row(ids[start : start + 64])
    assert arrays["tokens"].sum() == count.tokens
    flips = np.abs(arrays["active"].sum(0).astype(int) - count.active).sum() / (count.active.size * count.tokens)
    assert flips < 1e-3
    difference = np.abs(arrays["coefficient_sum"] - count.sums["coefficient_sum"])
    # Two batch shapes round a bf16 forward differently; the sums of some 10^3 tokens still agree.
    assert difference.sum() <= 2e-3 * count.scales["coefficient_sum"].sum()


@pytest.mark.ray
def test_a_ray_cluster_of_two_nodes_gives_the_same_bits(
    model_folder: Path, make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = make_corpora({"python": 40, "c++": 25})
    by_lines: dict[str, Any] = {"window_lines": 2, "keep_texts": True}
    run(model_folder, tmp_path / "one", corpora, **by_lines)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        run(model_folder, tmp_path / "three", corpora, workers=3, **by_lines)
    finally:
        cluster.shutdown()
    assert everything(tmp_path / "three") == everything(tmp_path / "one")
    assert "python/document_text" in everything(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.usefixtures("workers_share_this_process")
def test_documents_that_run_together_give_the_same_bits_on_three_workers(
    model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 40, "c++": 25})
    for workers in (1, 3):
        run(model_folder, tmp_path / str(workers), corpora, layout="concat", workers=workers)
    assert everything(tmp_path / "3") == everything(tmp_path / "1")


@pytest.mark.slow
def test_the_token_budget_and_the_cut_into_units_change_no_count(
    model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 30})
    results = []
    for number, (budget, unit_bytes) in enumerate([(64, 2**20), (333, 3000), (4096, 500)]):
        run(model_folder, tmp_path / str(number), corpora, token_budget=budget, max_unit_bytes=unit_bytes)
        arrays = store.read_corpus(tmp_path / str(number), "python")
        results.append((arrays["tokens"].sum(), arrays["active"].sum(0), arrays["trigger_document"]))
    for tokens, active, documents in results[1:]:
        assert tokens == results[0][0]
        assert np.abs(active.astype(int) - results[0][1].astype(int)).sum() <= 1
        assert (documents == results[0][2]).mean() > 0.999


@pytest.mark.slow
def test_out_of_memory_restarts_the_unit_and_counts_nothing_twice(
    model_folder: Path, make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurotally.profiler.model.hook_points import StandIn

    corpora = make_corpora({"python": 30})
    run(model_folder, tmp_path / "plenty", corpora)
    forward = StandIn.forward

    def small_device(stand_in: StandIn, pre_BTF: torch.Tensor) -> Any:
        if stand_in.hook_point.layer == 1 and pre_BTF.shape[0] * pre_BTF.shape[1] > 300:
            raise torch.OutOfMemoryError("out of memory")
        return forward(stand_in, pre_BTF)

    monkeypatch.setattr(StandIn, "forward", small_device)
    run(model_folder, tmp_path / "scarce", corpora)
    plenty, scarce = (store.read_corpus(tmp_path / name, "python") for name in ("plenty", "scarce"))
    assert (plenty["tokens"] == scarce["tokens"]).all()
    assert np.abs(plenty["active"].astype(int) - scarce["active"].astype(int)).sum() <= 1
    assert store.corpus_attributes(tmp_path / "scarce", "python")["restarted_units"]
    assert not store.corpus_attributes(tmp_path / "plenty", "python")["restarted_units"]


def start(model: Path, path: Path, corpora: Path, *options: str) -> Launch:
    """A run to be killed: a checkpoint after every unit makes it slow, and leaves something to go on from."""
    arguments = ["profile", str(model), str(path), "--corpora", str(corpora), "--row-tokens", "64", "--groups", "3"]
    return Launch([*arguments, "--triggers", "4", *options], path, checkpoint_every_s=0.0, max_unit_bytes=400)


def go_on(model: Path, path: Path, corpora: Path) -> None:
    """Run to its end what `start` began, or the same from the beginning, here and by one worker."""
    run(model, path, corpora, max_unit_bytes=400)


def wait_for_units(path: Path, number: int, process: Launch, timeout_s: float = 120) -> None:
    """Wait until a checkpoint holds so many units, over all corpora."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.status is None:
        done = len(list(path.glob("corpora/*/zarr.json"))) * 1000
        for file in path.glob(".run/corpora/*/current.json"):
            done += json.loads(file.read_text())["units_done"]
        if done >= number:
            return
        time.sleep(0.02)
    raise AssertionError(f"never got to {number} units: {process.status} {process.errors}")


@pytest.mark.ray
def test_killed_with_two_workers_and_with_one_and_resumed_gives_the_same_bits(
    model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 40, "c++": 40})
    for number, workers in ((10, "2"), (1010, "1")):
        process = start(model_folder, tmp_path / "killed", corpora, "--workers", workers)
        wait_for_units(tmp_path / "killed", number, process)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.finish()[0] == -signal.SIGKILL
    go_on(model_folder, tmp_path / "killed", corpora)
    go_on(model_folder, tmp_path / "whole", corpora)
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
    assert not list((tmp_path / "killed" / ".run").glob("corpora/*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_interrupted_by_a_signal_saves_and_goes_on(
    number: signal.Signals, code: int, model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 40})
    process = start(model_folder, tmp_path / "s", corpora)
    wait_for_units(tmp_path / "s", 3, process)
    os.kill(process.pid, number)
    status, _, errors = process.finish()
    assert status == code
    assert "Traceback" not in errors
    assert "goes on from here" in errors.splitlines()[-1]
    go_on(model_folder, tmp_path / "s", corpora)
    go_on(model_folder, tmp_path / "clean", corpora)
    assert everything(tmp_path / "s") == everything(tmp_path / "clean")


@pytest.mark.slow
def test_status_names_the_source_of_an_unfinished_corpus_that_is_gone(
    model_folder: Path, make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora, compute, calls = make_corpora({"python": 30}), Worker.compute, []

    def stopped_at_the_fourth(self: Worker, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(self, *args)

    monkeypatch.setattr(Worker, "compute", stopped_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tmp_path / "s", corpora, max_unit_bytes=400)
    assert status(tmp_path / "s")["sources_gone"] == {}
    moved = corpora.rename(tmp_path / "moved")
    document = status(tmp_path / "s")
    assert (document["state"], document["sources_gone"]) == ("stopped", {"python": str(corpora / "python")})
    assert f"python: its source is gone, and what is left of it can't be read: {corpora}" in status_text(document)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, tmp_path / "s", moved, max_unit_bytes=400)
    assert status(tmp_path / "s")["sources_gone"] == {}
    run(model_folder, tmp_path / "s", moved, max_unit_bytes=400)
    shutil.rmtree(moved)
    assert (status(tmp_path / "s")["state"], status(tmp_path / "s")["sources_gone"]) == ("complete", {})


@pytest.mark.slow
def test_a_finished_store_says_so_and_a_further_corpus_is_added(
    model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 20})
    run(model_folder, tmp_path / "s", corpora)
    before = everything(tmp_path / "s")
    session_file = tmp_path / "s" / ".run" / "ray"
    session_file.write_bytes(b"of a run that was killed as it ended, \xff damaged")
    run(model_folder, tmp_path / "s", corpora)
    assert not session_file.exists()
    make_corpora({"go": 10})
    run(model_folder, tmp_path / "s", corpora)
    assert store.committed_corpora(tmp_path / "s") == ["go", "python"]
    after = everything(tmp_path / "s")
    assert {name: value for name, value in after.items() if name.startswith("python/")} == before


def test_identity_is_by_content_never_by_path(model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    corpora = make_corpora({"python": 20})
    run(model_folder, tmp_path / "s", corpora)
    moved_model, moved_corpora = tmp_path / "elsewhere" / "model", tmp_path / "elsewhere" / "corpora"
    shutil.copytree(model_folder, moved_model)
    shutil.move(corpora, moved_corpora)
    shutil.move(tmp_path / "s", tmp_path / "elsewhere" / "s")
    run(moved_model, tmp_path / "elsewhere" / "s", moved_corpora, workers=1)


def test_skipped_documents_are_counted_by_reason_and_listed(
    model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 9})
    folder = corpora / "python"
    (folder / "empty.py").touch()
    (folder / "latin.py").write_bytes("é".encode("latin-1"))
    (folder / "copy.py").write_bytes((folder / "0" / "0.py").read_bytes())
    (folder / ".hidden.py").write_text("x")
    (folder / "link.py").symlink_to(folder / "0" / "0.py")
    run(model_folder, tmp_path / "s", corpora)
    attributes = store.corpus_attributes(tmp_path / "s", "python")
    assert attributes["skipped"] == {"empty": 1, "not_utf8": 1}
    assert sorted(attributes["skipped_documents"]) == ["empty.py", "latin.py"]
    assert attributes["duplicates"] == 1
    assert attributes["documents"] == 12
    assert attributes["counted"] == 10


def refusal(model: Path, path: Path, corpora: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(model, path, corpora, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def original(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(model_folder, folder / "s", lay_out(folder / "corpora", {"python": 10}))
    return folder


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A store and its corpora, to be changed."""
    return shutil.copytree(original / "s", tmp_path / "s"), shutil.copytree(original / "corpora", tmp_path / "corpora")


def test_another_model_is_refused(finished: tuple[Path, Path], other_model_folder: Path) -> None:
    assert "another model: fingerprint" in refusal(other_model_folder, *finished)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"row_tokens": 32}, "row_tokens is 32, the store has 64"),
        ({"layout": "concat"}, "layout is 'concat', the store has 'documents'"),
        ({"triggers": 5}, "triggers is 5"),
        ({"groups": 4}, "groups is 4"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', the store has 'float32'"),
        ({"document_tokens": 10}, "document_tokens is 10, the store has None"),
        ({"max_files": 5}, "max_files is 5, the store has None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.slow
def test_another_config_is_refused(
    finished: tuple[Path, Path], model_folder: Path, options: dict[str, Any], named: str
) -> None:
    before = everything(finished[0])
    assert named in refusal(model_folder, *finished, **options)
    assert everything(finished[0]) == before


def test_a_changed_corpus_is_refused(finished: tuple[Path, Path], model_folder: Path) -> None:
    (finished[1] / "python" / "new.py").write_text("x = 1\n")
    assert "documents is 11, the store has 10" in refusal(model_folder, *finished)


def test_rows_beyond_the_context_are_refused(model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    message = refusal(model_folder, tmp_path / "s", make_corpora({"python": 3}), row_tokens=129)
    assert "rows of at most 128 tokens" in message


def test_max_files_takes_the_first_in_hash_order(model_folder: Path, make_corpora: Any, tmp_path: Path) -> None:
    corpora = make_corpora({"python": 20})
    run(model_folder, tmp_path / "s", corpora, max_files=7)
    expected = [path.relative_to(corpora / "python").as_posix() for path in corpus_order(corpora / "python")[:7]]
    assert store.read_corpus(tmp_path / "s", "python", ["document_name"])["document_name"].tolist() == expected


@pytest.mark.slow
def test_two_writers_are_refused(finished: tuple[Path, Path], model_folder: Path) -> None:
    import filelock

    with filelock.FileLock(finished[0] / ".run" / "lock"):
        assert "another run" in refusal(model_folder, *finished)
