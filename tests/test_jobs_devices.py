"""A model that several devices hold together, shown with processes on the CPU: what it counts, and what it survives."""

import math
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from conftest import Run
from dying import FACTS
from families import tiny_model
from mixtures import MIXTURES, mixture_config, tiny_mixture
from ranks import CONFIG, counted_by_ranks, some_rows
from reference import everything, unit_arrays
from test_jobs_profile import refusal, run
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from neurotally.jobs.engines.device_group import DeviceGroup, GroupWorker, RankError
from neurotally.jobs.engines.devices import fewest_devices, on_devices
from neurotally.jobs.model_config import ModelConfig
from neurotally.jobs.progress import Progress
from neurotally.jobs.run import Setup
from neurotally.kernels.statistics import STATISTICS
from neurotally.kernels.trigger_lists import UnitTriggers
from neurotally.profiler import store
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.checkpoint_rows import refuse_other_rows
from neurotally.profiler.model.config import empty_model, weight_bytes
from neurotally.profiler.model.load import load_model
from neurotally.profiler.model.shard_plan import ShardPlan, refuse_unshardable, shard_plan
from neurotally.profiler.model.shards import ModelShard, joined
from neurotally.profiler.neuron_sums import UnitNeurons
from neurotally.profiler.passes.worker import PreparedUnit, Task, neurons_of


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def group_of(folder: Path, devices: int = 2) -> DeviceGroup:
    group = ModelConfig(str(folder), device="cpu", devices=devices).load()
    assert isinstance(group, DeviceGroup)
    return group


@pytest.fixture(scope="module")
def group(exact_folder: Path) -> Iterator[DeviceGroup]:
    made = group_of(exact_folder)
    yield made
    made.close()


def ranks(group: DeviceGroup) -> list[psutil.Process]:
    return [psutil.Process(rank.process.pid) for rank in group._ranks]


