"""Load a Hugging Face language model, find and verify its hook points, and say what it is.

Loaded the way its users do (`AutoModelForCausalLM`; an encoder, an encoder-decoder, and a vision-language model, of
which the text decoder is read, by the auto class that loads it all), but whole or not at all; only its body runs.
Of what it is, `fingerprint` identifies the weights, and `config` holds what else decides the result.
"""

import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from neurotally.kernels.tally import kernels_for
from neurotally.profiler.corpus.batches import DECODER_READS, Batch, TeacherForcing, TokenRows, padded_batches
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model.config import (
    auto_class,
    decoder_start,
    empty_model,
    forward_config,
    refuse_other_kinds,
    row_limits,
    weight_bytes,
    without_pooler,
)  # fmt: skip
from neurotally.profiler.model.fingerprints import fingerprint_tokenizer, fingerprint_weights
from neurotally.profiler.model.fused import fuse
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.quantised import Quantisation, in_dtypes_of, left_plain, quantisation_of
from neurotally.profiler.model.stacks import find_stacks
from neurotally.profiler.networks import ENCODER, Networks, networks_of
from neurotally.profiler.whole_files import read_json

_ATTENTION_BYTES = 2**30
"""What attention scores of models without a fused path may take, one layer at a time."""
_NAMED = 3
"""Weights named in a message; of others it gives the number."""
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "tekken.json",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, apart from where it runs. JSON-ready."""

    id: str
    """As the user gave it, without the revision."""
    revision: str | None
    architecture: str
    checkpoint_dtype: str
    fingerprint: str
    tokenizer_fingerprint: str
    num_layers: int
    num_neurons: int
    """Neurons a layer, of the widest."""
    width: int
    num_heads: int
    gated: bool
    dtype: str
    """In which it runs."""
    device_type: str
    device: str
    """Its name, of the first device where there are several."""
    attention: str
    kernels: str
    """Those that tally its neurons: see `kernels.tally.kernels_for`."""
    row_tokens: int
    """The default: min(2048, the context the model was made for)."""
    max_row_tokens: int
    """Longer rows are refused."""
    random_init: int | None = None
    """The seed, if the weights are fresh ones."""
    fused: str | None = None
    """What of it fused kernels compute in place of its own code, as `model.fused` says; None: nothing."""
    config: dict[str, Any] = field(default_factory=dict)
    """What decides the forward pass beside the weights; see `forward_config`."""
    networks: Networks = ()
    """Where its neurons are; empty where every layer is one network of the same width."""
    decoder_start: int | None = None
    """The token with which the decoder of an encoder-decoder begins; None of other models."""
    warnings: tuple[str, ...] = ()
    """What the user should know about how it was loaded."""

    @property
    def attention_budget(self) -> int | None:
        """Rows x width² that a batch may have; None where attention holds no scores of that size."""
        if self.attention != "eager" or not self.num_heads:
            return None
        return _ATTENTION_BYTES // (4 * self.num_heads)

    @property
    def one_length(self) -> bool:
        """Whether rows of one length are run together, so that no mask makes attention round otherwise.

        On a CPU, where small batches cost little, of a model that sees later tokens.
        """
        return self.device_type == "cpu" and any(network.stack == ENCODER for network in self.networks)

    def teacher_forcing(self, reads: str | None) -> TeacherForcing | None:
        """What the decoder of an encoder-decoder reads, by `reads` or the default; None of other models."""
        return None if self.decoder_start is None else TeacherForcing(self.decoder_start, reads or DECODER_READS[0])

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", networks_of({"networks": self.networks}))

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary; `networks`, `decoder_start` and `fused` only where they say something."""
        values = asdict(self)
        silent = {
            "networks": not self.networks, "decoder_start": self.decoder_start is None, "fused": self.fused is None
        }  # fmt: skip
        return {key: value for key, value in values.items() if not silent.get(key)}


@dataclass(frozen=True)
class LoadedModel(HookedModel):
    """A model with its tokenizer, and what it is."""

    tokenizer: Any
    facts: ModelFacts
    special_ids: frozenset[int]

    def batches(self, rows: TokenRows, token_budget: int, forcing: TeacherForcing | None = None) -> Iterator[Batch]:
        """Rows as the padded batches in which this model takes them; see `padded_batches`."""
        return padded_batches(rows, token_budget, self.facts.attention_budget, forcing, self.facts.one_length)


