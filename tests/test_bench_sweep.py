"""The sweep over transformers' causal language models: it covers all of them, and tells right from wrong."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

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


@pytest.mark.slow
def test_a_sample_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        "mamba": "found none in any layer",
        "xlm": "is a feed-forward network and nothing else",
        "xlnet": "expected a row for each token",
        "inkling2_text": "isn't linear in `up`",
    }
    read = ("llama", "lfm2", "llama4_text", "nemotron_h")
    expected = {**dict.fromkeys(read, "equal"), **dict.fromkeys(reasons, "refused")}
    names = [word for name in expected for word in ("--only", name)]
    assert sweep_families.main([*names, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["architecture"]: row["outcome"] for row in document["rows"]} == expected
    assert (document["architectures"], document["equal"], document["refused"]) == (8, 4, 4)
    for row in document["rows"]:
        assert reasons.get(row["architecture"], "") in row["reason"]


@pytest.mark.slow
def test_a_wrong_count_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_activation = replace(MIXTURES["mixtral"], formula=MIXTURES["gpt_oss"].formula)
    monkeypatch.setitem(MIXTURES, "mixtral", of_another_activation)
    assert sweep_families.main(["--only", "mixtral"]) == 1
    assert "1 architectures: 1 wrong" in capsys.readouterr().out


@pytest.mark.slow
def test_what_has_no_reference_isnt_called_equal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sweep_families.DENSE, "llama")
    assert sweep_families.main(["--only", "llama"]) == 1
    assert "no reference says what should be read" in capsys.readouterr().out.replace("\n", " ")
