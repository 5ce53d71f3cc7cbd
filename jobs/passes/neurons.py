"""The neuron pass, `neurotally profile`: what every feed-forward neuron does on each corpus.

STORE/corpora/NAME/   arrays: `profiler.store.SCHEMA`; attrs: `ListedCorpus.identity`, `CorpusSums.attributes`, and
                      how the run went
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from neurotally.jobs.corpora import ListedCorpus
from neurotally.jobs.engines.device_group import DeviceGroup, GroupWorker
from neurotally.jobs.free_memory import free_gpu_bytes, free_host_bytes
from neurotally.jobs.loop import RunReport
from neurotally.jobs.memory_plan import Run, memory_note, refuse_too_large
from neurotally.jobs.reducers.corpus_sums import CorpusSums
from neurotally.jobs.reducers.fold import Fold
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.run import Pass, Setup, Texts, model_identity, num_workers, run_pass
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import LoadedModel, ModelFacts
from neurotally.profiler.model.outline import Outline
from neurotally.profiler.passes.worker import TOKEN_BUDGET, PassConfig, Worker

_SHOWN_SKIPS = 5


def profile_neurons(
    setup: Setup, texts: Texts, row_tokens: int | None, token_budget: int | None, checkpoint_every_s: float,
    decoder_reads: str | None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Bring the store to hold the corpora; what was done. `settings`: the other fields of `PassConfig`."""

    def row_and_budget(model: ModelFacts | Outline) -> tuple[int, int]:
        row = row_tokens or model.row_tokens
        return row, max(token_budget or TOKEN_BUDGET[model.device_type], row)

    def make_config(facts: ModelFacts) -> PassConfig:
        row, budget = row_and_budget(facts)
        if row > facts.max_row_tokens:
            raise InputError(f"--row-tokens {row}: {facts.id} takes rows of at most {facts.max_row_tokens} tokens")
        forcing = facts.teacher_forcing(decoder_reads)
        if decoder_reads is not None and forcing is None:
            raise InputError(f"--decoder-reads {decoder_reads}: {facts.id} is no encoder-decoder")
        reads = None if forcing is None else forcing.reads
        return PassConfig(
            row_tokens=row, token_budget=budget, decoder_reads=reads, kernels=facts.kernels, **settings
        )  # fmt: skip

    def plan_memory(todo: int) -> None:
        try:
            outline = setup.model.outline()
        except InputError:  # loading looks at the whole model, and says what is wrong with it
            return
        run = Run(
            outline, settings["groups"], settings["triggers"], *row_and_budget(outline), corpora=todo,
            workers=num_workers(setup), is_cluster=setup.address is not None,
        )  # fmt: skip
        free_bytes = free_host_bytes()
        refuse_too_large(run, free_bytes, free_gpu_bytes())
        setup.progress.note(memory_note(run, free_bytes))

    def make_pass(facts: ModelFacts, listed: list[ListedCorpus]) -> Pass:
        config = make_config(facts)
        return Pass(partial(_worker, config=config), [_plan(corpus, config, facts) for corpus in listed])

    def identity(facts: ModelFacts) -> dict[str, Any]:
        devices = setup.model.devices if setup.model.devices > 1 else None
        further = {"devices_per_worker": devices, "fused": facts.fused}
        return {**model_identity(facts), "attention": facts.attention, **make_config(facts).to_json(), **further}

    return _document(run_pass(setup, make_pass, texts, identity, checkpoint_every_s, plan_memory))


def _worker(model: LoadedModel | DeviceGroup, config: PassConfig) -> Worker:
    return GroupWorker(model, config) if isinstance(model, DeviceGroup) else Worker(model, config)


def _plan(corpus: ListedCorpus, config: PassConfig, facts: ModelFacts) -> Plan:
    units = corpus.units(config.max_unit_bytes, config.groups)
    of_model = (facts.num_layers, facts.num_neurons, facts.networks)
    make_sums = partial(CorpusSums, corpus, units, config, *of_model)
    return Plan(
        group=f"corpora/{corpus.name}",
        tasks=[corpus.task(unit) for unit in units],
        identity=corpus.identity,
        reducer=partial(Fold, make_sums=make_sums),
        manifest=corpus.manifest,
        noted={"documents": len(corpus.manifest.names), "source_path": corpus.lasting_path},
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
        lines += [f"  skipped {name}" for name in corpus["skipped_documents"][:_SHOWN_SKIPS]]
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
