"""What a run is expected to need is what it takes; what surely doesn't fit is refused with settings that would."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_jobs_cli import refused
from transformers import AutoConfig, AutoModelForCausalLM

from neurotally.jobs.free_memory import _left_in_groups
from neurotally.jobs.memory_plan import Run, as_size, device_parts, host_parts, refuse_too_large, total
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.outline import outline_model

WITHIN = 1.5
MANY_NEURONS = {
    "model_type": "qwen3_moe", "hidden_size": 16, "moe_intermediate_size": 4096, "num_experts": 64,
    "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": 600,
}  # fmt: skip


@pytest.fixture(scope="session")
def large_mixture(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """524,288 neurons, whose weights are small; so many tokens reach each expert that trigger lists fill up."""
    folder = tmp_path_factory.mktemp("large") / "model"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**MANY_NEURONS)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PROGRAM = r"""
import re, sys
from pathlib import Path
from neurotally.jobs.cli import _main

status = _main(sys.argv[1:])
# What the system says of an ended process counts what this one had when it began the other.
print(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""


def peak_bytes(*arguments: object) -> tuple[int, str]:
    """The most resident memory of a `neurotally` command that succeeds, and its stderr."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) * 1024, done.stderr


@pytest.mark.parametrize(("groups", "triggers", "corpora"), [(10, 32, 1), (10, 16, 3), (100, 8, 1)], ids=str)
@pytest.mark.slow
def test_a_run_takes_what_is_expected(
    groups: int, triggers: int, corpora: int, large_mixture: Path, make_corpora: Any, tmp_path: Path
) -> None:
    texts = make_corpora({f"corpus{number}": 80 for number in range(corpora)})
    settings = ("--groups", groups, "--triggers", triggers, "--device", "cpu", "--workers", 1)
    peak, err = peak_bytes("profile", large_mixture, tmp_path / "s", "--corpora", texts, *settings)
    outline = outline_model(str(large_mixture), "cpu")
    needed = total(host_parts(Run(outline, groups, triggers, outline.row_tokens, 4096, corpora)))
    assert f"memory: some {as_size(needed.bytes)} (" in err
    assert needed.least <= peak
    assert needed.bytes / WITHIN <= peak <= needed.bytes * WITHIN


@pytest.fixture(scope="module")
def run_of_deepseek(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("deepseek")
    AutoConfig.for_model("deepseek_v3", architectures=["DeepseekV3ForCausalLM"]).save_pretrained(folder)
    return Run(outline_model(str(folder), "cpu", "bfloat16"), 10, 32, 2048, 4096)


def test_the_parts_are_those_of_the_formulas(run_of_deepseek: Run) -> None:
    neurons, cells = 3 * 18432 + 58 * 257 * 2048, 61 * 257 * 2048
    for corpora, workers, alive in ((3, 1, 1), (1, 2, 1), (2, 2, 2), (3, 64, 2)):
        run = replace(run_of_deepseek, corpora=corpora, workers=workers)
        parts = {part.name: part for part in host_parts(run)}
        assert parts["sums of a corpus"].bytes == alive * cells * (2 * 10 * 8 + 4 * 8 + 2 * 4 + 8)
        assert parts["triggers of a corpus"].bytes == alive * cells * 32 * 12
        assert parts["sums of a corpus"].least == cells * (2 * 10 * 8 + 4 * 8 + 2 * 4 + 8)
        assert parts["triggers of a corpus"].least == cells * 32 * 8
    device = {part.name: part.bytes for part in device_parts(run_of_deepseek)}
    assert device["tallies"] == neurons * (2 * 8 + 4 * 8 + 2 * 4 + 8)
    assert device["trigger lists"] == neurons * (32 * 12 + 4) + 36 * 32 * 256 * 2048
    assert device["weights"] == run_of_deepseek.outline.weight_bytes


def refusal(run: Run, free_bytes: float) -> str:
    with pytest.raises(InputError) as raised:
        refuse_too_large(run, int(free_bytes))
    return str(raised.value)


def test_settings_that_would_fit_are_named_and_do(run_of_deepseek: Run) -> None:
    run = replace(run_of_deepseek, corpora=2, outline=replace(run_of_deepseek.outline, checkpoint_dtype="bfloat16"))
    least = total(host_parts(run)).least
    refuse_too_large(run, least)
    message = refusal(run, least - 1)
    assert message.startswith(f"profile needs at least {as_size(least)} of this machine's memory, of which")
    assert message.endswith("it would fit with --triggers 31, or --groups 9")
    for change in ({"triggers": 31}, {"groups": 9}):
        refuse_too_large(replace(run, **change), least - 1)
    tight = refusal(run, 13e9)
    assert "--groups 1 --workers 1 --triggers" in tight
    triggers = int(tight.partition("--triggers ")[2].split()[0])
    fitting = replace(run, groups=1, triggers=triggers)
    refuse_too_large(fitting, int(13e9))
    refusal(replace(fitting, triggers=triggers + 1), 13e9)
    assert refusal(run, 1e9).endswith("no setting makes it fit")


def test_several_workers_need_more_than_one(run_of_deepseek: Run) -> None:
    one, two = (total(host_parts(replace(run_of_deepseek, workers=workers))) for workers in (1, 2))
    assert two.least > one.least
    assert two.bytes > one.bytes
    away = total(host_parts(replace(run_of_deepseek, workers=64, is_cluster=True)))
    assert away.least < two.least  # of what workers elsewhere need nothing is here


def test_a_run_that_cannot_fit_is_refused_before_the_model_is_loaded(
    run: Callable[..., tuple[int, str, str]], large_mixture: Path, make_corpora: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    corpora = make_corpora({"python": 4})
    monkeypatch.setattr("neurotally.jobs.passes.neurons.free_host_bytes", lambda: int(5e8))
    result = run("profile", large_mixture, tmp_path / "s", "--corpora", corpora, "--triggers", 1024, "--device", "cpu")
    refused(result, "of this machine's memory, of which 500 MB are free: it would fit with --triggers ")


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/a/b\n", {
            "a/b/memory.max": "1000", "a/b/memory.current": "700", "a/b/memory.stat": "inactive_file 50\nx 1",
            "a/memory.max": "900", "a/memory.current": "800", "a/memory.stat": "anon 3"}, [350, 100]),
        ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "7", "a/memory.stat": ""}, []),
        ("4:memory:/a\n2:cpu:/\n", {
            "memory/a/memory.limit_in_bytes": "1000", "memory/a/memory.usage_in_bytes": "900",
            "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 60\ntotal_active_file 20"}, [180]),
    ],
    ids=["version 2", "no limit", "version 1"],
)  # fmt: skip
def test_a_control_group_bounds_what_is_free(
    groups: str, files: dict[str, str], left: list[int], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(_left_in_groups(groups, tmp_path)) == left


def test_sizes_read_well() -> None:
    assert [as_size(size) for size in (1234, 5e6, 12.3e9, 1342052808704)] == ["1.23 kB", "5 MB", "12.3 GB", "1.34 TB"]
