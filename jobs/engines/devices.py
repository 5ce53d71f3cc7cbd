"""How many devices hold a model together: what was asked for, what the store was begun with, or as few as it needs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from neurotally.jobs.free_memory import free_bytes_by_gpu
from neurotally.jobs.run import Setup
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.config import empty_model, weight_bytes
from neurotally.profiler.model.load import (
    fits,
    load_config,
    resolve_device,
    running_dtype,
    split_revision,
)  # fmt: skip
from neurotally.profiler.model.shard_plan import refuse_unshardable, shard_plan


def on_devices(setup: Setup, asked: int | None) -> Setup:
    """The same with its number of devices for each worker; says so where it wasn't asked for and is more than one."""
    noted = _devices_of_store(setup.store)
    devices = asked or noted or 1
    num_gpus = torch.cuda.device_count() if setup.address is None and setup.model.device != "cpu" else 0
    if devices > num_gpus and setup.address is None and resolve_device(setup.model.device) == "cuda":
        raise InputError(f"--devices-per-worker {devices}: expected at most {num_gpus}, the number of GPUs here")
    if asked is None and devices == 1 and num_gpus > 1:
        return _as_few_as_hold(setup, is_one_device=noted == 1)
    return replace(setup, model=replace(setup.model, devices=devices))


def _as_few_as_hold(setup: Setup, is_one_device: bool) -> Setup:
    """`is_one_device`: the store was begun so, and must go on so."""
    model = setup.model
    model_id, revision = split_revision(model.spec)
    common = {"revision": revision, "trust_remote_code": model.trust_remote_code}
    config = load_config(model_id, common)
    dtype = running_dtype(config, model.dtype, "cuda")
    num_bytes = weight_bytes(empty_model(config, model.trust_remote_code, dtype))
    plan = shard_plan(config, model.trust_remote_code, dtype)

    def bytes_each(devices: int) -> float:
        try:
            refuse_unshardable(plan, config, model_id, devices)
        except InputError:
            return math.inf
        return num_bytes * plan.held(devices)

    devices = fewest_devices(num_bytes, bytes_each, free_bytes_by_gpu())
    if devices == 1:
        return setup
    too_large = f"{model.spec} takes {num_bytes / 1e9:,.0f} GB, more than one device has room for"
    if devices is None or is_one_device:
        why = "the store was begun on one" if is_one_device else "they can't hold it together"
        setup.progress.note(f"{too_large}, and {why}; one worker spreads its layers over all devices")
        return replace(setup, workers=setup.workers or 1)
    setup.progress.note(f"{too_large}: --devices-per-worker {devices}")
    return replace(setup, model=replace(model, devices=devices))


def fewest_devices(num_bytes: int, bytes_each: Callable[[int], float], free_bytes: Sequence[int]) -> int | None:
    """The smallest number of devices that hold a model, of so many bytes, and of `bytes_each` where several share it.

    None: no number of them does.
    """
    for devices in range(1, len(free_bytes) + 1):
        if fits(num_bytes if devices == 1 else bytes_each(devices), min(free_bytes)):
            return devices
    return None


def _devices_of_store(path: Path) -> int | None:
    """What the store's neuron pass was begun with; None: it wasn't begun."""
    config = store.store_attributes(path).get("config") if store.is_begun(path) else None
    return config.get("devices_per_worker") or 1 if config else None
