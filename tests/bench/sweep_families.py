"""Every architecture of transformers' causal language models: is it read right, or refused, and why?

    python tests/bench/sweep_families.py [--only llama4_text --only mixtral] [--json]

Goes over every entry of MODEL_FOR_CAUSAL_LM_MAPPING: a small random model, saved and loaded as its users' is.

equal      what is read is what plain hooks and float64 formulas on the family's own parameters give
           (`families.py` and `mixtures.py` in tests/ say where they are; `reading_checks.py` compares)
refused    it isn't loaded, for the reason given
wrong      it is loaded, and something differs or nothing says what it should be
crashed    something else happened

Prints a table, or one JSON document; exits with 1 where anything is wrong or crashed. All of them take some five
minutes on two cores.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tabulate import tabulate
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import make_tokenizer
from families import CONTEXT, FAMILIES, LAYERS, VOCABULARY, randomised, tiny_config
from mixtures import MIXTURES
from reading_checks import check_dense, check_mixture, saved_and_loaded

from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import load_model

Outcome = Literal["equal", "refused", "wrong", "crashed"]
DENSE = {family.family or name: name for name, family in reversed(FAMILIES.items())}
"""The first of each architecture's models in `FAMILIES`, by its name in transformers."""
_BLT = {"hidden_size": 64, "hidden_size_global": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 96, "head_dim": 16, "vocab_size": VOCABULARY}  # fmt: skip
_MAMBA = {"state_size": 8, "time_step_rank": 4}
_DRAFT = {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}}
REFUSED: dict[str, dict[str, Any]] = {
    "blt": {**{f"{part}_config": _BLT for part in ("patcher", "encoder", "decoder", "global")},
            "encoder_hash_byte_group_vocab": 512},
    "cpmant": {"dim_head": 16, "dim_ff": 96, "prompt_length": 4},
    "falcon_mamba": _MAMBA,
    "gemma3n": {},
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "git": {},
    "hrm_text": {},
    "inkling2_text": {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mamba": _MAMBA,
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "musicgen": {},
    "musicgen_melody": {},
    "prophetnet": {"num_encoder_layers": LAYERS, "num_decoder_layers": LAYERS, "is_decoder": True,
                   "is_encoder_decoder": False},
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [8, CONTEXT // 8]},
    "xlm": {"emb_dim": 64},
    "xlnet": {"d_inner": 96, "d_head": 16},
}  # fmt: skip
"""Settings that make those small that are refused."""
_COMPOSITE = ("mllama",)
"""Of these the whole checkpoint is what users have."""


@dataclass(frozen=True)
class Row:
    """What came of one architecture."""

    architecture: str
    outcome: Outcome
    reason: str


def outcome_of(name: str, tokenizer: Any, folder: Path) -> Row:
    """Make a small model of an architecture, load it and hold it against its reference."""
    try:
        if name in MIXTURES:
            check_mixture(name, tokenizer, folder)
        elif name in DENSE:
            check_dense(DENSE[name], tokenizer, folder)
        else:
            load_without_reference(name, tokenizer, folder)
            return Row(name, "wrong", "it is loaded, but no reference says what should be read")
    except InputError as error:
        return Row(name, "refused", str(error).replace(str(folder), name))
    except AssertionError as error:
        return Row(name, "wrong", " ".join(str(error).split())[:200])
    except Exception as error:
        return Row(name, "crashed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Row(name, "equal", "")


def load_without_reference(name: str, tokenizer: Any, folder: Path) -> None:
    """Load a small model; one that transformers doesn't make here, from a folder with a config and a weight of no use.

    Raises InputError with the reason why it isn't loaded.
    """
    config = config_of_refused(name)
    auto = AutoModelForImageTextToText if name in _COMPOSITE else AutoModelForCausalLM
    try:
        model = auto.from_config(config).eval()
    except (AttributeError, ImportError, ValueError):
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]]
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
        load_model(str(folder), "cpu")
    else:
        saved_and_loaded(randomised(model), tokenizer, folder)


def config_of_refused(name: str) -> Any:
    """Small where the family's own config can be made without settings, else as large as it comes."""
    settings = REFUSED.get(name, {})
    try:
        return tiny_config(name, settings)
    except (AttributeError, ValueError, StrictDataclassError):
        return CONFIG_MAPPING[name](**settings)


def sweep(names: list[str]) -> list[Row]:
    """One after the other; a bar on stderr."""
    tokenizer, rows = make_tokenizer(), []
    for name in tqdm(names, unit="architecture", file=sys.stderr):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(outcome_of(name, tokenizer, Path(folder)))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where anything is wrong or crashed."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="one architecture; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.only or () if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]:
        parser.error(f"transformers {transformers.__version__} has no causal language model {unknown[0]!r}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = sweep(options.only or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    outcomes = Counter(row.outcome for row in rows)
    if options.json:
        numbers = {"transformers": transformers.__version__, "architectures": len(rows), **outcomes}
        print(json.dumps({**numbers, "rows": [asdict(row) for row in rows]}))
    else:
        print(tabulate([(row.architecture, row.outcome, row.reason) for row in rows],
                       ["architecture", "outcome", "reason"], maxcolwidths=[None, None, 90]))  # fmt: skip
        print(f"\n{len(rows)} architectures: " + ", ".join(f"{number} {name}" for name, number in outcomes.items()))
    return int(bool(outcomes["wrong"] or outcomes["crashed"]))


if __name__ == "__main__":
    raise SystemExit(main())
