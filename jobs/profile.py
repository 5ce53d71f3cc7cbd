"""`neurotally profile`: run the neuron pass over corpora and leave a store behind.

One driver lists, hands out units, adds results in order and alone writes. Everything that was committed or
checkpointed survives any end of the process; the same command goes on from there.
"""

import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from neurotally.jobs.engines import Engine, make_engine
from neurotally.jobs.interrupts import StopRequest
from neurotally.jobs.ledger import Ledger, refuse_changed_corpus
from neurotally.jobs.plan import CorpusPlan, find_corpora, list_corpus
from neurotally.jobs.progress import Progress
from neurotally.jobs.store_writer import open_store, versions, writer_lock
from neurotally.jobs.untrained import untrained_model
from neurotally.jobs.worker import TOKEN_BUDGET, ModelConfig, PassConfig, UnitResult
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts, load_model

DEFAULT_GROUPS = 10
DEFAULT_TRIGGERS = 32
MAX_UNIT_BYTES = 2 * 2**20
CHECKPOINT_EVERY_S = 60.0
_SHOWN_SKIPS = 5


@dataclass(frozen=True)
class ProfileRequest:
    """What `neurotally profile` was asked for."""

    model: ModelConfig
    store: Path
    corpora: Path | None = None
    """A folder of one subfolder a corpus."""
    corpus: tuple[str, ...] = ()
    """NAME=SOURCE."""
    workers: int | None = None
    """None: one a GPU, else 1."""
    max_files: int | None = None
    row_tokens: int | None = None
    """None: min(2048, the context the model was made for)."""
    document_tokens: int | None = None
    layout: str = "documents"
    triggers: int = DEFAULT_TRIGGERS
    groups: int = DEFAULT_GROUPS
    address: str | None = None
    window_lines: int | None = None
    """Documents are windows of so many lines of a file."""
    keep_texts: bool = False
    """Keep the texts in the store, so that it stands alone."""
    random_init: int | None = None
    """Seed of fresh weights in place of the model's: null keys for tests."""


@dataclass
class RunReport:
    """What a run did, and where its time went."""

    corpora: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Attributes of the corpora committed by this run."""
    warnings: list[str] = field(default_factory=list)
    tokens: int = 0
    wall_s: float = 0.0
    """From the first unit handed out to the last corpus committed."""
    model_s: float = 0.0
    """Seconds in which a worker ran the model and its kernels, summed over workers."""
    prepare_s: float = 0.0
    """Seconds of reading and tokenising, beside the model."""
    write_s: float = 0.0
    """Seconds in which the driver wrote checkpoints and commits."""
    workers: int = 1

    @property
    def model_share(self) -> float:
        """Share of the workers' wall time in which the model was computing."""
        return self.model_s / (self.wall_s * self.workers) if self.wall_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        rate = self.tokens / self.wall_s if self.wall_s else None
        return {**asdict(self), "tokens_per_s": rate, "model_share": self.model_share}

    def text(self, path: Path) -> str:
        """For people: what is in the store now, and where the time went."""
        if not self.corpora:
            return f"{path} is complete: it has all corpora asked for. Next: neurotally lape {path}"
        lines = []
        for name, corpus in self.corpora.items():
            skipped = ", ".join(f"{count} {reason}" for reason, count in corpus["skipped"].items()) or "none"
            lines.append(
                f"{name}: {corpus['counted']:,} documents, {corpus['tokens']:,} tokens in {corpus['units']} units; "
                f"skipped: {skipped}; exact duplicates: {corpus['duplicates']}"
            )
            lines += [f"  skipped {document}" for document in corpus["skipped_documents"][:_SHOWN_SKIPS]]
            if (more := sum(corpus["skipped"].values()) - _SHOWN_SKIPS) > 0:
                lines.append(f"  and {more:,} more: document_status in {path}/corpora/{name} tells which")
            if corpus["empty_groups"]:
                lines.append(f"  {corpus['empty_groups']} of the groups are empty: too few units for error bars")
        lines.append(
            f"{self.tokens:,} tokens in {self.wall_s:,.1f} s: {self.tokens / self.wall_s:,.0f} tokens/s; the model "
            f"computed {self.model_share:.1%} of the workers' time, writing took {self.write_s:.1f} s"
        )
        return "\n".join([*lines, f"Next: neurotally lape {path}"])


