"""The Triton kernels: their cases in Triton's interpreter or on a GPU, what they compile to, and that nothing waits."""

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from interpreting import ON_GPU, run_cases, run_python
from torch import Tensor, nn

from neurotally.kernels import tally as kernels
from neurotally.kernels.layer_tally import LayerTally
from neurotally.kernels.tally import has_triton
from neurotally.kernels.triggers import LayerTriggers

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton isn't installed")


@pytest.mark.slow
def test_equals_the_reference() -> None:
    run_cases("tests/triton_cases.py")


COMPILES = r"""
import re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from neurotally.kernels import triton_tally, triton_triggers

def ptx(kernel, pointers, constants, num_warps=4):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]] for name in names
        if name not in constants and not re.match("num_(rows|tokens|chunks|partials|blocks)", name)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = compile(source, GPUTarget("cuda", 90, 32), {"num_warps": num_warps, "enable_fp_fusion": False})
    assert compiled.asm["cubin"]
    text = compiled.asm["ptx"]
    assert not re.search(r"\b(atom|red)\.", text), "atomics"
    return text

def like(names, type_):
    return dict.fromkeys(names.split(), type_)

partials = like("partial_count partial_position", "*i32") | {"partial_sum": "*fp64"}
partials |= like("partial_extreme partial_value", "*fp32")
not_routed = dict.fromkeys(("place", "weight", "run_first", "run_tokens"))
cases = [("silu", True), ("gelu", False), ("gelu_tanh", True), ("relu", True), ("relu2", False), ("given", True)]
for dtype, (act, gated) in [("bf16", case) for case in cases] + [("fp16", cases[0]), ("fp32", cases[0])]:
    pointers = partials | {"kind": "*u8"} | like("pre up activation out", "*" + dtype)
    tiles = {"CHUNK": 1024, "TILE_T": 4, "BLOCK_F": 256}
    constants = {"ACTIVATION": act, "GATED": gated, "STATISTICS": 3, "PRECISE": dtype == "fp32", **tiles}
    text = ptx(triton_tally._tally_chunk, pointers, constants | {"ROUTED": False} | not_routed)
    assert re.search(r"cp\.async\S* \[.*\], \[.*\], 0x10,", text), "reads 16 bytes at a time, ahead of their use"
    assert re.search(r"st\.global\S*v4", text), "writes 16 bytes at a time"
    pointers |= {"place": "*i64", "weight": "*fp32"} | like("run_first run_tokens", "*i32")
    text = ptx(triton_tally._tally_chunk, pointers, constants | {"ROUTED": True})
    assert re.search(r"st\.global\S*v4", text), "writes 16 bytes at a time"
pointers = partials | like("active active_special", "*i64") | like("coefficient_max coefficient_min", "*fp32")
sums = "activation_sum coefficient_sum coefficient_sum_absolute coefficient_sum_squares weighted_coefficient_sum"
pointers |= like(sums, "*fp64") | {"expert_first": "*i32"}
constants = {"GATED": True, "STATISTICS": 3, "BLOCK_C": 16, "BLOCK_F": 64}
ptx(triton_tally._add_partials, pointers, constants | {"ROUTED": True})
ptx(triton_tally._add_partials, pointers,
    constants | {"ROUTED": False, "expert_first": None, "weighted_coefficient_sum": None})
ptx(triton_tally._merge_row_maxima, partials | {"value": "*fp32", "position": "*i32"}, {"BLOCK_F": 256})
lists = like("row_value threshold value", "*fp32") | like("row_position document position", "*i32")
lists |= like("list_document list_position", "*i32")
ptx(triton_triggers._offer, lists, {"NUM_TRIGGERS": 32, "TILE_B": 16, "BLOCK_F": 16, "BLOCK_K": 32}, num_warps=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for NVIDIA GPUs is on Linux")
@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    run_python("-c", COMPILES, TRITON_CACHE_DIR=str(tmp_path))


def device_batches(num_batches: int) -> list[tuple[Tensor, ...]]:
    """(gate, up, kind, document, position) of 3 rows by 600 tokens, on the GPU."""
    rng = torch.Generator().manual_seed(0)
    batches = []
    for batch in range(num_batches):
        gate_BTF, up_BTF = (torch.randn((3, 600, 300), generator=rng).bfloat16() for _ in range(2))
        kind_BT = torch.randint(0, 3, (3, 600), generator=rng).to(torch.uint8)
        document_BT = torch.arange(3 * batch, 3 * batch + 3, dtype=torch.int32)[:, None].repeat(1, 600)
        position_BT = torch.arange(600, dtype=torch.int32).repeat(3, 1)
        batches.append(tuple(x.cuda() for x in (gate_BTF, up_BTF, kind_BT, document_BT, position_BT)))
    return batches


@needs_gpu
def test_tally_and_triggers_never_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_triton(torch.device("cuda", 0)):
        pytest.skip("a GPU that Triton doesn't compile for")
    from neurotally.kernels import triton_triggers

    monkeypatch.setattr(kernels, "tally_reference", None)  # the wrappers must not need it
    batches = device_batches(4)
    lists = LayerTriggers(300, 8, "cuda", None)
    assert lists._offer is triton_triggers.offer
    into, acts = LayerTally.empty(300, "cuda"), (nn.SiLU(), nn.GELU(), nn.Mish())
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for act in acts:
            for gate_BTF, up_BTF, kind_BT, document_BT, position_BT in batches:
                kernels.tally_layer(act, gate_BTF, None, kind_BT, into)
                _, maxima = kernels.tally_layer(act, gate_BTF, up_BTF, kind_BT, into)
                lists.add(maxima, document_BT, position_BT)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert into["active"].sum() == 2 * len(acts) * sum(
        int(((batch[0] > 0) & (batch[2] != 0)[:, :, None]).sum()) for batch in batches
    )


def num_synchronisations(run: Callable[[], object]) -> int:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@needs_gpu
def test_reading_neurons_synchronises_no_more_than_the_bare_model(model_folder: Path) -> None:
    from neurotally.profiler.model.hook_points import HookPoint, reading
    from neurotally.profiler.model.load import load_model

    model = load_model(str(model_folder), device="cuda")
    rng = torch.Generator().manual_seed(0)
    num_neurons = model.facts.num_neurons
    tallies = [LayerTally.empty(num_neurons, "cuda") for _ in model.hook_points]
    lists = [LayerTriggers(num_neurons, 4, "cuda", None) for _ in model.hook_points]
    batches = [torch.randint(2, 600, (4, 100), generator=rng).cuda() for _ in range(3)]
    kind_BT = torch.ones((4, 100), dtype=torch.uint8, device="cuda")
    table_BT = torch.arange(400, dtype=torch.int32, device="cuda").view(4, 100)

    def read(point: HookPoint, gate_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        h_BTF, maxima = kernels.tally_layer(point.activation, gate_BTF, up_BTF, kind_BT, tallies[point.layer])
        lists[point.layer].add(maxima, table_BT, table_BT)
        return h_BTF

    def run_all() -> None:
        for ids_BT in batches:
            model.run_body(ids_BT)

    run_all()
    bare = num_synchronisations(run_all)
    with reading(model.hook_points, read):
        run_all()
        assert num_synchronisations(run_all) == bare


@needs_gpu
def test_tensors_of_more_than_2_to_the_31_elements() -> None:
    num_bytes = 2 * (2**31 + 2**20) * 2 + 2**30
    if torch.cuda.mem_get_info()[0] < num_bytes:
        pytest.skip(f"needs {num_bytes / 2**30:.0f} GiB free on the GPU")
    num_tokens, num_neurons = 2**15 + 32, 2**15
    pre_BTF = torch.zeros((2, num_tokens, num_neurons), dtype=torch.bfloat16, device="cuda")
    pre_BTF[1, -1] = 1
    kind_BT = torch.ones((2, num_tokens), dtype=torch.uint8, device="cuda")
    into = LayerTally.empty(num_neurons, "cuda")
    h_BTF, maxima = kernels.tally_layer(nn.ReLU(), pre_BTF, None, kind_BT, into)
    assert (into["active"] == 1).all()
    assert (maxima.value_BF[1] == 1).all()
    assert (maxima.position_BF[1] == num_tokens - 1).all()
    assert (h_BTF[1, -1] == 1).all()
    assert not h_BTF[1, -2].any()
