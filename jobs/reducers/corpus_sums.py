"""What the units of one corpus add up to in the neuron pass: its neurons, tokens and documents."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.corpora import ListedCorpus, skipped_by_reason
from neurotally.kernels.statistics import NO_DOCUMENT
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Status
from neurotally.profiler.corpus.texts import keep_texts
from neurotally.profiler.corpus.units import Unit, documents_by_unit
from neurotally.profiler.errors import InputError
from neurotally.profiler.networks import Networks, is_expert
from neurotally.profiler.neuron_sums import CorpusNeurons, array_names
from neurotally.profiler.passes.worker import PassConfig, UnitResult

_LISTED_SKIPS = 1000
"""So many skipped documents are named in a corpus's attributes; all are in `document_status`."""


_NEWS_GROWTH = 1.25
"""Workers hear of the triggers when there are so many times as many units: a unit ships a quarter more at most."""


class CorpusSums:
    """The sums of one corpus, for `Fold`. Units are added in order: those from 0 to `_num_done` - 1 are in.

    The large ones, those of neurons, are there once they are got ready or needed.
    """

    def __init__(
        self, corpus: ListedCorpus, units: Sequence[Unit], config: PassConfig, num_layers: int, num_neurons: int,
        networks: Networks = (),
    ):  # fmt: skip
        self._corpus = corpus
        self._units = units
        self._config = config
        self._num_done = 0
        self._num_told = 0
        """Units that workers have heard of."""
        self._by_neuron = (num_layers, num_neurons)
        self._networks = networks
        self._checkpoint: Path | None = None
        """What a former run left."""
        num_documents = len(corpus.manifest.names)
        self._own: store.Arrays = {
            "tokens": np.zeros(config.groups, np.uint64),
            "special_tokens": np.zeros(config.groups, np.uint64),
            "document_hash": np.zeros((num_documents, 32), np.uint8),
            "document_tokens": np.full(num_documents, NO_DOCUMENT, np.uint32),
            "document_status": np.full(num_documents, store.SCHEMA["document_status"].fill, np.uint8),
            "unit_tokens": np.full(len(units), store.SCHEMA["unit_tokens"].fill, np.uint64),
        }
        self._listed: store.Arrays = {
            "document_name": corpus.stored_names(),
            "document_bytes": corpus.manifest.sizes,
            "document_unit": documents_by_unit(list(units)),
            "unit_group": np.array([unit.group(config.groups) for unit in units], np.uint16),
        }
        self._restarted: list[int] = []

    def get_ready(self) -> None:
        """Make the sums of neurons, or read those of a former run: some seconds of the largest mixtures."""
        _ = self._neurons

    def add(self, index: int, result: UnitResult) -> None:
        """Add the next unit."""
        unit = self._units[index]
        group, documents, own = unit.group(self._config.groups), slice(unit.first, unit.end), self._own
        self._neurons.add(result.neurons, group)
        own["tokens"][group] += np.uint64(result.tokens)
        own["special_tokens"][group] += np.uint64(result.special_tokens)
        own["document_hash"][documents] = result.sha256_n32
        own["document_tokens"][documents] = result.document_tokens_n
        own["document_status"][documents] = result.status_n
        own["unit_tokens"][index] = result.tokens
        if result.restarts:
            self._restarted.append(index)
        self._num_done = index + 1

    def news(self) -> tuple[str, np.ndarray] | None:
        """The corpus, and the threshold of its triggers: see `CorpusNeurons.trigger_threshold`."""
        if self._num_done < _NEWS_GROWTH * self._num_told or self._num_done == self._num_told:
            return None
        self._num_told = self._num_done
        threshold_LF = self._neurons.trigger_threshold()
        return None if threshold_LF is None else (self._corpus.name, threshold_LF)

    def arrays(self) -> store.Arrays:
        """What the store's arrays hold."""
        return {**self.added(), **self._listed}

    def added(self) -> store.Arrays:
        """Those that units have changed: a checkpoint's."""
        return {**self._own, **self._neurons.arrays()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what `added` gives, which needn't be there for it."""
        sizes = {"group": self._config.groups, "trigger": self._config.triggers, "site": len(is_expert(self._networks))}
        sizes |= zip(("layer", "neuron"), self._by_neuron, strict=True)
        of_neurons = {
            name: tuple(sizes[dimension] for dimension in store.SCHEMA[name].dimensions) for name in self._of_neurons
        }
        return {name: array.shape for name, array in self._own.items()} | of_neurons

    def noted(self) -> dict[str, Any]:
        """The corpus's entry in `neurotally status --json`, and which units began again; noted twice beside a
        checkpoint's arrays."""
        done = self._documents_done
        return {
            "units": len(self._units),
            "units_done": self._num_done,
            "documents": len(self._corpus.manifest.names),
            "documents_done": done,
            "skipped": int(np.count_nonzero(self._own["document_status"][:done] != Status.COUNTED)),
            "tokens": int(self._own["tokens"].sum()),
            "restarted_units": self._restarted,
        }

    def load(self, arrays: store.Arrays, noted: Mapping[str, Any], num_done: int, checkpoint: Path) -> None:
        """Take over a checkpoint; InputError where its arrays can't be those of so many units.

        It must stay until another one counts: what it has of neurons is read again when it is needed.
        """
        self._own = {name: arrays[name] for name in self._own}
        self._checkpoint = checkpoint
        self._num_done = num_done
        restarted = noted.get("restarted_units")
        if not isinstance(restarted, list) or any(
            type(unit) is not int or not 0 <= unit < num_done for unit in restarted
        ):
            raise InputError(f"{checkpoint} has restarted_units {restarted!r}")
        self._restarted = restarted
        if reason := self._disagreement(noted):
            raise InputError(f"{checkpoint} doesn't agree with what is noted of it: {reason}")

    def attributes(self) -> dict[str, Any]:
        """What a reader of the corpus wants to know first."""
        counted = self._own["document_status"] == Status.COUNTED
        distinct = np.unique(self._own["document_hash"][counted], axis=0)
        return {
            "counted": int(counted.sum()),
            "skipped": dict(sorted(skipped_by_reason(self._own["document_status"]).items())),
            "skipped_documents": self._listed["document_name"][~counted][:_LISTED_SKIPS].tolist(),
            "duplicates": int(counted.sum()) - len(distinct),
            "tokens": int(self._own["tokens"].sum()),
            "special_tokens": int(self._own["special_tokens"].sum()),
            "units": len(self._units),
            "empty_groups": int(np.count_nonzero(self._own["tokens"] == 0)),
            "restarted_units": self._restarted,
            "source_path": self._corpus.source.path,
        }

    def keep_texts(self, folder: Path) -> None:
        """Add the texts to the group at `folder`, if asked for."""
        if self._config.keep_texts:
            keep_texts(folder, self._corpus.source, self._corpus.manifest.names, self.arrays())

    @cached_property
    def _neurons(self) -> CorpusNeurons:
        if self._checkpoint is not None:
            return CorpusNeurons.from_arrays(store.read_arrays(self._checkpoint, self._of_neurons), self._networks)
        config = self._config
        return CorpusNeurons.empty(*self._by_neuron, config.groups, config.triggers, self._networks)

    @property
    def _of_neurons(self) -> list[str]:
        """The names of arrays."""
        return array_names(self._config.triggers, self._networks)

    @property
    def _documents_done(self) -> int:
        return self._units[self._num_done - 1].end if self._num_done else 0

    def _disagreement(self, noted: Mapping[str, Any]) -> str | None:
        """How the arrays differ from what is noted of them, if they do."""
        done, documents = self._num_done, self._documents_done
        for name, expected in (("unit_tokens", done), ("document_status", documents), ("document_tokens", documents)):
            is_filled = self._own[name] != store.SCHEMA[name].fill
            if not (is_filled[:expected].all() and not is_filled[expected:].any()):
                return f"units_done is {done}, {name} has {np.count_nonzero(is_filled)} entries, expected {expected}"
        for group, tokens in enumerate(self._own["tokens"]):
            if self._own["unit_tokens"][:done][group :: self._config.groups].sum() != tokens:
                return f"group {group} has {tokens} tokens, its units another number"
        ours = self.noted()
        return next((f"{key} is {noted.get(key)!r}, expected {ours[key]!r}" for key in ours
                     if noted.get(key) != ours[key]), None)  # fmt: skip
