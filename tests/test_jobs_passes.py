"""Passes of independent parts: resumed, in any order, on any number of workers, the same group of the store."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neurotally.jobs import profile
from neurotally.jobs.engines.engine import JobError
from neurotally.jobs.model_config import ModelConfig
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers.parts import KeptParts, Part, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.run import Pass, Setup, model_identity, run_pass
from neurotally.jobs.status import status
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import LoadedModel, ModelFacts, load_model

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

    @property
    def size(self) -> int:
        return len(self.text)


class MeanHidden:
    """Fails at the text that has `poison` in it while `trap` exists."""

    def __init__(self, model: LoadedModel, poison: str, trap: Path | None):
        self.model = model
        self.poison = poison
        self.trap = trap

    def prepare(self, task: Text) -> list[int]:
        return self.model.tokenizer(task.text)["input_ids"]

    def compute(self, task: Text, ids: list[int]) -> Part:
        if self.poison in task.text and self.trap is not None and self.trap.exists():
            raise RuntimeError("poisoned")
        return Part({"hidden": self.model.run_body(torch.tensor([ids]))[0].mean(0).numpy()[None]}, len(ids))


def run(
    model: Path, path: Path, texts: list[str] = TEXTS, poison: str = "\0", trap: Path | None = None
) -> dict[str, Any]:
    def assemble(parts: KeptParts) -> Any:
        return {"hidden": parts.blocks("hidden", len(texts))}, {"texts": texts}

    def make_pass(facts: ModelFacts, _: Any) -> Pass:
        identity = {**model_identity(facts), "texts": len(texts), "width": facts.width}
        tasks = [Text(index, text) for index, text in enumerate(texts)]
        plan = Plan("hidden/means", tasks, identity, partial(Parts, assemble=assemble, schema=SCHEMA), "text")
        return Pass(partial(MeanHidden, poison=poison, trap=trap), [plan])

    run_pass(Setup(ModelConfig(str(model)), path, progress=Progress(quiet=True)), make_pass)
    return store.group_attributes(path, "hidden/means")


def test_its_group_holds_what_the_model_says(model_folder: Path, tmp_path: Path) -> None:
    attributes = run(model_folder, tmp_path / "s")
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
    with pytest.raises(JobError, match="failed 3 times: RuntimeError: poisoned"):
        run(model_folder, tmp_path / "s", poison="class", trap=tmp_path / "trap")
    parts = list((tmp_path / "s" / ".run" / "hidden").rglob("*.npz"))
    assert len(parts) == 3
    assert status(tmp_path / "s")["state"] == "stopped"
    parts[0].write_bytes(b"cut off")  # done again
    (tmp_path / "trap").unlink()
    run(model_folder, tmp_path / "s", poison="class", trap=tmp_path / "trap")
    run(model_folder, tmp_path / "whole")
    resumed, whole = (store.read_group(tmp_path / name, "hidden/means")["hidden"] for name in ("s", "whole"))
    assert resumed.tobytes() == whole.tobytes()
    assert status(tmp_path / "s")["state"] == "complete"


def test_a_finished_group_stays_and_another_of_its_name_is_refused(model_folder: Path, tmp_path: Path) -> None:
    first = run(model_folder, tmp_path / "s")
    assert run(model_folder, tmp_path / "s") == first
    with pytest.raises(
        InputError, match=r"hidden/means of .* is another one: texts is 4, .* has 5; use another --name"
    ):
        run(model_folder, tmp_path / "s", TEXTS[:4])


def test_another_model_is_refused(model_folder: Path, other_model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "s")
    with pytest.raises(InputError, match="is a store of another model: fingerprint"):
        run(other_model_folder, tmp_path / "s")


def test_corpora_join_a_store_that_a_pass_began(
    model_folder: Path, tmp_path: Path, make_corpora: Callable[..., Path]
) -> None:
    run(model_folder, tmp_path / "s")
    corpora = make_corpora({"python": 6})
    profile(str(model_folder), tmp_path / "s", corpora=corpora, progress=Progress(quiet=True))
    assert store.committed_corpora(tmp_path / "s") == ["python"]
    assert store.store_attributes(tmp_path / "s")["config"]["layout"] == "documents"
    with pytest.raises(InputError, match="another config: row_tokens"):
        profile(str(model_folder), tmp_path / "s", corpora=corpora, row_tokens=64, progress=Progress(quiet=True))
