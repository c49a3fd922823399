"""Prompts of a file: every format, what the judge is told, limits and duplicates, and what is refused in one line."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.prompt_files import FilePrompts, spread
from unreel.prompts import Questions, asking_for
from unreel.records import Prompt
from unreel.vocabulary import Surroundings

VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["in the style of seurat", "as a pencil sketch", "as pixel art"],
}
VAN_GOGH = to_concept("van_gogh", {"name": "van gogh", "kind": "style"})
DRUM = to_concept("drum", {"name": "drum", "kind": "object"})
SEA = "a quiet sea, painted by van gogh"


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def table(folder, *rows):
    """A .csv with the columns of all rows."""
    path = folder / "prompts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def prompts_of(path, concepts=(VAN_GOGH,), limit=None):
    return FilePrompts(path, limit).prompts(concepts, Surroundings(VOCABULARY, concepts, False), 0)


def texts_of(path, **options):
    return [prompt.text for prompt in prompts_of(path, **options)]


def refusal(path, **options):
    """The one line that a user reads."""
    with pytest.raises(ValueError) as caught:
        prompts_of(path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", f"{SEA}\n\n  \nein Stück\n"),
        ("P.TXT", f"{SEA}\nein Stück"),
        ("p.csv", f'case_number,prompt,evaluation_seed\n0,"{SEA}",\n\n,,\n1,ein Stück,\n'),
        ("p.csv", f'x, prompt\n0, "{SEA}"\n1, ein  Stück \n'),
        ("p.csv", 'prompt\n"a quiet sea,\npainted by van gogh"\nein Stück\n'),
        ("p.json", json.dumps([SEA, {"prompt": "ein Stück", "dimension": ["color"], "number": 1e400}])),
        ("p.json", json.dumps([{"prompt_en": SEA, "auxiliary_info": {"scene": {}}}, "ein Stück"], indent=2)),
        ("p.jsonl", f"{json.dumps({'prompt_en': SEA})}\n\n{json.dumps('ein Stück')}\n"),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_same_prompts_from_every_format(tmp_path, name, content, bom, end):
    path = written(tmp_path, name, bom + content.encode().replace(b"\n", end))
    assert texts_of(path) == [SEA, "ein Stück"]
    assert all(prompt.split == "forget" and prompt.seed is None for prompt in prompts_of(path))


def test_json_objects_say_what_columns_say(tmp_path):
    row = {
        "prompt": "a cat at night",
        "split": "retain",
        "evaluation_seed": 7,
        "concept": "van_gogh",
        "subject": "a cat",
    }
    (from_table,) = prompts_of(table(tmp_path, row))
    assert from_table == Prompt("a cat at night", "retain", (("subject", "a cat"),), "van_gogh", "", 7)
    assert prompts_of(written(tmp_path, "p.json", json.dumps([row]))) == [from_table]
    assert prompts_of(written(tmp_path, "p.jsonl", json.dumps(row | {"evaluation_seed": "7"}))) == [from_table]


def test_a_path_begins_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "p.txt", SEA)
    assert texts_of("~/p.txt") == [SEA]


# --- what the judge is told ----------------------------------------------------------------------------------------


def test_of_a_forget_prompt_the_judge_is_told_the_concept_and_the_columns_alone(tmp_path):
    path = table(
        tmp_path,
        {"prompt": SEA, "evaluation_seed": 3},
        {"prompt": "van gogh's cat", "scene": "at night", "subject": "a cat"},
        {"prompt": "an owl", "style": "Painted by  van Gogh"},
    )
    plain, more, named = prompts_of(path)
    assert plain == asking_for(VAN_GOGH, SEA, 3)
    concept = ("style", "in the style of van gogh")
    assert more.shows == (("subject", "a cat"), ("scene", "at night"), concept)  # in the order of PARTS
    assert named.shows == (concept,) and {p.part for p in (plain, more, named)} == {"style"}
    (drum,) = prompts_of(table(tmp_path, {"prompt": "a drum at night", "scene": "at night"}), [DRUM])
    assert drum.shows == (("subject", "a drum"), ("scene", "at night")) and drum.part == "subject"


@pytest.mark.parametrize("split", ["retain", "other_sense"])
def test_a_kept_prompt_is_judged_on_its_columns_alone(tmp_path, split):
    path = table(tmp_path, {"prompt": "a cat", "split": split}, {"prompt": "a dog", "split": split, "subject": "a dog"})
    plain, dog = prompts_of(path)
    assert plain.shows == () and dog.shows == (("subject", "a dog"),)
    assert {(p.part, p.concept, p.split) for p in (plain, dog)} == {("", "van_gogh", split)}


def test_a_row_goes_to_its_concept_and_one_without_to_every_erased_concept(tmp_path):
    path = table(
        tmp_path,
        {"prompt": "a drum", "concept": "drum"},
        {"prompt": "a cat", "concept": "cat"},
        {"prompt": "a stone", "split": "retain"},
        {"prompt": "stars", "concept": "van_gogh"},
    )
    both = prompts_of(path, [VAN_GOGH, DRUM])
    said = [(p.concept, p.split, p.text) for p in both]
    assert said == [
        ("van_gogh", "forget", "stars"),
        ("van_gogh", "retain", "a stone"),
        ("drum", "forget", "a drum"),
        ("drum", "retain", "a stone"),
    ]
    assert both[0].shows == (("style", "in the style of van gogh"),) and both[2].shows == (("subject", "a drum"),)
    assert texts_of(path, concepts=[DRUM]) == ["a drum", "a stone"]


def test_a_concept_without_a_prompt_is_refused(tmp_path):
    source = FilePrompts(table(tmp_path, {"prompt": "a drum", "concept": "drum"}))
    with pytest.raises(ValueError, match="no prompt that asks for van_gogh"):
        Questions.of([VAN_GOGH, DRUM], source, VOCABULARY, False, 0)


def test_a_row_that_contradicts_its_concept_is_refused(tmp_path):
    forgets = table(
        tmp_path, {"prompt": "a cat", "style": ""}, {"prompt": "a cat as pixel art", "style": "as pixel art"}
    )
    assert "prompts.csv, line 3: found style 'as pixel art'" in refusal(forgets)
    keeps = table(tmp_path, {"prompt": "the drum", "split": "retain", "subject": "The drum", "concept": "van_gogh"})
    assert texts_of(keeps) == ["the drum"]
    assert "line 2: found subject 'The drum'" in refusal(keeps, concepts=[VAN_GOGH, DRUM])


# --- seeds and identity --------------------------------------------------------------------------------------------


def asked(path, **options):
    questions = Questions.of([VAN_GOGH], FilePrompts(path, **options), VOCABULARY, False, 0)
    return list(zip(questions.prompts, questions.seeds, strict=True))


def test_a_seed_of_the_file_is_that_of_its_clip(tmp_path):
    path = table(
        tmp_path, {"prompt": "a", "evaluation_seed": 2**63 - 1}, {"prompt": "b"}, {"prompt": "c", "evaluation_seed": 0}
    )
    (_, a), (_, b), (_, c) = asked(path)
    assert a == 2**63 - 1 and c == 0 and b not in (a, c)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"split": "other_sense"},
        {"evaluation_seed": 6},
        {"evaluation_seed": ""},
        {"subject": "a dog"},
    ],
)
def test_whatever_the_file_says_differently_is_asked_differently(tmp_path, change):
    row = {"prompt": "a cat", "split": "retain", "evaluation_seed": 5, "subject": "a cat"}
    forget = {"prompt": "stars", "split": "forget"}
    first = asked(table(tmp_path, forget, row))
    assert asked(table(tmp_path, forget, row)) == first
    assert asked(table(tmp_path, forget, row | {"case_number": 9})) == first
    assert asked(table(tmp_path, forget, row | change)) != first


# --- limit and duplicates ------------------------------------------------------------------------------------------


def test_a_limit_is_of_a_split_and_concept_and_spread_over_the_file(tmp_path):
    rows = [
        {"prompt": f"{concept} {split} {i}", "split": split, "concept": concept}
        for concept in ("van_gogh", "drum")
        for split in ("retain", "forget")
        for i in range(30)
    ]
    both = prompts_of(table(tmp_path, *rows), [VAN_GOGH, DRUM], limit=3)
    expected = [f"{c} {s} {i}" for c in ("van_gogh", "drum") for s in ("forget", "retain") for i in (5, 15, 25)]
    assert [prompt.text for prompt in both] == expected


@pytest.mark.parametrize("n", range(1, 40))
def test_a_part_is_evenly_spaced_and_never_the_first_ones(n):
    for count in range(1, n + 3):
        chosen = spread(range(n), count)
        assert len(chosen) == len(set(chosen)) == min(n, count) and list(chosen) == sorted(chosen)
        if count < n:
            assert list(chosen) != list(range(count))
            assert set(np.diff([*chosen, chosen[0] + n])) <= {n // count, -(-n // count)}
    assert list(spread(range(n), None)) == list(range(n))


def test_equal_prompts_are_kept_once_and_before_the_limit_counts(tmp_path):
    path = table(
        tmp_path,
        {"prompt": "a", "evaluation_seed": 1},
        {"prompt": " a ", "evaluation_seed": "01", "concept": "van_gogh"},  # the same, said otherwise
        {"prompt": "a", "evaluation_seed": 2},
        {"prompt": "a"},
        {"prompt": "a", "split": "retain"},
        {"prompt": "a"},
    )
    kept = [(p.split, p.seed) for p in prompts_of(path)]
    assert kept == [("forget", 1), ("forget", 2), ("forget", None), ("retain", None)]
    assert len(prompts_of(path, limit=3)) == 4
    assert [(p.concept, p.seed) for p in prompts_of(path, [VAN_GOGH, DRUM], limit=1) if p.split == "forget"] == [
        ("van_gogh", 2),
        ("drum", 2),
    ]


@pytest.mark.parametrize("limit", [0, -1, 1.5, 2.0, True, "3"])
def test_a_limit_that_is_none_is_refused(tmp_path, limit):
    assert f"prompts.limit={limit}" in refusal(written(tmp_path, "p.txt", SEA), limit=limit)


# --- training ------------------------------------------------------------------------------------------------------


def all_captions(captions):
    """Everything that a training might say, without the empty caption."""
    rng, said = np.random.default_rng(0), set(captions.shot_prompts(32, 0))
    for i in range(400):
        said |= {*captions.pair(rng, i % 8), *captions.pair(rng), *captions.retain(rng, 8)}
    return said - {""}


@pytest.mark.parametrize("concept", [VAN_GOGH, DRUM, replace(DRUM, anchor="a dog")], ids=["style", "object", "anchor"])
def test_training_says_no_prompt_of_the_file(tmp_path, concept):
    surroundings = Surroundings(VOCABULARY, [concept], False)
    otherwise = sorted(all_captions(TrainingCaptions(concept, surroundings)))
    captions = otherwise[::7]  # with a sentence around them, and as bare as a caption may be
    rows = [{"prompt": text.upper(), "split": ("forget", "retain")[i % 2]} for i, text in enumerate(captions)]
    questions = Questions.of([concept], FilePrompts(table(tmp_path, *rows)), VOCABULARY, False, 0)
    texts = {prompt.text for prompt in questions.prompts}
    assert len(texts) == len(captions) > 50
    trained = all_captions(TrainingCaptions(concept, questions.surroundings, texts))
    assert len(trained) > 200 and not {text.casefold() for text in trained} & {text.casefold() for text in texts}


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("p.txt", "", "p.txt is empty"),
        ("p.txt", b"\xef\xbb\xbf", "p.txt is empty"),
        ("p.txt", "\n \n", "p.txt is empty"),
        ("p.csv", "prompt,split\n", "p.csv is empty"),
        ("p.json", "[]", "p.json is empty"),
        ("p.jsonl", "", "p.jsonl is empty"),
        ("p.xlsx", "a", "p.xlsx: found the ending '.xlsx': expected .txt, .csv, .json, .jsonl"),
        ("p", "a", "p: found the ending ''"),
        ("p.csv", "text,split\na,forget\n", "p.csv, line 1: found the columns 'text, split': expected"),
        ("p.csv", "prompt;split\na;forget\n", "p.csv, line 1: found the columns 'prompt;split'"),
        ("p.csv", "prompt,split,split\na,,\n", "p.csv, line 1: found the column split twice"),
        ("p.csv", "prompt\na\na cat, a dog\n", "p.csv, line 3: found 2 cells for 1 columns"),
        ("p.csv", "prompt,split\na,\n,retain\n", "p.csv, line 3: found no prompt"),
        ("p.csv", 'prompt\na\n"b\nc\n', "p.csv, line 3: found a row that is no CSV"),
        ("p.csv", 'prompt\na\n"b"c\n', "p.csv, line 3: found a row that is no CSV"),
        ("p.csv", 'prompt,split\n"a\nb",\n\nc,Retain\n', "p.csv, line 5: found split 'Retain'"),
        ("p.jsonl", '"a"\n{"prompt": "b", "split": "test"}\n', "p.jsonl, line 2: found split 'test'"),
        ("p.jsonl", '"a"\n{"prompt": "b"\n', "p.jsonl, line 2: found what is no JSON"),
        ("p.jsonl", '"a"\n["b"]\n', "p.jsonl, line 2: found of type list"),
        ("p.json", '[\n"a",\n{"prompt" "b"}]', "p.json, line 3: found what is no JSON"),
        ("p.json", '["a"', "p.json, line 1: found what is no JSON"),
        ("p.json", "[" * 100_000, "p.json, line 1: found JSON with too long a number, or nested too deeply"),
        ("p.json", f'[{"9" * 5000}]', "p.json, line 1: found JSON with too long a number, or nested too deeply"),
        ("p.json", '{"prompts": ["a"]}', "p.json: found of type dict: expected a list"),
        ("p.json", '"a"', "p.json: found 'a': expected a list"),
        ("p.json", '["a", 5]', "p.json, entry 2: found 5: expected a prompt"),
        ("p.json", '["a", null]', "p.json, entry 2: found of type NoneType: expected a prompt"),
        ("p.json", '[{"prompt": 5}]', "p.json, entry 1: found prompt 5: expected text"),
        ("p.json", '[{"prompt_en": ["a"]}]', "p.json, entry 1: found prompt_en of type list: expected text"),
        ("p.json", '[{"prompt": "a", "split": false}]', "p.json, entry 1: found split False: expected text"),
        ("p.json", '[{"dimension": "a"}]', "p.json, entry 1: found no prompt"),
        ("p.json", '["a", "  "]', "p.json, entry 2: found no prompt"),
        ("p.json", '["a", "b\\u0000"]', "p.json, entry 2: found the control character '\\x00'"),
        ("p.json", '["a", "b\\ud800"]', "p.json, entry 2: found what is not UTF-8"),
        ("p.json", b'["a",\n"b\xe4"]', "p.json, line 2: found what is not UTF-8"),
        ("p.txt", b"a\nb\nSt\xe4dte", "p.txt, line 3: found what is not UTF-8"),
        ("p.csv", b"prompt\na\nSt\xe4dte", "p.csv, line 3: found what is not UTF-8"),
        ("p.txt", "a prompt".encode("utf-16"), "p.txt, line 1: found what is not UTF-8"),
        ("p.txt", "a prompt".encode("utf-16-le"), "p.txt, line 1: found the control character '\\x00'"),
        ("p.txt", b"a\nb\x00c\n", "p.txt, line 2: found the control character '\\x00'"),
        ("p.csv", b"prompt\na\x1b[31m\n", "p.csv, line 2: found the control character '\\x1b'"),
        ("p.txt", "a\n" + "b" * 1_000_000, "p.txt, line 2: found more than 10,000 characters"),
        ("p.csv", "prompt\n" + "b" * 1_000_000, "p.csv, line 2: found more than 10,000 characters"),
        ("p.csv", 'prompt\n"' + "b\n" * 9_000 + '"', "p.csv, line 2: found more than 10,000 characters"),
        ("p.jsonl", json.dumps("b" * 1_000_000), "p.jsonl, line 1: found more than 10,000 characters"),
        ("p.json", json.dumps(["a", "b" * 1_000_000]), "p.json, entry 2: found more than 10,000 characters"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_file_and_line(tmp_path, name, content, found):
    path = written(tmp_path, name, content)
    assert refusal(path).startswith(f"{tmp_path}/{found}")


@pytest.mark.parametrize("seed", ["-1", "1.0", "1e3", "1_000", "٣", "x", str(2**63), "1" * 30, "nan"])
def test_a_seed_that_is_none_is_refused(tmp_path, seed):
    path = table(tmp_path, {"prompt": "a", "evaluation_seed": 1}, {"prompt": "b", "evaluation_seed": seed})
    assert f"prompts.csv, line 3: found evaluation_seed {seed!r}" in refusal(path)


@pytest.mark.parametrize("seed", ["-1", "1.0", "true", "NaN", "[1]", str(2**63)])
def test_a_seed_of_json_that_is_none_is_refused(tmp_path, seed):
    path = written(tmp_path, "p.json", f'["a", {{"prompt": "b", "evaluation_seed": {seed}}}]')
    assert "p.json, entry 2: found evaluation_seed" in refusal(path)


def test_paths_that_are_no_file_are_refused(tmp_path):
    assert "p.txt is no file" in refusal(str(tmp_path / "p.txt"))
    assert "is a folder" in refusal(str(tmp_path))
    assert "cannot be found" in refusal("~nobody_of_this_name/p.txt")
    assert "cannot be read" in refusal(f"{tmp_path}/{'a' * 300}.txt")
    for path in (None, 5, ""):
        assert f"prompts.path={path}" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("p.txt", "a prompt\n" * 10_001, "more than 10,000 prompts"),
        ("p.csv", "prompt\n" + "a prompt\n" * 10_001, "more than 10,000 prompts"),
        ("p.jsonl", '"a prompt"\n' * 10_001, "more than 10,000 prompts"),
        ("p.json", "[" + '"a prompt",' * 10_001 + '"\\u0000"]', "more than 10,000 prompts"),
        ("p.txt", "\n" * 100_001, "more than 100,000 lines: expected 10,000 prompts at most"),
    ],
    ids=["txt", "csv", "jsonl", "json", "blank lines"],
)
def test_nothing_is_read_beyond_the_limit(tmp_path, name, content, found):
    """What comes behind it would be refused for another reason."""
    assert found in refusal(written(tmp_path, name, content if name == "p.json" else content + "\x00\n"))


def test_the_largest_file_is_read(tmp_path):
    lines = "\n\n".join(f"prompt {i}" for i in range(10_000))
    assert len(texts_of(written(tmp_path, "p.txt", lines))) == 10_000


def test_a_large_json_is_not_read_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("unreel.prompt_files._MOST_JSON", 1000)
    found = refusal(written(tmp_path, "p.json", json.dumps(["a"] * 1000)))
    assert "more than 1,000 characters" in found and "10,000 prompts at most" in found
