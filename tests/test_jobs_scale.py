"""Many workers and one driver, with workers that compute nothing: see synthetic.py and bench/bench_scale.py."""

import shutil
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from bench import bench_scale
from bench.bench_scale import SIZES, measure
from reference import everything
from synthetic import SyntheticEngine

from neurotally.jobs.engines.engine import Outcome
from neurotally.jobs.reducers.fold import Fold
from neurotally.profiler.errors import InputError
from neurotally.profiler.neuron_sums import CorpusNeurons
from neurotally.profiler.passes.worker import Task


@pytest.mark.slow
def test_any_number_of_synthetic_workers_gives_the_same_bits_and_no_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "tiny", (2, 40))
    settings = {"size": "tiny", "unit_s": 15.5, "units": 40, "triggers": 8, "groups": 4}
    found = {workers: measure(tmp_path / str(workers), workers, **settings) for workers in (1, 8, 40)}
    assert everything(tmp_path / "1") == everything(tmp_path / "8") == everything(tmp_path / "40")
    # Eight units are in before a second one ends: an eighth of its candidates may still enter, in the mean.
    assert found[8]["most_triggers"] < 2
    assert found[40]["most_triggers"] == 0  # no worker had a second unit
    assert found[8]["bytes_a_unit"] < found[8]["most_bytes"]
    assert 0.5 < found[8]["efficiency"] <= 1


MANY: dict[str, Any] = {"size": "tiny", "unit_s": 15.5, "units": 16, "corpora": 7, "triggers": 8, "groups": 4}


class Straggling(SyntheticEngine):
    """The last unit of a corpus of `MANY` takes longest."""

    def submit(self, task: Task) -> None:
        self._unit_s = 100 if task.index == 15 else 15.5
        super().submit(task)


@pytest.mark.slow
def test_of_many_corpora_two_have_sums_at_a_time_and_the_bits_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 40 workers, that could have tasks of five corpora at once."""
    made, alive = WeakSet[CorpusNeurons](), dict[int, set[int]]()
    make = CorpusNeurons.__init__

    def make_and_note(neurons: CorpusNeurons, *arguments: Any) -> None:
        make(neurons, *arguments)
        made.add(neurons)

    class Engine(Straggling):
        def next_result(self, timeout_s: float) -> Outcome | None:
            alive.setdefault(self.num_workers, set()).add(len(made))
            return super().next_result(timeout_s)

    monkeypatch.setitem(SIZES, "tiny", (2, 40))
    monkeypatch.setattr(bench_scale, "SyntheticEngine", Engine)
    monkeypatch.setattr(CorpusNeurons, "__init__", make_and_note)
    for workers in (1, 3, 40):
        measure(tmp_path / str(workers), workers, **MANY)
    assert everything(tmp_path / "1") == everything(tmp_path / "3") == everything(tmp_path / "40")
    assert alive == {1: {0, 1}, 3: {1, 2}, 40: {1, 2}}


@pytest.mark.slow
def test_two_corpora_that_were_under_way_are_checked_first_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Straggling):
        def next_result(self, timeout_s: float) -> Outcome | None:
            if len(self.bytes_by_unit) == 21:
                raise KeyboardInterrupt
            return super().next_result(timeout_s)

    class Unused(Straggling):
        def submit(self, task: Task) -> None:
            raise AssertionError

    monkeypatch.setitem(SIZES, "tiny", (2, 40))
    monkeypatch.setattr(bench_scale, "SyntheticEngine", Ended)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "s", 5, **MANY)
    begun = sorted(folder.relative_to(tmp_path / "s/.run/corpora") for folder in tmp_path.rglob("checkpoint-*"))
    assert list(map(str, begun)) == ["000/checkpoint-15", "001/checkpoint-4"]
    shutil.copytree(tmp_path / "s", tmp_path / "damaged")
    chunk = tmp_path / "damaged/.run/corpora/001/checkpoint-4/trigger_value/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(bench_scale, "SyntheticEngine", Unused)
    with pytest.raises(InputError, match=r"trigger_value can't be read.*remove .*001 to begin it again"):
        measure(tmp_path / "damaged", 5, **MANY)
    monkeypatch.setattr(bench_scale, "SyntheticEngine", SyntheticEngine)
    measure(tmp_path / "s", 2, **MANY)
    measure(tmp_path / "whole", 1, **MANY)
    assert everything(tmp_path / "s") == everything(tmp_path / "whole")


@pytest.mark.slow
def test_checkpoints_that_take_long_are_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one takes 20 s: once a minute they would take a quarter of the time."""
    engines: list[SyntheticEngine] = []

    class Engine(SyntheticEngine):
        def __init__(self, *settings: Any):
            super().__init__(*settings)
            engines.append(self)

    class Slow(Fold):
        def save(self) -> None:
            super().save()
            engines[0].clock.skip_to(engines[0].clock() + 20)

    monkeypatch.setitem(SIZES, "tiny", (2, 40))
    monkeypatch.setattr(bench_scale, "SyntheticEngine", Engine)
    monkeypatch.setattr(bench_scale, "Fold", Slow)
    found = measure(tmp_path / "s", 1, size="tiny", unit_s=60, units=40, triggers=2, groups=4)
    first_and_last = 2 * 20
    assert 4 * 20 <= found["write_s"] <= 0.05 * found["wall_s"] + first_and_last
