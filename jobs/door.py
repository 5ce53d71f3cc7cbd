"""The passes, each a function with the name and the options of its command, which its signature states for both.

What needs PyTorch is imported when one of them is called.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from re import Pattern
from typing import Annotated, Any, Literal

from neurotally.analysis import studies
from neurotally.analysis.languages.lape import Rule
from neurotally.analysis.options import Option
from neurotally.analysis.result import Result
from neurotally.jobs.progress import Progress
from neurotally.profiler.buckets import on_disk
from neurotally.profiler.corpus.parallel import ParallelTexts, read_parallel
from neurotally.profiler.corpus.token_sets import DRAWS as SET_DRAWS
from neurotally.profiler.corpus.token_sets import read_keywords, read_words
from neurotally.profiler.errors import InputError

Name = Annotated[str, Option("What to call the result in the store.")]
Workers = Annotated[int | None, Option("Default: one per GPU, else 1. More than one run as Ray actors.", min=1)]
Device = Annotated[Literal["auto", "cpu", "cuda"], Option()]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float32"], Option("auto: the checkpoint's on a GPU, float32 on the CPU.")
]
Address = Annotated[
    str | None,
    Option("Join the Ray cluster at this address (its nodes see the same files). Default: RAY_ADDRESS, if set.", "RAY"),
]
Trust = Annotated[bool, Option("Run code that comes with the model. Only if you trust it.")]
Corpora = Annotated[Path | str | None, Option("A folder with one subfolder per corpus.", "DIR")]
Corpus = Annotated[
    Mapping[str, str | Path] | None,
    Option("SOURCE: DIR, DIR::GLOB, FILE.jsonl[::COLUMN], FILE.parquet[::COLUMN] or hf:NAME[/CONFIG][::COLUMN]. "
           "DIR and FILE may be URLs (s3://, gs://, az://, hf://).",
           "NAME=SOURCE", names=("--corpus", "--corpus-source")),
]  # fmt: skip
MaxFiles = Annotated[
    int | None,
    Option("The first N documents of each corpus: in hash order in a folder, records in their own.", "N", min=1),
]
DocumentTokens = Annotated[int | None, Option("Keep the first N tokens of each document.", "N", min=1)]
Triggers = Annotated[
    int, Option("Keep the K places where a neuron's coefficient is largest, one per document.", "K", min=0, max=1024)
]
Groups = Annotated[int, Option("Groups of units; every count is kept by group.", "G", min=1, max=65535)]
FirstIds = Annotated[
    int | None, Option("The first N ids, in sorted order.", "N", min=1, names=("--limit", "--max-ids"))
]
HeldOut = Annotated[Path | str, Option("Held-out files: one subfolder per corpus.", "DIR")]
How = Annotated[
    Literal["activation", "coefficient", "weights", "weights-no-bias", "mean"],
    Option("Set the activation or the coefficient to 0, zero the key's weights with or without its bias, or put the "
           "corpus's mean coefficient in its place."),
]  # fmt: skip
Draws = Annotated[
    int,
    Option("Random sets of each of two kinds, for every set: each is a run of the model over all text. With fewer "
           "than 3 nothing is judged; to pass at 5 %, a set must differ by 2.5 standard deviations of 8 draws, 5.0 of "
           "3, 2.1 of 20.", min=0, max=1000),
]  # fmt: skip
LeaveOutUsed = Annotated[
    bool,
    Option("Leave out and count documents whose triggers chose the neurons, instead of refusing them; those that LAPE "
           "counted are left out in any case."),
]  # fmt: skip
Force = Annotated[bool, Option("Evaluate on documents that chose the neurons, too.")]

DRAWS = 8
"""At a level of 5 % a set must cost more than the draws' mean by 2.5 of their standard deviations: by 5.0 with three,
by 2.1 with twenty draws, for 0.4 and 2.4 times the model's runs."""
LOSS_UNIT_BYTES = 2**16
"""A unit is run once for every set: kept small, so that little is lost when a run stops."""
TASK_TEXTS = 64
"""At 8B size a text's embeddings are 1 MB."""


