"""The sweep over transformers' causal language models: it covers all of them, and tells right from wrong."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from mixtures import MIXTURES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ALL

BENCH = Path(__file__).parent / "bench"
sys.path.insert(0, str(BENCH))
sweep_families = importlib.import_module("sweep_families")


def test_every_architecture_has_a_reference_or_is_known_to_be_refused() -> None:
    with_reference = set(sweep_families.DENSE) | set(MIXTURES)
    assert set(ALL) == (with_reference & set(ALL)) | set(sweep_families.REFUSED)
    assert not with_reference & set(sweep_families.REFUSED)


def test_the_readme_says_how_many_are_read_and_how_to_see_it() -> None:
    number = len(ALL) - len(sweep_families.REFUSED)
    words = " ".join((BENCH.parent.parent / "README.md").read_text().split())
    assert f"{number} of the {len(ALL)} architectures" in words
    assert "`python tests/bench/sweep_families.py`" in words


@pytest.mark.slow
def test_a_sample_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"llama": "equal", "lfm2": "equal", "llama4_text": "equal", "nemotron_h": "equal", "mamba": "refused"}
    names = [word for name in expected for word in ("--only", name)]
    assert sweep_families.main([*names, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["architecture"]: row["outcome"] for row in document["rows"]} == expected
    assert (document["architectures"], document["equal"], document["refused"]) == (5, 4, 1)
    assert "found none in any layer" in document["rows"][-1]["reason"]


@pytest.mark.slow
def test_a_wrong_count_and_a_crash_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    wrong = {**MIXTURES, "mixtral": sweep_families.MIXTURES["gpt_oss"]}  # interleaved, transposed and clamped
    for name in ("mixtures", "reading_checks"):
        monkeypatch.setattr(f"{name}.MIXTURES", wrong)
    assert sweep_families.main(["--only", "mixtral"]) == 1
    out = capsys.readouterr().out
    assert "1 architectures: 1 crashed" in out or "1 architectures: 1 wrong" in out
