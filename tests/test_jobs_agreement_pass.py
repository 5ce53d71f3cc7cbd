"""Layer agreement, end to end: against full logits, document by document, in all four variants."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import make_tokenizer
from reference import corpus_order
from test_profiler_sites import FAMILIES, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally.analysis.layers.agreement import agreement_document
from neurotally.jobs import agreement
from neurotally.jobs.commands.results import pass_command
from neurotally.jobs.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.agreement import VARIANTS, Context, choose_places, parse_variants

FINAL_NORM = {"llama": "norm", "codegen": "ln_f", "gpt_neox": "final_layer_norm"}


def save(family: str, folder: Path) -> Path:
    """A tiny random model of 2 layers whose predictions vary, with a bias in its head where it has one."""
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def run(model: Path, path: Path, corpora: Path, **options: Any) -> dict[str, Any]:
    options = {"variants": VARIANTS, "context_sizes": (), "lines": (), "positions": 3, "workers": 1, **options}
    agreement(str(model), path, corpora=corpora, device="cpu", progress=Progress(quiet=True), **options)
    return store.group_attributes(path, "lens/agreement")


class Naive:
    """Every layer's logits over the full vocabulary, from plain hooks and the formula."""

    def __init__(self, family: str, folder: Path, head_bias: bool):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        decoder = self.model.get_decoder()
        self.norm = getattr(decoder, FINAL_NORM[family])
        self.head = self.model.get_output_embeddings()
        self.bias = self.head.bias if head_bias else None
        blocks = decoder.get_submodule(FAMILIES[family][2].partition(".")[0])
        self.seen: dict[str, list[torch.Tensor]] = {"ffn": [], "residual": []}
        for layer in range(2):
            down = decoder.get_submodule(FAMILIES[family][2].format(layer))
            down.register_forward_hook(lambda _m, _a, output: self.seen["ffn"].append(output[0].clone()))
            blocks[layer].register_forward_hook(
                lambda _m, _a, output: self.seen["residual"].append(
                    (output if isinstance(output, torch.Tensor) else output[0])[0].clone()
                )
            )

    def first_tokens(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(the model's first tokens [T], each variant's and layer's [A, L, T])."""
        self.seen["ffn"].clear()
        self.seen["residual"].clear()
        with torch.no_grad():
            model_T = self.model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1)
            found = []
            for variant in VARIANTS:
                kind, _, form = variant.partition("-")
                vectors = [self.norm(x_TD) if form == "norm" else x_TD for x_TD in self.seen[kind]]
                logits = [torch.nn.functional.linear(x_TD, self.head.weight, self.bias) for x_TD in vectors]
                found.append(torch.stack(logits).argmax(-1))
        return model_T.numpy(), torch.stack(found).numpy()


@pytest.mark.parametrize("head_bias", [False, True], ids=["no bias", "head bias"])
@pytest.mark.parametrize("family", FINAL_NORM)
@pytest.mark.slow
def test_equals_full_logits_in_all_four_variants(
    family: str, head_bias: bool, make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurotally.profiler.passes.lens._LOGIT_BYTES", 4 * 600 * 37)
    corpora = make_corpora({"go": 8, "python": 9})
    run(save(family, tmp_path / "model"), tmp_path / "s", corpora, head_bias=head_bias)
    group = store.read_group(tmp_path / "s", "lens/agreement")
    tokenizer, naive = AutoTokenizer.from_pretrained(tmp_path / "model"), Naive(family, tmp_path / "model", head_bias)
    for number, name in enumerate(("go", "python")):
        agreed, gold = np.zeros((4, 2), int), np.zeros((4, 2), int)
        model_gold = positions = gold_positions = 0
        for path in corpus_order(corpora / name):
            ids = tokenizer(path.read_bytes().decode())["input_ids"]
            for row in [ids[start : start + 128] for start in range(0, len(ids), 128)]:
                model_T, layers_ALT = naive.first_tokens(row)
                agreed += (layers_ALT == model_T).sum(-1)
                gold += (layers_ALT[:, :, :-1] == np.array(row[1:])).sum(-1)
                model_gold += int((model_T[:-1] == np.array(row[1:])).sum())
                positions += len(row)
                gold_positions += len(row) - 1
        assert group["corpus"][number] == name
        assert (group["positions"][number, 0], group["gold_positions"][number, 0]) == (positions, gold_positions)
        assert group["agreed"][number, 0].tolist() == agreed.tolist()
        assert group["gold"][number, 0].tolist() == gold.tolist()
        assert group["model_gold"][number, 0] == model_gold
        if head_bias or family != "codegen":  # the last residual, normed, is what the model's head reads
            assert agreed[3, 1] == positions
        assert agreed[0, 0] < positions


@pytest.mark.slow
def test_truncated_inputs_equal_fresh_forwards(make_corpora: Any, tmp_path: Path) -> None:
    corpora, sizes, lines = make_corpora({"python": 10}), (1, 5, 50, 300), (1, 2, 5)
    folder = save("llama", tmp_path / "model")
    attributes = run(folder, tmp_path / "s", corpora, context_sizes=sizes, lines=lines)
    assert attributes["left_out"] == ["300 tokens"]
    group = store.read_group(tmp_path / "s", "lens/agreement")
    contexts = [Context("document"), *(Context("tokens", size) for size in sizes[:3]),
                *(Context("lines", size) for size in lines)]  # fmt: skip
    assert group["context_size"].tolist() == [context.size for context in contexts]
    tokenizer, naive = AutoTokenizer.from_pretrained(folder), Naive("llama", folder, False)
    agreed, gold = np.zeros((7, 4, 2), int), np.zeros((7, 4, 2), int)
    model_gold, positions = np.zeros(7, int), np.zeros(7, int)
    for path in corpus_order(corpora / "python"):
        text = path.read_bytes().decode()
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        line_T = np.array([text[:start].count("\n") for start, _ in encoded["offset_mapping"]])
        key = (0, int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big"))
        for place in choose_places(len(ids), 1, line_T, contexts, 3, 128, key):
            context = contexts[place.context]
            assert place.first >= 1  # no BOS
            if context.kind == "tokens":
                assert place.end - place.first == context.size
            else:
                assert line_T[place.end - 1] - line_T[place.first] == context.size - 1
                assert place.first == 1 or line_T[place.first - 1] < line_T[place.first]
            model_T, layers_ALT = naive.first_tokens(ids[place.first : place.end])
            agreed[place.context] += layers_ALT[:, :, -1] == model_T[-1]
            gold[place.context] += layers_ALT[:, :, -1] == ids[place.end]
            model_gold[place.context] += model_T[-1] == ids[place.end]
            positions[place.context] += 1
    assert (positions[1:] > 0).all()
    assert group["positions"][0, 1:].tolist() == group["gold_positions"][0, 1:].tolist() == positions[1:].tolist()
    assert group["agreed"][0, 1:].tolist() == agreed[1:].tolist()
    assert group["gold"][0, 1:].tolist() == gold[1:].tolist()
    assert group["model_gold"][0, 1:].tolist() == model_gold[1:].tolist()


def test_a_documents_sizes_are_compared_at_the_same_places() -> None:
    contexts = [Context("document"), Context("tokens", 2), Context("tokens", 30), Context("tokens", 90)]
    places = list(choose_places(60, 1, np.zeros(60, int), contexts, 4, 1000, (0, 1)))
    ends = {number: [place.end for place in places if place.context == number] for number in (1, 2, 3)}
    assert ends[1] == ends[2]
    assert len(ends[1]) == 4
    assert min(ends[1]) > 30
    assert ends[3] == []
    assert places == list(choose_places(60, 1, np.zeros(60, int), contexts, 4, 1000, (0, 1)))
    assert places != list(choose_places(60, 1, np.zeros(60, int), contexts, 4, 1000, (0, 2)))
    assert list(choose_places(2, 1, np.zeros(2, int), contexts, 4, 1000, (0, 1))) == []


@pytest.mark.slow
def test_goes_on_where_it_stopped_to_the_same_bits(
    make_corpora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurotally.jobs.passes import agreement as agreement_pass

    corpora, folder = make_corpora({"go": 12, "python": 12}), save("llama", tmp_path / "model")
    options: dict[str, Any] = {"context_sizes": (5, 20), "lines": (2,)}
    run(folder, tmp_path / "whole", corpora, **options)
    compute: Callable[..., Any] = agreement_pass.AgreementWorker.compute
    calls = []

    def until_the_sixth(self: Any, *args: Any) -> Any:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return compute(self, *args)

    monkeypatch.setattr(agreement_pass.AgreementWorker, "compute", until_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "s", corpora, **options)
    monkeypatch.undo()
    assert len(list((tmp_path / "s" / ".run" / "lens").rglob("*.npz"))) == 5
    run(folder, tmp_path / "s", corpora, **options)
    ours, theirs = (store.read_group(tmp_path / name, "lens/agreement") for name in ("s", "whole"))
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values), name
    with pytest.raises(InputError, match="positions is 5, the store has 3"):
        run(folder, tmp_path / "s", corpora, **options, positions=5)


@pytest.mark.slow
def test_only_the_first_tokens_of_each_document(make_corpora: Any, tmp_path: Path) -> None:
    """Equal to the formula over the first 40 tokens; it is another pass, and one without it is what it was."""
    corpora = make_corpora({"go": 8})
    folder = save("llama", tmp_path / "model")
    run(folder, tmp_path / "s", corpora, context_sizes=(4,), document_tokens=40)
    group = store.read_group(tmp_path / "s", "lens/agreement")
    tokenizer, naive = AutoTokenizer.from_pretrained(folder), Naive("llama", folder, False)
    agreed, positions = np.zeros((4, 2), int), 0
    for path in corpus_order(corpora / "go"):
        ids = tokenizer(path.read_bytes().decode())["input_ids"][:40]
        model_T, layers_ALT = naive.first_tokens(ids)
        agreed, positions = agreed + (layers_ALT == model_T).sum(-1), positions + len(ids)
    assert group["positions"][0, 0] == positions
    assert group["agreed"][0, 0].tolist() == agreed.tolist()
    assert agreement_document(tmp_path / "s", "agreement")["document_tokens"] == 40
    with pytest.raises(InputError, match="document_tokens is None, the store has 40"):
        run(folder, tmp_path / "s", corpora, context_sizes=(4,))


@pytest.mark.slow
def test_the_command_prints_one_document_and_draws(make_corpora: Any, tmp_path: Path) -> None:
    corpora, folder = make_corpora({"go": 5, "python": 5}), save("llama", tmp_path / "model")
    (corpora / "go" / "empty.go").write_bytes(b"")
    (corpora / "go" / "latin.go").write_bytes(b"\xe9")
    arguments = [
        str(folder), str(tmp_path / "s"), "--corpora", str(corpora), "--device", "cpu", "--context-sizes", "1,10",
        "--lines", "2", "--json", "--figure", str(tmp_path / "a.png"), "--context-figure", str(tmp_path / "c.png"),
    ]  # fmt: skip
    result = CliRunner().invoke(pass_command("agreement"), arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads(json.dumps(agreement_document(tmp_path / "s", "agreement")))
    assert [context["label"] for context in document["contexts"]] == ["document", "1 token", "10 tokens", "2 lines"]
    go, group = document["corpora"]["go"], store.read_group(tmp_path / "s", "lens/agreement")
    assert go["skipped"] == {"empty": 1, "not_utf8": 1}
    assert go["documents"] == 7
    share = group["agreed"][0, 1, 2] / group["positions"][0, 1]
    assert go["agreement"]["residual-raw"][1] == share.tolist()
    assert go["first_90"]["residual-norm"][0] in (0, 1)
    assert all((tmp_path / name).stat().st_size > 20_000 for name in ("a.png", "c.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--context-sizes", "1,x"], "--context-sizes '1,x': expected whole numbers"),
        (["--lines", "0"], "--lines '0': expected whole numbers"),
        (["--variants", "ffn"], "'ffn' is none of ffn-raw"),
        (["--name", "a/b"], "--name 'a/b'"),
        ([], "no corpus"),
    ],
    ids=["sizes", "lines", "variants", "name", "no corpus"],
)
def test_options_that_make_no_sense_are_named(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(pass_command("agreement"), ["model", str(tmp_path / "s"), *options])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert parse_variants("residual-norm, ffn-raw") == ["ffn-raw", "residual-norm"]