def profile(
    model: str | None, store: Path | str, *,
    corpora: Corpora = None,
    corpus: Corpus = None,
    max_files: MaxFiles = None,
    document_tokens: DocumentTokens = None,
    row_tokens: Annotated[int | None, Option("Default: min(2048, the model's original context).", "T", min=1)] = None,
    layout: Annotated[
        Literal["documents", "concat"],
        Option("documents: each in rows of its own. concat: run together within a unit of work and cut every T tokens; "
               "unlike in the papers each unit starts afresh and keeps its shorter last row (`status` says how many)."),
    ] = "documents",
    triggers: Triggers = 32,
    groups: Groups = 10,
    keep_texts: Annotated[
        bool, Option("Keep the texts in the store too, whole and compressed; for `triggers`.")
    ] = False,
    window_lines: Annotated[
        int | None, Option("Documents are windows of N lines, without overlap.", "N", min=1)
    ] = None,
    decoder_reads: Annotated[
        Literal["second-half", "all"] | None,
        Option("For an encoder-decoder: its decoder continues where the encoder stops, in the middle of each row, or "
               "both read all of it. Default: second-half."),
    ] = None,
    random_init: Annotated[
        int | None,
        Option("Profile the architecture with fresh weights instead: for `patterns --null`.", "SEED", 0, max=2**32 - 1),
    ] = None,
    devices_per_worker: Annotated[
        int | None,
        Option("Devices that hold the model together, each a slice of every layer: for models bigger than one. "
               "Default: as few as hold its weights, or the store's. On a CPU: processes.", "N", min=1),
    ] = None,
    fused: Annotated[
        bool,
        Option("On a GPU, compute norms and rotary embeddings with Liger-Kernel's fused kernels, which go over memory "
               "fewer times and round differently. The store records it."),
    ] = False,
    workers: Workers = None, device: Device = "auto", dtype: Dtype = "auto", address: Address = None,
    trust_remote_code: Trust = False, progress: Progress | None = None, max_unit_bytes: int = 2 * 2**20,
    token_budget: int | None = None, checkpoint_every_s: float = 60.0,
) -> dict[str, Any]:  # fmt: skip
    """Run MODEL over corpora and keep, for every feed-forward neuron, what it does.

    The same command resumes where it stopped. A further corpus is added; what is there is left alone.

    Example:
      neurotally profile codellama/CodeLlama-7b-hf llama.store --corpora sources/ --max-files 50000

    >>> from neurotally.jobs import profile
    >>> done = profile("model/", "my.store", corpora="sources/", triggers=8)
    >>> sorted(done["corpora"])
    ['c++', 'python']

    Returns what was done: `corpora` (attributes of those added by this run), `tokens`, seconds, `warnings`. Raises
    InputError (nothing lost), JobError, or Interrupted.
    """
    from neurotally.jobs.corpora import find_corpora
    from neurotally.jobs.engines.devices import on_devices
    from neurotally.jobs.passes.neurons import profile_neurons
    from neurotally.jobs.run import Texts, make_setup

    if window_lines is not None and layout != "documents":
        raise InputError("--window-lines needs --layout documents: each window is a row of its own")
    setup = make_setup(model, store, workers, device, dtype, address, trust_remote_code, progress, random_init, fused)
    setup = on_devices(setup, devices_per_worker)
    if fused and setup.model.devices > 1:
        raise InputError("--fused: expected a model that one device holds; norms of several devices stay as they are")
    texts = Texts(find_corpora(corpora, corpus), max_files, window_lines)
    return profile_neurons(
        setup, texts, row_tokens, token_budget, checkpoint_every_s, decoder_reads,
        document_tokens=document_tokens, layout=layout, triggers=triggers, groups=groups, keep_texts=keep_texts,
        window_lines=window_lines, max_unit_bytes=max_unit_bytes,
    )  # fmt: skip


def inspect(
    model: str, *,
    groups: Groups = 10,
    triggers: Triggers = 32,
    probe: Annotated[bool, Option("Load the model too, run some batches, and measure the speed.")] = False,
    device: Device = "auto", dtype: Dtype = "auto", trust_remote_code: Trust = False,
) -> Result:  # fmt: skip
    """What MODEL is, what a run of `profile` would need, and whether it fits here, from its config alone.

    A model that isn't supported is refused with the reason, as far as the config shows it.

    Example:
      neurotally inspect deepseek-ai/DeepSeek-V3 --dtype bfloat16

    >>> from neurotally.jobs import inspect
    >>> inspect("model/").document["neurons"]
    96
    """
    from neurotally.jobs.inspection import inspect_model
    from neurotally.jobs.model_config import ModelConfig

    return inspect_model(ModelConfig(model, device, dtype, trust_remote_code), groups, triggers, probe)


