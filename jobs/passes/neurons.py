"""The neuron pass, `neurotally profile`: what every feed-forward neuron does on each corpus.

STORE/corpora/NAME/   arrays: `profiler.store.SCHEMA`; attrs: `CorpusPlan.identity`, `CorpusSums.attributes`, and
                      how the run went
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from neurotally.jobs.corpus_sums import CorpusSums
from neurotally.jobs.engines import ModelConfig
from neurotally.jobs.plan import CorpusPlan, find_corpora
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers import Fold, Plan
from neurotally.jobs.run import CHECKPOINT_EVERY_S, Pass, RunReport, Texts, Where, run_pass
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts
from neurotally.profiler.worker import TOKEN_BUDGET, PassConfig, Worker

MAX_UNIT_BYTES = 2 * 2**20
_SHOWN_SKIPS = 5


def profile(
    model: str, store: Path | str, *, corpora: Path | str | None = None,
    corpus: Mapping[str, str | Path] | None = None, max_files: int | None = None, row_tokens: int | None = None,
    document_tokens: int | None = None, layout: str = "documents", triggers: int = 32, groups: int = 10,
    keep_texts: bool = False, window_lines: int | None = None, random_init: int | None = None,
    workers: int | None = None, device: str = "auto", dtype: str = "auto", address: str | None = None,
    trust_remote_code: bool = False, progress: Progress | None = None, max_unit_bytes: int = MAX_UNIT_BYTES,
    token_budget: int | None = None, checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> dict[str, Any]:  # fmt: skip
    """Run a model over corpora and keep in `store` what every neuron does; as `neurotally profile`, with its options.

    `corpora`: a folder of one subfolder per corpus; `corpus`: name and SOURCE of further ones. What is there already is
    left alone. Returns what was done: `corpora` (attributes of those added by this run), `tokens`, seconds, `warnings`.
    Raises InputError (nothing lost), JobError, or Interrupted.

    >>> from neurotally.jobs import profile
    >>> done = profile("model/", "my.store", corpora="sources/", triggers=8)
    >>> sorted(done["corpora"])
    ['c++', 'python']
    """
    if window_lines is not None and layout != "documents":
        raise InputError("--window-lines needs --layout documents: each window is a row of its own")
    texts = Texts(find_corpora(corpora, corpus), max_files, window_lines)
    where = Where(
        ModelConfig(model, device, dtype, trust_remote_code), Path(store), workers, address, progress or Progress(),
        random_init,
    )  # fmt: skip

    def make_config(facts: ModelFacts) -> PassConfig:
        row = row_tokens or facts.row_tokens
        if row > facts.max_row_tokens:
            raise InputError(f"--row-tokens {row}: {facts.id} takes rows of at most {facts.max_row_tokens} tokens")
        return PassConfig(
            layout=layout,
            row_tokens=row,
            document_tokens=document_tokens,
            token_budget=max(token_budget or TOKEN_BUDGET[facts.device_type], row),
            max_unit_bytes=max_unit_bytes,
            groups=groups,
            triggers=triggers,
            window_lines=window_lines,
            keep_texts=keep_texts,
            kernels=facts.kernels,
        )

    def make_pass(facts: ModelFacts, listed: list[CorpusPlan]) -> Pass:
        config = make_config(facts)
        return Pass(partial(Worker, config=config), [_plan(one, config, facts) for one in listed])

    def identity(facts: ModelFacts) -> dict[str, Any]:
        of_model = {"dtype": facts.dtype, "device_type": facts.device_type, "attention": facts.attention}
        return {**of_model, **make_config(facts).to_json()}

    return _document(run_pass(where, make_pass, texts, identity, checkpoint_every_s))


def _plan(listed: CorpusPlan, config: PassConfig, facts: ModelFacts) -> Plan:
    units = listed.units(config.max_unit_bytes, config.groups)
    make_sums = partial(CorpusSums, listed, units, config, facts.num_layers, facts.num_neurons)
    return Plan(
        group=f"corpora/{listed.name}",
        tasks=[listed.task(unit) for unit in units],
        identity=listed.identity,
        reducer=partial(Fold, make_sums=make_sums),
        manifest=listed.manifest,
        noted={"documents": len(listed.manifest.names), "source_path": listed.lasting_path},
        otherwise="give it another name or another store",
    )


def _document(report: RunReport) -> dict[str, Any]:
    figures = asdict(report)
    corpora = {group.removeprefix("corpora/"): attributes for group, attributes in figures.pop("groups").items()}
    wall_s = report.wall_s
    return {
        "corpora": corpora,
        **figures,
        "tokens_per_s": report.tokens / wall_s if wall_s else None,
        "model_share": report.model_s / (wall_s * report.workers) if wall_s else 0.0,
    }


def profile_text(document: Mapping[str, Any], path: Path) -> str:
    """The same for people: what is in the store now, and where the time went."""
    if not document["corpora"]:
        return f"{path} is complete: it has all corpora asked for. Next: neurotally lape {path}"
    lines = []
    for name, corpus in document["corpora"].items():
        skipped = ", ".join(f"{count} {reason}" for reason, count in corpus["skipped"].items()) or "none"
        lines.append(
            f"{name}: {corpus['counted']:,} documents, {corpus['tokens']:,} tokens in {corpus['units']} units; "
            f"skipped: {skipped}; exact duplicates: {corpus['duplicates']}"
        )
        lines += [f"  skipped {one}" for one in corpus["skipped_documents"][:_SHOWN_SKIPS]]
        if (more := sum(corpus["skipped"].values()) - _SHOWN_SKIPS) > 0:
            lines.append(f"  and {more:,} more: document_status in {path}/corpora/{name} tells which")
        if corpus["empty_groups"]:
            lines.append(f"  {corpus['empty_groups']} of the groups are empty: too few units for error bars")
    tokens, wall_s = document["tokens"], document["wall_s"]
    lines.append(
        f"{tokens:,} tokens in {wall_s:,.1f} s: {tokens / wall_s:,.0f} tokens/s; the model computed "
        f"{document['model_share']:.1%} of the workers' time, writing took {document['write_s']:.1f} s"
    )
    return "\n".join([*lines, f"Next: neurotally lape {path}"])
