"""The process of one device among those that hold a model together: this file, run as a module.

Its leader (`device_group.py`) talks to it through a pipe, whose descriptor is its argument, and gets an answer to each
message: `RankStart` first, then `RankRows`. The answer to what fails is the exception. It ends with its leader, also in
the middle of a product that other ranks don't answer any more.
"""

import os
import signal
import sys
import threading
from datetime import timedelta
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import torch
from torch import distributed

from neurotally.jobs.engines.device_group import RankError, RankRows, RankStart
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model.checkpoint_rows import refuse_other_rows
from neurotally.profiler.model.load import LoadedModel, resolve_device
from neurotally.profiler.model.shards import ModelShard, model_shard
from neurotally.profiler.passes.worker import neurons_of

_PATIENCE = timedelta(minutes=30)
"""Ranks wait so long for one another: the first batch comes when the slowest has loaded its shard."""


def main(descriptor: int) -> None:
    """Answer until the leader is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are the leader's, which ends this process
        signal.signal(number, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(descriptor)
    messages: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    try:
        model, shard = _join(messages.get())
        answer: Any = shard
        while True:
            connection.send(answer)
            asked: RankRows = messages.get()
            answer = neurons_of(model, *asked)
    except Exception as error:
        connection.send(_portable(error))
        threading.Event().wait()  # the others wait in the middle of a product: the leader ends us all


def _listen(connection: "Connection[Any, Any]", messages: "SimpleQueue[Any]") -> None:
    """Take in messages; end this process where there will be none, since the leader is gone."""
    try:
        while True:
            messages.put(connection.recv())
    finally:
        os._exit(1)


def _join(start: RankStart) -> tuple[LoadedModel, ModelShard]:
    """Meet the other ranks, and load this one's shard with them."""
    torch.set_num_threads(start.num_threads)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = resolve_device(start.model.device) == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{start.meeting}", rank=rank, world_size=ranks,
        timeout=_PATIENCE, device_id=torch.device("cuda", rank) if on_gpu else None,
    )  # fmt: skip
    model = start.model.load_here(sharded=True)
    refuse_other_rows(model)
    return model, model_shard(model)


def _portable(error: Exception) -> Exception:
    """The same as an exception that the leader can unpickle."""
    if isinstance(error, InputError):
        return InputError(f"--devices-per-worker {os.environ['WORLD_SIZE']}: {error}")
    return RankError(f"{type(error).__name__}: {first_line(error)}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