def profile(request: ProfileRequest, progress: Progress) -> RunReport:
    """Bring `request.store` to hold all corpora asked for; what is there already is left alone.

    Raises InputError (the user's input, nothing lost), JobError, or Interrupted.
    """
    if request.window_lines is not None and request.layout != "documents":
        raise InputError("--window-lines needs --layout documents: each window is a row of its own")
    sources = find_corpora(request.corpora, request.corpus)
    with writer_lock(request.store):
        plans = []
        with progress.listing(len(sources)) as on_corpus:
            for name, source in sources.items():
                listed = list_corpus(name, source, request.max_files, request.store, window_lines=request.window_lines)
                plans.append(listed)
                on_corpus(name)
        if request.random_init is None:
            return _run(request, plans, progress)
        fresh = untrained_model(request.model, request.random_init, request.store / store.RUN_FOLDER)
        report = _run(replace(request, model=fresh), plans, progress, request.model.spec)
        shutil.rmtree(fresh.spec)
        return report


def _run(
    request: ProfileRequest, plans: list[CorpusPlan], progress: Progress, untrained: str | None = None
) -> RunReport:
    """`untrained`: the model that fresh weights were made for."""
    report = RunReport()
    is_new = not (request.store / "zarr.json").exists()
    committed = set() if is_new else set(store.committed_corpora(request.store))
    for plan in plans:
        if plan.name in committed:
            refuse_changed_corpus(request.store, plan)
    todo = [plan for plan in plans if plan.name not in committed]
    if not todo:
        model = request.model
        facts = load_model(model.spec, model.device, model.dtype, model.trust_remote_code).facts
        _open_store(request, _named(facts, untrained, request), report, progress)
        return report
    engine = make_engine(request.model, request.workers, request.store / store.RUN_FOLDER / "ray", request.address)
    try:
        with progress.loading(request.model.spec):
            facts = engine.start()
        config = _open_store(request, _named(facts, untrained, request), report, progress)
        engine.configure(config)
        report.workers = engine.num_workers
        ledgers = [Ledger(request.store, plan, config, facts.num_layers, facts.num_neurons) for plan in todo]
        _Drive(request.store, engine, facts.device, ledgers, progress, report).run()
    finally:
        engine.close()
    return report


