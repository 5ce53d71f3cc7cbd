"""Know a model again without loading it: by what its checkpoint looks like from outside.

When a model has been loaded and verified, the store's root notes, as `verified`,

    facts   what `ModelFacts` says beside what the store's `model` says already
    key     SHA-256 over both, how the model was asked for, versions of programs, and its checkpoint: of a folder the
            names of its files, with all of the small ones (config, tokenizer, code), and of the large ones size, time
            of change and a sample that begins with the header; of the hub the commit that the revision stands for

An equal key means that loading would find the same facts. Anything else is no error: the model is loaded.
"""

import hashlib
import json
import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from neurotally.jobs.model_config import ModelConfig
from neurotally.jobs.versions import versions
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts, resolve_device, split_revision
from neurotally.profiler.whole_files import open_regular

_WHOLE_BYTES = 2**25
"""Files up to this size are read whole, a second at most; of larger ones a sample."""
_SAMPLES, _SAMPLE_BYTES = 256, 4096
_COMMIT = re.compile("[0-9a-f]{40}")


def known_facts(path: Path, model: ModelConfig) -> ModelFacts | None:
    """The facts of a model asked for in this way, if they were remembered in the store; None: it must be loaded."""
    if not store.is_begun(path):
        return None
    attributes = store.store_attributes(path)
    try:
        key, facts = attributes["verified"]["key"], attributes["verified"]["facts"]
        if key != _key(model, attributes, facts):
            return None
        found = ModelFacts(**{**attributes["model"], **facts})
    except (KeyError, TypeError, AttributeError):  # what is wrong with the root is said where it is read
        return None
    name, revision = split_revision(model.spec)
    found = replace(found, warnings=tuple(found.warnings))
    return found if model.random_init is not None else replace(found, id=name, revision=revision)


def remember_facts(path: Path, facts: ModelFacts, model: ModelConfig) -> None:
    """Note in the store's root what was loaded and verified."""
    attributes = store.store_attributes(path)
    ours = json.loads(json.dumps(facts.to_json()))
    further = {name: value for name, value in ours.items() if attributes["model"].get(name) != value}
    verified = {"facts": further, "key": _key(model, attributes, further)}
    if verified["key"] is not None and attributes.get("verified") != verified:
        store.replace_attributes(path, {**attributes, "verified": verified})


def _key(model: ModelConfig, attributes: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """What tells a model, asked for in this way, from any other; None where that can't be said without loading it."""
    name, revision = split_revision(model.spec)
    checkpoint = _folder(Path(name)) if os.path.isdir(name) else _hub_commit(name, revision)
    if checkpoint is None:
        return None
    settings = [model.dtype, model.trust_remote_code, model.random_init, versions(), model.fused]
    asked = [resolve_device(model.device), *settings]
    known = {field.name: attributes["model"].get(field.name) for field in fields(ModelFacts)}
    document = [checkpoint, asked, known, attributes.get("tokenizer"), facts]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _folder(folder: Path) -> list[Any] | None:
    try:
        return [[entry.name, *_file(entry)] for entry in sorted(folder.iterdir()) if entry.is_file()]
    except (OSError, InputError):
        return None


def _file(path: Path) -> list[Any]:
    with open_regular(path) as file:
        state = os.fstat(file.fileno())
        if state.st_size <= _WHOLE_BYTES:
            return [state.st_size, hashlib.sha256(file.read()).hexdigest()]
        digest = hashlib.sha256()
        for number in range(_SAMPLES):
            file.seek(number * (state.st_size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
        return [state.st_size, state.st_mtime_ns, digest.hexdigest()]


def _hub_commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub id's revision: asked of the hub, or of the cache where there is no network."""
    from transformers.utils.hub import cached_file

    try:
        config = cached_file(name, "config.json", revision=revision)
    except Exception:  # what is wrong with it is said when it is loaded
        return None
    commit = Path(config).parent.name if config else ""
    return commit if _COMMIT.fullmatch(commit) else None
