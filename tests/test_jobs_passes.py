"""Passes of independent parts: resumed, in any order, on any number of workers, the same group of the store."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurotally.jobs.engines import JobError
from neurotally.jobs.passes.run import PassRequest, PassResult, Plan, run_pass
from neurotally.jobs.progress import Progress
from neurotally.jobs.status import status
from neurotally.jobs.worker import ModelConfig
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import LoadedModel, ModelFacts, load_model

TEXTS = ["def f(x):", "import os", "return [x for x in y]", "class A:\n    pass", "x = 1"]
SCHEMA = {"hidden": store.ArraySpec("float32", ("text", "width"), np.nan)}


@dataclass(frozen=True)
class Text:
    """A task of the pass below: the mean hidden state of one text."""

    index: int
    text: str

    @property
    def key(self) -> str:
        return f"text {self.index}"


@dataclass(frozen=True)
class MeanHidden:
    """A job; fails at the text that has `poison` in it while `trap` exists."""

    poison: str = "\0"
    trap: Path | None = None

    def bind(self, model: LoadedModel) -> "MeanHiddenRunner":
        return MeanHiddenRunner(self, model)


class MeanHiddenRunner:
    def __init__(self, job: MeanHidden, model: LoadedModel):
        self.job = job
        self.model = model

    def prepare(self, task: Text) -> tuple[Text, list[int]]:
        return task, self.model.tokenizer(task.text)["input_ids"]

    def compute(self, prepared: tuple[Text, list[int]], hint: np.ndarray | None = None) -> PassResult:
        task, ids = prepared
        if self.job.poison in task.text and self.job.trap is not None and self.job.trap.exists():
            raise RuntimeError("poisoned")
        hidden_D = self.model.run_body(torch.tensor([ids]))[0].mean(0)
        return PassResult(task.key, {"hidden": hidden_D.numpy()}, len(ids), 0.1)


def run(model: Path, path: Path, job: MeanHidden, texts: list[str] = TEXTS, **options: Any) -> dict[str, Any]:
    def plan(facts: ModelFacts, _store: Path) -> Plan:
        return Plan(
            job=job,
            tasks=[Text(index, text) for index, text in enumerate(texts)],
            identity={"texts": len(texts), "width": facts.width},
            assemble=lambda parts: ({"hidden": np.stack([part["hidden"] for part in parts])}, {"texts": texts}),
            schema=SCHEMA,
            what="text",
        )

    request = PassRequest(ModelConfig(str(model)), path, "hidden/means", **options)
    return run_pass(request, plan, Progress(quiet=True))


def test_its_group_holds_what_the_model_says(model_folder: Path, tmp_path: Path) -> None:
    attributes = run(model_folder, tmp_path / "s", MeanHidden())
    model = load_model(str(model_folder))
    expected = [model.run_body(torch.tensor([model.tokenizer(text)["input_ids"]]))[0].mean(0) for text in TEXTS]
    hidden = store.read_group(tmp_path / "s", "hidden/means")["hidden"]
    np.testing.assert_array_equal(hidden, torch.stack(expected).numpy())
    assert attributes["texts"] == TEXTS
    assert store.group_attributes(tmp_path / "s", "hidden/means") == attributes
    assert store.committed(tmp_path / "s", "hidden") == ["means"]
    assert store.committed_corpora(tmp_path / "s") == []
    assert [entry.name for entry in (tmp_path / "s" / ".run").iterdir()] == ["lock"]


def test_goes_on_where_it_failed(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "trap").touch()
    job = MeanHidden("class", tmp_path / "trap")
    with pytest.raises(JobError, match="failed 3 times: RuntimeError: poisoned"):
        run(model_folder, tmp_path / "s", job)
    parts = list((tmp_path / "s" / ".run" / "passes").rglob("*.npz"))
    assert len(parts) == 3
    assert status(tmp_path / "s")["state"] == "stopped"
    parts[0].write_bytes(b"cut off")  # done again
    (tmp_path / "trap").unlink()
    run(model_folder, tmp_path / "s", job)
    run(model_folder, tmp_path / "whole", MeanHidden())
    resumed, whole = (store.read_group(tmp_path / name, "hidden/means")["hidden"] for name in ("s", "whole"))
    assert resumed.tobytes() == whole.tobytes()
    assert status(tmp_path / "s")["state"] == "complete"


def test_a_finished_group_stays_and_another_of_its_name_is_refused(model_folder: Path, tmp_path: Path) -> None:
    first = run(model_folder, tmp_path / "s", MeanHidden())
    assert run(model_folder, tmp_path / "s", MeanHidden()) == first
    with pytest.raises(
        InputError, match=r"hidden/means of .* is another one: texts is 4, .* has 5; use another --name"
    ):
        run(model_folder, tmp_path / "s", MeanHidden(), TEXTS[:4])


def test_another_model_is_refused(model_folder: Path, other_model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "s", MeanHidden())
    with pytest.raises(InputError, match="is a store of another model: fingerprint"):
        run(other_model_folder, tmp_path / "s", MeanHidden())


def test_corpora_join_a_store_that_a_pass_began(
    model_folder: Path, tmp_path: Path, make_corpora: Callable[..., Path]
) -> None:
    from neurotally.jobs.profile import ProfileRequest, profile

    run(model_folder, tmp_path / "s", MeanHidden())
    corpora = make_corpora({"python": 6})
    profile(ProfileRequest(ModelConfig(str(model_folder)), tmp_path / "s", corpora), Progress(quiet=True))
    assert store.committed_corpora(tmp_path / "s") == ["python"]
    assert store.store_attributes(tmp_path / "s")["config"]["layout"] == "documents"
    other = ProfileRequest(ModelConfig(str(model_folder)), tmp_path / "s", corpora, row_tokens=64)
    with pytest.raises(InputError, match="another config: row_tokens"):
        profile(other, Progress(quiet=True))
