"""The ledger of one corpus: which units are in, their sum, and its checkpoints on disk.

    STORE/.run/corpora/NAME/plan.json        identity, units, documents, where they are; written when the run starts
    STORE/.run/corpora/NAME/documents.json   the manifest: names and sizes
    STORE/.run/corpora/NAME/checkpoint-N/    a Zarr group: the sum of units 0 to N-1 and the ledger, together
    STORE/.run/corpora/NAME/current.json     names the checkpoint that counts; replaced atomically

Units are added in order, so the ledger is a number: units 0 to n-1 are in.

A run may end anywhere, and the same command goes on to the same bits: a checkpoint that counts is never written to,
and is dropped only when a later one counts or the corpus is committed. What gets committed is made beside it, in
`finished`, and moved to corpora/NAME.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.plan import CorpusPlan, changed_document, stored_names
from neurotally.jobs.worker import KERNEL_HINTS, PassConfig, UnitResult
from neurotally.profiler import store
from neurotally.profiler.differences import first_difference
from neurotally.profiler.documents import Status
from neurotally.profiler.errors import InputError
from neurotally.profiler.neurons import CorpusNeurons
from neurotally.profiler.texts import keep_texts
from neurotally.profiler.units import documents_by_unit
from neurotally.profiler.whole_files import read_json, replace_json, sync_tree

_LISTED_SKIPS = 1000
"""So many skipped documents are named in a corpus's attributes; all are in `document_status`."""

