"""The demo's model: a byte-level BPE tokenizer and a small Llama, trained from nothing in about a minute.

    FOLDER/config.json, model.safetensors, tokenizer.json, ...    an ordinary Hugging Face model folder

Text is what lies below one subfolder per language. Documents are cut into rows as the profiler cuts them: the
tokenizer puts `<s>` before a document, and what is longer than a row goes on in a row that starts afresh.
Languages take turns, each dealing its rows in a shuffled order, so that all are trained alike. Everything is
drawn from the seed: on one machine, with as many threads, the same text gives bitwise identical weights.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import quiet_transformers

STEPS = 600
ROW_TOKENS = 256
"""The context that the model is made for."""
ROWS_PER_STEP = 4
"""Few, for many steps: of equal tokens, 680 steps of 896 reached a loss of 4.73 and 340 of 1,792 one of 4.95."""
VOCABULARY = 4096
BOS = "<s>"
SHAPE: Mapping[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    # Held-out loss after 340 steps of 1,792 tokens: 5.32 with the usual 0.02, 4.95 with 0.05, 5.03 with 0.08.
    "initializer_range": 0.05,
}
_LEARNING_RATE = 4e-3
_WARMUP_SHARE, _LAST_RATE_SHARE = 0.06, 0.05
_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1
_MAX_GRADIENT = 1.0
_IGNORED = -100


MakeModel = Callable[[int, int, int], Any]
"""Of the vocabulary's size, the id of `<s>` and a seed."""


def train(
    train_dir: Path, model_dir: Path, steps: int = STEPS, seed: int = 0, progress: bool = True,
    make_model: MakeModel | None = None,
) -> list[float]:  # fmt: skip
    """Train tokenizer and model on the text below `train_dir`, and save them as `model_dir`, on the CPU.

    `make_model` makes another model than the demo's, at random. `model_dir` must not exist: it appears whole, or not at
    all. Raises InputError where there is no text. Returns the training loss of every step, in nats per token, with a
    mixture's loss of balance in it.
    """
    if model_dir.exists():
        raise InputError(f"{model_dir} exists already; name a new folder, or remove it")
    texts = _read_texts(train_dir)
    tokenizer = train_tokenizer((text for documents in texts.values() for text in documents), progress)
    rows = {
        language: _cut_rows(tokenizer, documents)
        for language, documents in tqdm(texts.items(), desc="tokenising", unit="language", disable=not progress)
    }
    model = (make_model or _new_model)(len(tokenizer), tokenizer.bos_token_id, seed)
    losses = _optimise(model, _deal(rows, np.random.default_rng(seed)), steps, progress)
    unfinished = model_dir.with_name(f".{model_dir.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(model_dir)
    return losses


def train_tokenizer(texts: Iterable[str], progress: bool = True) -> Any:
    """Train a byte-level BPE tokenizer that puts `<s>` before every text, as Llama's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=bos
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, clean_up_tokenization_spaces=False)


def _read_texts(folder: Path) -> dict[str, list[str]]:
    """The text of every file, by language and in the order of their paths."""
    texts = {}
    for language in sorted(path for path in folder.glob("*") if path.is_dir()):
        files = sorted(path for path in language.rglob("*") if path.is_file())
        texts[language.name] = [file.read_bytes().decode() for file in files]
    texts = {language: documents for language, documents in texts.items() if any(documents)}
    if not texts:
        raise InputError(f"{folder}: expected one subfolder of text files per language, found none")
    return texts


def _cut_rows(tokenizer: Any, documents: Sequence[str]) -> list[np.ndarray]:
    """Token ids, cut as the profiler cuts them; a row of one token predicts nothing and is left out."""
    encodings = tokenizer.backend_tokenizer.encode_batch(list(documents))
    ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
    rows = [row for document in ids for row in np.split(document, range(ROW_TOKENS, len(document), ROW_TOKENS))]
    return [row for row in rows if len(row) > 1]


def _deal(rows: Mapping[str, Sequence[np.ndarray]], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows without end: languages take turns, each going through all of its own before it begins again."""
    left: dict[str, list[int]] = {language: [] for language in rows}
    while True:
        for language in rng.permutation(sorted(rows)).tolist():
            if not left[language]:
                left[language] = rng.permutation(len(rows[language])).tolist()
            yield rows[language][left[language].pop()]


def _new_model(vocabulary: int, bos_id: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=ROW_TOKENS,
        bos_token_id=bos_id,
        eos_token_id=None,
        dtype="float32",
        **SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config)


def _optimise(model: Any, rows: Iterator[np.ndarray], steps: int, progress: bool) -> list[float]:
    """AdamW over `steps` batches, the rate warmed up and then lowered along a cosine."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=_LEARNING_RATE,
        betas=_BETAS,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate_share(step, steps))
    losses = []
    model.train()
    # Setting a number, even the same one, ends MKL's own choice of threads, and with it other bits in other processes.
    torch.set_num_threads(torch.get_num_threads())
    for _ in (bar := tqdm(range(steps), desc="training", unit="step", disable=not progress)):
        loss = _loss(model, [next(rows) for _ in range(ROWS_PER_STEP)])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix_str(f"loss {np.mean(losses[-20:]):.2f}", refresh=False)
    return losses


def _rate_share(step: int, steps: int) -> float:
    """The share of the learning rate that a step uses."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
    return _LAST_RATE_SHARE + (1 - _LAST_RATE_SHARE) * cosine


def _loss(model: Any, rows: Sequence[np.ndarray]) -> Tensor:
    """Mean loss of the next token, over the tokens of right-padded rows."""
    whole = [torch.from_numpy(row) for row in rows]
    ids_BT = pad_sequence(whole, batch_first=True)
    next_BT = pad_sequence([row[1:] for row in whole], batch_first=True, padding_value=_IGNORED)
    output = model(input_ids=ids_BT[:, :-1], use_cache=False)
    loss = functional.cross_entropy(output.logits.flatten(0, 1), next_BT.flatten(), ignore_index=_IGNORED)
    balance: Tensor | None = getattr(output, "aux_loss", None)  # of a mixture's experts
    return loss if balance is None else loss + model.router_aux_loss_coef * balance
