"""Many workers and one driver, with workers that compute nothing: see synthetic.py and bench/bench_scale.py."""

from pathlib import Path
from typing import Any

import pytest
from bench import bench_scale
from bench.bench_scale import SIZES, measure
from reference import everything
from synthetic import SyntheticEngine

from neurotally.jobs.reducers import Fold


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
