"""The ledger of one corpus: which units are in, their sum, and its checkpoints on disk.

    STORE/.run/corpora/NAME/plan.json        identity, units, documents, where they are; written when the run starts
    STORE/.run/corpora/NAME/documents.json   the manifest: names and sizes
    STORE/.run/corpora/NAME/checkpoint-N/    a Zarr group: the sum of units 0 to N-1 and the ledger, together
    STORE/.run/corpora/NAME/current.json     names the checkpoint that counts; replaced atomically

Units are added in order, so the ledger is a number: units 0 to n-1 are in. The last checkpoint, complete, is
what gets published as corpora/NAME.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.plan import CorpusPlan, changed_document, first_difference, stored_names
from neurotally.jobs.worker import PassConfig, UnitResult
from neurotally.profiler import store
from neurotally.profiler.corpus import Status
from neurotally.profiler.errors import InputError
from neurotally.profiler.neurons import CorpusNeurons
from neurotally.profiler.texts import keep_texts
from neurotally.profiler.units import documents_by_unit

_LISTED_SKIPS = 1000
"""So many skipped documents are named in a corpus's attributes; all are in `document_status`."""


def run_folder(store_path: Path, corpus: str) -> Path:
    """Where the working state of an unfinished corpus lies."""
    return store_path / store.RUN_FOLDER / "corpora" / corpus


