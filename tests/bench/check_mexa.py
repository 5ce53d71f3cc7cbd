"""Check embeddings and MEXA of your model and texts against independent ones: one text, one pair, at a time.

    python tests/bench/check_mexa.py MODEL PARALLEL [--limit 100] [--field english=C::comment]

Embeddings: transformers' own `hidden_states` of one text after the other, pooled by the formula in float64.
Scores: a double loop over pairs of ids with Python's own numbers, from the embeddings in the store. Without the rule
that differences under 1e-12 are ties (strict as the rounding falls), as many decisions differ as `without_ties` says.
"""

import json
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally.analysis.layers.mexa import mexa, read_embeddings
from neurotally.jobs import embed
from neurotally.jobs.progress import Progress
from neurotally.profiler.corpus.parallel import ParallelTexts, read_parallel


@click.command()
@click.argument("model")
@click.argument("parallel", type=click.Path(path_type=Path))
@click.option("--limit", default=100)
@click.option("--field", multiple=True)
def main(model: str, parallel: Path, limit: int, field: tuple[str, ...]) -> None:
    """One JSON line."""
    texts = read_parallel(parallel, limit, fields=field)
    with tempfile.TemporaryDirectory() as folder:
        store, quiet = Path(folder, "store"), Progress(quiet=True)
        embed(model, store, parallel=texts, device="cpu", dtype="float32", progress=quiet)
        found = [read_embeddings(store, "parallel", pooling) for pooling in ("weighted", "last")]
    reference = reference_embeddings(model, texts, found[0].ids)
    result = {"languages": texts.languages, "ids": len(found[0].ids), "layers": len(found[0].vector_LND)}
    for embeddings, expected_CnLD in zip(found, reference, strict=True):
        ours_CnLD = embeddings.vector_LND[:, embeddings.text_Cn].transpose(1, 2, 0, 3)
        aligned_LCCn = mexa(embeddings.vector_LND, embeddings.text_Cn)
        exact, without_ties = double_loop(ours_CnLD.astype(np.float64))
        result[embeddings.pooling] = {
            "decisions": aligned_LCCn.size,
            "differ": int((aligned_LCCn != exact).sum()),
            "without_ties": int((aligned_LCCn != without_ties).sum()),
            "mean_score": float(aligned_LCCn.mean()),
            "largest_embedding_error": float(
                (np.linalg.norm(ours_CnLD - expected_CnLD, axis=3) / np.linalg.norm(expected_CnLD, axis=3)).max()
            ),
        }
    click.echo(json.dumps(result))


def reference_embeddings(spec: str, texts: ParallelTexts, ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(weighted, last), float64 [C, n, L, D]."""
    model = AutoModelForCausalLM.from_pretrained(spec, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(spec)
    weighted, last = [], []
    for language in texts.languages:
        for id_ in ids:
            tokens = torch.tensor([tokenizer(texts.texts[language][id_])["input_ids"]])
            with torch.no_grad():
                states = model(tokens, output_hidden_states=True).hidden_states
            total = sum(range(1, tokens.shape[1] + 1))
            weighted.append([sum((t + 1) * h.double() for t, h in enumerate(s[0])).numpy() / total for s in states])
            last.append([state[0, -1].double().numpy() for state in states])
    shape = (len(texts.languages), len(ids), len(weighted[0]), -1)
    return np.array(weighted).reshape(shape), np.array(last).reshape(shape)


def double_loop(vector_CnLD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decisions bool [L, C, C, n] with ties under 1e-12, and with `>` alone."""
    num_languages, num_ids, num_layers, _ = vector_CnLD.shape
    decided = np.zeros((2, num_layers, num_languages, num_languages, num_ids), bool)
    norm_CnL = np.sqrt((vector_CnLD**2).sum(axis=3))
    for layer in range(num_layers):
        for p in range(num_languages):
            for q in range(num_languages):
                cosine = [
                    [
                        float(vector_CnLD[p, i, layer] @ vector_CnLD[q, j, layer])
                        / (float(norm_CnL[p, i, layer]) * float(norm_CnL[q, j, layer]))
                        for j in range(num_ids)
                    ]
                    for i in range(num_ids)
                ]
                for i in range(num_ids):
                    rest = [c for j in range(num_ids) if j != i for c in (cosine[i][j], cosine[j][i])]
                    decided[:, layer, p, q, i] = cosine[i][i] - max(rest) >= 1e-12, cosine[i][i] > max(rest)
    return decided[0], decided[1]


if __name__ == "__main__":
    main()
