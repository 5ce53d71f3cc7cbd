"""Quantised checkpoints are read as the same model with its weights dequantised, by formulas of their own, is read.

Each is written as its users' are, or by its format's definition, and loaded through transformers' own quantiser.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from families import PlainHooks, tiny_model
from mixtures import MIXTURES, MixtureHooks, tiny_mixture
from numpy.testing import assert_array_equal
from reading_checks import ROUNDING
from safetensors.torch import load_file, save_file
from test_jobs_cli import refused
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from neurotally.kernels.layer_tally import TOKEN
from neurotally.profiler import store
from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.experts import interface_experts
from neurotally.profiler.model.load import LoadedModel, load_model, prepare_model
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.model.outline import outline_model
from neurotally.profiler.passes.lens import Lens

BLOCK = 32
IDS_BT = torch.randint(2, 600, (4, 64), generator=torch.Generator().manual_seed(3))
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""E2M1, by its four bits."""


def projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of a Llama's layers."""
    return {name: weight for name, weight in state.items() if weight.dim() == 2 and ".layers." in name}


NO_TORCHAO = (
    "pip install torchao; it isn't among what the tests install, since it writes to stderr when transformers starts"
)

NO_BITSANDBYTES = "pip install bitsandbytes; it isn't among what the tests install, since it takes 130 MB"
NO_GPTQMODEL = "pip install optimum gptqmodel; they aren't among what the tests install, since they bring CUDA"


def quantise_torchao(folder: Path) -> dict[str, Tensor]:
    """int8, a scale a row; the weights that it stands for."""
    torchao = pytest.importorskip("torchao.quantization", reason=NO_TORCHAO)
    from transformers import TorchAoConfig

    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype="float32", device_map="cpu")
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    named = {name.replace("_weight_", "weight_"): values for name, values in stored.items()}
    return {
        name: named[f"{name}_qdata"].float() * named[f"{name}_scale"].float()
        for name in projections(tiny_model("llama").state_dict())
    }


def packed_in_eights(number: Tensor) -> Tensor:
    """int32 [rows, columns / 8] of four bits each, the first the lowest."""
    packed = (number.unflatten(1, (-1, 8)) << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed < 2**31, packed, packed - 2**32).to(torch.int32)


def quantise_packed(folder: Path) -> dict[str, Tensor]:
    """int4 in groups of 32 columns, eight in an int32: the packed format of compressed-tensors."""
    pytest.importorskip("compressed_tensors")
    state = load_file(folder / "model.safetensors")
    expected = {}
    for name, weight in projections(state).items():
        rows, columns = weight.shape
        groups = weight.reshape(rows, -1, BLOCK)
        scale = groups.abs().amax(-1) / 7
        number = (groups / scale[..., None]).round().clamp(-8, 7) + 0.0  # integers have no -0
        expected[name] = (number * scale[..., None]).reshape(rows, columns)
        del state[name]
        state[f"{name}_packed"] = packed_in_eights((number.reshape(rows, columns) + 8).long())
        state[f"{name}_scale"] = scale
        state[f"{name}_shape"] = torch.tensor([rows, columns])
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": BLOCK}
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    rewrite(folder, state, settings)
    return expected


def quantise_fp8(folder: Path) -> dict[str, Tensor]:
    """E4M3 in blocks of 32 x 32, as DeepSeek-V3 in blocks of 128 x 128."""
    state = load_file(folder / "model.safetensors")
    expected = {}
    for name, weight in projections(state).items():
        rows, columns = weight.shape
        blocks = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3)) / 448
        state[name] = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale
        spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        expected[name] = state[name].float() * spread
    rewrite(folder, state, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]})
    return expected


def rewrite(folder: Path, state: dict[str, Tensor], settings: dict[str, Any]) -> None:
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


Quantise = Callable[[Path], dict[str, Tensor]]
METHODS: dict[str, Quantise] = {
    "torchao": quantise_torchao, "compressed-tensors": quantise_packed, "fp8": quantise_fp8,
}  # fmt: skip


