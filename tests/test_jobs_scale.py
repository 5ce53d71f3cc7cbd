"""Many workers and one driver, with workers that compute nothing: see synthetic.py and bench/bench_scale.py."""

from pathlib import Path

import pytest
from bench.bench_scale import SIZES, measure
from reference import everything


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