def mask(
    model: str | None, store: Path | str, *,
    neurons: Annotated[
        Path | str, Option("Named sets of neurons, as `lape --out` and `concepts --out` write them.", "FILE.json")
    ],
    regex: Annotated[
        Path | str | Mapping[str, Pattern[str]] | None,
        Option("[concepts] NAME = 'regular expression' lines.", "FILE.toml"),
    ] = None,
    corpora: HeldOut,
    how: How = "activation",
    draws: Draws = DRAWS,
    max_files: MaxFiles = None, document_tokens: DocumentTokens = None, leave_out_used: LeaveOutUsed = False,
    force: Force = False, name: Name = "mask", workers: Workers = None, device: Device = "auto", dtype: Dtype = "auto",
    address: Address = None, trust_remote_code: Trust = False, progress: Progress | None = None,
    max_unit_bytes: int = LOSS_UNIT_BYTES,
) -> Result:  # fmt: skip
    """What switching off named sets of neurons costs: loss, perplexity and top-1 accuracy on held-out files in DIR.

    With --regex, measured separately for tokens in each concept's matches, the rest of their lines, other tokens of
    the same files, and files without it. Each set is compared with as many random neurons of the same layers, and with
    random ones of which as many are above LAPE's threshold. Files whose triggers chose the neurons are refused, or
    left out with --leave-out-used. The same command resumes where it stopped.

    Example:
      neurotally mask llama/ llama.store --neurons concepts.json --regex concepts.toml --corpora heldout/

    >>> from neurotally.jobs import mask
    >>> done = mask("model/", "my.store", neurons="neurons.json", corpora="heldout/", draws=2)
    >>> sorted(done.document["sets"])
    ['loops']

    `regex` may also be the compiled expressions by name. Returns the `Result` of `mask`.
    """
    from neurotally.jobs.passes.ablation import mask_sets_of_file
    from neurotally.jobs.passes.loss import Evaluation
    from neurotally.jobs.run import make_group, make_setup

    setup = make_setup(model, store, workers, device, dtype, address, trust_remote_code, progress)
    evaluation = Evaluation(how, draws, max_files, document_tokens, leave_out_used, force, max_unit_bytes)
    mask_sets_of_file(setup, make_group("loss", name), on_disk(neurons), regex, corpora, evaluation)
    return studies.run("losses", setup.store, name=name, form="mask")


def ablate(
    model: str | None, store: Path | str, *,
    neurons: Annotated[
        Path | str | None, Option("A mask file instead of the store's own selection.", "FILE.json")
    ] = None,
    corpus: Annotated[Sequence[str], Option("Only this corpus of the store; may be repeated.", "NAME")] = (),
    per_corpus: Annotated[
        int, Option("LAPE's balanced selection; for another one: `lape --out`, and --neurons.", "N", min=1)
    ] = 400,
    quantile: Annotated[float, Option("The threshold.", share=True, min=0)] = 0.95,
    corpora: HeldOut,
    how: How = "activation",
    draws: Draws = DRAWS,
    max_files: MaxFiles = None, document_tokens: DocumentTokens = None, leave_out_used: LeaveOutUsed = False,
    force: Force = False, name: Name = "ablate", workers: Workers = None, device: Device = "auto",
    dtype: Dtype = "auto", address: Address = None, trust_remote_code: Trust = False,
    progress: Progress | None = None, max_unit_bytes: int = LOSS_UNIT_BYTES,
) -> Result:  # fmt: skip
    """What switching off each corpus's neurons (LAPE) costs every corpus, on held-out files in DIR.

    Each corpus's neurons are compared with as many random ones of the same layers, and with as many random ones above
    LAPE's threshold: they matter where they cost its text more than both do. Documents of the store are left out of
    DIR, and counted. The same command resumes where it stopped.

    Example:
      neurotally ablate codellama/CodeLlama-7b-hf llama.store --corpora heldout/ --figure ablation.png

    >>> from neurotally.jobs import ablate
    >>> done = ablate("model/", "my.store", corpora="heldout/", per_corpus=3, quantile=0.5, draws=2)
    >>> [len(row) for row in done.document["change"]]
    [2, 2]

    LAPE's choice is made from the store's counts, of `corpus` alone if given. Only names that both the choice and the
    folder `corpora` have are taken; the others are named on stderr. Returns the `Result` of `ablate`.
    """
    from neurotally.jobs.passes.ablation import ablate_corpora
    from neurotally.jobs.passes.loss import Evaluation
    from neurotally.jobs.run import make_group, make_setup

    setup = make_setup(model, store, workers, device, dtype, address, trust_remote_code, progress)
    group = make_group("loss", name)
    if corpus and neurons is not None:
        raise InputError("--corpus says which of the store's corpora LAPE compares; with --neurons the file says it")
    evaluation = Evaluation(how, draws, max_files, document_tokens, leave_out_used, force, max_unit_bytes)
    ablate_corpora(setup, group, neurons, corpus, Rule(quantile, "balanced", per_corpus), corpora, evaluation)
    return studies.run("losses", setup.store, name=name, form="ablate")


