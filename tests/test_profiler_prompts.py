"""Few-shot prompts: the text to the byte, and which tokens are predicted from where."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tokenizer

from neurotally.profiler.corpus.parallel import read_parallel
from neurotally.profiler.corpus.prompts import Prompt, build_prompt, read_few_shot, tokenise_prompts
from neurotally.profiler.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "parallel"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the papers' snippets and prompts aren't here")

LINES = ["x = 1", "y = 2"]
GOLDEN = (
    'Python: message = "" - Java: String message = "";\nPython: class MyClass: - Java: public class MyClass {}\n'
    "Python: value = 5 - Java: public int value = 5;\n"
    "Python: def do_something(): - Java: public void doSomething() {}\n"
    'Python: n = 50\nprint("Square root of", n, "is",\n\t\t\tround(squareRoot(n), 6)) - Java: public static void '
    'main(String[] args)\n{\nint n = 50;\nSystem.out.printf("Square root of "\n+ n + " is " + squareRoot(n));\n}\n}'
)


@needs_shared
@pytest.mark.slow
def test_the_papers_example_to_the_byte() -> None:
    texts = read_parallel(SHARED / "code_snippets.zip").texts
    shots = [read_few_shot(SHARED / "prompts", language) for language in ("Python", "Java")]
    prompt = build_prompt("Python", "Java", *shots, texts["Python"]["1996-5"], texts["Java"]["1996-5"])
    assert prompt.text == GOLDEN
    assert prompt.text[prompt.target_start :].startswith("public static void main")


@needs_shared
@pytest.mark.slow
def test_where_the_papers_rfind_falls_inside_the_snippet() -> None:
    parallel = read_parallel(SHARED / "code_snippets.zip")
    for target in parallel.languages:
        found = 0
        for id_ in parallel.ids:
            prompt = build_prompt("S", target, [], [], "x", parallel.texts[target][id_])
            found += prompt.text.rfind(target) + len(target + ":") + 1 != prompt.target_start
        assert found == {"C": 37, "PHP": 5}.get(target, 0), target


@needs_shared
@pytest.mark.slow
def test_how_many_snippets_the_papers_clean_up_of_spaces_alters(tokenizer: Any) -> None:
    texts = read_parallel(SHARED / "code_snippets.zip").texts
    altered = {
        name: sum(tokenizer.clean_up_tokenization(text) != text for text in by_id.values())
        for name, by_id in texts.items()
    }
    assert altered == {"C": 26, "C++": 30, "C#": 36, "Java": 32, "Javascript": 43, "PHP": 54, "Python": 27}


def prompts(translations: Sequence[str]) -> list[Prompt]:
    return [build_prompt("Python", "C", LINES, LINES, " n = 3\n", text) for text in translations]


@pytest.mark.parametrize("bos", [True, False], ids=["with BOS", "without BOS"])
@pytest.mark.slow
def test_the_target_is_predicted_from_the_token_before_it_to_its_end(bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    translations = ["int C = 3; // C: 1", "é数 != y", "  \n", "{"]
    found = tokenise_prompts(tokenizer, prompts(translations), frozenset(tokenizer.all_special_ids), paper=False)
    for prompt, tokens, translation in zip(prompts(translations), found, translations, strict=True):
        if not translation.strip():
            assert not tokens.rows
            continue
        (row,) = tokens.rows
        assert row.ids == tokens.ids == tokenizer(prompt.text)["input_ids"]
        assert [position + 1 for position in row.positions] == row.gold == list(range(row.gold[0], len(row.ids)))
        assert tokenizer.decode([row.ids[index] for index in row.gold]).strip() == translation.strip()


@pytest.mark.parametrize("clean_up", [True, False], ids=["clean-up", "no clean-up"])
@pytest.mark.slow
def test_the_papers_prefixes_are_decoded_and_encoded_again(clean_up: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = clean_up
    translations = ["if (x != y) n = C ? 1 : 2;", "a . b , c 's"]
    found = tokenise_prompts(tokenizer, prompts(translations), frozenset({0, 1}), paper=True)
    for prompt, tokens in zip(prompts(translations), found, strict=True):
        start = prompt.text.rfind("C") + 3
        ids = tokenizer.encode(prompt.text)
        first, end = len(tokenizer.tokenize(prompt.text[:start])), len(tokenizer.tokenize(prompt.text))
        expected = {}
        for index in range(first, end):
            text = tokenizer.decode(ids[:index], clean_up_tokenization_spaces=False)
            expected[index] = tokenizer.encode(tokenizer.clean_up_tokenization(text) if clean_up else text)
        got = {
            gold: row.ids[: position + 1]
            for row in tokens.rows
            for position, gold in zip(row.positions, row.gold, strict=True)
        }
        assert got == expected
        assert all(prefix[:2] == [0, 0] for prefix in got.values())
        assert max(got) == len(ids) - 2  # the last target token isn't predicted
        assert len(tokens.rows) < len(expected)


def test_few_shot_lines_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'C#': can't read .*c#_fewshot.txt"):
        read_few_shot(tmp_path, "C#")
    (tmp_path / "c#_fewshot.txt").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        read_few_shot(tmp_path, "C#")
