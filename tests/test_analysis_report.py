"""The report's page: read as a browser's parser reads it, beside what the analyses and the store say."""

import hashlib
import json
import re
import shutil
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pass_groups import add_agreement, add_embeddings, add_lens, add_losses
from test_analysis_losses import make_losses
from transformers import AutoTokenizer

from neurotally.analysis import open_store
from neurotally.analysis.languages.counts import read_counts, read_group_counts
from neurotally.analysis.languages.jackknife import error_bars
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.layers.agreement import agreement_document
from neurotally.analysis.layers.lens import lens_document, read_lens
from neurotally.analysis.render.html import inline_svg
from neurotally.analysis.report.neurons import most_specific, neurons
from neurotally.analysis.report.page import build_report
from neurotally.analysis.result import model_key
from neurotally.jobs import profile
from neurotally.jobs.commands.results import report_command
from neurotally.jobs.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.visible import visible

VOID = {"meta", "link", "input", "br", "img", "hr"}
EVIL = (
    "x = '</script><script>document.title = 1</script>'\n<img src=http://e.vil/x onerror=alert(1)>\n"
    "</code></pre></details><iframe src=//e.vil></iframe> {{ 7 * 7 }} {% raw %} \u202egnp.exe \x1b[31m &amp;\n"
)
EVIL_CORPUS = 'x <i>"&'
EVIL_NAME = "<img src=x onerror=alert(1)>.py"
PER_CORPUS, QUANTILE, NUMBER, TOP = 12, 0.6, 5, 3


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def walk(self) -> Iterator["Element"]:
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        return [
            one
            for one in self.walk()
            if one.tag == tag and all(one.attributes.get(name) == value for name, value in attributes.items())
        ]

    def one(self, tag: str, **attributes: str) -> "Element":
        (found,) = self.all(tag, **attributes)
        return found


class Page(HTMLParser):
    """The elements of a page; every tag that isn't void must be closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(html)
        self.close()
        assert self._open == [self.root], [one.tag for one in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def rows_of(table: Element) -> dict[str, list[str]]:
    """The texts of a table's cells, by the row's head."""
    (body,) = table.all("tbody")
    return {row.one("th").text: [cell.text for cell in row.all("td")] for row in body.all("tr")}


def header_of(table: Element) -> list[str]:
    return [cell.text for cell in table.one("thead").all("th")]


def table_of(section: Element, caption: str) -> Element:
    (found,) = [table for table in section.all("table") if table.one("caption").text.startswith(caption)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora, one of them of hostile texts, and a file that is skipped."""
    path = tmp_path_factory.mktemp("report") / "corpora"
    source = Path(json.__file__).read_text().splitlines(keepends=True)
    for name in ("c++", "python", EVIL_CORPUS):
        (path / name).mkdir(parents=True)
        for number in range(8):
            text = "".join(source[20 * number : 20 * number + 25])
            text = f"// {number}\n" + text.replace("def", "void").replace("#", "//") if name == "c++" else text
            (path / name / f"{number}.py").write_text(EVIL * (number + 1) if name == EVIL_CORPUS else text)
    (path / EVIL_CORPUS / EVIL_NAME).write_text(EVIL * 9)
    (path / EVIL_CORPUS / "empty.py").write_text("")
    return path


@pytest.fixture(scope="module")
def path(model_folder: Path, folder: Path) -> Path:
    path = folder.parent / "tiny.store"
    quiet = Progress(quiet=True)
    profile(str(model_folder), path, corpora=folder, row_tokens=64, groups=3, triggers=4, progress=quiet)
    return path


