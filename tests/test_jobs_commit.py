"""A run may end at any file operation, killed or by a full disk, and the same command goes on to the same bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("what", ["profile", "pass"])
@pytest.mark.slow
def test_dying_anywhere_loses_nothing(what: str, tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("dying.py"), what, tmp_path / what, "800"]
    tried = subprocess.run(command, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert tried.stdout.endswith(" 0 failures\n")
