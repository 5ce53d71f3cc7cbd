"""Kills, full disks, damage and bad inputs, a few of each: see tests/bench/attack for all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parent / "bench" / "attack"


@pytest.mark.slow
def test_a_sample_of_every_attack_loses_nothing() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ATTACK), "sample"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout, done.stderr
    findings = json.loads(done.stdout.splitlines()[-1])
    assert findings["failures"] == {}, "\n".join(findings["examples"])
    assert done.returncode == 0, done.stderr
    assert findings["counts"]["stores"] > 0
    assert findings["counts"]["cases"] > 0
    assert findings["counts"]["damages of a finished store"] > 0