def embed(
    model: str | None, store: Path | str, *,
    parallel: Annotated[
        Path | str | ParallelTexts,
        Option("A folder per language with a file per id, or NAME.txt or NAME.jsonl per language; a .zip of these; "
               "or a FILE.jsonl with a field per language.", "DIR"),
    ],
    limit: FirstIds = None,
    common: Annotated[bool, Option("Leave out ids that some language lacks; else they are an error.")] = False,
    field: Annotated[
        Sequence[str],
        Option("A further language, from another field of a language's records: english=C::comment.",
               "NAME=LANGUAGE::FIELD"),
    ] = (),
    bos: Annotated[
        Literal["counted", "read", "none"],
        Option("counted: as in the paper. read: the model reads it, the mean leaves it out. none: not read."),
    ] = "counted",
    name: Name = "parallel", workers: Workers = None, device: Device = "auto", dtype: Dtype = "auto",
    address: Address = None, trust_remote_code: Trust = False, progress: Progress | None = None,
    task_texts: int = TASK_TEXTS,
) -> Result:  # fmt: skip
    """Embed a parallel corpus at every layer: the position-weighted mean and the last token of each text.

    The same command resumes where it stopped. Texts longer than the model's context are left out, in all languages,
    and named.

    Example:
      neurotally embed meta-llama/Llama-3.1-8B llama.store --parallel snippets/ --limit 100

    >>> from neurotally.jobs import embed
    >>> done = embed("model/", "my.store", parallel="snippets/", limit=3)
    >>> done.document["languages"], done.document["ids"]
    (['C', 'Python'], 3)

    `parallel` may also be what `read_parallel` gives; else `limit`, `common` and `field` choose from it. Returns the
    `Result` of `embed`. Raises InputError (also where no id is left), JobError, or Interrupted.
    """
    from neurotally.jobs.passes.embed import embed_parallel
    from neurotally.jobs.run import make_group, make_setup

    setup = make_setup(model, store, workers, device, dtype, address, trust_remote_code, progress)
    group = make_group("embeddings", name)
    texts = parallel if isinstance(parallel, ParallelTexts) else read_parallel(on_disk(parallel), limit, common, field)
    embed_parallel(setup, group, texts, bos, task_texts)
    return studies.run("embed", setup.store, name=name)


def lens(
    model: str | None, store: Path | str, *,
    parallel: Annotated[Path | str | ParallelTexts, Option("A parallel corpus, as `embed` reads it.", "DIR")],
    few_shot: Annotated[Path | str, Option("LANGUAGE_fewshot.txt files, lower case.", "DIR")],
    pairs: Annotated[str, Option("Directed: source-target.", "all|A-B,...")] = "all",
    limit: FirstIds = 100,
    keywords: Annotated[
        Path | str | Mapping[str, Sequence[str]] | None,
        Option("A .json file for each language: name, keywords, builtins.", "DIR"),
    ] = None,
    english: Annotated[Path | str | Sequence[str] | None, Option("English words, one per line.", "FILE")] = None,
    draws: Annotated[int, Option("Random sets for each set of tokens.", "N", min=2, max=1000)] = SET_DRAWS,
    seed: Annotated[int, Option("Seed of the random sets.", min=0, max=None)] = 0,
    paper: Annotated[bool, Option("Repeat the reference's double BOS, clean-up of spaces and last positions.")] = False,
    name: Name = "translation", workers: Workers = None, device: Device = "auto", dtype: Dtype = "auto",
    address: Address = None, trust_remote_code: Trust = False,
    prompt: Annotated[str | None, Option("With --figure: layers by tokens of this prompt.", "N|A-B/ID")] = None,
    sets: Annotated[
        Sequence[str],
        Option("Show this set of tokens; may be repeated. Default: those of the pairs' languages.", "NAME",
               names=("--set",)),
    ] = (),
    progress: Progress | None = None, task_prompts: int = 25,
) -> Result:  # fmt: skip
    """What each layer would predict next: the logit lens over few-shot translation (arXiv 2506.01074).

    For every layer and position the top-10 tokens, the gold token, and how probable keywords and English words are.
    The same command resumes where it stopped.

    Example:
      neurotally lens meta-llama/Llama-3.1-8B llama.store --parallel snippets.zip --few-shot prompts/ \\
          --keywords keywords/ --figure lens.png

    >>> from neurotally.jobs import lens
    >>> done = lens("model/", "my.store", parallel="snippets/", few_shot="prompts/", limit=2)
    >>> sorted(done.document["pairs"])
    ['C-Python', 'Python-C']

    `keywords` may also be words by language, and `english` the words. `prompt`: one that is to be drawn; refused before
    anything is run where there will be no such prompt. Returns the `Result` of `lens`.
    """
    from neurotally.jobs.passes.lens import read_translation
    from neurotally.jobs.run import make_group, make_setup

    setup = make_setup(model, store, workers, device, dtype, address, trust_remote_code, progress)
    group = make_group("lens", name)
    of = parallel if isinstance(parallel, ParallelTexts) else read_parallel(on_disk(parallel), limit)
    words = read_keywords(on_disk(keywords)) if isinstance(keywords, Path | str) else keywords or {}
    plain = read_words(on_disk(english)) if isinstance(english, Path | str) else english
    read_translation(setup, group, of, on_disk(few_shot), pairs, words, plain, draws, seed, paper, prompt, task_prompts)
    return studies.run("lens", setup.store, name=name, sets=sets, prompt=prompt)