def load_model(
    spec: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False, *, sharded: bool = False,
    fused: bool = False,
) -> LoadedModel:  # fmt: skip
    """Load MODEL[@REVISION], a folder or a hub id, and verify its hook points.

    `sharded`: this process is one of a group of torch.distributed, which holds the model together (`shards`); its facts
    are those of its own part. `fused`: by fused kernels as far as there are some (`model.fused`).
    Raises InputError where the model can't be loaded whole or isn't one we can read, naming what was not found.

        model = load_model("Qwen/Qwen2.5-Coder-0.5B")
        print(model.facts.num_layers, model.facts.num_neurons)
    """
    model_id, revision = split_revision(spec)
    device_type = resolve_device(device)
    with quiet_transformers():
        common = {"revision": revision, "trust_remote_code": trust_remote_code}
        config, tokenizer = load_config_and_tokenizer(model_id, common)
        checkpoint_dtype = checkpoint_dtype_of(config)
        torch_dtype = running_dtype(config, dtype, device_type)
        quantisation = quantisation_of(config)

        def load() -> Any:
            placement: dict[str, Any] = {} if quantisation is None else quantisation.loading(config)
            if sharded:
                placement["distributed_config"] = {"tp_plan": "auto", "tp_size": torch.distributed.get_world_size()}
            elif device_type == "cuda":
                placement["device_map"] = _device_map(config, torch_dtype, trust_remote_code)
            return auto_class(config).from_pretrained(
                model_id,
                dtype=torch_dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **placement,
                **without_pooler(config),
                **common,
            )

        model, loading = try_load(model_id, "model", load)
    _refuse_incomplete(model_id, loading)
    if quantisation is not None and quantisation.is_dequantised:
        in_dtypes_of(model, empty_model(config, trust_remote_code, torch_dtype))
    prepared = prepare_model(model.eval(), tokenizer, model_id, revision, checkpoint_dtype, fused=fused)
    notes = [] if quantisation is None else list(_quantisation_notes(quantisation, prepared))
    facts_config = prepared.facts.config
    if quantisation is not None:
        facts_config = {**facts_config, "quantization_config": quantisation.settings}
    if unused := sorted(loading["unexpected_keys"]):
        notes.append(f"{type(model).__name__} makes no use of {_first_of(unused)} in the checkpoint")
    return replace(prepared, facts=replace(prepared.facts, config=facts_config, warnings=tuple(notes)))


def _quantisation_notes(quantisation: Quantisation, model: LoadedModel) -> Iterator[str]:
    if quantisation.is_dequantised:
        yield f"the weights, quantised by {quantisation.method}, were dequantised to {model.facts.dtype} to be read"
    elif left := left_plain([block for stack in model.stacks for block in stack.blocks]):
        yield f"{quantisation.method} left {_first_of(left)} of the layers unquantised"


def load_config_and_tokenizer(model_id: str, common: dict[str, Any]) -> tuple[Any, Any]:
    """The config and the tokenizer of a language model; an InputError if it is of a kind that we can't read.

    `common`: `revision` and `trust_remote_code`.
    """
    config = load_config(model_id, common)
    return config, _load_tokenizer(model_id, common)


def load_config(model_id: str, common: dict[str, Any]) -> Any:
    """The config alone, under the same conditions."""
    from transformers import AutoConfig

    _check_folder(model_id)
    config = try_load(model_id, "model config", lambda: AutoConfig.from_pretrained(model_id, **common))
    refuse_other_kinds(config, model_id, common["trust_remote_code"])
    try_load(model_id, "model", lambda: quantisation_of(config))  # refused before any weight is read
    return config


def checkpoint_dtype_of(config: Any) -> str:
    """In which dtype the checkpoint is, by its config."""
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def running_dtype(config: Any, dtype: str, device_type: str) -> torch.dtype:
    """In which dtype a model runs: `auto` is the checkpoint's on a GPU, float32 on a CPU."""
    wanted = checkpoint_dtype_of(config) if dtype == "auto" and device_type == "cuda" else dtype
    found: torch.dtype = getattr(torch, "float32" if wanted == "auto" else wanted)
    return found


def prepare_model(
    model: Any, tokenizer: Any, model_id: str, revision: str | None, checkpoint_dtype: str, *, fused: bool = False
) -> LoadedModel:
    """Install and verify the hook points of a `PreTrainedModel` in memory, in eval mode."""
    stacks = find_stacks(model, model_id)  # refuses other kinds of models before all weights are read
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    largest_id = max(tokenizer.get_vocab().values(), default=-1)
    if largest_id >= num_embeddings:
        raise InputError(
            f"{model_id}: the tokenizer gives ids up to {largest_id}, the model's vocabulary has {num_embeddings}; "
            "model and tokenizer don't belong together"
        )
    fingerprint = fingerprint_weights(model, checkpoint_dtype)
    replaced = fuse(HookedModel(model, model_id, stacks, [])) if fused else None
    hooked = hook_model(model, model_id)
    first, body = hooked.hook_points[0], hooked.body
    config = model.config.get_text_config()
    weight = next(parameter for parameter in body.parameters() if parameter.is_floating_point())
    row_tokens, max_row_tokens = row_limits(config, body)
    facts = ModelFacts(
        id=model_id,
        revision=revision,
        architecture=type(model).__name__,
        checkpoint_dtype=checkpoint_dtype,
        fingerprint=fingerprint,
        tokenizer_fingerprint=fingerprint_tokenizer(tokenizer),
        num_layers=hooked.num_layers,
        num_neurons=hooked.num_neurons,
        width=config.hidden_size,
        num_heads=getattr(config, "num_attention_heads", 0),
        gated=first.gated,
        dtype=str(weight.dtype).removeprefix("torch."),
        device_type=first.device.type,
        device=device_name(first.device.type),
        attention=str(getattr(model.config, "_attn_implementation", None) or "eager"),
        kernels=kernels_for(first.device, weight.dtype),
        row_tokens=row_tokens,
        max_row_tokens=max_row_tokens,
        config=forward_config(config, body),
        networks=hooked.networks,
        decoder_start=decoder_start(model),
        fused=replaced,
    )
    return LoadedModel(
        **vars(hooked), tokenizer=tokenizer, facts=facts, special_ids=frozenset(tokenizer.all_special_ids)
    )