_OF_THE_PLAN = ("document_name", "document_bytes", "document_unit", "unit_group")
"""Arrays that are known before a unit is in."""


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

    def checkpoint(self) -> None:
        """Save sum and ledger together in a new folder and make it the one that counts."""
        if self._saved == self.units_done:
            return
        target = self._folder / f"checkpoint-{self.units_done}"
        fresh = target.with_name(f"{target.name}.partial")
        for left_behind in (fresh, target):  # of a run that died here
            shutil.rmtree(left_behind, ignore_errors=True)
        store.write_arrays(fresh, self._arrays(), {"ledger": self._entries()})
        sync_tree(fresh)
        fresh.rename(target)
        replace_json(self._folder / "current.json", {"folder": target.name, **self._entries()})
        self._saved = self.units_done
        for other in self._folder.glob("checkpoint-*"):
            if other != target:
                shutil.rmtree(other)

    def publish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Commit the complete corpus to the store with its attributes, and drop its working state."""
        assert self.is_complete
        attributes = {**self.summary(), **facts, "source_path": self.plan.source.path}
        finished = self._folder / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        store.write_arrays(finished, self._arrays(), attributes)
        if self._config.keep_texts:
            keep_texts(finished, self.plan.source, self.plan.manifest.names, self._arrays())
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

    def _entries(self) -> dict[str, Any]:
        """What a checkpoint notes beside its arrays."""
        return {"restarted_units": self._restarted, **self.progress()}

    def _open(self) -> None:
        """Go on from the last checkpoint of the same corpus, or note the plan of a new one."""
        with self._begin_again_hint():
            plan = read_json(self._folder / "plan.json", "identity")
        if plan is None:
            self._write_plan()
            return
        self._refuse_other_corpus(plan["identity"])
        kernels, ours = plan.get("kernels", self._config.kernels), self._config.kernels  # not noted by versions before
        if kernels != ours:
            raise InputError(
                f"corpus {self.plan.name!r} was begun with the {kernels} kernels, these are the {ours} ones, which "
                f"round sums differently; {KERNEL_HINTS[kernels]}, or remove {self._folder} to begin it again"
            )
        if plan.get("source_path") != self.plan.source.path:  # the same documents, elsewhere
            replace_json(self._folder / "plan.json", self._plan_document())
        with self._begin_again_hint():
            current = read_json(self._folder / "current.json", "folder", "units_done", "restarted_units")
            if current is not None:
                self._load(current)

    @contextmanager
    def _begin_again_hint(self) -> Iterator[None]:
        """Errors of damaged working state say what to do."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{error}; remove {self._folder} to begin the corpus again") from error

    def _write_plan(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        manifest = self.plan.manifest
        documents = {"names": manifest.names, "sizes": manifest.sizes.tolist()}
        replace_json(self._folder / "documents.json", documents)
        replace_json(self._folder / "plan.json", self._plan_document())

    def _plan_document(self) -> dict[str, Any]:
        return {
            "identity": self.plan.identity,
            "kernels": self._config.kernels,
            "units": len(self.units),
            "documents": len(self.plan.manifest.names),
            "source_path": self.plan.source.path,
        }

    def _refuse_other_corpus(self, identity: dict[str, Any]) -> None:
        difference = first_difference(self.plan.identity, identity)
        if difference is None:
            return
        saved = read_json(self._folder / "documents.json", "names", "sizes") or {"names": [], "sizes": []}
        document = changed_document(self.plan.manifest, saved["names"], saved["sizes"])
        raise InputError(
            f"corpus {self.plan.name!r} isn't the one this run started with: {difference} ({document}); "
            f"restore it, or remove {self._folder} to begin it again"
        )

    def _load(self, current: dict[str, Any]) -> None:
        """Take over the checkpoint that `current` tells of, once it is seen to be whole and that of `current`."""
        done, restarted = current["units_done"], current["restarted_units"]
        if type(done) is not int or not 0 < done <= len(self.units) or current["folder"] != f"checkpoint-{done}":
            told = f"{done!r} of {len(self.units)} units done in {current['folder']!r}"
            raise InputError(f"{self._folder / 'current.json'} has {told}")
        if not isinstance(restarted, list) or any(type(unit) is not int or not 0 <= unit < done for unit in restarted):
            raise InputError(f"{self._folder / 'current.json'} has restarted_units {restarted!r}")
        checkpoint = self._folder / current["folder"]
        moved = self._store / "corpora" / self.plan.name
        if not checkpoint.exists() and moved.exists():
            # Of a version that moved the checkpoint itself there, and died before it was committed.
            os.rename(moved, checkpoint)
        fresh = self._arrays()
        arrays = store.read_arrays(checkpoint, list(fresh))
        for name, values in fresh.items():
            if name not in arrays:
                raise InputError(f"{checkpoint} lacks the array {name}")
            if arrays[name].shape != values.shape:
                raise InputError(f"{checkpoint / name} has shape {arrays[name].shape}, expected {values.shape}")
            if name in _OF_THE_PLAN and not np.array_equal(arrays[name], values):
                raise InputError(f"{checkpoint / name} isn't that of the plan")
        self._neurons = CorpusNeurons.from_arrays(arrays)
        self._tokens_G = arrays["tokens"]
        self._special_tokens_G = arrays["special_tokens"]
        self._status = arrays["document_status"]
        self._sha256 = arrays["document_hash"]
        self._document_tokens = arrays["document_tokens"]
        self._unit_tokens = arrays["unit_tokens"]
        self._restarted = restarted
        self.units_done = self._saved = done
        if reason := self._disagreement(current, checkpoint):
            raise InputError(f"{self._folder / 'current.json'} doesn't agree with {checkpoint.name}: {reason}")

    def _disagreement(self, current: dict[str, Any], checkpoint: Path) -> str | None:
        """How the arrays and what `current` says differ, if they do."""
        done = self.units_done
        filled = {
            "unit_tokens": (self._unit_tokens, done),
            "document_status": (self._status, self._documents_done),
            "document_tokens": (self._document_tokens, self._documents_done),
        }
        for name, (values, expected) in filled.items():
            is_filled = values != store.SCHEMA[name].fill
            if not (is_filled[:expected].all() and not is_filled[expected:].any()):
                return f"units_done is {done}, {name} has {np.count_nonzero(is_filled)} entries, expected {expected}"
        for group, tokens in enumerate(self._tokens_G):
            if self._unit_tokens[:done][group :: self._config.groups].sum() != tokens:
                return f"group {group} has {tokens} tokens, its units another number"
        noted = store.unlisted_attributes(checkpoint).get("ledger", {})  # {} before it was noted there
        for key, value in self._entries().items():
            if not current.get(key) == noted.get(key, value) == value:
                return f"{key} is {current.get(key)!r}, expected {noted.get(key, value)!r}"
        return None


def refuse_changed_corpus(store_path: Path, plan: CorpusPlan) -> None:
    """Raise InputError where a committed corpus isn't the one on disk."""
    attributes = store.corpus_attributes(store_path, plan.name)
    if difference := first_difference(plan.identity, attributes):
        raise InputError(
            f"corpus {plan.name!r} isn't the one in {store_path}: {difference}; give it another name or another store"
        )
