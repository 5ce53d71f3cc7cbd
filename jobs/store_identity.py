"""Whether a store is one of this model and these settings.

A store's identity is by content: weights, tokenizer and every setting that decides a bit of the result. What differs is
refused, naming the first difference; program versions are only warned about.
"""

from pathlib import Path
from typing import Any

from neurotally.jobs.versions import versions
from neurotally.profiler import store
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts
from neurotally.profiler.passes.worker import KERNEL_HINTS

_RUN_FACTS = (
    "tokenizer_fingerprint", "device_type", "device", "attention", "kernels", "row_tokens", "max_row_tokens", "fused",
)  # fmt: skip
"""What `ModelFacts` says beyond weights, config and dtype."""


def open_store(path: Path, facts: ModelFacts, config: dict[str, Any] | None) -> list[str]:
    """Make the store, or check that it is one of this model; warnings about program versions that changed.

    `config` is what decides the bits of the neuron pass; None for other passes, which keep theirs with their own
    results. Raises InputError naming the first difference.
    """
    attributes: dict[str, Any] = {
        "model": {key: value for key, value in facts.to_json().items() if key not in _RUN_FACTS},
        "tokenizer": {"fingerprint": facts.tokenizer_fingerprint},
        "config": config,
        "versions": versions(),
    }
    if not store.is_begun(path):
        store.create_store(path, attributes)
        store.write_sites(path, facts.networks)
        return list(facts.warnings)
    theirs = store.store_attributes(path)
    for part in ("model", "tokenizer"):
        _refuse_difference(path, f"{part}:", {"fingerprint": attributes[part]["fingerprint"]}, theirs.get(part) or {})
    model_config = theirs["model"].get("config") or {}
    ours_shared, theirs_shared = _shared(facts.config, model_config), _shared(model_config, facts.config)
    _refuse_difference(path, "model: its config's", ours_shared, theirs_shared)
    if config is not None:
        noted = theirs.get("config") or {}
        if noted:
            _refuse_other_kernels(path, config["kernels"], noted.get("kernels"))
            _refuse_difference(path, "config:", config, noted)
        else:  # a store that another pass began
            store.replace_attributes(path, {**theirs, "config": config})
    store.write_sites(path, facts.networks)  # a run may have ended before it did
    before = theirs["versions"]
    return [
        *facts.warnings,
        *(f"{name} is {ours}, the store was started with {before.get(name)}"
          for name, ours in attributes["versions"].items() if before.get(name) != ours),
    ]  # fmt: skip


def _shared(ours: Any, theirs: Any) -> Any:
    """Ours, of dictionaries the keys of both alone: versions of transformers add keys and drop some."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours
    return {key: _shared(value, theirs[key]) for key, value in ours.items() if key in theirs}


def _refuse_other_kernels(path: Path, ours: str, theirs: str | None) -> None:
    if theirs in KERNEL_HINTS and theirs != ours:
        raise InputError(
            f"{path} was computed with the {theirs} kernels, these are the {ours} ones, which round sums differently; "
            f"{KERNEL_HINTS[theirs]}, or use another store"
        )


def _refuse_difference(path: Path, part: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if difference := first_difference(ours, theirs):
        raise InputError(f"{path} is a store of another {part} {difference}; use another store")