class _Drive:
    """Hands out units, adds results in order, checkpoints and commits."""

    def __init__(
        self, path: Path, engine: Engine, device: str, ledgers: list[Ledger], progress: Progress, report: RunReport
    ):
        self._path = path
        self._engine = engine
        self._device = device
        self._ledgers = {ledger.plan.name: ledger for ledger in ledgers}
        self._progress = progress
        self._report = report
        self._tasks = [(ledger, unit) for ledger in ledgers for unit in ledger.units[ledger.units_done :]]
        self._handed_out = 0
        self._merged = 0
        self._early: dict[tuple[str, int], UnitResult] = {}
        self._saved_at = time.monotonic()
        self._started_at = time.time()
        self._stop = StopRequest(progress.note)
        self._is_whole = True
        """False while a unit is being added: an exception there leaves sums that must not be saved."""

    def run(self) -> None:
        """Run to the end. Raises Interrupted after saving, if a signal asked for it."""
        start = time.perf_counter()
        with self._progress.running(self._ledgers, self._path), self._stop.listening():
            self._publish_complete()
            try:
                while self._merged < len(self._tasks):
                    self._hand_out()
                    result = self._engine.next_result(timeout_s=0.5)
                    if result is not None:
                        self._early[result.corpus, result.index] = result
                        self._merge_in_order()
                    self._checkpoint_when_due()
                    self._stop.check()
            finally:
                self._save()
                self._report.wall_s = time.perf_counter() - start

    def _hand_out(self) -> None:
        """At most 2 x workers results may wait for an earlier one: no unit further ahead than that is begun."""
        ahead = 2 * self._engine.num_workers + 1
        while self._handed_out < min(len(self._tasks), self._merged + ahead) and self._engine.has_room():
            ledger, unit = self._tasks[self._handed_out]
            self._engine.submit(ledger.plan.task(unit), ledger.trigger_bar)
            self._handed_out += 1

    def _merge_in_order(self) -> None:
        while self._merged < len(self._tasks):
            ledger, unit = self._tasks[self._merged]
            result = self._early.pop((ledger.plan.name, unit.index), None)
            if result is None:
                return
            self._is_whole = False
            ledger.add(result)
            self._is_whole = True
            self._merged += 1
            self._report.tokens += result.tokens
            self._report.model_s += result.model_s
            self._report.prepare_s += result.prepare_s
            self._progress.unit_done(ledger, unit, result.tokens)
            if ledger.is_complete:
                self._publish(ledger)

    def _publish_complete(self) -> None:
        """Commit what a former run finished but didn't commit."""
        for ledger in list(self._ledgers.values()):
            if ledger.is_complete:
                self._publish(ledger)

    def _publish(self, ledger: Ledger) -> None:
        start = time.perf_counter()
        facts = {
            "versions": versions(),
            "device": self._device,
            "started": self._started_at,
            "finished": time.time(),
            "workers": self._engine.num_workers,
        }
        self._report.corpora[ledger.plan.name] = ledger.publish(facts)
        del self._ledgers[ledger.plan.name]
        self._report.write_s += time.perf_counter() - start

    def _checkpoint_when_due(self) -> None:
        if time.monotonic() - self._saved_at >= CHECKPOINT_EVERY_S:
            self._save()

    def _save(self) -> None:
        """Checkpoint the corpus in progress, the only one that has units beyond its last checkpoint.

        It may be complete: where committing it failed.
        """
        start = time.perf_counter()
        for ledger in self._ledgers.values() if self._is_whole else ():
            if ledger.units_done:
                ledger.checkpoint()
        self._saved_at = time.monotonic()
        self._report.write_s += time.perf_counter() - start


def _open_store(request: ProfileRequest, facts: ModelFacts, report: RunReport, progress: Progress) -> PassConfig:
    """Make the store, or check that it is one of this model and config. Returns the pass's config."""
    row_tokens = request.row_tokens or facts.row_tokens
    if row_tokens > facts.max_row_tokens:
        raise InputError(f"--row-tokens {row_tokens}: {facts.id} takes rows of at most {facts.max_row_tokens} tokens")
    config = PassConfig(
        layout=request.layout,
        row_tokens=row_tokens,
        document_tokens=request.document_tokens,
        token_budget=max(TOKEN_BUDGET[facts.device_type], row_tokens),
        max_unit_bytes=MAX_UNIT_BYTES,
        groups=request.groups,
        triggers=request.triggers,
        window_lines=request.window_lines,
        keep_texts=request.keep_texts,
        kernels=facts.kernels,
    )
    identity = {"dtype": facts.dtype, "device_type": facts.device_type, "attention": facts.attention}
    report.warnings += open_store(request.store, facts, {**identity, **config.to_json()})
    for warning in report.warnings:
        progress.note(f"warning: {warning}")
    return config


def _named(facts: ModelFacts, untrained: str | None, request: ProfileRequest) -> ModelFacts:
    """The facts under a name that says that the weights are fresh."""
    if untrained is None:
        return facts
    return replace(
        facts, id=f"{untrained} with random weights, seed {request.random_init}", random_init=request.random_init
    )
