"""Groups as the passes leave them, made of random numbers, to read back; each function gives the arrays it wrote."""

from pathlib import Path
from typing import Any

import numpy as np
from test_analysis_losses import make_losses

from neurotally.analysis.masking.losses import Losses
from neurotally.jobs.passes import agreement, embed, lens, loss
from neurotally.jobs.passes.lens_worker import STATUS, TOO_LONG
from neurotally.profiler import store


def add_group(path: Path, group: str, arrays: store.Arrays, attributes: dict[str, Any], schema: Any) -> None:
    store.write_arrays(path / ".run" / "made", arrays, attributes, schema)
    store.publish(path, group, path / ".run" / "made")


def add_losses(path: Path, name: str = "ablate", losses: Losses | None = None) -> Losses:
    losses = losses or make_losses()
    arrays = {"nats": losses.nats_SDX, "hits": losses.hits_SDX, "scored": losses.scored_DX,
              "has_concept": losses.has_concept_DK, "document_corpus": losses.corpus_D}  # fmt: skip
    attributes = {**losses.attributes, "corpora": losses.corpora, "sets": losses.sets, "concepts": losses.concepts}
    add_group(path, f"loss/{name}", arrays, attributes, loss.SCHEMA)
    return losses


def add_embeddings(path: Path) -> store.Arrays:
    """Four ids in three languages, at three layers."""
    rng = np.random.default_rng(0)
    arrays = {"weighted": rng.normal(size=(3, 12, 8)).astype(np.float32), "id": np.array(list("wxyz"), object),
              "text": np.arange(12).reshape(3, 4), "tokens": np.full(12, 5), "special": np.ones(12, int)}  # fmt: skip
    attributes = {"languages": ["C", "Java", "Python"], "bos": "counted", "left_out": [], "missing": []}
    add_group(path, "embeddings/parallel", arrays, attributes, embed.SCHEMA)
    return arrays


def add_lens(path: Path) -> store.Arrays:
    """Four prompts of two pairs, three layers and one set; one prompt was skipped."""
    rng = np.random.default_rng(1)
    names = [name for name, spec in lens.SCHEMA.items() if spec.dimensions[:2] == ("prompt", "layer")]
    arrays = {
        name: rng.random((4, 3) if lens.SCHEMA[name].dimensions == ("prompt", "layer") else (4, 3, 1)) for name in names
    }
    arrays |= {"language": np.array(["a", "b"], object), "set": np.array(["if <i>"], object),
               "prompt_source": np.array([0, 0, 0, 1]), "prompt_target": np.array([1, 1, 1, 0]),
               "prompt_positions": np.array([5, 0, 9, 4]), "draw_mass": rng.random((2, 3, 1, 5)),
               "draw_mass_pooled": rng.random((2, 3, 1, 5))}  # fmt: skip
    about = {"entries": 3, "single": 2, "tokens": 2, "share": 0.25, "drawn_share": None}
    attributes = {"paper": False, "draws": 5, "vocabulary": 100, "pairs": [["a", "b"], ["b", "a"]],
                  "sets": {"if <i>": about}, "empty_sets": {"z": 7},
                  "skipped": {"a-b": {STATUS[TOO_LONG]: ["1"]}}}  # fmt: skip
    add_group(path, "lens/translation", arrays, attributes, lens.SCHEMA)
    return arrays


def add_agreement(path: Path) -> store.Arrays:
    """Two corpora, two contexts, three layers; the second corpus has no truncated input."""
    rng = np.random.default_rng(2)
    positions_CX = np.array([[50, 20], [40, 0]])
    agreed = rng.integers(0, 1 + positions_CX[:, :, None, None], (2, 2, 1, 3))
    arrays = {
        "agreed": agreed, "gold": agreed // 2, "model_gold": positions_CX // 3, "positions": positions_CX,
        "gold_positions": positions_CX, "corpus": np.array(["a", "<b>"], object),
        "variant": np.array(["ffn-raw"], object),
        "context_kind": np.array(["document", "tokens"], object), "context_size": np.array([0, 5]),
    }  # fmt: skip
    corpora = {name: {"documents": 3, "skipped": {}, "skipped_documents": []} for name in ("a", "<b>")}
    attributes = {"head_bias": False, "positions": 10, "left_out": ["900 tokens"], "corpora": corpora,
                  "identity": {"contexts": ["document", "5 tokens"]}}  # fmt: skip
    add_group(path, "lens/agreement", arrays, attributes, agreement.SCHEMA)
    return arrays
