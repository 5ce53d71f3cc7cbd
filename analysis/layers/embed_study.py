"""What `embed` says of a parallel corpus's embeddings in a store; what they tell, `mexa` says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurotally.analysis.layers.mexa_study import missing_id_notes
from neurotally.analysis.options import GroupName
from neurotally.analysis.parts import Column, Table
from neurotally.analysis.render.numbers import number_text
from neurotally.analysis.result import Result, model_key
from neurotally.profiler import store as stores


def study(store: Path, name: GroupName = "parallel") -> Result:
    """What the store's embeddings of a parallel corpus are.

    >>> store.embed().document["languages"]
    ['C', 'Java', 'Python']
    """
    group = f"embeddings/{name}"
    attributes = stores.group_attributes(store, group)
    arrays = stores.read_group(store, group, ["text", "tokens", "special"])
    facts = stores.store_attributes(store)["model"]
    num_languages, num_ids = arrays["text"].shape
    document = {
        "name": name,
        "model": model_key(facts),
        "languages": attributes["languages"],
        "ids": num_ids,
        "texts": num_languages * num_ids,
        "distinct_texts": len(arrays["tokens"]),
        "layers": facts["num_layers"] + 1,
        "width": facts["width"],
        "bos": attributes["bos"],
        "special_tokens_a_text": float(arrays["special"].mean()),
        "tokens_a_text": float(arrays["tokens"].mean()),
        "left_out": attributes["left_out"],
        "missing": attributes["missing"],
    }
    lead = f"{name}: {num_languages} languages ({', '.join(document['languages'])}) x {num_ids} ids"
    columns = [Column("distinct texts", "count"), Column("texts", "count"), Column("tokens per text", "number", 1),
               Column("layers", "count"), Column("width", "count")]  # fmt: skip
    row = [document[key] for key in ("distinct_texts", "texts", "tokens_a_text", "layers", "width")]
    notes = [_special(document), *missing_id_notes(document), f"next: neurotally mexa {store}"]
    return Result("embed", document, lead, [Table("embeddings", "", columns, [row])], notes=notes)


def _special(document: Mapping[str, Any]) -> str:
    if number := document["special_tokens_a_text"]:
        return f"{number_text(number, 'number', 2)} tokens of each text are special (BOS: {document['bos']})"
    return "no token is special" + ("" if document["bos"] == "none" else ": this tokenizer adds no BOS")
