"""A small mixture of experts, trained on the demo's corpus: where it sends each language, and what its neurons cost.

    python tests/bench/trained_mixture.py FOLDER [--steps N]

A Mixtral of 4 layers, 8 experts of 256 neurons a layer, 2 of them for each token, is trained as the demo trains its
Llama, profiled over held-out files, and each language's LAPE neurons are switched off beside two kinds of random ones.
Leaves FOLDER/routing.png and ablation.png, and prints the tables. What is in FOLDER already is used again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from neurotally.analysis import open_store
from neurotally.analysis.render.charts import save_figure
from neurotally.jobs import ablate, profile
from neurotally.jobs.demo.corpus import gather
from neurotally.jobs.demo.model import ROW_TOKENS, STEPS, train


def new_mixture(vocabulary: int, bos_id: int, seed: int) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=vocabulary, max_position_embeddings=ROW_TOKENS, bos_token_id=bos_id, eos_token_id=None,
        dtype="float32", hidden_size=192, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02,
        output_router_logits=True, tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(seed)
    return MixtralForCausalLM(config)


def main() -> None:
    """Train, profile, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if not (folder / "corpus").exists():
        gather(folder / "corpus")
    if not (folder / "model").exists():
        losses = train(folder / "corpus" / "train", folder / "model", arguments.steps, make_model=new_mixture)
        print(f"training loss: {sum(losses[-20:]) / 20:.2f} nats a token")
    model = str(folder / "model")
    profile(model, folder / "store", corpora=folder / "corpus" / "heldout", workers=2, device="cpu", dtype="float32")
    store = open_store(folder / "store")
    routing = store.routing()
    save_figure(routing.figure(), folder / "routing.png")
    rule = {"per_corpus": 100, "quantile": 0.9}
    ablation = ablate(
        model, folder / "store", corpora=folder / "corpus" / "evaluation", draws=10, max_files=20, document_tokens=1000,
        device="cpu", dtype="float32", **rule,
    )  # fmt: skip
    save_figure(ablation.figure(), folder / "ablation.png")
    print(routing, store.lape(error_bars=True, **rule), ablation, sep="\n\n")


if __name__ == "__main__":
    main()
