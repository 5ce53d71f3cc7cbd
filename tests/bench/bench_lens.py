"""What the lens pass costs, beside the forward pass and its vocabulary products alone, and the memory it needs.

    python tests/bench/bench_lens.py [--width 512] [--layers 4] [--vocabulary 50000] [--tokens 1024] [--rounds 5]

A random Llama; every position of two rectangles is read. In interleaved rounds: the body alone; each layer's final
norm and head alone, in the pass's chunks, results dropped; everything that the pass reads (first 10 tokens, gold token,
24 token sets of 100 tokens and 20 random sets for each: at V = 4,096 the papers' 23 keyword files and their union give
17 to 441). The bound is pass / (body + products) <= 1.5 at V = 50,000. Memory is the process's peak resident set beyond
what it held before the pass. A table, then one JSON line.
"""

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from neurotally.profiler.model.load import LoadedModel, prepare_model
from neurotally.profiler.passes.lens import Lens
from neurotally.profiler.passes.lens_reading import DrawColumns, DrawSums, SetColumns, read_layers

_ROWS = 2
_SETS, _SET_TOKENS, _DRAWS = 24, 100, 20
_PROMPTS = 25


class _NoTokenizer:
    """What `prepare_model` asks of a tokenizer, for a model without one."""

    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        return {"x": 0}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [0]}


def build(width: int, layers: int, vocabulary: int, tokens: int) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=int(2.75 * width), num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), num_key_value_heads=max(1, width // 64),
        max_position_embeddings=tokens,
    )  # fmt: skip
    return prepare_model(LlamaForCausalLM(config).eval(), _NoTokenizer(), "random", None, "float32")


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in {"width": 512, "layers": 4, "vocabulary": 50_000, "tokens": 1024, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    model = build(options.width, options.layers, options.vocabulary, options.tokens)
    lens = Lens(model)
    rng = np.random.default_rng(0)
    ids_BT = torch.from_numpy(rng.integers(options.vocabulary, size=(_ROWS, options.tokens // _ROWS)))
    at_BT = torch.ones(ids_BT.shape, dtype=torch.bool)
    gold_N = rng.integers(options.vocabulary, size=ids_BT.numel())
    sets = [
        np.stack([rng.choice(options.vocabulary, _SET_TOKENS, replace=False) for _ in range(1 + _DRAWS)])
        for _ in range(_SETS)
    ]
    prompt_N = np.arange(ids_BT.numel()) * _PROMPTS // ids_BT.numel()

    def products() -> None:
        for _ in range(options.layers):
            for part in residual_ND.split(lens.chunk):
                lens.logits(lens.normed(part))

    def whole_pass() -> None:
        if not columns:
            columns.append(SetColumns([one[0] for one in sets], options.vocabulary))
            columns.append(DrawColumns([one[1:] for one in sets], options.vocabulary))
        draws = DrawSums(columns[1], _PROMPTS, options.layers)
        read_layers(lens, lens.vectors(ids_BT, at_BT), gold_N, columns[0], draws, prompt_N)

    columns: list[Any] = []  # made in the first pass, whose peak of memory is taken
    residual_ND = lens.vectors(ids_BT, at_BT).residual_LND[-1]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole_pass()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    kinds: dict[str, Callable[[], object]] = {
        "body": lambda: model.run_body(ids_BT), "products": products, "pass": whole_pass
    }  # fmt: skip
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, run in kinds.items():
            seconds[kind].append(timed(run))
    ratios = np.array(seconds["pass"]) / (np.array(seconds["body"]) + np.array(seconds["products"]))
    for kind, times in seconds.items():
        print(f"{kind:10s} {np.median(times):8.3f} s")
    everything = 4 * options.layers * ids_BT.numel() * options.vocabulary
    print(f"pass / (body + products): median {np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f}")
    print(f"peak memory of the pass: {peak / 2**10:.0f} MiB (all layers' logits: {everything / 2**20:.0f} MiB)")
    print(json.dumps({
        **vars(options), "seconds": {kind: float(np.median(times)) for kind, times in seconds.items()},
        "ratio": float(np.median(ratios)), "peak_bytes": peak * 1024, "threads": torch.get_num_threads(),
        "device": platform.processor() or platform.machine(), "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
