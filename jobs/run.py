"""The one way a pass runs: plan, engine, reducer, commit.

One driver makes the plan, hands out tasks, takes in results and alone writes. Everything that was committed, saved or
kept survives any end of the process; the same command goes on from there, and where nothing is left to do it says so
before the model is loaded.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from neurotally.jobs.corpora import ListedCorpus, list_corpus
from neurotally.jobs.engines.engine import Engine, MakeRunner
from neurotally.jobs.engines.in_process import InProcessEngine
from neurotally.jobs.engines.ray_session import end_leftovers
from neurotally.jobs.interrupts import stop_if_a_signal_came
from neurotally.jobs.known_model import known_facts, remember_facts
from neurotally.jobs.loop import Loop, RunReport
from neurotally.jobs.model_config import ModelConfig
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers.reducer import Plan, refuse_other
from neurotally.jobs.store_identity import open_store
from neurotally.jobs.store_writer import writer_lock
from neurotally.jobs.untrained import untrained_model
from neurotally.profiler import store
from neurotally.profiler.buckets import location
from neurotally.profiler.corpus.sources import check_names
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts


@dataclass(frozen=True)
class Setup:
    """Which model a pass runs, where, and the store that it fills."""

    model: ModelConfig
    store: Path
    workers: int | None = None
    """None: see `num_workers`; on a cluster, one per GPU of it."""
    address: str | None = None
    """Of a Ray cluster."""
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class Pass:
    """What will be done, known when the facts of the model are."""

    make_runner: MakeRunner
    plans: Sequence[Plan]
    """One for each group of the store."""


MakePass = Callable[[ModelFacts, list[ListedCorpus]], Pass]
"""From the model's facts and the listed corpora; may raise InputError, before or after the model is loaded."""
Config = Callable[[ModelFacts], dict[str, Any]]
"""What decides the bits of the whole store: see `open_store`."""


@dataclass(frozen=True)
class Texts:
    """The corpora that a pass reads."""

    sources: Mapping[str, str]
    """SOURCE by name, as `find_corpora` gives them."""
    max_files: int | None = None
    """Of each, the first so many."""
    window_lines: int | None = None
    """Documents are windows of so many lines of a file."""


def run_pass(
    setup: Setup,
    make_pass: MakePass,
    texts: Texts | None = None,
    config: Config | None = None,
    checkpoint_every_s: float = 60.0,
    plan_memory: Callable[[int], None] | None = None,
) -> RunReport:
    """Bring the store to hold all groups of a pass; what is there already is left alone.

    `plan_memory` is called before the model is loaded, with the number of corpora that aren't there. Raises InputError
    (the user's input or disk, nothing lost), JobError, or Interrupted.
    """
    with writer_lock(setup.store) as still_writes:
        session_file = store.work_folder(setup.store) / "ray"
        end_leftovers(session_file)  # of a run that was killed
        report = RunReport()
        corpora = [] if texts is None else _list(texts, setup)
        known = known_facts(setup.store, setup.model)

        def plan_pass(facts: ModelFacts) -> Pass:
            """Make the store, or check that it is one of this model, and plan the pass."""
            report.warnings = open_store(setup.store, facts, None if config is None else config(facts))
            for warning in report.warnings:
                setup.progress.note(f"warning: {warning}")
            if facts is not known:
                remember_facts(setup.store, facts, setup.model)
            return make_pass(facts, corpora)

        if known is not None:
            planned = plan_pass(known)
            if not _todo(setup.store, planned):
                return report
        model = setup.model
        if model.random_init is not None:
            model = untrained_model(model, store.work_folder(setup.store))
        if plan_memory is not None:
            there = store.committed_corpora(setup.store) if store.is_begun(setup.store) else []
            plan_memory(sum(corpus.name not in there for corpus in corpora))
        engine = _make_engine(setup, model, session_file)
        try:
            setup.progress.note(f"loading {setup.model.spec} …")
            facts = _named(setup.model, engine.start())
            stop_if_a_signal_came()
            if facts != known:
                planned = plan_pass(facts)
            if todo := _todo(setup.store, planned):
                engine.configure(planned.make_runner)
                report.workers = engine.num_workers
                reducers = [plan.reducer(setup.store, plan) for plan in todo]
                Loop(
                    setup.store, engine, facts.device, reducers, report, checkpoint_every_s, setup.progress,
                    still_writes,
                ).run()  # fmt: skip
        finally:
            engine.close()
        if setup.model.random_init is not None:
            shutil.rmtree(model.spec)
        return report


