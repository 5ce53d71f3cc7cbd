"""How `--layout concat` differs from one run over the corpus.

The papers run a whole corpus together, cut it every T tokens and drop the remainder. `concat` does so within each unit
of work, so that units can be computed in any order: rows start afresh at a unit's first document, and its last, shorter
row is kept. A unit of u tokens has ceil(u / T) rows; beyond what one run over all units would have are

    extra rows         sum of ceil(u / T), less ceil(sum of u / T)
    short row tokens   sum of u mod T: tokens in the units' shorter last rows, which see fewer tokens before them
"""

from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler import store


def concat_rows(unit_tokens: np.ndarray, row_tokens: int) -> dict[str, int]:
    """{"rows", "extra_rows", "short_row_tokens"} of units of these sizes."""
    rows = int((-(-unit_tokens.astype(np.int64) // row_tokens)).sum())
    total = int(unit_tokens.sum())
    return {
        "rows": rows,
        "extra_rows": rows + -total // row_tokens,
        "short_row_tokens": int((unit_tokens.astype(np.int64) % row_tokens).sum()),
    }


def corpus_concat_rows(path: Path, corpus: str) -> dict[str, int] | None:
    """The same of a store's finished corpus; None in another layout, and in imported stores."""
    config: dict[str, Any] = store.store_attributes(path).get("config") or {}
    if config.get("layout") != "concat":
        return None
    return concat_rows(store.read_corpus(path, corpus, ["unit_tokens"])["unit_tokens"], config["row_tokens"])


def concat_note(corpus: str, found: dict[str, int], tokens: int) -> str:
    """One line about a corpus."""
    return (
        f"{corpus}: layout concat starts afresh at each unit: {found['rows']:,} rows, {found['extra_rows']:,} more "
        f"than in one run over the corpus; {found['short_row_tokens']:,} of {tokens:,} tokens are in shorter last rows"
    )