def split_revision(spec: str) -> tuple[str, str | None]:
    """Split MODEL[@REVISION]; a path that exists is taken whole."""
    model_id, at, revision = spec.rpartition("@")
    return (model_id, revision) if at and model_id and not Path(spec).exists() else (spec, None)


def resolve_device(device: str) -> str:
    """`auto` is cuda where there is a GPU, else cpu."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no GPU here; use --device cpu or install a CUDA build")
    return device


def device_name(device_type: str) -> str:
    """The GPU's or the CPU's name, as its maker calls it."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _check_folder(model_id: str) -> None:
    """Say plainly what is wrong with a path, before the hub is asked for it."""
    path = Path(model_id)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"{model_id} is no model folder: it has no config.json")
        _refuse_weights_elsewhere(path)
    elif path.exists():
        raise InputError(f"{model_id} is a file, expected a model folder or a hub id")
    elif path.is_absolute() or model_id.startswith(".") or model_id.count("/") > 1:
        raise InputError(f"no such model folder: {model_id}")


def _refuse_weights_elsewhere(folder: Path) -> None:
    """InputError where an index of weight files names one that isn't in its folder: transformers would open it."""
    for index in sorted(folder.glob("*.index.json")):
        document = read_json(index)
        weight_map = document.get("weight_map") if isinstance(document, dict) else None
        for name in weight_map.values() if isinstance(weight_map, dict) else ():
            if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
                raise InputError(f"{index} names the weight file {name!r}, expected a file in its folder")


def try_load(model_id: str, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # each of the libraries below raises its own kinds, of no common base
        if os.path.isdir(model_id):
            reason = first_line(error)
        else:
            reason = f"no such folder, and the hub said: {first_line(error)}"
        if "trust_remote_code" in str(error):
            reason += " If you trust it, pass --trust-remote-code"
        raise InputError(f"can't load the {what} of {model_id}: {reason}") from error


def _load_tokenizer(model_id: str, common: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    if os.path.isdir(model_id) and not any(
        (Path(model_id) / name).exists() for name in _TOKENIZER_FILES
    ):  # else a tokenizer without a vocabulary is made up, and every text becomes nothing
        raise InputError(f"{model_id} has no tokenizer: expected one of {', '.join(_TOKENIZER_FILES)} in it")
    tokenizer = try_load(model_id, "tokenizer", lambda: AutoTokenizer.from_pretrained(model_id, **common))
    if not tokenizer("x = 1")["input_ids"]:
        raise InputError(f"{model_id}: its tokenizer turns text into nothing; is a vocabulary file missing?")
    return tokenizer


def _refuse_incomplete(model_id: str, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that doesn't hold all of the model: transformers puts random weights in place of the rest."""
    if missing := sorted(loading["missing_keys"]):
        raise InputError(
            f"{model_id}: its checkpoint lacks {_first_of(missing)}, without which the model would run on random "
            "weights; expected a complete checkpoint of the model that its config.json describes"
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        _, has, expected = mismatched[0]
        raise InputError(
            f"{model_id}: {_first_of([key for key, *_ in mismatched])} in its checkpoint doesn't fit its config.json: "
            f"expected shape {list(expected)}, it has {list(has)}"
        )


def _first_of(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _device_map(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """One GPU where the weights fit on it, else spread over all visible ones."""
    free, _ = torch.cuda.mem_get_info()
    is_small = fits(weight_bytes(empty_model(config, trust_remote_code, dtype)), free)
    return {"": torch.cuda.current_device()} if is_small else "auto"


def fits(num_bytes: float, free_bytes: int) -> bool:
    """Whether a device that has so much free has room for weights, and for what is computed with them."""
    return num_bytes < 0.8 * free_bytes


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep loading bars and notices off stderr, where our own progress is, and what others print off stdout."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