def agreement(
    model: str | None, store: Path | str, *,
    corpora: Corpora = None,
    corpus: Corpus = None,
    variants: Annotated[
        str | Sequence[str], Option("Of ffn-raw (the paper's), ffn-norm, residual-raw, residual-norm.", "all|V,...")
    ] = "all",
    context_sizes: Annotated[
        str | Sequence[int], Option("Truncated inputs of this many tokens; none: no such inputs.", "N,...")
    ] = "1,2,5,10,20,50,100,200,500,1000",
    lines: Annotated[
        str | Sequence[int], Option("Truncated inputs of this many lines; none: no such inputs.", "N,...")
    ] = "1,5,10,20,50",
    positions: Annotated[int, Option("Drawn in each document, for truncated inputs.", "N", min=1)] = 4,
    max_files: MaxFiles = None,
    document_tokens: DocumentTokens = None,
    head_bias: Annotated[bool, Option("Add the output embedding's bias, where there is one.")] = False,
    name: Name = "agreement", workers: Workers = None, device: Device = "auto", dtype: Dtype = "auto",
    address: Address = None, trust_remote_code: Trust = False, progress: Progress | None = None, seed: int = 0,
    max_unit_bytes: int = 2**18,
) -> Result:  # fmt: skip
    """How often each layer's own top-1 prediction is the model's (arXiv 2407.04868), by layer and by context size.

    The same command resumes where it stopped.

    Example:
      neurotally agreement NinedayWang/PolyCoder-2.7B polycoder.store --corpora sources/ --max-files 200 \\
          --figure agreement.png --context-figure contexts.png

    >>> from neurotally.jobs import agreement
    >>> done = agreement("model/", "my.store", corpora="sources/", context_sizes=[5], lines=[2])
    >>> sorted(done.document["corpora"])
    ['c++', 'python']

    Returns the `Result` of `agreement`.
    """
    sizes, numbers = _sizes("--context-sizes", context_sizes), _sizes("--lines", lines)

    from neurotally.jobs.corpora import find_corpora
    from neurotally.jobs.passes.agreement import count_agreement
    from neurotally.jobs.run import Texts, make_group, make_setup
    from neurotally.profiler.passes.agreement import parse_variants

    setup = make_setup(model, store, workers, device, dtype, address, trust_remote_code, progress)
    group = make_group("lens", name)
    chosen = parse_variants(variants) if isinstance(variants, str) else variants
    texts = Texts(find_corpora(corpora, corpus), max_files)
    count_agreement(
        setup, group, texts, chosen, sizes, numbers, max_unit_bytes, head_bias=head_bias, positions=positions,
        seed=seed, document_tokens=document_tokens,
    )  # fmt: skip
    return studies.run("agreement", setup.store, name=name)


def _sizes(option: str, given: str | Sequence[int]) -> Sequence[int]:
    """Whole numbers above 0, as they are or as a text with commas between; none of them for `none`."""
    if not isinstance(given, str):
        return given
    parts = [] if given == "none" else [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} {given!r}: expected whole numbers above 0 with commas between, or none")
    return [int(part) for part in parts]