def run_command(path: Path, folder: Path, *options: object) -> dict[str, Any]:
    out = folder / "report.html"
    fixed = [
        "--per-corpus",
        PER_CORPUS,
        "--quantile",
        QUANTILE,
        "--neurons",
        NUMBER,
        "--triggers",
        TOP,
        "--out",
        out,
        "--json",
    ]
    result = CliRunner().invoke(
        report_command(), [str(one) for one in (path, *fixed, *options)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["bytes"] == out.stat().st_size
    return document


@pytest.fixture(scope="module")
def html(path: Path, folder: Path) -> str:
    run_command(path, folder.parent)
    return (folder.parent / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return Page(html).root


@pytest.mark.slow
def test_the_page_stands_alone(html: str, page: Element) -> None:
    for element in page.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on"), (element.tag, name)
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                assert str(value).startswith(("#", "data:")), (element.tag, value)
        assert element.tag not in ("img", "iframe", "object", "embed", "base", "video", "audio")
    assert [one.attributes for one in page.all("link")] == [{"rel": "icon", "href": "data:,"}]
    assert not re.search(r"@import|url\((?!#)", page.one("style").text)
    assert len(html) < 2_000_000


@pytest.mark.slow
def test_only_the_pages_own_script_may_run(page: Element) -> None:
    script = page.one("script").text
    (policy,) = (one.attributes["content"] for one in page.all("meta") if "http-equiv" in one.attributes)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'")


@pytest.mark.slow
def test_the_pages_structure(page: Element) -> None:
    ids = Counter(one.attributes["id"] for one in page.walk() if "id" in one.attributes)
    assert [name for name, number in ids.items() if number > 1] == []
    links = [str(one.attributes["href"])[1:] for one in page.one("nav").all("a")]
    sections = [str(one.attributes["id"]) for one in page.all("section")]
    assert links == sections == ["lape", "profiles", "activity", "neurons", "corpora", "provenance"]
    assert len(page.all("h1")) == 1
    for section in page.all("section"):
        assert section.all("h2")[0].attributes["id"] == section.attributes["aria-labelledby"]
    for table in page.all("table"):
        assert table.one("caption").text
        assert all(cell.attributes["scope"] for cell in table.all("th"))
    for picture in page.all("svg"):
        assert picture.attributes["role"] == "img"
        assert picture.attributes["aria-label"]
    named = {str(one.attributes["href"])[1:] for one in page.all("use")}
    named |= set(
        re.findall(r"url\(#([^)]+)\)", " ".join(str(v) for one in page.walk() for v in one.attributes.values()))
    )
    assert named <= set(ids)


@pytest.mark.slow
def test_provenance_says_what_the_store_says(page: Element, path: Path) -> None:
    shown = {one.one("dt").text: one.one("dd").text for one in page.one("section", id="provenance").all("div")
             if one.all("dt") and len(one.all("dt")) == 1}  # fmt: skip
    attributes = store.store_attributes(path)
    expected = {
        name.replace("_", " "): "–" if value is None else str(value)
        for part in ("tokenizer", "config", "versions")
        for name, value in attributes[part].items()
    }
    assert expected.items() <= shown.items() | {("fingerprint", attributes["tokenizer"]["fingerprint"])}
    model = attributes["model"]
    model_config = model.pop("config")
    for value in (*model.values(), *model_config.values()):
        assert ("–" if value is None else str(value)) in page.one("section", id="provenance").text


@pytest.mark.slow
def test_corpora_say_what_the_store_says(page: Element, path: Path) -> None:
    table = table_of(page.one("section", id="corpora"), "Finished corpora")
    keys = header_of(table)[1:]
    for name, cells in rows_of(table).items():
        found, attributes = dict(zip(keys, cells, strict=True)), store.corpus_attributes(path, name)
        for key in ("documents", "duplicates", "tokens", "bytes", "units"):
            assert found[key] == f"{attributes[key]:,}"
        assert found["skipped"].split()[0] == str(attributes["documents"] - attributes["counted"])
    assert "empty.py" in page.one("section", id="corpora").text


@pytest.mark.slow
def test_lapes_numbers_are_lapes(page: Element, path: Path) -> None:
    counts = read_counts(path)
    chosen = lape(counts, Rule(QUANTILE, per_corpus=PER_CORPUS))
    bars = error_bars(read_group_counts(path))
    tables = [table_of(page.one("section", id="lape"), caption) for caption in ("Specific neurons", "How well")]
    assert list(rows_of(tables[0])) == list(counts.corpora)
    for c, name in enumerate(counts.corpora):
        found = {key: cell for table in tables
                 for key, cell in zip(header_of(table)[1:], rows_of(table)[name], strict=True)}  # fmt: skip
        assert found["specific"] == f"{len(chosen.specific[name]):,}"
        assert found["exclusive"] == f"{len(chosen.exclusive[name]):,}"
        assert found["candidates"] == f"{chosen.num_candidates[name]:,}"
        at = tuple(chosen.specific[name].T)
        low_LF, high_LF = np.median(bars.entropy_LF[at]), bars.entropy_t * np.median(bars.entropy_error_LF[at])
        assert found["entropy"] == f"{low_LF:.4f} ± {high_LF:.4f}"
        p, half = np.median(bars.p_CLF[c][at]), bars.p_t_C()[c] * np.median(bars.p_error_CLF[c][at])
        assert found["p"] == f"{p:.4f} ± {half:.4f}"


@pytest.mark.slow
def test_profiles_and_overlap_are_those_of_the_sets(page: Element, path: Path) -> None:
    counts = read_counts(path)
    chosen = lape(counts, Rule(QUANTILE, per_corpus=PER_CORPUS))
    sets = {name: {tuple(neuron) for neuron in of.tolist()} for name, of in chosen.specific.items()}
    alone = {name: {tuple(neuron) for neuron in of.tolist()} for name, of in chosen.exclusive.items()}
    section = page.one("section", id="profiles")
    for caption, found in (("Specific neurons by", sets), ("Exclusive neurons by", alone)):
        rows = rows_of(table_of(section, caption))
        for layer in range(2):
            assert rows[str(layer)] == [str(sum(n[0] == layer for n in found[name])) for name in sets]
    jaccard, common = (rows_of(table_of(section, caption)) for caption in ("Overlap of", "Specific neurons in common"))
    for row, (one, in_one) in enumerate(sets.items()):
        for column, in_other in enumerate(sets.values()):
            assert common[one][column] == str(len(in_one & in_other))
            share = len(in_one & in_other) / len(in_one | in_other)
            assert jaccard[one][column] == ("–" if row == column else f"{share:.3f}")


@pytest.mark.slow
def test_neurons_and_their_triggers(page: Element, path: Path, folder: Path) -> None:
    """Each marked token is the one at the store's position, in the file's own text."""
    counts = read_counts(path)
    chosen = lape(counts, Rule(QUANTILE, per_corpus=PER_CORPUS))
    tokenizer = AutoTokenizer.from_pretrained(store.store_attributes(path)["model"]["id"])
    table = page.one("table", id="neurons-1")
    shown: dict[str, list[tuple[int, int]]] = {name: [] for name in counts.corpora}
    num_read = 0
    for body in table.all("tbody"):
        cells = {str(one.attributes["data-label"]): one for one in body.walk() if "data-label" in one.attributes}
        name, layer, neuron = cells["corpus"].text, int(cells["layer"].text), int(cells["neuron"].text)
        assert body.attributes["data-group"] == name
        shown[name].append((layer, neuron))
        assert float(str(cells["entropy"].attributes["data-v"])) == chosen.entropy_LF[layer, neuron]
        c = counts.corpora.index(name)
        p = counts.active_CLF[c, layer, neuron] / counts.tokens_C[c]
        assert float(str(cells["p"].attributes["data-v"])) == p
        sharing = [other for other, of in chosen.specific.items() if other != name and [layer, neuron] in of.tolist()]
        assert cells["shared with"].text == (", ".join(sharing) or "exclusive")
        arrays = store.read_corpus(path, name)
        entries = body.all("li")
        value_K = arrays["trigger_value"][layer, neuron]
        assert len(entries) <= min(TOP, int(np.isfinite(value_K).sum()))
        for entry in entries:
            place = entry.one("p", **{"class": "place"}).text
            k = next(
                k for k in np.flatnonzero(np.isfinite(value_K)).tolist()
                if f" {visible(arrays['document_name'][arrays['trigger_document'][layer, neuron, k]])}:" in place
            )  # fmt: skip
            assert place.startswith(f"{name}  {float(value_K[k]):.4g}  ")
            document = arrays["document_name"][arrays["trigger_document"][layer, neuron, k]]
            text = (folder / name / document).read_text()
            position = int(arrays["trigger_position"][layer, neuron, k])
            start, end = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][position]
            assert entry.one("mark").text.replace("⏎\n", "\n") == visible(text[start:end])
            parts = [part if isinstance(part, str) else "\0" for part in entry.one("code").children]
            before, after = "".join(parts).split("\0")
            assert visible(text[:start]).endswith(before.removeprefix("…"))
            assert visible(text[end:]).startswith(after.removesuffix("…"))
            num_read += 1
    assert num_read == 3 * NUMBER * TOP
    for name, of_corpus in shown.items():
        by_entropy = sorted(chosen.specific[name].tolist(), key=lambda n: (chosen.entropy_LF[tuple(n)], n))
        assert [list(neuron) for neuron in of_corpus] == by_entropy[:NUMBER]


@pytest.mark.slow
def test_hostile_texts_are_shown_as_they_are(html: str, page: Element) -> None:
    codes = "".join(one.text for one in page.all("code"))
    assert "onerror=alert(1)" in codes
    assert "{{ 7 * 7 }}" in codes
    assert len(page.all("script")) == 1
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "‹U+202E›" in codes
    assert "␛[31m" in codes


@pytest.mark.slow
def test_texts_that_are_gone_are_said_so(path: Path, folder: Path, tmp_path: Path, model_folder: Path) -> None:
    copy = tmp_path / "tiny.store"
    shutil.copytree(path, copy)
    document = run_command(copy, tmp_path, "--corpora", tmp_path)
    assert document["notes"] == []  # the remembered source is still there
    other = tmp_path / "other" / "python"
    other.mkdir(parents=True)
    document = run_command(
        copy, tmp_path, *(f"--corpus-source={name}={other}" for name in ("c++", "python", EVIL_CORPUS))
    )
    assert "No text was found" in document["notes"][0]
    page = Page((tmp_path / "report.html").read_text()).root
    assert not page.all("mark")
    places = [one.text for one in page.all("p", **{"class": "place"})]
    assert places
    assert all(re.search(r"  token \d+$", text) for text in places)
    assert "gone, or can't be read" in page.one("table", id="neurons-1").text


def write_imported(path: Path, corpora: int, groups: int = 1) -> Path:
    """A store of made-up counts without model, triggers or documents."""
    rng = np.random.default_rng(0)
    store.create_store(path, {"model": None, "tokenizer": None, "config": None, "versions": {"neurotally": "0"}})
    for name in "abc"[:corpora]:
        active_GLF = rng.integers(0, 900, (groups, 3, 40)).astype(np.uint64)
        arrays = {"tokens": np.full(groups, 1000, np.uint64), "active": active_GLF}
        store.write_arrays(path / ".run" / name, arrays, {"tokens": 1000 * groups})
        store.publish(path, f"corpora/{name}", path / ".run" / name)
    return path


@pytest.mark.parametrize(
    ("corpora", "groups", "sections", "says"),
    [
        (0, 1, ["lape", "provenance"], "at least two finished ones"),
        (1, 1, ["lape", "activity", "corpora", "provenance"], "at least two finished ones"),
        (3, 1, ["lape", "profiles", "activity", "neurons", "corpora", "provenance"], "no error bars: "),
        (3, 4, ["lape", "profiles", "activity", "neurons", "corpora", "provenance"], "by a jackknife"),
    ],
)
@pytest.mark.slow
def test_what_a_store_lacks_is_left_out(
    corpora: int, groups: int, sections: list[str], says: str, tmp_path: Path
) -> None:
    path = write_imported(tmp_path / "s", corpora, groups)
    document = run_command(path, tmp_path)
    assert document["sections"] == sections
    page = Page((tmp_path / "report.html").read_text()).root
    assert says in page.one("section", id="lape").text
    if "neurons" in sections:
        assert "has no triggers" in document["notes"][-1]
    assert len(set(document["notes"])) == len(document["notes"])


@pytest.mark.slow
def test_what_is_missing_for_damage_is_told_of(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.store"
    shutil.copytree(path, copy)
    (copy / "corpora" / "python" / "document_status" / "zarr.json").write_text("{}")
    document = run_command(copy, tmp_path)
    assert {"lape", "neurons"} <= set(document["sections"])
    (note,) = [note for note in document["notes"] if "document_status" in note]
    assert note.startswith("no error bars: ")
    neurons = Page((tmp_path / "report.html").read_text()).root.one("section", id="neurons")
    assert "document_status" in neurons.text
    assert not neurons.all("mark")


@pytest.mark.slow
def test_ablation_masks_and_alignment(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.store"
    shutil.copytree(path, copy)
    add_losses(copy)
    add_losses(copy, "concepts", make_losses(concepts=("if <b>", "return")))
    arrays = add_embeddings(copy)
    document = run_command(copy, tmp_path)
    assert document["sections"][3:7] == ["loss-ablate", "loss-concepts", "embeddings-parallel", "neurons"]
    page = Page((tmp_path / "report.html").read_text()).root

    losses, section = make_losses(), page.one("section", id="loss-ablate")
    change = rows_of(table_of(section, "Change of the loss"))
    for row, name in enumerate("ab", 1):
        for at in range(2):
            here = losses.corpus_D == at
            nats = losses.nats_SDX[:, here, 0].sum(axis=1)
            expected = (nats[row] - nats[0]) / losses.scored_DX[here, 0].sum()
            assert change[name][at].split(" ± ")[0] == f"{expected:+.4f}".replace("-", "−")
    assert "if <b> match" in page.one("section", id="loss-concepts").text

    vector_LND = arrays["weighted"].astype(np.float64)
    shares = rows_of(table_of(page.one("section", id="embeddings-parallel"), "Share of ids aligned, mean"))
    for p, pivot in enumerate(("C", "Java", "Python")):
        for q, text in enumerate(shares[pivot]):
            aligned = []
            for vector_ND in vector_LND:
                unit_ND = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
                cosine = unit_ND[4 * p : 4 * p + 4] @ unit_ND[4 * q : 4 * q + 4].T
                aligned += [
                    all(cosine[i, i] > cosine[i, j] and cosine[i, i] > cosine[j, i] for j in range(4) if j != i)
                    for i in range(4)
                ]
            assert text == f"{100 * np.mean(aligned):.0f} %"


@pytest.mark.slow
def test_what_cannot_be_read_is_said(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.store"
    shutil.copytree(path, copy)
    add_losses(copy)
    shutil.rmtree(copy / "loss" / "ablate" / "nats")
    run_command(copy, tmp_path)
    section = Page((tmp_path / "report.html").read_text()).root.one("section", id="losses-ablate")
    assert "can't be shown" in section.text
    assert "nats" in section.text


@pytest.mark.slow
def test_the_lens(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.store"
    shutil.copytree(path, copy)
    arrays = add_lens(copy)
    assert lens_document(read_lens(copy, "translation"))["model"] == model_key(store.store_attributes(path)["model"])
    assert "lens-translation" in run_command(copy, tmp_path)["sections"]
    section = Page((tmp_path / "report.html").read_text()).root.one("section", id="lens-translation")
    assert section.all("h2")[0].text == "Logit lens"
    gold = arrays["prompt_gold_probability"].astype(np.float32).astype(np.float64)
    rows = rows_of(table_of(section, "The gold token: the next"))
    assert rows["a-b"][:4] == ["2", "14", f"{gold[[0, 2]].mean():.4f}", f"{gold[[0, 2], -1].mean():.4f}"]
    assert rows["b-a"][:3] == ["1", "4", f"{gold[3].mean():.4f}"]
    assert rows["all pairs"][2] == f"{(gold[[0, 2]].mean() + gold[3].mean()) / 2:.4f}"
    mass_L = (arrays["prompt_mass"][[0, 2], :, 0].mean(axis=0) + arrays["prompt_mass"][3, :, 0]) / 2
    draw_D = arrays["draw_mass"][:, :, 0].mean(axis=(0, 1))
    control_L = (arrays["control_mass"][[0, 2], :, 0].mean(axis=0) + arrays["control_mass"][3, :, 0]) / 2
    assert rows_of(table_of(section, "Sets of tokens"))["if <i>"][:7] == [
        "2", "0.0200", f"{mass_L.mean():.4f}", f"{control_L.mean():.4f} ± {draw_D.std(ddof=1):.4f}",
        f"{1 + (draw_D >= mass_L.mean()).sum()} of 6", f"{mass_L.max():.4f}", str(mass_L.argmax()),
    ]  # fmt: skip
    assert "over 5 sets of as many tokens of like frequency" in section.text
    assert "1 prompts (longer than the context)" in section.text


@pytest.mark.slow
def test_agreement(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.store"
    shutil.copytree(path, copy)
    arrays = add_agreement(copy)
    agreed, positions_CX = arrays["agreed"], arrays["positions"]
    assert agreement_document(copy, "agreement")["model"] == model_key(store.store_attributes(path)["model"])
    assert "lens-agreement" in run_command(copy, tmp_path)["sections"]
    section = Page((tmp_path / "report.html").read_text()).root.one("section", id="lens-agreement")
    rows = rows_of(table_of(section, "Over whole documents"))
    for row, name in enumerate(("a", "<b>")):
        share_L = agreed[row, 0, 0] / positions_CX[row, 0]
        assert (rows[name][0], rows[name][2]) == (str(positions_CX[row, 0]), f"{100 * share_L.mean():.1f} %")
    table = table_of(section, "FFN, raw, by context")
    (by_context,) = [cells for row in table.all("tr") if (cells := [cell.text for cell in row.all("td")])[:1] ==
                     ["5 tokens"]]  # fmt: skip
    assert by_context[2:5] == [f"{100 * share:.0f} %" for share in agreed[0, 1, 0] / 20]
    assert "900 tokens" in section.text


@pytest.mark.slow
def test_concepts_of_the_command(path: Path, tmp_path: Path) -> None:
    """Their document is shown; another model's is refused."""
    found = {"chance": 0.01, "at_least": 7, "null_share": None, "passing": None, "keys": 6, "most": 4}
    document = {
        "model": {key: store.store_attributes(path)["model"][key] for key in ("id", "fingerprint")},
        "concepts": {"<b>": "<b>", "if": r"\\bif\\b"}, "layers": 2, "neurons": 48, "triggers": 4, "null_keys": 0,
        "min_matches": 2, "alpha": 0.05, "corpora": ["python"], "specific": {"<b>": [[0, 1]], "if": [[0, 1], [1, 2]]},
        "by_layer": {"<b>": [1, 0], "if": [1, 1]}, "by_corpus": {"<b>": {"python": found}, "if": {"python": found}},
        "strongest": {"<b>": [], "if": [{"corpus": "python", "layer": 1, "neuron": 2, "matches": 4, "contexts": 4,
                                        "p": None}]},
        "overlap": {"common": [[1, 1], [1, 2]], "jaccard": [[1.0, 0.5], [0.5, 1.0]]}, "polysemantic": [[0, 1, []]],
    }  # fmt: skip
    file = tmp_path / "concepts.json"
    file.write_text(json.dumps(document))
    assert "concepts" in run_command(path, tmp_path, "--concepts", file)["sections"]
    section = Page((tmp_path / "report.html").read_text()).root.one("section", id="concepts")
    assert rows_of(table_of(section, "Keys of each"))["<b>"] == ["python", "1.00 %", "7", "–", "–", "6"]
    assert rows_of(table_of(section, "Overlap of"))["if"] == ["0.50", "–"]
    for text, says in (("{", "isn't JSON"), ("{}", "isn't a document"),
                       (json.dumps({**document, "model": None}), "give this store's")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(InputError, match=says):
            run_command(path, tmp_path, "--concepts", file)


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no store"):
        run_command(tmp_path, tmp_path)


def test_pictures_keep_their_elements_apart_and_their_names_plain() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2], label="<script>alert(1)</script>", color="#222222")
    figure.axes[0].legend()
    one, two = (Page(inline_svg(figure, anchor, 'a "label"')).root for anchor in ("one", "two"))
    ids = [{element.attributes.get("id") for element in root.walk()} - {None} for root in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert "<script>alert(1)</script>" in one.text
    assert not one.all("script")
    assert "var(--c-222222,#222222)" in inline_svg(figure, "one", "")


@pytest.mark.slow
def test_the_report_names_no_neuron_twice(path: Path) -> None:
    chosen = open_store(path).lape(quantile=QUANTILE, per_corpus=PER_CORPUS).document
    assert {len(of) for of in most_specific(chosen, 1000).values()} == {PER_CORPUS}
    listed = neurons(chosen, 1000, {}, "texts were not asked for")
    page = Page(build_report(path, {"quantile": QUANTILE, "per_corpus": PER_CORPUS}, [listed]).html).root
    assert "texts were not asked for" in page.one("section", id="neurons").text
    assert len(page.one("table", id="neurons-1").all("tbody")) == 3 * PER_CORPUS


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_in_a_browser(html: str, folder: Path, width: int, scheme: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as p, p.chromium.launch(executable_path=browser_path,
                                                               args=["--no-sandbox"]) as browser:  # fmt: skip
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.set_default_timeout(5000)
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        address = (folder.parent / "report.html").as_uri()
        tab.goto(address)
        assert tab.title() == f"{tab.locator('h1').inner_text()} · neurotally"
        assert not tab.locator("mark").first.is_visible()
        tab.get_by_role("button", name="Open all shown").click()
        assert all(mark.is_visible() for mark in tab.locator("mark").all())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width

        bodies = tab.locator("#neurons-1 tbody")
        number = bodies.count()
        tab.get_by_label("Search").last.fill("x onerror 202e")
        tab.get_by_text(re.compile(r"^\d+ shown$")).last.wait_for()
        shown = [one for one in bodies.all() if one.is_visible()]
        expected = [one for one in Page(html).root.one("table", id="neurons-1").all("tbody")
                    if all(word in one.text.lower() for word in ("x", "onerror", "202e"))]  # fmt: skip
        assert 0 < len(shown) == len(expected) < number
        tab.get_by_label("Search").last.fill("")
        tab.get_by_label("Corpus", exact=True).select_option("python")
        assert len([one for one in bodies.all() if one.is_visible()]) == NUMBER
        tab.get_by_label("Corpus", exact=True).select_option("")

        for column, by in (("entropy", float), ("shared with", str), ("p", float)):
            values = []
            for direction in ("ascending", "descending"):
                button = tab.locator("#neurons-1 thead").get_by_role("button", name=column, exact=True)
                button.click()
                assert button.evaluate("it => it.closest('th').getAttribute('aria-sort')") == direction
                cells = tab.locator(f"#neurons-1 [data-label='{column}']")
                values.append([by(str(cell.get_attribute("data-v"))) for cell in cells.all()])
            if by is float:
                assert values[0] == sorted(values[0])
                assert values[1] == sorted(values[0], reverse=True)
            else:
                assert values[0][0] == min(values[0], key=lambda value: str(value).lower())
        assert said == []
        assert asked == [address]
