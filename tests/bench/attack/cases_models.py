"""Bad models: configs of other models, weights missing, cut or hostile, tokenizers that don't belong, code."""

import json
import os
import pickle
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.attack.case import EITHER, Case, Place, deep, edited

Arguments = Callable[[Place], list[object]]


def _model(change: Callable[[Path], object]) -> Arguments:
    """A copy of the model, changed."""

    def arguments(place: Place) -> list[object]:
        place.corpora()
        model = place.model()
        change(model)
        return ["profile", model, place.new, "--corpora", place.folder / "corpora"]

    return arguments


def _named(make: Callable[[Place], object]) -> Arguments:
    """Another path or name for the model."""

    def arguments(place: Place) -> list[object]:
        place.corpora()
        return ["profile", make(place), place.new, "--corpora", place.folder / "corpora"]

    return arguments


def _config(**changes: object) -> Arguments:
    return _model(lambda model: edited(model / "config.json", **changes))


def _content(name: str, content: str | bytes | None) -> Arguments:
    """A file of the model with other content; None: gone."""

    def change(model: Path) -> None:
        (model / name).unlink()
        if content is not None:
            (model / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return _model(change)


def _weights(change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Arguments:
    """The tensors, changed."""

    def rewrite(model: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = change(load_file(model / "model.safetensors"))
        save_file(dict(tensors), model / "model.safetensors", metadata={"format": "pt"})

    return _model(rewrite)


def _without(part: str) -> Arguments:
    return _weights(lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def _other_shape(tensors: dict[str, Any]) -> dict[str, Any]:
    name = next(name for name in sorted(tensors) if "gate_proj" in name)
    return {**tensors, name: tensors[name][:-1].contiguous()}


def _not_numbers(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


def _random_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def _cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class _Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._marker),)


def _pickled(place: Place) -> list[object]:
    place.corpora()
    model = place.model()
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(place.marker)))
    return ["profile", model, place.new, "--corpora", place.folder / "corpora"]


def _own_code(where: str) -> Arguments:
    """A model, or a tokenizer, with code of its own, and no flag that trusts it."""

    def arguments(place: Place) -> list[object]:
        place.corpora()
        model = place.model()
        source = (
            f"import os\nos.mkdir({str(place.marker)!r})\nfrom transformers import LlamaConfig as C\n"
            "from transformers import LlamaForCausalLM as M\nfrom transformers import PreTrainedTokenizerFast as T\n"
        )
        (model / "own.py").write_text(source)
        if where == "config.json":
            edited(model / where, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
        else:
            edited(model / where, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.T", "own.T"]})
        return ["profile", model, place.new, "--corpora", place.folder / "corpora"]

    return arguments


def _index_outside(place: Place) -> list[object]:
    place.corpora()
    model = place.model()
    (model / "model.safetensors").rename(model / "part.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../outside/secret.py"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["profile", model, place.new, "--corpora", place.folder / "corpora"]


def _other_vocabulary(model: Path) -> None:
    """Token ids beyond the embedding's rows."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {token: number + 5000 for token, number in tokenizer["model"]["vocab"].items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def _fifo(name: str) -> Arguments:
    def change(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return _model(change)


_CONFIGS: dict[str, dict[str, object]] = {
    "zero layers": {"num_hidden_layers": 0},
    "layers below 0": {"num_hidden_layers": -1},
    "huge layers": {"num_hidden_layers": 10**12},
    "a layer more": {"num_hidden_layers": 3},
    "no heads": {"num_attention_heads": 0},
    "width 0": {"hidden_size": 0},
    "huge width": {"hidden_size": 10**12},
    "no neurons": {"intermediate_size": 0},
    "neurons below 0": {"intermediate_size": -4},
    "fewer neurons": {"intermediate_size": 40},
    "layers as text": {"num_hidden_layers": "two"},
    "layers as a list": {"num_hidden_layers": [2]},
    "of GPT-2": {"model_type": "gpt2"},
    "of BERT": {"model_type": "bert"},
    "of T5": {"model_type": "t5"},
    "of nothing known": {"model_type": "no-such"},
    "no type": {"model_type": None},
    "type an escape sequence": {"model_type": "\x1b[31m"},
    "fewer tokens": {"vocab_size": 10},
    "no tokens": {"vocab_size": 0},
    "no activation known": {"hidden_act": "\x1b[31mno-such"},
    "activation a number": {"hidden_act": 5},
    "a huge dtype": {"dtype": "float8192", "torch_dtype": "float8192"},
    "heads that don't divide": {"num_attention_heads": 5},
}
_MAYBE: dict[str, dict[str, object]] = {
    "no positions": {"max_position_embeddings": 0},
    "a layer less": {"num_hidden_layers": 1},
    "another activation": {"hidden_act": "relu"},
    "epsilon not a number": {"rms_norm_eps": float("nan")},
    "more tokens than the tokenizer": {"vocab_size": 600, "bos_token_id": 10**9},
    "architectures of another": {"architectures": ["GPT2LMHeadModel"]},
}

CASES = [
    *[Case(f"config, {what}", _config(**changes)) for what, changes in _CONFIGS.items()],
    *[Case(f"config, {what}", _config(**changes), EITHER) for what, changes in _MAYBE.items()],
    *[Case(f"{name} gone", _content(name, None)) for name in ("config.json", "model.safetensors", "tokenizer.json")],
    *[Case(f"{name} empty", _content(name, "")) for name in ("config.json", "model.safetensors", "tokenizer.json")],
    *[
        Case(f"{name} no JSON", _content(name, "{x"))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    ],
    *[
        Case(f"{name} a list", _content(name, "[]"))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    ],
    *[
        Case(f"{name} deeply nested", _content(name, deep()))
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    ],
    *[Case(f"{name} a FIFO", _fifo(name)) for name in ("config.json", "tokenizer.json")],
    Case("tokenizer.json of other tokens", _model(_other_vocabulary), EITHER),
    *[
        Case(f"weights without {part}", _without(part))
        for part in (
            "layers.1.",
            "embed_tokens",
            "lm_head",
            "layers.0.mlp.gate_proj",
            "layers.1.mlp.down_proj",
            "model.norm",
            "layers.0.self_attn.q_proj",
        )
    ],
    Case("weights of another shape", _weights(_other_shape)),
    Case("weights not numbers", _weights(_not_numbers), EITHER),
    Case("weights none", _weights(lambda tensors: {})),
    Case("weights cut", _model(_cut)),
    Case("weights with a huge header", _model(_random_header)),
    Case("weights at random", _content("model.safetensors", random.Random(0).randbytes(5000))),
    Case("weights pickled with code", _pickled),
    Case("weights outside", _index_outside),
    Case("code of its own", _own_code("config.json")),
    Case("tokenizer with code of its own", _own_code("tokenizer_config.json"), EITHER),
    Case("an empty folder", _named(lambda place: place.put("empty/.keep").parent)),
    Case("a file", _named(lambda place: place.put("model.bin"))),
    Case("nothing there", _named(lambda place: place.folder / "nothing")),
    Case("no such name", _named(lambda place: "no/such-model")),
    Case("an empty name", _named(lambda place: "")),
    Case("a revision alone", _named(lambda place: "@main")),
    Case("a long name", _named(lambda place: "a" * 3000)),
    Case("an escape sequence", _named(lambda place: "\x1b[31mred/model")),
    Case("a name upwards", _named(lambda place: "../../outside")),
    Case("a name with spaces", _named(lambda place: "  ")),
]
