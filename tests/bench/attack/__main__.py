"""Attack runs, stores and inputs, and count what is lost, silent, loud or slow.

    python tests/bench/attack ATTACK [--seed N] [options of the attack; see ATTACK --help]

Each prints what failed as it is found, then a short table and one JSON line; exit status 1 if anything failed.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # tests/

ATTACKS = ("kills", "bucket", "full_disk", "two_drivers", "damage", "bad_inputs", "size", "sample")


def main() -> int:
    """Run one attack; the exit status."""
    parser = argparse.ArgumentParser(
        prog="attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="attack", required=True)
    for name in ATTACKS:
        module = importlib.import_module(f"bench.attack.{name}")
        description = dict(description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        subparser = subparsers.add_parser(name, help=module.__doc__.splitlines()[0], **description)
        subparser.add_argument("--seed", type=int, default=0)
        module.add_arguments(subparser)
    arguments = parser.parse_args()
    from bench.attack.launch import preload

    preload()
    with tempfile.TemporaryDirectory(prefix="nt-") as folder:
        return importlib.import_module(f"bench.attack.{arguments.attack}").attack(arguments, Path(folder)).finish()


if __name__ == "__main__":
    sys.exit(main())