def save_quantised(method: str, folder: Path, tokenizer: Any) -> Any:
    """A quantised Llama at `folder`; the plain model of the weights that it stands for."""
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    expected = METHODS[method](folder)
    bare = tiny_model("llama")
    assert bare.load_state_dict(expected, strict=False).unexpected_keys == []
    return bare


def sums_of(model: LoadedModel) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What is added up over `IDS_BT`, and what came by at sites."""
    recorder = NeuronRecorder(model, num_triggers=2)
    none_BT = np.zeros(IDS_BT.shape, np.int32)
    NeuronReader(model, recorder).tally(
        [Batch(IDS_BT.numpy(), np.full(IDS_BT.shape, TOKEN, np.uint8), none_BT, none_BT)]
    )
    result = recorder.result()
    return result.sums, result.routed


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_those_of_the_dequantised_model(method: str, tokenizer: Any, tmp_path: Path) -> None:
    bare = save_quantised(method, tmp_path, tokenizer)
    sums, _ = sums_of(load_model(str(tmp_path), "cpu"))
    for layer, seen in PlainHooks(bare, "llama").run(IDS_BT).items():
        pre_NF, coefficient_NF = seen.pre_BTF.flatten(0, 1), seen.coefficient_BTF.flatten(0, 1).double()
        assert pre_NF.abs().min() > 1e-6  # so that rounding changes no sign
        assert_array_equal(sums["active"][layer], (pre_NF > 0).sum(0))
        scale_F = coefficient_NF.abs().sum(0).numpy()
        assert (np.abs(sums["coefficient_sum"][layer] - coefficient_NF.sum(0).numpy()) <= 1e-5 * scale_F).all()
        largest_F = coefficient_NF.amax(0).numpy()
        assert (np.abs(sums["coefficient_max"][layer] - largest_F) <= 1e-5 * np.abs(largest_F).max()).all()
    plain, _ = sums_of(prepare_model(tiny_model("llama"), tokenizer, "plain", None, "float32"))
    assert (sums["active"] != plain["active"]).any()  # of what was quantised away something shows


@pytest.mark.parametrize("method", METHODS)
def test_quantisation_is_part_of_what_a_model_is(method: str, tokenizer: Any, tmp_path: Path) -> None:
    bare = save_quantised(method, tmp_path / "quantised", tokenizer)
    bare.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    quantised, again, in_16 = (
        load_model(str(tmp_path / "quantised"), "cpu", dtype).facts for dtype in ("float32", "float32", "bfloat16")
    )
    plain = load_model(str(tmp_path / "plain"), "cpu").facts
    assert quantised == again
    assert in_16.fingerprint == quantised.fingerprint
    written = json.loads((tmp_path / "quantised" / "config.json").read_text())["quantization_config"]
    assert quantised.config["quantization_config"] == written
    assert plain.config["quantization_config"] is None
    assert plain.warnings == ()
    is_kept = method == "torchao"
    assert (quantised.fingerprint != plain.fingerprint) is is_kept  # else the weights themselves are the same
    assert quantised.config != plain.config
    dequantised = f"the weights, quantised by {method}, were dequantised to float32 to be read"
    assert quantised.warnings == (() if is_kept else (dequantised,))


def quantise_bitsandbytes(folder: Path, **settings: Any) -> None:
    pytest.importorskip("bitsandbytes", reason=NO_BITSANDBYTES)
    config = BitsAndBytesConfig(**settings)
    AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype="float32", device_map="cpu"
    ).save_pretrained(folder)


def quantise_by_column(method: str, folder: Path) -> None:
    """GPTQ's and AWQ's formats: int4 in groups of 32 rows of [in, out]; eight in an int32, along `in` or `out`."""
    pytest.importorskip("gptqmodel", reason=NO_GPTQMODEL)
    state = load_file(folder / "model.safetensors")
    for name, weight in projections(state).items():
        del state[name]
        part, (columns, rows) = name.removesuffix(".weight"), weight.shape
        groups = weight.T.reshape(-1, BLOCK, columns)
        scale = groups.abs().amax(1) / 7
        number = ((groups / scale[:, None]).round().clamp(-8, 7) + 8).long().reshape(rows, columns)
        zero = torch.full(scale.shape, 8)
        if method == "gptq":
            state[f"{part}.qweight"] = packed_in_eights(number.T).T.contiguous()
            state[f"{part}.qzeros"] = packed_in_eights(zero - 1)
            state[f"{part}.g_idx"] = (torch.arange(rows) // BLOCK).int()
        else:
            order = [0, 2, 4, 6, 1, 3, 5, 7]
            for key, values in (("qweight", number), ("qzeros", zero)):
                state[f"{part}.{key}"] = packed_in_eights(values.unflatten(1, (-1, 8))[..., order].flatten(1))
        state[f"{part}.scales"] = scale.half()
    of_method = {"checkpoint_format": "gptq"} if method == "gptq" else {"version": "gemm"}
    rewrite(folder, state, {"quant_method": method, "bits": 4, "group_size": BLOCK, **of_method})


COMPUTED_QUANTISED: dict[str, Callable[[Path], None]] = {
    "bitsandbytes, 8 bits": partial(quantise_bitsandbytes, load_in_8bit=True, llm_int8_threshold=0.0),
    "bitsandbytes, nf4": partial(quantise_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "gptq": partial(quantise_by_column, "gptq"),
    "awq": partial(quantise_by_column, "awq"),
}
"""Whose products are of quantised numbers, so that no dequantised model gives the same."""


@pytest.mark.parametrize("method", COMPUTED_QUANTISED)
def test_counts_are_those_of_plain_hooks_on_the_quantised_model(method: str, tokenizer: Any, tmp_path: Path) -> None:
    config = tiny_model("llama").config
    config.intermediate_size = 128  # bitsandbytes' blocks have 64
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = load_model(str(tmp_path), "cpu")
    COMPUTED_QUANTISED[method](tmp_path)
    model = load_model(str(tmp_path), "cpu")
    sums, _ = sums_of(model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    for layer, seen in PlainHooks(again, "llama").run(IDS_BT).items():
        pre_NF, coefficient_NF = seen.pre_BTF.flatten(0, 1), seen.coefficient_BTF.flatten(0, 1)
        assert_array_equal(sums["active"][layer], (pre_NF > 0).sum(0))
        assert_array_equal(sums["coefficient_max"][layer], coefficient_NF.amax(0))
        off_F = np.abs(sums["coefficient_sum"][layer] - coefficient_NF.double().sum(0).numpy())
        assert (off_F <= ROUNDING * coefficient_NF.double().abs().sum(0).numpy()).all()
    assert (sums["active"] != sums_of(plain)[0]["active"]).any()
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert model.facts.config["quantization_config"] == written
    assert model.facts.fingerprint != plain.facts.fingerprint
    assert load_model(str(tmp_path), "cpu", "bfloat16").facts.fingerprint == model.facts.fingerprint
    assert model.facts.warnings == ()


@pytest.mark.parametrize(
    "settings", [{"llm_int8_threshold": 0.0, "load_in_8bit": True}, {"load_in_4bit": True}], ids=["8", "4"]
)
def test_experts_that_bitsandbytes_left_alone_are_told(
    settings: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    tiny_mixture("mixtral").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    quantise_bitsandbytes(tmp_path, **settings)
    (note,) = load_model(str(tmp_path), "cpu").facts.warnings
    assert note == ("bitsandbytes left 0.mlp.gate, 0.mlp.experts, 1.mlp.gate and 1 more of the layers unquantised")


@pytest.mark.parametrize("settings", [{}, {"llm_int8_threshold": 6.0}], ids=["by default", "as said"])
def test_a_column_that_another_token_decides_on_is_refused(
    settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, **settings}
    rewrite(folder, load_file(folder / "model.safetensors"), settings)
    for look in (load_model, outline_model):
        with pytest.raises(
            InputError, match=r"with llm_int8_threshold 6.0 bitsandbytes .* expected 0.0 in the quantiz"
        ):
            look(str(folder), "cpu")


@pytest.mark.slow
def test_a_store_tells_a_quantised_model_from_the_plain_one(
    run: Any, tokenizer: Any, make_corpora: Any, tmp_path: Path
) -> None:
    save_quantised("fp8", tmp_path / "quantised", tokenizer).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    corpora = make_corpora({"python": 4})
    path = tmp_path / "s"
    settings = ("--corpora", corpora, "--row-tokens", 64, "--device", "cpu")
    code, _, err = run("profile", tmp_path / "quantised", path, *settings)
    assert code == 0, err
    assert "warning: the weights, quantised by fp8, were dequantised to float32 to be read" in err
    assert store.store_attributes(path)["model"]["config"]["quantization_config"]["quant_method"] == "fp8"
    assert run("profile", tmp_path / "quantised", path, *settings)[0] == 0
    refused(run("profile", tmp_path / "plain", path, *settings), "is a store of another model: its config's quantiz")


def save_mxfp4(folder: Path, tokenizer: Any) -> Any:
    """gpt-oss with its experts in MXFP4: blocks of 32 along what is summed over, two E2M1 a byte, a power of 2 each."""
    bare = tiny_mixture("gpt_oss")
    bare.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in [name for name in state if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, summed, out = state.pop(name).shape  # [E, in, out], as the model has them
        nibble = torch.randint(16, (experts, out, summed // 32, 32), generator=generator)
        power = torch.randint(121, 126, (experts, out, summed // 32), generator=generator)
        state[f"{name}_blocks"] = (nibble[..., ::2] + 16 * nibble[..., 1::2]).to(torch.uint8)
        state[f"{name}_scales"] = power.to(torch.uint8)
        weight = (FP4[nibble] * torch.exp2(power.float() - 127)[..., None]).reshape(experts, out, summed)
        bare.get_parameter(name).data = weight.transpose(1, 2).contiguous()
    rewrite(folder, state, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return bare


def test_experts_in_mxfp4_are_dequantised(tokenizer: Any, tmp_path: Path) -> None:
    bare = save_mxfp4(tmp_path, tokenizer)
    model = load_model(str(tmp_path), "cpu")
    assert model.facts.config["quantization_config"]["quant_method"] == "mxfp4"
    assert model.facts.warnings == ("the weights, quantised by mxfp4, were dequantised to float32 to be read",)
    sums, routed = sums_of(model)
    width = model.hook_points[0].expert_width
    tokens = []
    for site in MixtureHooks(bare, "gpt_oss").run(IDS_BT):
        assert site.pre_NF.numel() == 0 or site.pre_NF.abs().min() > 1e-7
        neurons = slice(site.expert * width, (site.expert + 1) * width)
        assert_array_equal(sums["active"][site.layer, neurons], (site.pre_NF > 0).sum(0))
        tokens.append(len(site.cell_N))
    assert_array_equal(routed["site_tokens"], tokens)


def test_experts_that_a_quantiser_left_alone_are_told(tokenizer: Any, tmp_path: Path) -> None:
    tiny_mixture("qwen2_moe").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torchao = pytest.importorskip("torchao.quantization", reason=NO_TORCHAO)
    from transformers import TorchAoConfig

    config = TorchAoConfig(torchao.Int8WeightOnlyConfig(), modules_to_not_convert=["gate"])
    AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype="float32", device_map="cpu"
    ).save_pretrained(tmp_path)
    (note,) = load_model(str(tmp_path), "cpu").facts.warnings
    assert note.startswith("torchao left ")
    assert note.endswith(" of the layers unquantised")
    model = load_model(str(tmp_path), "cpu")
    left = {name for name, part in model.blocks.named_modules() for of_part in part.parameters(recurse=False)
            if type(of_part) is torch.nn.Parameter and of_part.dim() > 1}  # fmt: skip
    assert "0.mlp.experts" in left
    for name in note.removeprefix("torchao left ").partition(" and ")[0].split(", "):
        assert name in left


def test_experts_kept_in_8_bits_are_refused_by_name() -> None:
    experts = tiny_mixture("mixtral").model.layers[0].mlp.experts
    experts.down_proj.data = experts.down_proj.data.to(torch.float8_e4m3fn)
    with pytest.raises(UnsupportedModelError, match=r"layer 0 \(here\): its experts are quantised \(torch.float8"):
        interface_experts(0, "here", experts)


@pytest.mark.parametrize("name", [name for name in ("mixtral", "gpt_oss") if name in MIXTURES])
def test_offloaded_experts_are_refused_by_name(name: str, tokenizer: Any) -> None:
    model = accelerate.cpu_offload(tiny_mixture(name), torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=r"layer 0 \(.*experts\): experts that don't fit on their device"):
        prepare_model(model, tokenizer, name, None, "float32")


def test_a_quantised_head_has_no_lens(tokenizer: Any, tmp_path: Path) -> None:
    save_quantised("torchao", tmp_path, tokenizer)
    model = load_model(str(tmp_path), "cpu")
    assert Lens(model).vocabulary == model.vocabulary  # its head is left alone
    head = model.model.get_output_embeddings()
    head.weight = model.hook_points[0].down.weight
    with pytest.raises(UnsupportedModelError, match="its output embedding is offloaded or quantised"):
        Lens(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 0.0},
            "requires bitsandbytes: `pip install",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "requires bitsandbytes: `pip install"),
        ({"quant_method": "gptq", "bits": 4}, "requires optimum (`pip install optimum`)"),
        ({"quant_method": "awq", "bits": 4}, "`pip install gptqmodel`"),
        ({"quant_method": "of-tomorrow"}, "Unknown quantization type, got of-tomorrow"),
        ({"bits": 4}, "has no `quant_method`"),
    ],
    ids=["bitsandbytes 8", "bitsandbytes 4", "gptq", "awq", "unknown", "no method"],
)
@pytest.mark.parametrize("command", ["inspect", "profile"])
def test_a_quantiser_that_isnt_there_is_one_line(
    command: str,
    settings: dict[str, Any],
    message: str,
    run: Any,
    model_folder: Path,
    make_corpora: Any,
    tmp_path: Path,
) -> None:
    package = {"bitsandbytes": "bitsandbytes", "gptq": "optimum", "awq": "gptqmodel"}.get(
        settings.get("quant_method", "")
    )
    if package and find_spec(package):
        pytest.skip(f"{package} is installed")
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    rewrite(folder, load_file(folder / "model.safetensors"), settings)
    more = (tmp_path / "s", "--corpora", make_corpora({"python": 2})) if command == "profile" else ()
    result = run(command, folder, *more, "--device", "cpu")
    refused(result, message)
    assert f"can't load the model of {folder}: " in result[2]


@pytest.mark.parametrize("method", METHODS)
def test_a_config_tells_how_its_weights_are_loaded(method: str, tokenizer: Any, tmp_path: Path) -> None:
    save_quantised(method, tmp_path, tokenizer)
    outline = outline_model(str(tmp_path), "cpu")
    model = load_model(str(tmp_path), "cpu")
    assert (outline.quantization, outline.is_dequantised) == (method, method != "torchao")
    assert outline.num_neurons == sum(point.width for point in model.hook_points)
    if outline.is_dequantised:
        assert outline.weight_bytes == sum(p.numel() * p.element_size() for p in model.model.parameters())
    else:
        assert outline.weight_bytes == outline.checkpoint_bytes == (tmp_path / "model.safetensors").stat().st_size
