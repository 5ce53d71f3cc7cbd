"""Encoders and encoder-decoders: every layer of both stacks, as plain hooks see it, one row at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY, each
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import load_file, save_file
from stacks import DECODER_LAYERS, ENCODER_LAYERS, SMALL, STACKS, StackHooks, tiny_stacks
from test_profiler_model import refusal, tiny_model

from neurotally.kernels.layer_tally import PAD
from neurotally.profiler.corpus.batches import Batch, TeacherForcing, TokenRows, lay_out, padded_batches
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.load import load_model
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.model.reading import read_neurons
from neurotally.profiler.networks import DECODER, ENCODER
from neurotally.profiler.passes.embedding import embed_rows
from neurotally.profiler.passes.lens import Lens
from neurotally.profiler.passes.loss import LossReader

TRIGGERS, ROW = 3, 100
ENCODERS = [name for name, one in STACKS.items() if one.decoder is None]
BOTH = [name for name, one in STACKS.items() if one.decoder is not None]


def loaded(name: str, tokenizer: Any, folder: Path) -> Any:
    tiny_stacks(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), "cpu")


def some_rows(longest: int) -> TokenRows:
    """Rows of many lengths, a document of several rows among them; no token comes twice, and none is the pad, 2."""
    token_N = 3 + np.random.default_rng(1).permutation(VOCABULARY - 3)
    ends = np.cumsum([62, 89, 1, 6, 39, 60, longest + 29])
    documents = [(number, [0, *ids_T]) for number, ids_T in enumerate(np.split(token_N[: ends[-1]], ends[:-1]))]
    return lay_out(documents, frozenset({0}), "documents", longest)


def halves(ids_T: list[int], reads: str) -> tuple[slice, slice]:
    """What encoder and decoder read of a row."""
    middle = (len(ids_T) + 1) // 2
    return (slice(0, middle), slice(middle, None)) if reads == "second-half" else (slice(None), slice(None))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("reads", ["second-half", "all"])
@pytest.mark.slow
@pytest.mark.parametrize("one_length", [True, False], ids=["one length", "masks"])
def test_both_stacks_are_read_as_plain_hooks_read_a_row(
    name: str, reads: str, one_length: bool, tokenizer: Any, tmp_path: Path
) -> None:
    has_decoder = STACKS[name].decoder is not None
    if reads == "all" and not has_decoder:
        pytest.skip("an encoder has no decoder")
    model = loaded(name, tokenizer, tmp_path)
    facts = model.facts
    assert facts.num_layers == ENCODER_LAYERS + DECODER_LAYERS * has_decoder
    assert [one.stack for one in facts.networks] == [ENCODER] * ENCODER_LAYERS + [
        DECODER
    ] * DECODER_LAYERS * has_decoder
    rows, forcing = some_rows(min(ROW, facts.max_row_tokens)), facts.teacher_forcing(reads)
    recorder = NeuronRecorder(model, TRIGGERS)
    NeuronReader(model, recorder).tally(padded_batches(rows, 256, facts.attention_budget, forcing, one_length))
    result = recorder.result()

    hooks = StackHooks(type(model.model).from_pretrained(tmp_path).eval(), name)
    active, special, terms, tokens = {}, {}, {}, {}
    best: dict[tuple[int, int], dict[int, tuple[float, int]]] = {}
    for first, end in rows.bounds_R2:
        ids_T = rows.ids_N[first:end].tolist()
        of_stack = halves(ids_T, reads) if has_decoder else (slice(None),)
        started = [facts.decoder_start, *ids_T[of_stack[1]]] if has_decoder else None
        for stack, layer, seen in hooks.run(ids_T[of_stack[0]], started):
            number = layer + stack * ENCODER_LAYERS
            is_start = 1 if stack else 0
            pre_TF, c_TF, a_TF = (
                x[is_start:].double() for x in (seen.pre_BTF, seen.coefficient_BTF, seen.activation_BTF)
            )
            is_special_T = torch.from_numpy(rows.ids_N[first:end][of_stack[stack]] == 0)
            assert len(pre_TF) == len(is_special_T)
            tokens[number] = tokens.get(number, 0) + len(pre_TF)
            active[number] = active.get(number, 0) + (pre_TF > 0).sum(0)
            special[number] = special.get(number, 0) + (pre_TF[is_special_T] > 0).sum(0)
            terms.setdefault(number, []).append(torch.stack([a_TF, c_TF, c_TF.abs(), c_TF**2]))
            for t in torch.nonzero(~is_special_T)[:, 0].tolist():
                place = int(first) + range(len(ids_T))[of_stack[stack]][t]
                document, position = int(rows.document_N[place]), int(rows.position_N[place])
                for neuron, value in enumerate(c_TF[t].tolist()):
                    held = best.setdefault((number, neuron), {}).get(document)
                    if value > 0 and (held is None or value > held[0]):
                        best[number, neuron][document] = (value, position)

    names = ("activation_sum", "coefficient_sum", "coefficient_sum_absolute", "coefficient_sum_squares")
    starts = np.concatenate([[0], np.cumsum(result.triggers.count_F)]).astype(int)
    for number in range(facts.num_layers):
        width = len(active[number])
        assert_array_equal(result.sums["active"][number, :width], active[number])
        assert_array_equal(result.sums["active_special"][number, :width], special[number])
        all_terms = torch.cat(terms[number], dim=1)
        for row, statistic in enumerate(names):
            expected_F, scale_F = all_terms[row].sum(0).numpy(), all_terms[row].abs().sum(0).numpy()
            # A row by itself takes other kernels, whose sums of 64 terms round otherwise.
            assert (
                np.abs(result.sums[statistic][number, :width] - expected_F) <= 1e-5 * (scale_F + tokens[number])
            ).all()
        for neuron in range(width):
            at = number * facts.num_neurons + neuron
            part = slice(starts[at], starts[at + 1])
            expected = sorted(((-v, d, p) for d, (v, p) in best[number, neuron].items()))[:TRIGGERS]
            assert result.triggers.document_N[part].tolist() == [document for _, document, _ in expected]
            assert result.triggers.position_N[part].tolist() == [position for *_, position in expected]
    if has_decoder:
        assert result.routed["site_tokens"].tolist() == [tokens[number] for number in range(facts.num_layers)]
        total = len(rows.ids_N)
        halves_add_up = tokens[0] + tokens[ENCODER_LAYERS] == total
        assert halves_add_up if reads == "second-half" else tokens[0] == tokens[ENCODER_LAYERS] == total
    else:
        assert result.routed == {}
        assert tokens[0] == len(rows.ids_N)


SIZES = {
    "t5": {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, **each("num_layers num_decoder_layers", 6)},
    "roberta": {"hidden_size": 768, "intermediate_size": 3072, **each("num_hidden_layers num_attention_heads", 12)},
}
"""Of CodeT5-small and CodeBERT."""


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.slow
def test_counts_of_a_real_size_are_those_of_one_row_at_a_time(name: str) -> None:
    """To the token where rows of one length are together, as on a CPU; under a mask but for those within rounding of 0.

    Attention under a mask adds up in another order, so some 1 in 5 million signs differ.
    """
    model = hook_model(tiny_stacks(name, SMALL | each("max_position_embeddings", 520) | SIZES[name]), name)
    hooks = StackHooks(tiny_stacks(name, SMALL | each("max_position_embeddings", 520) | SIZES[name]), name)
    forcing = TeacherForcing(0, "second-half") if model.is_encoder_decoder else None
    encoder_layers = len(model.stacks[0].blocks)
    rng = np.random.default_rng(0)
    for lengths, one_length, near in (((128, 128, 151, 60, 37, 1), True, 0.0), ((256, 151, 60, 37), False, 2e-5)):
        documents = [(number, rng.integers(3, VOCABULARY, size=length)) for number, length in enumerate(lengths)]
        rows = lay_out(documents, frozenset(), "documents", 512)
        recorder = NeuronRecorder(model, 0)
        NeuronReader(model, recorder).tally(padded_batches(rows, 4096, None, forcing, one_length))
        active_LF = recorder.result().sums["active"].astype(np.int64)
        least_LF, most_LF = np.zeros_like(active_LF), np.zeros_like(active_LF)
        for first, end in rows.bounds_R2:
            ids_T = rows.ids_N[first:end].tolist()
            read, forced = halves(ids_T, "second-half") if forcing else (slice(None), slice(0))
            for stack, layer, seen in hooks.run(ids_T[read], [0, *ids_T[forced]] if forcing else None):
                pre_TF = seen.pre_BTF[1:] if stack else seen.pre_BTF
                least_LF[layer + stack * encoder_layers] += (pre_TF > near).sum(0).numpy()
                most_LF[layer + stack * encoder_layers] += (pre_TF > -near).sum(0).numpy()
        assert (least_LF <= active_LF).all()
        assert (active_LF <= most_LF).all()
        assert (most_LF - least_LF).sum() <= 2e-4 * most_LF.sum()


@pytest.mark.parametrize("name", ["roberta", "modernbert", "t5", "bart"])
def test_the_reader_leaves_hidden_states_as_they_are(name: str) -> None:
    model = hook_model(tiny_stacks(name), name)
    forcing = TeacherForcing(0, "second-half") if model.is_encoder_decoder else None
    (batch, *_) = padded_batches(some_rows(ROW), 256, None, forcing)
    assert batch.mask_BT is not None
    bare_BTD = model.run_batch(batch)
    assert torch.equal(NeuronReader(model, NeuronRecorder(model, TRIGGERS)).read(batch), bare_BTD)
    again = hook_model(model.model, name)  # keeps its hook points, and knows which way attention sees
    assert again.hook_points == model.hook_points
    assert again.sees_later_tokens
    assert torch.equal(again.run_batch(batch), bare_BTD)


def test_a_causal_model_needs_no_mask() -> None:
    model = hook_model(tiny_model("llama"), "llama")
    assert not model.sees_later_tokens
    ids_BT = torch.arange(3, 83).view(2, 40)
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    mask_BT[:, 30:] = False
    assert torch.equal(model.run_body(ids_BT, mask_BT), model.run_body(ids_BT))


@pytest.mark.parametrize("name", ["roberta", "t5, gated", "plbart"])
def test_neurons_of_both_stacks_are_read_and_switched_off(name: str) -> None:
    bare, ids = tiny_stacks(name), list(range(3, 43))
    model = hook_model(tiny_stacks(name), name)
    asked = [(0, 5), (model.num_layers - 1, 7), (1, 60)]
    reading = read_neurons(model, ids, asked)
    start = [0] if model.is_encoder_decoder else []
    seen = {
        layer + stack * ENCODER_LAYERS: one.coefficient_BTF[len(start) * stack :]
        for stack, layer, one in StackHooks(bare, name).run(ids, [*start, *ids] if start else None)
    }
    expected_Tn = np.stack([seen[layer][:, neuron].numpy() for layer, neuron in asked], axis=1)
    assert_allclose(reading.coefficient_Tn, expected_Tn, rtol=1e-4, atol=1e-5)
    with switched_off(model, {0: [5], model.num_layers - 1: [7]}):
        masked_Tn = read_neurons(model, ids, asked).coefficient_Tn
    assert (masked_Tn[:, :2] == 0).all()
    assert not np.array_equal(masked_Tn[:, 2], reading.coefficient_Tn[:, 2])
    assert_array_equal(read_neurons(model, ids, asked).coefficient_Tn, reading.coefficient_Tn)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "t5", "bart"])
def test_embeddings_are_the_encoders_hidden_states(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = loaded(name, tokenizer, tmp_path)
    rows = some_rows(ROW)
    rows = lay_out([(number, rows.ids_N[a:e]) for number, (a, e) in enumerate(rows.bounds_R2)], frozenset({0}),
                   "documents", ROW)  # fmt: skip
    embeddings = embed_rows(model, rows, count_bos=True, token_budget=256)
    assert embeddings.last_NLD.shape == (len(rows.bounds_R2), ENCODER_LAYERS + 1, 64)
    bare = tiny_stacks(name)
    part = bare.get_encoder() if model.is_encoder_decoder else bare.base_model
    for number, (first, end) in enumerate(rows.bounds_R2):
        ids_1T = torch.from_numpy(rows.ids_N[first:end])[None]
        with torch.no_grad():
            states = part(input_ids=ids_1T, output_hidden_states=True).hidden_states
        weight_T = torch.arange(1, end - first + 1).double() / sum(range(1, int(end - first) + 1))
        for layer, hidden_1TD in enumerate(states):
            weighted_D = weight_T @ hidden_1TD[0].double()
            assert_allclose(embeddings.weighted_NLD[number, layer], weighted_D, rtol=1e-4, atol=1e-5)
            assert_allclose(embeddings.last_NLD[number, layer], hidden_1TD[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "t5, gated", "bart", "plbart"])
def test_the_loss_of_an_encoder_decoder_is_its_decoders(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = loaded(name, tokenizer, tmp_path)
    rows, bare = some_rows(ROW), tiny_stacks(name)
    forcing = model.facts.teacher_forcing(None)
    assert forcing is not None
    measured: dict[tuple[int, int], float] = {}
    reader = LossReader(model)
    for batch in padded_batches(rows, 256, None, forcing):
        losses = reader.read(batch)
        assert batch.decoder is not None
        assert (batch.decoder.kind_BT[losses.row_N, losses.column_N] != PAD).all()
        at = (
            table[losses.row_N, losses.column_N].tolist()
            for table in (batch.decoder.document_BT, batch.decoder.position_BT)
        )
        measured |= dict(zip(zip(*at, strict=True), losses.nats_N.tolist(), strict=True))
    scored = 0
    for first, end in rows.bounds_R2:
        ids_T = rows.ids_N[first:end].tolist()
        read, forced = halves(ids_T, "second-half")
        if not ids_T[forced]:
            continue
        labels_1T = torch.tensor([ids_T[forced]])
        start = torch.tensor([[model.facts.decoder_start, *ids_T[forced][:-1]]])
        with torch.no_grad():
            logits_TV = bare(input_ids=torch.tensor([ids_T[read]]), decoder_input_ids=start).logits[0].double()
        nats_T = torch.nn.functional.cross_entropy(logits_TV, labels_1T[0], reduction="none")
        for place, nats in zip(range(len(ids_T))[forced], nats_T.tolist(), strict=True):
            key = int(rows.document_N[first + place]), int(rows.position_N[first + place])
            assert measured[key] == pytest.approx(nats, rel=1e-4)
            scored += 1
    assert scored == len(measured)


def test_what_an_encoder_has_no_answer_to_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    encoder = loaded("roberta", tokenizer, tmp_path / "roberta")
    both = loaded("t5", tokenizer, tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match="is an encoder, trained to fill in masked tokens"):
        LossReader(encoder)
    for model in (encoder, both):
        with pytest.raises(UnsupportedModelError, match="is no causal language model: the lens"):
            Lens(model)


def test_an_encoder_needs_no_pooler(tokenizer: Any, tmp_path: Path) -> None:
    model = loaded("roberta, without a head", tokenizer, tmp_path)
    assert model.facts.warnings == ("RobertaModel makes no use of pooler.dense.bias, pooler.dense.weight in the "
                                    "checkpoint",)  # fmt: skip
    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: one for name, one in weights.items() if "pooler" not in name}, tmp_path / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    again = load_model(str(tmp_path), "cpu")
    assert again.facts.fingerprint == model.facts.fingerprint
    assert again.facts.warnings == ()


def test_a_decoder_without_a_start_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    bare = tiny_stacks("t5")
    for settings in (bare.config, bare.generation_config):
        settings.decoder_start_token_id = settings.bos_token_id = None
    bare.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "no decoder_start_token_id" in refusal(lambda: load_model(str(tmp_path), "cpu"))


class _PadsMatter(torch.nn.Module):
    """A body whose tokens see later ones, mask or no mask."""

    def __init__(self, body: Any):
        super().__init__()
        self.body, self.layers = body, body.encoder.layer

    def forward(self, input_ids: torch.Tensor, **_given: Any) -> Any:
        return self.body(input_ids=input_ids)


def test_a_model_whose_pads_matter_is_refused() -> None:
    bare = tiny_stacks("bert")
    bare.bert = _PadsMatter(bare.bert)
    bare.get_input_embeddings = lambda: bare.bert.body.embeddings.word_embeddings
    with pytest.raises(UnsupportedModelError, match="in spite of an attention mask"):
        hook_model(bare, "bert")


def test_a_decoder_that_sees_later_tokens_is_refused() -> None:
    bare = tiny_stacks("t5")
    for block in bare.decoder.block:
        block.layer[0].SelfAttention.register_forward_hook(
            lambda _attention, _args, out: (out[0] + out[0].mean(1, keepdim=True), *out[1:])
        )
    with pytest.raises(InputError, match="its decoder's tokens see later tokens"):
        hook_model(bare, "t5")


def _batch_of(rows: list[list[int]], reads: str) -> Batch:
    laid_out = lay_out(list(enumerate(rows)), frozenset(), "documents", 64)
    (batch,) = padded_batches(laid_out, 1024, None, TeacherForcing(99, reads))
    return batch


def _tokens(batch: Batch) -> list[list[int]]:
    return [ids_T[kind_T != PAD].tolist() for ids_T, kind_T in zip(batch.ids_BT, batch.kind_BT, strict=True)]


def test_the_decoder_goes_on_where_the_encoder_stops() -> None:
    batch = _batch_of([[1, 2, 3, 4, 5], [6, 7], [8]], "second-half")
    assert batch.decoder is not None
    assert _tokens(batch) == [[1, 2, 3], [6], [8]]
    assert _tokens(batch.decoder) == [[4, 5], [7], []]
    assert batch.decoder.ids_BT[:, 0].tolist() == [99] * 3
    assert (batch.decoder.kind_BT[:, 0] == PAD).all()
    assert batch.decoder.position_BT[0, 1:3].tolist() == [3, 4]
    assert batch.decoder.document_BT[1, 1] == 1


def test_encoder_and_decoder_read_all_if_asked_to() -> None:
    batch = _batch_of([[1, 2, 3], [4, 5]], "all")
    assert batch.decoder is not None
    assert batch.ids_BT[0, :3].tolist() == [1, 2, 3]
    assert batch.decoder.ids_BT[0, :4].tolist() == [99, 1, 2, 3]


def test_both_batches_keep_to_the_budget() -> None:
    rows = lay_out([(number, list(range(1, 41))) for number in range(20)], frozenset(), "documents", 64)
    for reads, cells in (("second-half", 41), ("all", 81)):
        batches = list(padded_batches(rows, 400, None, TeacherForcing(99, reads)))
        assert [len(batch.ids_BT) for batch in batches[:-1]] == [400 // cells] * (len(batches) - 1)
        assert sum(len(batch.ids_BT) for batch in batches) == 20
        for batch in batches[:-1]:
            assert batch.decoder is not None
            assert batch.ids_BT.size + batch.decoder.ids_BT.size <= 400


@pytest.mark.parametrize("reads", ["second-half", "all", None])
def test_rows_of_one_length_go_without_a_mask(reads: str | None) -> None:
    lengths = [40, 7, 40, 1, 40, 7, 90]
    rows = lay_out(
        [(number, range(1, length + 1)) for number, length in enumerate(lengths)], frozenset(), "documents", 64
    )
    batches = list(padded_batches(rows, 90, None, TeacherForcing(99, reads) if reads else None, one_length=True))
    read: dict[tuple[int, int], int] = {}
    for batch in batches:
        for part in (batch, *([batch.decoder] if batch.decoder else [])):
            assert part.ids_BT.size >= 64
            assert len(part.ids_BT) == len(batch.ids_BT)
            for kind_T in part.kind_BT:  # the decoder's start token counts as a pad
                of_row = kind_T[part is batch.decoder :] != PAD
                assert of_row.all() or not of_row.any()
            for place in zip(part.document_BT[part.kind_BT != PAD], part.position_BT[part.kind_BT != PAD], strict=True):
                read[place] = read.get(place, 0) + 1
        assert batch.mask_BT is None
    assert set(read) == {(number, place) for number, length in enumerate(lengths) for place in range(length)}
    assert set(read.values()) == {2 if reads == "all" else 1}