@pytest.fixture(scope="module")
def exact_folder(model_folder: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose projections have one entry a row: none of its sums has two terms, wherever they are computed."""
    model, generator = AutoModelForCausalLM.from_pretrained(model_folder), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.model.modules():
            if isinstance(part, nn.Linear):
                columns = torch.randint(part.in_features, (part.out_features, 1), generator=generator)
                entries = torch.randn(part.out_features, 1, generator=generator)
                part.weight.copy_(torch.zeros_like(part.weight).scatter(1, columns, entries))
    return save(model, tokenizer, tmp_path_factory.mktemp("models") / "exact")


@pytest.fixture(scope="module")
def of_two(exact_folder: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the small corpora, made by two devices."""
    path: Path = tmp_path_factory.mktemp("stores") / "two"
    run(exact_folder, path, corpora, devices_per_worker=2)
    return path


@pytest.mark.slow
def test_the_store_of_two_devices_is_that_of_one_to_the_bit_where_sums_are_exact(
    exact_folder: Path, corpora: Path, of_two: Path, tmp_path: Path
) -> None:
    run(exact_folder, tmp_path / "s", corpora, devices_per_worker=1)
    assert everything(tmp_path / "s") == everything(of_two)
    one, two = store.store_attributes(tmp_path / "s"), store.store_attributes(of_two)
    assert one["model"] == two["model"]
    assert (one["config"].pop("devices_per_worker"), two["config"].pop("devices_per_worker")) == (None, 2)
    assert one["config"] == two["config"]


@pytest.mark.slow
def test_the_number_of_devices_is_part_of_a_store_and_its_default(
    exact_folder: Path, of_two: Path, make_corpora: Any, tmp_path: Path, run: Run
) -> None:
    path = shutil.copytree(of_two, tmp_path / "s")
    arguments = ["profile", exact_folder, path, "--corpora", make_corpora({"go": 5}), "--row-tokens", 64,
                 "--groups", 3, "--triggers", 4, "--device", "cpu"]  # fmt: skip
    code, _, errors = run(*arguments, "--devices-per-worker", 1)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "devices_per_worker is None, the store has 2" in errors
    code, _, errors = run(*arguments)
    assert code == 0, errors
    assert store.committed_corpora(path) == ["c++", "go", "python"]
    code, out, _ = run("activity", path, "--json")
    assert code == 0, out


SHARED = ("llama", "phi3", "gpt_oss", "qwen3_moe", "deepseek_v3", "qwen2_moe")


@pytest.fixture(scope="module")
def shared(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family."""
    folder = tmp_path_factory.mktemp("families")
    return {
        name: save((tiny_mixture if name in MIXTURES else tiny_model)(name), tokenizer, folder / name)
        for name in SHARED
    }


@pytest.fixture(scope="module")
def by_ranks(shared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return counted_by_ranks(tmp_path_factory.mktemp("ranks"), list(shared.values()))


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.slow
def test_families_count_on_two_devices_what_they_count_on_one(
    name: str, shared: dict[str, Path], by_ranks: dict[str, Any]
) -> None:
    """phi3 and gpt_oss give every rank all neurons; of the mixtures each rank has a slice of every expert."""
    model = load_model(str(shared[name]), device="cpu")
    assert all(shard.facts == model.facts for shard, _ in by_ranks[name])
    whole, ours = neurons_of(model, CONFIG, some_rows(), 512, None), joined(by_ranks[name])
    for place in ("active", "active_special"):
        flips = np.abs(whole.sums[place].astype(int) - ours.sums[place].astype(int)).sum()
        assert flips <= 1e-5 * whole.sums["active"].sum()
    scale = whole.sums["coefficient_sum_absolute"].max()
    for sum_name in ("coefficient_sum", "coefficient_sum_absolute", "activation_sum"):
        np.testing.assert_allclose(ours.sums[sum_name], whole.sums[sum_name], rtol=1e-5, atol=1e-6 * scale)
    assert whole.routed.keys() == ours.routed.keys()
    for counted in whole.routed.keys() - {"site_weight"}:
        np.testing.assert_array_equal(ours.routed[counted], whole.routed[counted])
    np.testing.assert_array_equal(ours.triggers.count_F, whole.triggers.count_F)
    assert (ours.triggers.document_N == whole.triggers.document_N).mean() > 0.999
    np.testing.assert_allclose(ours.triggers.value_N, whole.triggers.value_N, rtol=1e-3)


@pytest.mark.slow
def test_triggers_below_a_known_threshold_are_left_out_on_every_device(exact_folder: Path, group: DeviceGroup) -> None:
    threshold_LF = np.random.default_rng(0).random((2, 48), np.float32)
    ours = group.neurons(CONFIG, some_rows(), 512, threshold_LF)
    whole = neurons_of(load_model(str(exact_folder), device="cpu"), CONFIG, some_rows(), 512, threshold_LF)
    for name, array in unit_arrays(whole).items():
        np.testing.assert_array_equal(unit_arrays(ours)[name], array, err_msg=name)


@pytest.mark.slow
def test_a_device_that_dies_ends_its_group_and_the_next_one_counts_the_same(group: DeviceGroup) -> None:
    expected = unit_arrays(group.neurons(CONFIG, some_rows(), 512, None))
    first = ranks(group)
    first[1].suspend()  # so that the other waits for it in the first layer
    threading.Timer(1.0, first[1].kill).start()
    with pytest.raises(RankError, match=r"this one died: 1 \(exit -9\)"):
        group.neurons(CONFIG, some_rows(), 512, None)
    assert not any(rank.is_running() for rank in first)
    again = unit_arrays(group.neurons(CONFIG, some_rows(), 512, None))
    for name, array in expected.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


SMALL_DEVICE = """
import os
if os.environ.get("RANK") == "1":
    import torch
    from neurotally.profiler.model.hook_points import StandIn
    forward = StandIn.forward

    def small_device(stand_in, pre_BTF):
        if stand_in.hook_point.layer == 1 and pre_BTF.shape[0] * pre_BTF.shape[1] > 300:
            raise torch.OutOfMemoryError("out of memory")
        return forward(stand_in, pre_BTF)

    StandIn.forward = small_device
"""


@pytest.mark.slow
def test_a_device_that_runs_out_of_memory_halves_the_budget_of_all(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SMALL_DEVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    rows, nothing = some_rows(), np.zeros(0, np.uint8)
    group = group_of(model_folder)
    try:
        worker = GroupWorker(group, replace(CONFIG, kernels=group.facts.kernels))
        task = Task("c", 0, None, 0, [], [], 0)  # type: ignore[arg-type]
        result = worker.compute(task, PreparedUnit(rows, nothing, nothing, nothing))
        expected = group.neurons(CONFIG, rows, 256, None)
    finally:
        group.close()
    assert result.restarts == 1
    for name, array in unit_arrays(expected).items():
        np.testing.assert_array_equal(unit_arrays(result.neurons)[name], array, err_msg=name)


@pytest.mark.slow
def test_a_device_that_dies_while_it_loads_ends_the_run_in_one_line(
    model_folder: Path, make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (tmp_path / "sitecustomize.py").write_text('import os\nif os.environ.get("RANK") == "1":\n    os._exit(3)\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    corpora = make_corpora({"python": 3})
    code, out, errors = run("profile", model_folder, tmp_path / "s", "--corpora", corpora, "--devices-per-worker", 2)
    assert (code, out) == (1, "")
    assert "the 2 processes that hold the model, this one died: 1 (exit 3)" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_the_fewest_devices_that_hold_the_weights() -> None:
    def fewest(gigabytes: int, shared: float, by: set[int], free: list[int]) -> int | None:
        plan = ShardPlan({}, shared)
        each = {number: gigabytes * 10**9 * plan.held(number) if number in by else math.inf for number in range(1, 9)}
        return fewest_devices(gigabytes * 10**9, each.__getitem__, [number * 10**9 for number in free])

    any_number = set(range(1, 9))
    assert fewest(60, 1.0, any_number, [80] * 8) == 1
    assert fewest(64, 1.0, any_number, [80] * 8) == 2  # a fifth is kept for what is computed
    assert fewest(141, 1.0, any_number, [80] * 8) == 3
    assert fewest(141, 1.0, {2, 4, 8}, [80] * 8) == 4
    assert fewest(141, 0.7, any_number, [80] * 8) == 5  # 42.3 GB on each, and a part of 98.7
    assert fewest(141, 0.5, any_number, [80] * 8) is None  # 70.5 GB on each
    assert fewest(141, 1.0, any_number, [80] * 7 + [20]) is None
    assert fewest(141, 1.0, set(), [80] * 8) is None


def test_what_devices_share_of_a_model() -> None:
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=2, vocab_size=100, hidden_size=32, intermediate_size=96, num_attention_heads=4
    )
    shared, alone = 2 * 100 * 32 + 2 * (4 * 32 * 32 + 3 * 96 * 32), 5 * 32  # alone: the norms
    assert shard_plan(config, False).shared == shared / (shared + alone)
    assert shard_plan(AutoConfig.for_model("gpt2", n_layer=1), False).shared == 0


@pytest.mark.parametrize(
    ("name", "devices", "changes", "why"),
    [
        ("gpt2", 2, {}, r"m \(gpt2\) has no plan in transformers for several devices"),
        ("llama", 3, {"num_attention_heads": 32}, "32 attention heads; expected a number that divides them"),
        ("llama", 4, {"num_key_value_heads": 2}, "2 key and value heads; expected"),
        ("llama", 4, {"intermediate_size": 50}, r"50 neurons a network \(intermediate_size\)"),
        ("qwen3_moe", 4, {"moe_intermediate_size": 30}, r"30 neurons a network \(moe_intermediate_size\)"),
    ],
    ids=["no plan", "heads", "key heads", "neurons", "neurons of experts"],
)
def test_what_devices_cannot_share_is_refused_by_name(
    name: str, devices: int, changes: dict[str, int], why: str
) -> None:
    config = AutoConfig.for_model(
        name, **{"num_hidden_layers": 1, "vocab_size": 100, "intermediate_size": 96, **changes}
    )
    with pytest.raises(InputError, match=f"--devices-per-worker {devices}: .*{why}") as caught:
        refuse_unshardable(shard_plan(config, False), config, "m", devices)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dbrx", "inkling_text", "jetmoe", "llama4", "llama4_text", "longcat_flash"])
def test_experts_that_devices_cannot_share_are_refused_before_any_starts(name: str) -> None:
    config = mixture_config(name)
    plan = shard_plan(config, False)
    why = "has experts of a kind" if plan.styles else "has no plan in transformers for several devices"
    with pytest.raises(UnsupportedModelError, match=rf"^--devices-per-worker 2: m \({config.model_type}\) {why}"):
        refuse_unshardable(plan, config, "m", 2)
    assert plan.own_experts


def test_a_model_that_devices_cannot_share_is_refused_before_any_starts(
    model_folder: Path, make_corpora: Any, tmp_path: Path
) -> None:
    message = refusal(model_folder, tmp_path / "s", make_corpora({"python": 3}), devices_per_worker=3)
    assert "has 4 attention heads; expected a number that divides them" in message


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_keys_that_are_not_the_checkpoints_are_refused(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = load_model(str(save(tiny_model(name), tokenizer, tmp_path / "model")), device="cpu")
    assert refuse_other_rows(model) == 2
    matrix, first = cast(tuple[nn.Linear, int], model.hook_points[1].keys)
    with torch.no_grad():
        matrix.weight[first : first + 2] = matrix.weight[first : first + 2].flip(0)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .*: its keys aren't the checkpoint's rows"):
        refuse_other_rows(model)


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("fourths", "devices", "workers", "says"),
    [
        ([8] * 4, 1, None, []),
        ([4] * 4, 2, None, ["more than one device has room for: --devices-per-worker 2"]),
        ([2] * 4, 4, None, ["--devices-per-worker 4"]),
        ([2] * 3, 1, 1, ["they can't hold it together; one worker spreads its layers over all devices"]),
    ],
    ids=["one holds it", "two", "four, not three", "three can't share it"],
)
def test_without_the_option_as_few_devices_as_hold_the_weights(
    fourths: list[int], devices: int, workers: int | None, says: list[str], tokenizer: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Told of GPUs that aren't there, with room for so many fourths of the weights each."""
    settings = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = AutoConfig.for_model("llama", **settings, num_attention_heads=4)
    folder = save(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "model")
    num_bytes = weight_bytes(empty_model(config, False, torch.float32))
    free = [int(number / 4 * num_bytes / 0.8) for number in fourths]
    monkeypatch.setattr("neurotally.jobs.free_memory._FREE_BYTES", f"print(*{free})")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    notes = Notes()
    setup = on_devices(Setup(ModelConfig(str(folder)), tmp_path / "s", progress=notes), None)
    assert (setup.model.devices, setup.workers) == (devices, workers)
    assert len(notes.said) == len(says)
    assert all(text in said for text, said in zip(says, notes.said, strict=True))


def a_unit(generator: np.random.Generator, layers: int, neurons: int) -> UnitNeurons:
    sums = {one.name: (99 * generator.random((layers, neurons))).astype(one.shipped) for one in STATISTICS}
    count_F = generator.integers(0, 4, layers * neurons).astype(np.uint32)
    columns = [generator.integers(0, 999, count_F.sum()).astype(dtype) for dtype in ("f4", "u4", "u4")]
    return UnitNeurons(sums, UnitTriggers(count_F, *columns), {"site_tokens": np.arange(3)})


def part_of(unit: UnitNeurons, number_F: np.ndarray, layers: int) -> UnitNeurons:
    """What a device has that has these neurons, from the definition: neuron by neuron."""
    sums = {name: sum_LF.ravel()[number_F].reshape(layers, -1) for name, sum_LF in unit.sums.items()}
    ends = np.cumsum(unit.triggers.count_F)
    runs = [slice(ends[number] - unit.triggers.count_F[number], ends[number]) for number in number_F]
    columns = [np.concatenate([column[run] for run in runs]) for column in unit.triggers[1:]]
    return UnitNeurons(sums, UnitTriggers(unit.triggers.count_F[number_F], *columns), unit.routed)


def test_slices_are_put_together_neuron_by_neuron() -> None:
    generator, layers = np.random.default_rng(0), 2
    facts = replace(FACTS, num_layers=layers, num_neurons=6)
    unit = a_unit(generator, layers, 6)
    numbers = [np.array([0, 1, 6, 7]), np.array([2, 3, 8, 9]), np.array([4, 5, 10, 11])]
    shards = [ModelShard(facts, number_F) for number_F in numbers]
    parts = [part_of(unit, number_F, layers) for number_F in numbers]
    whole = joined(list(zip(shards, parts, strict=True)))
    for name, array in unit_arrays(unit).items():
        np.testing.assert_array_equal(unit_arrays(whole)[name], array, err_msg=name)
    values_LF = generator.random((layers, 6))
    np.testing.assert_array_equal(shards[1].slice_of(values_LF), values_LF[:, 2:4])

    all_of_it = [ModelShard(facts, np.arange(12)), ModelShard(facts, np.full(12, -1))]  # the second counts nothing
    again = joined([(shard, part_of(unit, np.arange(12), layers)) for shard in all_of_it])
    for name, array in unit_arrays(unit).items():
        np.testing.assert_array_equal(unit_arrays(again)[name], array, err_msg=name)

    elsewhere = replace(parts[1], routed={"site_tokens": np.arange(3) + 1})
    with pytest.raises(RuntimeError, match="sent tokens to different experts"):
        joined([(shards[0], parts[0]), (shards[1], elsewhere)])


def test_more_devices_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    setup = Setup(ModelConfig("m"), tmp_path / "s")
    with pytest.raises(InputError, match=r"^--devices-per-worker 4: expected at most 2, the number of GPUs here$"):
        on_devices(setup, 4)
    assert on_devices(setup, 2).model.devices == 2


@pytest.mark.parametrize(("devices", "cores"), [(1, 16 / 3), (4, 16), (8, 32)])
def test_an_actor_of_several_devices_gets_its_share_of_a_machines_cores(devices: int, cores: float) -> None:
    from neurotally.jobs.engines.ray_engine import _cores_each

    machines = [{"CPU": 32.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}]
    assert _cores_each(machines, 3, "cuda", devices) == cores