class Ledger:
    """One corpus of a run: its units so far and what they add up to."""

    def __init__(self, store_path: Path, plan: CorpusPlan, config: PassConfig, num_layers: int, num_neurons: int):
        self.plan = plan
        self.units = plan.units(config.max_unit_bytes, config.groups)
        self.units_done = 0
        self._config = config
        self._store = store_path
        self._folder = run_folder(store_path, plan.name)
        self._saved = -1
        num_documents = len(plan.manifest.names)
        self._neurons = CorpusNeurons(num_layers, num_neurons, config.groups, config.triggers)
        self._tokens_G = np.zeros(config.groups, np.uint64)
        self._special_tokens_G = np.zeros(config.groups, np.uint64)
        self._status = np.full(num_documents, store.SCHEMA["document_status"].fill, np.uint8)
        self._sha256 = np.zeros((num_documents, 32), np.uint8)
        self._document_tokens = np.full(num_documents, store.NO_DOCUMENT, np.uint32)
        self._unit_tokens = np.full(len(self.units), store.SCHEMA["unit_tokens"].fill, np.uint64)
        self._restarted: list[int] = []
        self._open()

    @property
    def is_complete(self) -> bool:
        """Whether every unit is in."""
        return self.units_done == len(self.units)

    @property
    def trigger_bar(self) -> np.ndarray | None:
        """See `CorpusNeurons.trigger_bar`; a snapshot."""
        bar = self._neurons.trigger_bar()
        return None if bar is None or not self.units_done else bar.copy()

    @property
    def bytes_done(self) -> int:
        """Bytes of the documents that are in."""
        return int(self.plan.manifest.sizes[: self._documents_done].sum())

    @property
    def _documents_done(self) -> int:
        return self.units[self.units_done - 1].end if self.units_done else 0

    def add(self, result: UnitResult) -> None:
        """Add the next unit."""
        assert result.index == self.units_done, (result.index, self.units_done)
        unit = self.units[result.index]
        group = unit.group(self._config.groups)
        self._neurons.add(result.neurons, group)
        self._tokens_G[group] += np.uint64(result.tokens)
        self._special_tokens_G[group] += np.uint64(result.special_tokens)
        self._status[unit.first : unit.end] = result.status_n
        self._sha256[unit.first : unit.end] = result.sha256_n32
        self._document_tokens[unit.first : unit.end] = result.document_tokens_n
        self._unit_tokens[result.index] = result.tokens
        if result.restarts:
            self._restarted.append(result.index)
        self.units_done += 1

    def progress(self) -> dict[str, int]:
        """The corpus's entry in `neurotally status --json`."""
        done = self._documents_done
        skipped = int(np.count_nonzero(self._status[:done] != Status.COUNTED))
        return {
            "units": len(self.units),
            "units_done": self.units_done,
            "documents": len(self.plan.manifest.names),
            "documents_done": done,
            "skipped": skipped,
            "tokens": int(self._tokens_G.sum()),
        }

    def checkpoint(self, attributes: dict[str, Any] | None = None) -> Path:
        """Save sum and ledger together in a new folder and make it the one that counts. Returns the folder."""
        target = self._folder / f"checkpoint-{self.units_done}"
        if self._saved == self.units_done and attributes is None:
            return target
        fresh = target.with_name(f"{target.name}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        store.write_arrays(fresh, self._arrays(), attributes or {})
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        current = {"folder": target.name, "restarted_units": self._restarted, **self.progress()}
        store.replace_json(self._folder / "current.json", current)
        self._saved = self.units_done
        for other in self._folder.glob("checkpoint-*"):
            if other != target:
                shutil.rmtree(other)
        return target

    def publish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Commit the complete corpus to the store with its attributes, and drop its working state."""
        assert self.is_complete
        attributes = {**self.summary(), **facts, "source_path": self.plan.source.path}
        finished = self.checkpoint(attributes)
        if self._config.keep_texts:
            keep_texts(finished, self.plan.source, self._config.window_lines, self.plan.manifest.names, self._arrays())
        store.publish_corpus(self._store, self.plan.name, finished)
        shutil.rmtree(self._folder)
        return attributes

    def summary(self) -> dict[str, Any]:
        """What a reader of the corpus wants to know first; its attributes."""
        counted = self._status == Status.COUNTED
        reasons = Counter(Status(value).name.lower() for value in self._status[~counted].tolist())
        names = stored_names(self.plan.manifest)
        distinct = np.unique(self._sha256[counted], axis=0)
        return {
            **self.plan.identity,
            "counted": int(counted.sum()),
            "skipped": dict(sorted(reasons.items())),
            "skipped_documents": names[~counted][:_LISTED_SKIPS].tolist(),
            "duplicates": int(counted.sum()) - len(distinct),
            "tokens": int(self._tokens_G.sum()),
            "special_tokens": int(self._special_tokens_G.sum()),
            "units": len(self.units),
            "empty_groups": int(np.count_nonzero(self._tokens_G == 0)),
            "restarted_units": self._restarted,
        }

    def _arrays(self) -> store.Arrays:
        return {
            "tokens": self._tokens_G,
            "special_tokens": self._special_tokens_G,
            **self._neurons.arrays(),
            "document_name": stored_names(self.plan.manifest),
            "document_bytes": self.plan.manifest.sizes,
            "document_hash": self._sha256,
            "document_tokens": self._document_tokens,
            "document_status": self._status,
            "document_unit": documents_by_unit(self.units),
            "unit_tokens": self._unit_tokens,
            "unit_group": np.array([unit.group(self._config.groups) for unit in self.units], np.uint16),
        }

    def _open(self) -> None:
        """Go on from the last checkpoint of the same corpus, or note the plan of a new one."""
        plan_file = self._folder / "plan.json"
        if not plan_file.exists():
            self._write_plan()
            return
        saved = json.loads(plan_file.read_text())
        self._refuse_other_corpus(saved["identity"])
        if saved.get("source_path") != self.plan.source.path:  # the same documents, elsewhere
            store.replace_json(plan_file, self._plan_document())
        if not (self._folder / "current.json").exists():
            return
        current = json.loads((self._folder / "current.json").read_text())
        self._load(store.read_arrays(self._folder / current["folder"]), current)

    def _write_plan(self) -> None:
        manifest = self.plan.manifest
        self._folder.mkdir(parents=True, exist_ok=True)
        documents = {"names": manifest.names, "sizes": manifest.sizes.tolist()}
        store.replace_json(self._folder / "documents.json", documents)
        store.replace_json(self._folder / "plan.json", self._plan_document())

    def _plan_document(self) -> dict[str, Any]:
        return {
            "identity": self.plan.identity,
            "units": len(self.units),
            "documents": len(self.plan.manifest.names),
            "source_path": self.plan.source.path,
        }

    def _refuse_other_corpus(self, identity: dict[str, Any]) -> None:
        difference = first_difference(self.plan.identity, identity)
        if difference is None:
            return
        saved = json.loads((self._folder / "documents.json").read_text())
        document = changed_document(self.plan.manifest, saved["names"], saved["sizes"])
        raise InputError(
            f"corpus {self.plan.name!r} isn't the one this run started with: {difference} ({document}); "
            f"restore it, or remove {self._folder} to begin it again"
        )

    def _load(self, arrays: store.Arrays, current: dict[str, Any]) -> None:
        self._neurons = CorpusNeurons.from_arrays(arrays)
        self._tokens_G = arrays["tokens"]
        self._special_tokens_G = arrays["special_tokens"]
        self._status = arrays["document_status"]
        self._sha256 = arrays["document_hash"]
        self._document_tokens = arrays["document_tokens"]
        self._unit_tokens = arrays["unit_tokens"]
        self._restarted = current["restarted_units"]
        self.units_done = self._saved = current["units_done"]


def refuse_changed_corpus(store_path: Path, plan: CorpusPlan) -> None:
    """Raise InputError where a committed corpus isn't the one on disk."""
    attributes = store.corpus_attributes(store_path, plan.name)
    if difference := first_difference(plan.identity, attributes):
        raise InputError(
            f"corpus {plan.name!r} isn't the one in {store_path}: {difference}; give it another name or another store"
        )
