"""The loss pass end to end: against edited weights, the same however it ran, and what it refuses."""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally import jobs
from neurotally.analysis import open_store
from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.masking.losses import read_losses
from neurotally.jobs import profile
from neurotally.jobs.commands.results import pass_command
from neurotally.jobs.interrupts import Interrupted
from neurotally.jobs.progress import Progress, Took
from neurotally.jobs.reducers.reducer import Reducer
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Status
from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.loss import LossReader

QUIET = Progress(quiet=True)
RULE = {"quantile": 0.8, "per_corpus": 6}
CONCEPTS = {"self": re.compile(r"self\.\w+", re.MULTILINE), "def": re.compile(r"^ *def \w+\(.*", re.MULTILINE)}


@pytest.fixture
def profiled(model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with a `store` of two corpora, what it was `profiled` on, and `heldout` files."""
    sizes = {"c++": 12, "python": 15}
    shutil.move(make_corpora(sizes, seed=0), tmp_path / "profiled")
    profile(str(model_folder), tmp_path / "store", corpora=tmp_path / "profiled", groups=2, progress=QUIET)
    shutil.move(make_corpora(sizes, seed=1), tmp_path / "heldout")
    return tmp_path


def ablate(folder: Path, model: Path, **options: Any) -> dict[str, Any]:
    options = {"corpora": folder / "heldout", "draws": 2, "progress": QUIET, **RULE, **options}
    return jobs.ablate(str(model), folder / "store", **options).document


def mask(folder: Path, model: Path, neurons: Path, regex: Any = None, **options: Any) -> dict[str, Any]:
    options = {"corpora": folder / "heldout", "draws": 0, "path": folder / "store", "progress": QUIET, **options}
    return jobs.mask(str(model), options.pop("path"), neurons=neurons, regex=regex, **options).document


def write_mask(path: Path, specific: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"model": None, "specific": specific, **more}))
    return path


def losses_of(model: Any, tokenizer: Any, path: Path) -> list[float]:
    """The loss of every scored token of a file, in rows of 128 tokens."""
    ids, nats = tokenizer(path.read_bytes().decode())["input_ids"], []
    for start in range(0, len(ids), 128):
        row = torch.tensor(ids[start : start + 128])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=row[None]).logits[0].double(), -1)
        nats += [-float(log_p[at, row[at + 1]]) for at in range(len(row) - 1)]
    return nats


@pytest.mark.slow
def test_the_matrix_is_what_edited_weights_give(profiled: Path, model_folder: Path) -> None:
    document = ablate(profiled, model_folder)
    arrays = store.read_group(profiled / "store", "loss/ablate")
    sets = store.group_attributes(profiled / "store", "loss/ablate")["sets"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    files = {name: [path for path in (profiled / "heldout" / name).rglob("*.py")] for name in ("c++", "python")}
    for number, one in enumerate(sets):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        with torch.no_grad():
            for layer, neuron in arrays["mask_neuron"][arrays["mask_set"] == number]:
                model.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
        loss_C = []
        for paths in files.values():
            nats = [value for path in paths for value in losses_of(model, tokenizer, path)]
            loss_C.append(sum(nats) / len(nats))
        if one["kind"] == "none":
            np.testing.assert_allclose(document["baseline"], loss_C, rtol=1e-5)
        elif one["kind"] == "specific":
            row = document["corpora"].index(one["of"])
            change_C = np.array(loss_C) - document["baseline"]
            np.testing.assert_allclose(document["change"][row], change_C, atol=1e-5)
        elif one["kind"] == "random":
            row = document["corpora"].index(one["of"])
            change_C = np.array(loss_C) - document["baseline"]
            np.testing.assert_allclose(document["random_draws"][one["draw"]][row], change_C, atol=1e-5)
    for row, name in enumerate(document["corpora"]):
        lacks = document["controls"][name]["candidates"]
        assert (document["random_candidates"]["random"][row][row] is None) == (lacks is not None)
    assert len(arrays["document_name"]) == 27
    assert arrays["scored"][:, 0].sum() == sum(document["tokens"])


@pytest.mark.slow
def test_token_classes_by_concept(profiled: Path, model_folder: Path) -> None:
    neurons = write_mask(profiled / "m.json", {"self": [[0, 3], [1, 7]], "def": [[1, 7], [1, 9]]}, polysemantic=[])
    mask(profiled, model_folder, neurons, CONCEPTS, draws=1)
    losses = read_losses(profiled / "store", "mask")
    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), AutoModelForCausalLM.from_pretrained(model_folder)
    sums = {(concept, kind): [0.0, 0] for concept in CONCEPTS for kind in ("match", "line", "file", "elsewhere")}
    for path in (profiled / "heldout").rglob("*.py"):
        text = path.read_bytes().decode()
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        scored = [at for at in range(len(spans)) if at % 128]
        nats = dict(zip(scored, losses_of(model, tokenizer, path), strict=True))
        for concept, pattern in CONCEPTS.items():
            matches = [match.span() for match in pattern.finditer(text)]
            lines = [(text.rfind("\n", 0, start) + 1, (text + "\n").index("\n", end - 1) + 1) for start, end in matches]
            for at in scored:
                start, end = spans[at]
                if any(first < end and start < last for first, last in matches):
                    kind = "match"
                elif any(first < end and start < last for first, last in lines):
                    kind = "line"
                else:
                    kind = "file" if matches else "elsewhere"
                sums[concept, kind][0] += nats[at]
                sums[concept, kind][1] += 1
    for (concept, kind), (nats_sum, tokens) in sums.items():
        cell = losses.cell(None, concept, kind)
        assert cell.tokens == tokens
        assert cell.nats_SD[0].sum() == pytest.approx(nats_sum, rel=1e-5, abs=1e-5)
    spared = [one for one in losses.sets if one["kind"] == "spared"]
    assert [one["neurons"] for one in spared] == [1, 1]
    with pytest.raises(InputError, match=r"--form ablate: loss/mask has a set 'self', but no corpus of this name"):
        open_store(profiled / "store").losses("mask", form="ablate")


class Watched(Progress):
    """Counts finished units, and stops the run like a signal after some."""

    def __init__(self, stop_after: int | None = None):
        super().__init__(quiet=True)
        self.total = self.before = self.units = 0
        self._stop_after = stop_after

    @contextlib.contextmanager
    def running(self, reducers: Sequence[Reducer], store: Path) -> Iterator[Took]:
        (reducer,) = reducers
        self.total, self.before = len(reducer.plan.tasks), reducer.num_done

        def took(*_: Any) -> None:
            self.units += 1
            if self.units == self._stop_after:
                raise Interrupted(15)

        yield took


@pytest.mark.usefixtures("workers_share_this_process")
@pytest.mark.slow
def test_the_same_however_it_ran(profiled: Path, model_folder: Path) -> None:
    small: dict[str, Any] = {"max_unit_bytes": 3000}
    ablate(profiled, model_folder, name="one", **small)
    with pytest.raises(Interrupted):
        ablate(profiled, model_folder, name="two", progress=Watched(stop_after=3), **small)
    resumed = Watched()
    ablate(profiled, model_folder, name="two", workers=2, progress=resumed, **small)
    assert resumed.before == 3
    assert resumed.units == resumed.total - 3 > 3
    one, two = (store.read_group(profiled / "store", f"loss/{name}") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    again = Watched()
    ablate(profiled, model_folder, name="two", progress=again, **small)
    assert again.units == again.total == 0  # it is there already
    with pytest.raises(InputError, match="use another --name"):
        ablate(profiled, model_folder, name="two", how="coefficient", **small)


@pytest.mark.slow
def test_a_unit_without_a_token_is_passed_over(profiled: Path, model_folder: Path) -> None:
    (profiled / "heldout/python/latin.py").write_bytes(b"\xff" * 2**16)  # so large that it is a unit of its own
    for concepts, name in (({}, "without"), (CONCEPTS, "with")):
        neurons = write_mask(profiled / "m.json", {"self": [[0, 3]]})
        mask(profiled, model_folder, neurons, concepts, name=name)
        arrays = store.read_group(profiled / "store", f"loss/{name}")
        (at,) = np.flatnonzero(arrays["document_name"] == "latin.py")
        assert (arrays["document_status"][at], arrays["scored"][at, 0]) == (Status.NOT_UTF8, 0)


@pytest.mark.slow
def test_concepts_in_another_order_are_another_pass(profiled: Path, model_folder: Path) -> None:
    neurons = write_mask(profiled / "m.json", {"self": [[0, 3]]})
    turned = dict(reversed(CONCEPTS.items()))
    mask(profiled, model_folder, neurons, CONCEPTS)
    with pytest.raises(InputError, match="use another --name"):
        mask(profiled, model_folder, neurons, turned)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(profiled: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ablate(profiled, model_folder)
    read, refused = LossReader.read, []

    def short_of_memory(reader: LossReader, batch: Any) -> Any:
        if batch.ids_BT.size > 512:
            refused.append(batch.ids_BT.size)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(reader, batch)

    monkeypatch.setattr(LossReader, "read", short_of_memory)
    halved = ablate(profiled, model_folder, name="halved")
    assert refused
    attributes = store.group_attributes(profiled / "store", "loss/halved")
    assert attributes["restarted"]
    assert store.group_attributes(profiled / "store", "loss/ablate")["restarted"] == []
    assert halved["tokens"] == whole["tokens"]
    for key in ("baseline", "change"):
        np.testing.assert_allclose(halved[key], whole[key], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_twelve_masks_on_twelve_corpora(
    model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"c{number:02}" for number in range(12)]
    corpora = make_corpora(dict.fromkeys(names, 5))  # with fewer documents there is no error
    neurons = write_mask(tmp_path / "m.json", {name: [[0, at], [1, 2 * at]] for at, name in enumerate(names)})
    arguments = [
        str(model_folder),
        str(tmp_path / "s"),
        "--neurons",
        str(neurons),
        "--corpora",
        str(corpora),
        "--draws",
    ]
    pass_command("ablate").main([*arguments, "1", "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out)
    assert document["corpora"] == names
    assert np.array(document["change"], float).shape == np.array(document["random"], float).shape == (12, 12)
    assert np.isfinite(np.array(document["standard_error"], float)).all()


@pytest.mark.slow
def test_the_mean_of_the_store_is_put_in_place(profiled: Path, model_folder: Path) -> None:
    document = ablate(profiled, model_folder, how="mean", draws=0)
    arrays = store.read_group(profiled / "store", "loss/ablate")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    profile_arrays = store.read_corpus(profiled / "store", "python")
    mean_LF = profile_arrays["coefficient_sum"] / profile_arrays["tokens"].sum()
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    for layer in range(2):
        entries = arrays["mask_neuron"][arrays["mask_set"] == 1]
        index = entries[entries[:, 0] == layer, 1].tolist()
        value = torch.from_numpy(mean_LF[layer][index]).float()

        def put(_module: Any, args: Any, index: Any = index, value: Any = value) -> Any:
            read = args[0].clone()
            read[..., index] = value
            return (read,)

        model.model.layers[layer].mlp.down_proj.register_forward_pre_hook(put)
    nats = [value for p in (profiled / "heldout/python").rglob("*.py") for value in losses_of(model, tokenizer, p)]
    assert document["change"][0][1] == pytest.approx(sum(nats) / len(nats) - document["baseline"][1], abs=1e-5)


@pytest.mark.slow
def test_other_draws_are_named_in_a_line(profiled: Path, model_folder: Path) -> None:
    ablate(profiled, model_folder, draws=1)
    with pytest.raises(InputError, match=r"sets has \d+ entries, the store \d+: 'random c\+\+ 1' and \d+ more are new"):
        ablate(profiled, model_folder, draws=3)


@pytest.mark.slow
def test_profiled_documents_are_left_out_and_counted(profiled: Path, model_folder: Path) -> None:
    files = sorted((profiled / "profiled/python").rglob("*.py"))[:3]
    for number, file in enumerate(files):
        shutil.copy(file, profiled / "heldout/python" / f"renamed{number}.py")
    document = ablate(profiled, model_folder, draws=0)
    assert (document["left_out"], document["forced"], document["documents"]) == (3, 0, [12, 15])
    forced = ablate(profiled, model_folder, draws=0, name="forced", force=True)
    assert (forced["left_out"], forced["forced"], forced["documents"]) == (0, 3, [12, 18])
    with pytest.raises(InputError, match=r"all 12 documents of 'c\+\+' were profiled"):
        ablate(profiled, model_folder, corpora=profiled / "profiled", name="other")


@pytest.mark.slow
def test_documents_that_a_mask_names_are_refused(profiled: Path, model_folder: Path) -> None:
    hashes = store.read_corpus(profiled / "store", "python")["document_hash"]
    neurons = write_mask(
        profiled / "m.json", {"x": [[0, 1]]}, trigger_documents={"python": [bytes(hashes[4]).hex()]}, trigger_names={}
    )
    seen = {"corpora": profiled / "profiled", "draws": 0}
    with pytest.raises(InputError, match=r"one of 1 documents whose triggers chose the neurons; .*--force"):
        mask(profiled, model_folder, neurons, **seen)
    assert mask(profiled, model_folder, neurons)["sets"].keys() == {"x"}
    mask(profiled, model_folder, neurons, **seen, name="less", leave_out_used=True)
    named = write_mask(profiled / "named.json", {"python": [[0, 1]]}, trigger_names={},
                       trigger_documents={"python": [bytes(hashes[4]).hex()]})  # fmt: skip
    ablate(profiled, model_folder, **seen, name="a", neurons=named, leave_out_used=True)
    for name in ("less", "a"):
        group = store.read_group(profiled / "store", f"loss/{name}")
        assert group["document_hash"][group["document_tokens"] == 0].tolist() == [hashes[4].tolist()]


@pytest.mark.slow
def test_only_the_first_tokens_are_scored(profiled: Path, model_folder: Path) -> None:
    ablate(profiled, model_folder, draws=0, document_tokens=10)
    group = store.read_group(profiled / "store", "loss/ablate")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer, nats = AutoTokenizer.from_pretrained(model_folder), {}
    for path in (profiled / "heldout").rglob("*.py"):
        ids = torch.tensor(tokenizer(path.read_bytes().decode())["input_ids"][:10])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1)
        nats[path.relative_to(path.parent.parent).as_posix(), path.parent.parent.name] = (
            -float(log_p[:-1].gather(1, ids[1:, None]).sum()), len(ids)
        )  # fmt: skip
    names = [("c++", "python")[corpus] for corpus in group["document_corpus"]]
    for number, (name, corpus) in enumerate(zip(group["document_name"], names, strict=True)):
        loss, tokens = nats[name, corpus]
        assert group["document_tokens"][number] == tokens
        np.testing.assert_allclose(group["nats"][0, number, 0], loss, rtol=1e-5)
    with pytest.raises(InputError, match="document_tokens is None, the store has 10"):
        ablate(profiled, model_folder, draws=0)


@pytest.mark.slow
def test_files_whose_windows_chose_are_refused(
    model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path
) -> None:
    corpora = make_corpora({"python": 9})
    profile(str(model_folder), tmp_path / "store", corpora=corpora, groups=2, window_lines=5, progress=QUIET)
    arrays = store.read_corpus(tmp_path / "store", "python")
    of_D = [name.partition("#")[0] for name in arrays["document_name"].tolist()]
    chooser = of_D[0]
    of_file = [bytes(row) for row, name in zip(arrays["document_hash"], of_D, strict=True) if name == chooser]
    neurons = write_mask(
        tmp_path / "m.json", {"x": [[0, 1]]}, trigger_documents={"python": [of_file[0].hex()]}, document_lines=5,
        trigger_names={"python": [chooser]},
        trigger_files={"python": [hashlib.sha256(b"".join(of_file)).hexdigest()]},
    )  # fmt: skip

    def refused_for(name: str, path: Path) -> None:
        with pytest.raises(InputError, match=rf"{re.escape(name)} of 'python' is one of 1 documents"):
            mask(tmp_path, model_folder, neurons, path=path, corpora=corpora)

    refused_for(chooser, tmp_path / "store")
    refused_for(chooser, tmp_path / "other")  # whatever the store's own documents are
    (corpora / "python" / chooser).rename(corpora / "python" / "renamed.py")
    refused_for("renamed.py", tmp_path / "store")
    with (corpora / "python" / "renamed.py").open("a") as file:
        file.write("x = 1\n" * 6)
    mask(tmp_path, model_folder, neurons, path=tmp_path / "other", corpora=corpora)


@pytest.mark.parametrize(
    ("specific", "more", "message"),
    [
        ({"x": [[2, 0]]}, {}, "has neuron 0 of layer 2"),
        ({"x": [[0, 48]]}, {}, "has neuron 48 of layer 0"),
        ({"x": [[0, 1]]}, {"model": {"id": "m", "fingerprint": "0"}}, "mask of another model"),
        ({}, {}, "no neuron in any of its sets"),
    ],
    ids=["layer", "neuron", "model", "empty"],
)
@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.slow
def test_bad_masks_are_refused_in_one_line(
    has_store: bool, specific: Any, more: Any, message: str, profiled: Path, model_folder: Path
) -> None:
    neurons = write_mask(profiled / "m.json", specific, **more)
    where = profiled / ("store" if has_store else "new")
    arguments = [str(model_folder), str(where), "--neurons", str(neurons), "--corpora", str(profiled / "heldout")]
    for command in ("mask", "ablate"):
        with pytest.raises(InputError, match=message) as error:
            pass_command(command).main(arguments, standalone_mode=False)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_regular_expression_that_does_not_compile(profiled: Path, model_folder: Path) -> None:
    neurons = write_mask(profiled / "m.json", {"x": [[0, 1]]})
    (profiled / "bad.toml").write_text("[concepts]\nx = '('\n")
    arguments = [str(model_folder), str(profiled / "store"), "--neurons", str(neurons), "--regex",
                 str(profiled / "bad.toml"), "--corpora", str(profiled / "heldout")]  # fmt: skip
    with pytest.raises(InputError, match="doesn't compile"):
        pass_command("mask").main(arguments, standalone_mode=False)
    with pytest.raises(InputError, match="doesn't compile"):
        read_concepts(profiled / "bad.toml")


@pytest.mark.slow
def test_corpora_that_only_one_side_has(profiled: Path, model_folder: Path, capsys: Any) -> None:
    shutil.move(profiled / "heldout/c++", profiled / "heldout/java")
    document = ablate(profiled, model_folder, draws=0, progress=Progress())
    assert document["corpora"] == ["python"]
    notes = capsys.readouterr().err
    assert "has no c++: their neurons are left alone" in notes
    assert "java left out: no neurons are known for them" in notes
    shutil.rmtree(profiled / "heldout/python")
    with pytest.raises(InputError, match="has none of the corpora"):
        ablate(profiled, model_folder, name="none")
