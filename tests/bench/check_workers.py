"""Is a mixture's store the same to the bit from one, two and three workers, and from a run that is killed?

    python tests/bench/check_workers.py [NAME ...]

By default for the mixtures that code models are made of. Small random models on two small corpora; prints a line each
and exits with 1 where something differs. A model takes about a minute on two cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import lay_out, make_tokenizer
from mixtures import MIXTURES, tiny_mixture
from reference import everything
from stores import FILES, kill_after_a_checkpoint, make_store

CODE_MODELS = (
    "mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4_text", "granitemoehybrid",
)  # fmt: skip


def differing(name: str, folder: Path, corpora: Path) -> list[str]:
    """How a mixture's store was made where it differs from that of one worker."""
    model = folder / name
    tiny_mixture(name).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    expected = everything(make_store(model, folder / f"{name}.1", corpora))
    found = {f"{n} workers": everything(make_store(model, folder / f"{name}.{n}", corpora, workers=n)) for n in (2, 3)}
    killed = folder / f"{name}.killed"
    kill_after_a_checkpoint(model, killed, corpora)
    found["killed and gone on with"] = everything(make_store(model, killed, corpora))
    return [how for how, arrays in found.items() if arrays != expected]


def main() -> int:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=CODE_MODELS, metavar="NAME")
    names = parser.parse_args().names
    if unknown := [name for name in names if name not in MIXTURES]:
        parser.error(f"no mixture {unknown[0]!r}; expected some of {', '.join(MIXTURES)}")
    any_differs = False
    with tempfile.TemporaryDirectory() as folder:
        corpora = lay_out(Path(folder) / "corpora", FILES)
        for name in names:
            wrong = differing(name, Path(folder), corpora)
            any_differs |= bool(wrong)
            print(f"{name}: {'differs: ' + ', '.join(wrong) if wrong else 'the same bits'}", flush=True)
    return int(any_differs)


if __name__ == "__main__":
    raise SystemExit(main())