def make_setup(
    model: str | None, path: Path | str, workers: int | None, device: str, dtype: str, address: str | None,
    trust_remote_code: bool, progress: Progress | None, random_init: int | None = None, fused: bool = False,
) -> Setup:  # fmt: skip
    """Where a pass runs, from its function's arguments; the model is the store's where none is named."""
    if model is None and trust_remote_code:
        raise InputError("--trust-remote-code needs MODEL: no code is run only because a store names it")
    path = location(path)
    spec = _model_of(path) if model is None else model
    config = ModelConfig(spec, device, dtype, trust_remote_code, fused=fused, random_init=random_init)
    cluster = address or os.environ.get("RAY_ADDRESS", "")
    is_local = cluster in ("", "local")  # in Ray's words
    return Setup(config, path, workers, None if is_local else cluster, progress or Progress())


def _model_of(path: Path) -> str:
    """MODEL[@REVISION] as a store names it."""
    if not store.is_begun(path):
        raise InputError(f"{path} is no store that could name its model: expected MODEL before it")
    model = store.store_attributes(path).get("model") or {}
    name, revision = model.get("id"), model.get("revision")
    if not isinstance(name, str) or not isinstance(revision, str | None) or model.get("random_init") is not None:
        raise InputError(f"{path} names no model that can be loaded: expected MODEL before it")
    return f"{name}@{revision}" if revision else name


def make_group(family: str, name: str) -> str:
    """The group that a pass makes, FAMILY/NAME; InputError where `name` can't be a folder's."""
    check_names([name], "--name")
    return f"{family}/{name}"


def _list(texts: Texts, setup: Setup) -> list[ListedCorpus]:
    number = len(texts.sources)
    return [
        list_corpus(name, source, texts.max_files, setup.store, texts.window_lines)
        for name, source in setup.progress.over(texts.sources.items(), "listing", "corpus", number)
    ]


def model_identity(facts: ModelFacts) -> dict[str, Any]:
    """What of the way a model runs decides the bits of every pass."""
    return {"dtype": facts.dtype, "device_type": facts.device_type}


def _named(model: ModelConfig, facts: ModelFacts) -> ModelFacts:
    """The facts under a name that says where the weights are fresh."""
    if model.random_init is None:
        return facts
    name = f"{model.spec} with random weights, seed {model.random_init}"
    return replace(facts, id=name, random_init=model.random_init)


def _todo(path: Path, planned: Pass) -> list[Plan]:
    """The plans whose groups aren't committed yet; InputError where one is committed that is another."""
    committed = store.committed_groups(path)
    for plan in planned.plans:
        if plan.group in committed:
            attributes = store.group_attributes(path, plan.group)
            refuse_other(path, plan, attributes.get("identity", attributes))
    return [plan for plan in planned.plans if plan.group not in committed]


def num_workers(setup: Setup) -> int:
    """So many as are asked for, else one per GPU here, or per group of them that holds the model, else one."""
    if setup.workers is None and setup.address is None and setup.model.device != "cpu":
        return max(1, torch.cuda.device_count() // setup.model.devices)
    return setup.workers or 1


def _make_engine(setup: Setup, model: ModelConfig, session_file: Path) -> Engine:
    """In this process for one worker, on Ray for more or for a cluster."""
    if setup.address is None and num_workers(setup) == 1:
        return InProcessEngine(model)
    from neurotally.jobs.engines.ray_engine import RayEngine

    workers = setup.workers if setup.address is not None else num_workers(setup)
    return RayEngine(model, workers, session_file, setup.address)
