"""Check models on several devices against the same on one: every family of the tests for which transformers has a plan.

    python tests/bench/check_devices.py [--devices 2] [FAMILY ...]

Each is made small, with random weights in float32, and counts the same rows whole, in this process, and shared by
processes on the CPU. Prints a line for each: counts that differ of all, the largest difference of a sum to the largest
sum of magnitudes, and the share of triggers in the same document; one JSON line last. Exits with 1 where a model that
wasn't refused by name differs by more than rounding.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import make_tokenizer
from families import FAMILIES, tiny_model
from mixtures import MIXTURES, tiny_mixture
from stacks import STACKS, tiny_stacks

from neurotally.jobs.engines.device_group import DeviceGroup
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import load_model, quiet_transformers
from neurotally.profiler.passes.worker import PassConfig, neurons_of

BUDGET, ROW_TOKENS, TRIGGERS = 512, 64, 4
FLIPS, RELATIVE, SAME = 1e-4, 1e-5, 0.99
"""What rounding may do: counts that differ, sums, and triggers in the same document."""


def main() -> int:
    """Check all that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--devices", type=int, default=2)
    arguments = parser.parse_args()
    tokenizer, outcomes = make_tokenizer(), {}
    for name in arguments.families or [*MIXTURES, *FAMILIES, *STACKS]:
        with tempfile.TemporaryDirectory() as folder:
            outcomes[name] = compared(name, tokenizer, folder, arguments.devices)
        print(f"{name}: {outcomes[name]}", flush=True)
    wrong = [name for name, outcome in outcomes.items() if isinstance(outcome, dict) and not is_rounding(outcome)]
    agree = sum(isinstance(outcome, dict) for outcome in outcomes.values()) - len(wrong)
    print(json.dumps({"devices": arguments.devices, "agree": agree, "differ": wrong}))
    return bool(wrong)


def compared(name: str, tokenizer: Any, folder: str, devices: int) -> dict[str, float] | str:
    """How one family differs; or why it isn't shared."""
    with quiet_transformers():
        model = (tiny_mixture if name in MIXTURES else tiny_model if name in FAMILIES else tiny_stacks)(name)
        if not model.tp_plan:
            return "transformers has no plan"
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    whole = load_model(folder, device="cpu")
    try:
        group = ModelConfig(folder, device="cpu", devices=devices).load()
    except InputError as error:
        return f"refused: {error}"
    assert isinstance(group, DeviceGroup)
    generator = np.random.default_rng(0)
    documents = [(number, generator.integers(0, 600, generator.integers(3, 60)).tolist()) for number in range(40)]
    rows = lay_out(documents, frozenset([0]), "documents", ROW_TOKENS)
    config = PassConfig("documents", ROW_TOKENS, None, BUDGET, 2**20, 1, TRIGGERS, kernels="plain")
    try:
        assert group.facts == whole.facts
        shared, alone = group.neurons(config, rows, BUDGET, None), neurons_of(whole, config, rows, BUDGET, None)
    finally:
        group.close()
    ours, theirs = shared.sums["active"].astype(np.int64), alone.sums["active"].astype(np.int64)
    sums = ("activation_sum", "coefficient_sum", "coefficient_sum_absolute", "coefficient_sum_squares")
    off = max(np.abs(shared.sums[one] - alone.sums[one]).max() / np.abs(alone.sums[one]).max() for one in sums)
    alike = np.array_equal(shared.triggers.count_F, alone.triggers.count_F)
    same = (shared.triggers.document_N == alone.triggers.document_N).mean() if alike else 0.0
    return {
        "flips": int(np.abs(ours - theirs).sum()),
        "active": int(theirs.sum()),
        "sums": float(off),
        "same": float(same),
    }


def is_rounding(outcome: dict[str, float]) -> bool:
    """Whether no more differs than rounding explains."""
    return outcome["flips"] <= FLIPS * outcome["active"] and outcome["sums"] <= RELATIVE and outcome["same"] >= SAME


if __name__ == "__main__":
    sys.exit(main())
