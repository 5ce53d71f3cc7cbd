"""A model that several devices hold together: this process leads a group of others, one for each device.

The leader loads no weights. It reads and tokenises; each rank (`rank.py`) loads its shard, runs the same batches in the
same order, and tallies its slice of every network's neurons; the leader puts the slices together (`shards.joined`).

Ranks wait for one another within every layer. So where one of them fails, dies or runs out of memory, the others may
wait for ever, and nothing of that process group is used again: all ranks are killed, and started anew when the next
rows come. Whoever asked begins the unit again, as after any failure; after a lack of memory with half the token budget,
on which all ranks so agree. Ranks end with their leader, however it ends. They talk on the loopback interface only.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import psutil
import torch

from neurotally.kernels.compiled import library
from neurotally.profiler.corpus.batches import TokenRows
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import LoadedModel, load_config_and_tokenizer, split_revision
from neurotally.profiler.model.shard_plan import refuse_unshardable, shard_plan
from neurotally.profiler.model.shards import ModelShard, joined
from neurotally.profiler.neuron_sums import UnitNeurons
from neurotally.profiler.passes.worker import PassConfig, Worker

if TYPE_CHECKING:
    from neurotally.jobs.model_config import ModelConfig

_KNOWN_WITHIN_S = 1.0
_LOOPBACK = "127.0.0.1"


class RankStart(NamedTuple):
    """The first message to a rank."""

    model: "ModelConfig"
    meeting: Path
    """A file by which the ranks find one another."""
    num_threads: int


class RankRows(NamedTuple):
    """What a rank is asked to tally: the arguments of `passes.worker.neurons_of`."""

    config: PassConfig
    rows: TokenRows
    token_budget: int
    threshold_LF: np.ndarray | None
    """Of this rank's neurons."""


class RankError(RuntimeError):
    """A rank failed or died, and its group with it."""


@dataclass(frozen=True)
class _Rank:
    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"


class DeviceGroup:
    """A model on `model.devices` devices, loaded and verified; a `LoadedModel` to those who prepare units."""

    def __init__(self, model: "ModelConfig"):
        self._model = model
        self._ranks: list[_Rank] = []
        model_id, revision = split_revision(model.spec)
        common = {"revision": revision, "trust_remote_code": model.trust_remote_code}
        config, self.tokenizer = load_config_and_tokenizer(model_id, common)
        refuse_unshardable(shard_plan(config, model.trust_remote_code), config, model_id, model.devices)
        self.special_ids = frozenset(self.tokenizer.all_special_ids)
        library()  # built once here, before all ranks would build it
        self._shards = self._start()
        self.facts = self._shards[0].facts
        self.input_device = torch.device(self.facts.device_type)

    def neurons(
        self, config: PassConfig, rows: TokenRows, token_budget: int, threshold_LF: np.ndarray | None
    ) -> UnitNeurons:
        """What all neurons do in these rows. RankError or InputError where a rank failed."""
        if not self._ranks and self._start()[0].facts != self.facts:
            raise InputError(f"{self.facts.id}: its ranks loaded another model than before")
        thresholds = [None if threshold_LF is None else shard.slice_of(threshold_LF) for shard in self._shards]
        asked = [RankRows(config, rows, token_budget, threshold) for threshold in thresholds]
        parts: list[UnitNeurons] = self._ask(asked)
        return joined(list(zip(self._shards, parts, strict=True)))

    def close(self) -> None:
        """End all ranks."""
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.process.kill()
        for rank in ranks:
            rank.process.wait()
            rank.connection.close()

    def _start(self) -> list[ModelShard]:
        with tempfile.TemporaryDirectory(prefix="neurotally-ranks-") as folder:
            num_threads = max(1, torch.get_num_threads() // self._model.devices)
            start = RankStart(self._model, Path(folder, "meeting"), num_threads)
            try:
                for number in range(self._model.devices):
                    self._ranks.append(_start_rank(number, self._model))
            except BaseException:
                self.close()
                raise
            return self._ask([start] * self._model.devices)

    def _ask(self, questions: Sequence[Any]) -> list[Any]:
        """Each rank's answer to its question; where one fails, nothing of the group is left."""
        try:
            for rank, question in zip(self._ranks, questions, strict=True):
                rank.connection.send(question)
            answers: dict[int, Any] = {}
            while len(answers) < len(self._ranks):
                waiting = {rank.connection: number for number, rank in enumerate(self._ranks) if number not in answers}
                for connection in wait(list(waiting)):
                    number = waiting[cast("Connection[Any, Any]", connection)]
                    answers[number] = self._answer(number)
            return [answers[number] for number in range(len(self._ranks))]
        except OSError as error:
            raise self._death() from error
        except BaseException:
            self.close()
            raise

    def _answer(self, number: int) -> Any:
        try:
            answer = self._ranks[number].connection.recv()
        except EOFError as error:
            raise OSError from error
        if isinstance(answer, InputError):
            raise answer
        if isinstance(answer, Exception):
            if self._dead():  # then that is why
                raise OSError from answer
            raise answer
        return answer

    def _dead(self) -> list[int]:
        """Ranks that are gone; a death is known a little later than its consequences."""
        deadline = time.monotonic() + _KNOWN_WITHIN_S
        while time.monotonic() < deadline:
            if dead := [number for number, rank in enumerate(self._ranks) if rank.process.poll() is not None]:
                return dead
            time.sleep(0.02)
        return []

    def _death(self) -> RankError:
        """What to say of a rank that is gone, once all others are, too."""
        dead = self._dead()
        codes = ", ".join(f"{number} (exit {self._ranks[number].process.returncode})" for number in dead) or "unknown"
        self.close()
        return RankError(f"of the {self._model.devices} processes that hold the model, this one died: {codes}")


class GroupWorker(Worker):
    """The neuron pass on a group of devices."""

    def __init__(self, group: DeviceGroup, config: PassConfig):
        self._group = group
        super().__init__(cast(LoadedModel, group), config)

    def _neurons(self, rows: TokenRows, budget: int, threshold_LF: np.ndarray | None) -> UnitNeurons:
        return self._group.neurons(self.config, rows, budget, threshold_LF)


def _start_rank(number: int, model: "ModelConfig") -> _Rank:
    """A new process for a rank, which ends with this one, and is none of its terminal's."""
    ours, theirs = Pipe()
    interfaces = psutil.net_if_addrs().items()
    loopback = next(name for name, bound in interfaces if any(entry.address == _LOOPBACK for entry in bound))
    own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(model.devices)}
    own |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if model.device == "cpu":
        own["CUDA_VISIBLE_DEVICES"] = ""
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "neurotally.jobs.engines.rank", str(theirs.fileno())],
            env={**os.environ, **own}, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return _Rank(process, ours)
