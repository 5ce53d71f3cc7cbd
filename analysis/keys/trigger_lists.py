"""Read the trigger lists of a store: for every key, the places where its coefficient is largest.

Files of equal content are one place: of a key's triggers in them the best is kept, so a list may hold fewer than K
places. (With `profile --window-lines` this is seen to while the model runs.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurotally.analysis.keys.places import place_codes
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

ARRAYS = ["trigger_value", "trigger_document", "trigger_position", "document_hash"]


@dataclass(frozen=True, eq=False)
class TriggerLists:
    """The triggers of one corpus, best first."""

    corpus: str
    value_LFK: np.ndarray
    """float32; NaN where unused."""
    document_LFK: np.ndarray
    """uint32."""
    position_LFK: np.ndarray
    """uint32."""
    used_LFK: np.ndarray
    """bool: neither unused nor a copy of a better one."""
    num_copies: int
    """Triggers left out because an equal file has a better one."""

    def place_codes(self) -> np.ndarray:
        """uint64: `place_codes` of all triggers that are used."""
        return place_codes(self.document_LFK[self.used_LFK], self.position_LFK[self.used_LFK])


def read_triggers(path: Path, corpus: str) -> TriggerLists:
    """Read the trigger lists of a corpus; InputError where the store has none."""
    group = f"corpora/{corpus}"
    if corpus in store.committed_corpora(path) and not store.open_committed(path, group, ["trigger_value"]):
        raise InputError(f"{path} has no triggers; profile with --triggers K, K at least 1")
    arrays = store.read_corpus(path, corpus, ARRAYS)
    document_LFK, value_LFK = arrays["trigger_document"], arrays["trigger_value"]
    is_there_LFK = ~np.isnan(value_LFK)
    first_of_D = np.unique(arrays["document_hash"], axis=0, return_inverse=True)[1].ravel()
    content_LFK = first_of_D[np.where(is_there_LFK, document_LFK, 0)]
    used_LFK = first_in_row(content_LFK, is_there_LFK)
    copies = int(is_there_LFK.sum() - used_LFK.sum())
    return TriggerLists(corpus, value_LFK, document_LFK, arrays["trigger_position"], used_LFK, copies)


def corpora_with_triggers(path: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The corpora to look at: those of `wanted`, else all finished ones. InputError where there is none."""
    committed = store.committed_corpora(path)
    if missing := [name for name in wanted if name not in committed]:
        raise InputError(f"{path} has no finished corpus {missing[0]!r}; it has {committed}")
    if not committed:
        raise InputError(f"{path} has no finished corpus yet")
    return sorted(set(wanted)) or committed


def first_in_row(value_xK: np.ndarray, valid_xK: np.ndarray) -> np.ndarray:
    """bool [..., K]: whether a valid entry is the first of its value along the last axis."""
    value = np.where(valid_xK, value_xK.astype(np.int64), np.iinfo(np.int64).max)
    order = np.argsort(value, axis=-1, kind="stable")
    ascending = np.take_along_axis(value, order, axis=-1)
    is_new = np.ones(ascending.shape, bool)
    is_new[..., 1:] = ascending[..., 1:] != ascending[..., :-1]
    is_first = np.empty_like(is_new)
    np.put_along_axis(is_first, order, is_new, axis=-1)
    is_first &= valid_xK
    return is_first
