"""Layer agreement: how often a layer's own top-1 prediction is the model's.

    agreement of a layer = the share of positions n at which argmax E·o_n is the model's top-1 prediction

o is the FFN's output (what its down projection gives, bias included: what the block does with it afterwards isn't) or
the residual stream after the block; raw, or after the model's final norm; E the output embedding, without the head's
bias unless asked for. The model's prediction is that of its true output. (arXiv 2407.04868 leaves open which; FFN
output, raw, without bias is our reading of it.)

A context is a whole document, or a fresh, truncated input: the last so many tokens or lines before the predicted token,
positions counted from 0, no BOS; its reference is the top-1 prediction for the same truncated input. Positions for
these are drawn from those that leave room for the largest size that the document can hold, so that a document's sizes
are compared at the same places; the draw depends on the document's hash and the seed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.lens import Lens, Vectors, cache_parts, top_tokens

VARIANTS = ("ffn-raw", "ffn-norm", "residual-raw", "residual-norm")


@dataclass(frozen=True)
class Context:
    """How much of a document the model sees."""

    kind: str
    """`document`, `tokens` or `lines`."""
    size: int = 0

    @property
    def label(self) -> str:
        """As people read it."""
        if self.kind == "document":
            return "document"
        return f"{self.size} {self.kind if self.size > 1 else self.kind[:-1]}"


@dataclass(frozen=True)
class Place:
    """One truncated input: tokens `first` to `end` - 1 of its document; token `end` comes next."""

    context: int
    first: int
    end: int


@dataclass
class AgreementCounts:
    """Counts over positions. C contexts, A variants, L layers; they add up."""

    agreed_CAL: np.ndarray
    """int64: positions at which the layer's top-1 prediction is the model's."""
    gold_CAL: np.ndarray
    """int64: at which it is the token that comes next."""
    model_gold_C: np.ndarray
    """int64: at which the model's top-1 prediction is the one that comes next."""
    positions_C: np.ndarray
    """int64."""
    gold_positions_C: np.ndarray
    """int64: those with a token that comes next."""

    @classmethod
    def zeros(cls, contexts: int, variants: int, layers: int) -> "AgreementCounts":
        """None yet."""
        shape = (contexts, variants, layers)
        return cls(*(np.zeros(size, np.int64) for size in (shape, shape, contexts, contexts, contexts)))

    def add(self, model_N: np.ndarray, layers_ALN: np.ndarray, context_N: np.ndarray, gold_N: np.ndarray) -> None:
        """Add N positions: the top-1 predictions that were read; `gold_N` is -1 where no token comes next."""
        contexts = len(self.positions_C)
        self.positions_C += np.bincount(context_N, minlength=contexts)
        self.gold_positions_C += np.bincount(context_N[gold_N >= 0], minlength=contexts)
        self.model_gold_C += np.bincount(context_N[model_N == gold_N], minlength=contexts)
        is_of_CN = np.equal.outer(np.arange(contexts), context_N).astype(np.float64)
        for counts_CAL, token_N in ((self.agreed_CAL, model_N), (self.gold_CAL, gold_N)):
            counts_CAL += np.tensordot(is_of_CN, layers_ALN == token_N, (1, 2)).astype(np.int64)


def read_top1(lens: Lens, vectors: Vectors, variants: Sequence[str], head_bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """The top-1 predictions at N positions, int64: the model's own [N], and each layer's in each variant [A, L, N]."""

    def top1(read: Callable[[Tensor], Tensor], vector_ND: Tensor) -> np.ndarray:
        parts = (read(part_nD) for part_nD in torch.split(vector_ND, lens.chunk))
        firsts = [top_tokens(rows, 1)[:, 0] for logits_nV in parts for (rows,) in cache_parts(logits_nV)]
        return torch.cat(firsts).cpu().numpy()

    def read_raw(vector_ND: Tensor) -> Tensor:
        return lens.embedding_logits(vector_ND, head_bias)

    def read_normed(vector_ND: Tensor) -> Tensor:
        return read_raw(lens.normed(vector_ND))

    by_variant = []
    for variant in variants:
        read = read_normed if variant.endswith("-norm") else read_raw
        of_layers = vectors.ffn_LND if variant.startswith("ffn-") else vectors.residual_LND
        by_variant.append([top1(read, vector_ND) for vector_ND in of_layers])
    return top1(lens.logits, vectors.final_ND), np.array(by_variant)


def choose_places(
    num_tokens: int, first_token: int, line_T: np.ndarray, contexts: Sequence[Context], positions: int, max_tokens: int,
    key: tuple[int, ...],
) -> Iterator[Place]:  # fmt: skip
    """The truncated inputs of one document of T tokens; `line_T` is the line of each, ascending.

    Tokens before `first_token` (a BOS) are never among them, nor is an input of more than `max_tokens`. `key`: of the
    draw.
    """
    ends = np.arange(first_token + 1, num_tokens)
    if not len(ends):
        return
    for kind in ("tokens", "lines"):
        sized = [(number, context.size) for number, context in enumerate(contexts) if context.kind == kind]
        # [sizes, ends]: the first token of each input, and whether there is room for it.
        if kind == "tokens":
            start = [ends - size for _, size in sized]
            fits = [begin >= first_token for begin in start]
        else:
            last_line = line_T[ends - 1]
            start = [np.maximum(np.searchsorted(line_T, last_line - size + 1), first_token) for _, size in sized]
            fits = [last_line - line_T[first_token] + 1 >= size for _, size in sized]
        fits = [room & (ends - begin <= max_tokens) for room, begin in zip(fits, start, strict=True)]
        roomy = [index for index, room in enumerate(fits) if room.any()]
        if not roomy:
            continue
        largest = max(roomy, key=lambda index: sized[index][1])
        at = np.flatnonzero(fits[largest])
        rng = np.random.default_rng(key)
        for place in np.sort(rng.choice(at, min(positions, len(at)), replace=False)).tolist():
            for (number, _), begin, room in zip(sized, start, fits, strict=True):
                if room[place]:
                    yield Place(number, int(begin[place]), int(ends[place]))


def parse_variants(text: str) -> list[str]:
    """`all`, or some of VARIANTS with commas between, in their order."""
    names = list(VARIANTS) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError(f"--variants: {unknown[0]!r} is none of {', '.join(VARIANTS)}")
    if not names:
        raise InputError(f"--variants: expected all, or some of {', '.join(VARIANTS)}")
    return [name for name in VARIANTS if name in names]
