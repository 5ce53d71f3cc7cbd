"""Stores of any model made from small corpora: at once, or by a run that is killed."""

import os
import signal
from pathlib import Path
from typing import Any

from launching import Launch

from neurotally.jobs import profile
from neurotally.jobs.progress import Progress
from neurotally.profiler import store

SETTINGS = {"row_tokens": 64, "groups": 3, "triggers": 4}
CORPORA = ("c++", "python")
FILES = {"python": 24, "c++": 20}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
"""The settings, on a command line."""


def make_store(model: Path, path: Path, corpora: Path, **options: Any) -> Path:
    """A store of small units; one that is there is gone on with."""
    quiet = Progress(quiet=True)
    profile(str(model), path, corpora=corpora, progress=quiet, max_unit_bytes=1500, **{**SETTINGS, **options})
    return path


def launch(model: Path, path: Path | str, corpora: Path | str, outputs: Path) -> Launch:
    """Begin the same in a process of its own, which saves whenever it can; what it prints goes beside `outputs`."""
    arguments = ["profile", str(model), str(path), "--corpora", str(corpora), *OPTIONS]
    return Launch(arguments, outputs, checkpoint_every_s=0.0, max_unit_bytes=1500)


def kill_after_a_checkpoint(model: Path, path: Path, corpora: Path) -> None:
    """Begin the same, and kill it once it has saved something; nothing is committed then."""
    process = launch(model, path, corpora, path)
    while process.status is None and not list(path.glob(".run/corpora/*/checkpoint-*")):
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.finish()
    assert not store.committed_corpora(path)
