"""Prompts at length: what their templates say, how they are asked, and those that a language model writes."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer, LlamaConfig, LlamaForCausalLM

from conftest import configured
from test_prompt_files import DRUM, VAN_GOGH, VOCABULARY
from unreel import door, language_model, rewriting
from unreel.concepts import to_concept
from unreel.language_model import cleaned
from unreel.long_prompts import LongPrompts
from unreel.prompts import Questions, VocabularyPrompts
from unreel.rewriting import LEAST_WORDS, MOST_WORDS, lengthen
from unreel.zoo.store import zoo_tokenizer

COMMON = configured("train", ["concept=drum"]).vocabulary
PHRASES = {part: st.sampled_from(["", *COMMON[part]]) for part in ("subject", "motion", "scene", "style")}


def questions(concepts=(VAN_GOGH,), **more):
    return Questions.of(list(concepts), LongPrompts(VocabularyPrompts(4), **more), VOCABULARY, False, 0)


def test_the_templates_say_only_what_the_zoos_text_encoder_knows():
    known = CLIPTokenizer.from_pretrained(zoo_tokenizer()).get_vocab()
    texts = [*rewriting._FILLERS, *(re.sub(r"\{\w+\}", "", piece) for form in rewriting._FORMS for piece in form)]
    assert not [word for text in texts for word in re.findall("[a-z]+", text) if f"{word}</w>" not in known]


@given(st.fixed_dictionaries(PHRASES), st.integers(0, 10_000))
def test_a_long_form_says_every_phrase_as_it_is_and_leaves_no_gap(parts, seed):
    text = lengthen(parts, np.random.default_rng(seed))
    assert all(phrase in text for phrase in parts.values()) and LEAST_WORDS <= len(text.split()) <= MOST_WORDS
    assert not re.search(r"[{}]|  | [,.;:]|[,:;]\.|,,|^\W", text) and text.endswith(".")
    assert text == lengthen(parts, np.random.default_rng(seed))


@given(st.fixed_dictionaries(PHRASES), st.integers(0, 100))
def test_no_text_encoder_cuts_a_long_form_off(parts, seed):
    tokens = CLIPTokenizer.from_pretrained(zoo_tokenizer())(lengthen(parts, np.random.default_rng(seed))).input_ids
    assert len(tokens) <= 64


def test_a_text_that_no_grammar_made_is_said_in_one_piece():
    said = "two owls, seen through rain"
    assert said in lengthen(said, np.random.default_rng(0))


def test_every_prompt_is_asked_in_both_forms_with_the_same_seed_and_judged_alike():
    asked = questions([VAN_GOGH, DRUM])
    half = len(asked.prompts) // 2
    short, long = asked.prompts[:half], asked.prompts[half:]
    plain = Questions.of([VAN_GOGH, DRUM], VocabularyPrompts(4), VOCABULARY, False, 0)
    assert short == plain.prompts and asked.seeds == plain.seeds * 2
    assert [replace(p, text="", split=f"{p.split}_long") for p in short] == [replace(p, text="") for p in long]
    assert all(phrase in p.text for p in long for _, phrase in p.shows)
    assert not {p.text for p in short} & {p.text for p in long} and asked.prompts == questions([VAN_GOGH, DRUM]).prompts


def test_a_concepts_own_prompts_have_a_long_form_too():
    own = to_concept("owl", {"name": "owl", "kind": "object", "prompts": ["an owl that sits very still"]})
    asked = [p for p in questions([own]).prompts if p.split.startswith("forget")]
    assert [p.split for p in asked] == ["forget", "forget_long"] and asked[0].text in asked[1].text


def test_the_command_line_asks_for_both_forms(tmp_path):
    config = configured(
        "train", ["concept=van_gogh", "prompts=long", "device=cpu", f"cache={tmp_path}", f"runs={tmp_path}"]
    )
    door.check(config)
    assert config.prompts.device == "cpu"
    assert {p.split for p in door.questions_of(config).prompts} == {"forget", "retain", "forget_long", "retain_long"}
    for wrong in (str(tmp_path), "no/where"):
        with pytest.raises(Exception, match=r"prompts\.rewriter=.*expected the folder of a causal language model"):
            LongPrompts(VocabularyPrompts(4), rewriter=wrong)


# --- a language model ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "chat"])
def small_lm(tmp_path, request):
    """A folder of a real causal language model with random weights, and a tokenizer with a chat template or without."""
    folder = tmp_path / "lm"
    tokenizer = CLIPTokenizer.from_pretrained(zoo_tokenizer(), model_max_length=512)
    if request.param == "chat":
        tokenizer.chat_template = "{% for m in messages %}user: {{ m.content }}\nassistant: {% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ids = dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    LlamaForCausalLM(LlamaConfig(**sizes, **ids)).save_pretrained(folder)
    return str(folder)


def test_what_a_language_model_leaves_out_is_told_and_written_by_templates(small_lm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # which nobody may go to
    asked = questions(rewriter=small_lm, cache=str(tmp_path / "cache"), device="cpu")
    half, (*_, said) = len(asked.prompts) // 2, capsys.readouterr().err.splitlines()
    lost = f"left out words that it was to keep in {half} of {half} prompts"
    assert said == f"unreel: {small_lm} {lost}: templates wrote those"
    assert asked.prompts == questions().prompts  # random weights keep nothing
    monkeypatch.setattr(language_model, "_answers", None)  # what it said once is not asked again
    assert questions(rewriter=small_lm, cache=str(tmp_path / "cache")).prompts == asked.prompts


def test_what_a_language_model_writes_is_asked_where_it_keeps_the_words(small_lm, tmp_path, capsys, monkeypatch):
    seen = []

    def answers(asked, folder, device):
        assert device == "cpu"
        seen.extend(asked)
        short = [text.rpartition("Prompt: ")[2] for text in asked]
        return [f'Rewritten prompt: "Golden light, and {s.upper()}.\n It glows."\n\nEnjoy!' for s in short[:-1]] + [
            "No."
        ]

    monkeypatch.setattr(language_model, "_answers", answers)
    asked = questions(rewriter=small_lm, cache=str(tmp_path / "cache"), device="cpu")
    half = len(asked.prompts) // 2
    short, long = asked.prompts[:half], asked.prompts[half:]
    assert [p.text for p in long[:-1]] == [f"Golden light, and {p.text.upper()}. It glows." for p in short[:-1]]
    assert long[-1] == questions().prompts[-1] and f"in 1 of {half} prompts" in capsys.readouterr().err
    assert all(phrase in text for p, text in zip(short, seen, strict=True) for _, phrase in p.shows)


def test_an_answer_is_cleaned():
    assert (
        cleaned('<think>hm,\nwell</think>\n**Prompt:** "A cat\nat *night*."\n\nI hope this helps.') == "A cat at night."
    )
    assert cleaned("Sure, here it is: a `cat`\x07") == "a cat" and cleaned("") == ""
