"""What a run says to people: lines on stderr, and how long it takes yet."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from neurotally.jobs import progress as progress_module
from neurotally.jobs.progress import Progress, time_left
from neurotally.jobs.reducers.reducer import Plan, Reducer

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s left"),
        (59.4, "59 s left"),
        (59.6, "1 min left"),
        (3569, "59 min left"),
        (3571, "1 h 00 min left"),
        (3900, "1 h 05 min left"),
        (86_000, "23 h 53 min left"),
        (86_390, "1 d 0 h left"),
        (180_000, "2 d 2 h left"),
    ],
)
def test_time_left(seconds: float, said: str) -> None:
    assert time_left(seconds) == said


@dataclass
class Task:
    key: str
    size: int


class Group(Reducer):
    """Five tasks of 10, 30 and three times 20 bytes, of which the first two were done by a former run."""

    num_done = 2

    def __init__(self) -> None:
        self.plan = Plan(
            "loss/mask", [Task(str(size), size) for size in (10, 30, 20, 20, 20)], {}, reducer=lambda *_: self
        )

    @property
    def todo(self) -> list[Any]:
        return list(self.plan.tasks[2:])

    def progress(self) -> dict[str, Any]:
        return {"done": False, "tasks": 5, "tasks_done": self.num_done}

    take = save = publish = _resume = _write = None  # type: ignore[assignment]


def test_passes_and_readings_say_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """By a clock that stands at 400 s a task: 2 of 5 done before, 2 in this run, one to go."""
    now, group, file = [0.0], Group(), tmp_path / ".run" / "progress.json"
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress().running([group], tmp_path) as took:
        for task in group.todo[:2]:
            now[0] += 400
            group.num_done += 1
            took(group, task, 1000)
        written = json.loads(file.read_text())
    assert capsys.readouterr().err.splitlines() == [
        "loss/mask: unit 3/5, 2 tokens/s, 13 min left",
        "loss/mask: unit 4/5, 2 tokens/s, 7 min left",
    ]
    assert written == {"groups": {"loss/mask": group.progress()}, "tokens_per_s": 2.5, "seconds_left": 400.0}
    assert not file.exists()
    for _ in Progress().over("abc", "python", "document", 3):
        now[0] += 20
    assert capsys.readouterr().err == "python: document 2/3, 20 s left\n"


@pytest.mark.slow
def test_commands_about_keys_are_not_silent(
    run: Run, model_folder: Path, make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = make_corpora({"c": 6, "python": 6})
    assert run("profile", model_folder, tmp_path / "s", "--corpora", corpora, "--row-tokens", 64)[0] == 0
    (tmp_path / "r.toml").write_text("[concepts]\ndef = 'def'\n")
    monkeypatch.setitem(Progress.__init__.__kwdefaults__, "line_every_s", 0)
    for arguments in (("patterns",), ("concepts", "--regex", tmp_path / "r.toml"), ("triggers", 0, 1),
                      ("report", "--out", tmp_path / "r.html")):  # fmt: skip
        name, *options = arguments
        positional = options[:2] if name == "triggers" else []
        code, out, err = run(name, tmp_path / "s", *positional, *options[len(positional) :])
        assert code == 0, err
        for line in ("python: document 1/", "corpus 1/2", "left"):
            assert line in err, (name, err)
            assert "document 1/" not in out
