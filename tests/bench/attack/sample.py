"""A little of each attack that needs neither Ray nor root, for the tests: under a minute on one core."""

import argparse
from pathlib import Path

from bench.attack import bad_inputs, damage, full_disk, kills
from bench.attack.findings import Findings

_ATTACKS = {
    kills: {"runs": 1, "ray_runs": 0, "documents": 6, "commands": "profile"},
    full_disk: {"runs": 0, "faults": 1, "documents": 6},
    damage: {"finished": 2, "unfinished": 2, "documents": 4, "every_command": False},
    bad_inputs: {"sample": 12, "only": "", "quick": True},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """One after the other."""
    findings = Findings("sample", seed=arguments.seed)
    for module, options in _ATTACKS.items():
        of_attack = argparse.Namespace(seed=arguments.seed, **options)
        findings.add(module.attack(of_attack, folder / module.__name__.rpartition(".")[2]))
    return findings
