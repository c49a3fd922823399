"""Concepts from YAML, and prompts: training and evaluation share no text."""

import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from unreel.captions import TrainingCaptions
from unreel.concepts import KINDS, slug_of, to_concept
from unreel.prompts import Questions, VocabularyPrompts, evaluation_prompts
from unreel.vocabulary import SENTENCES, Surroundings
from unreel.zoo.judge import name_among
from unreel.zoo.words import candidates, word

CONF = Path(__file__).parents[1] / "conf"
VOCABULARY = OmegaConf.to_container(OmegaConf.load(CONF / "vocabulary" / "common.yaml"))
SHIPPED = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / "concept").glob("*.yaml"))
}


def shipped(slug):
    return to_concept(slug, SHIPPED[slug][slug])


def test_every_kind_of_concept_is_shipped_and_words_with_two_senses():
    assert {shipped(slug).kind for slug in SHIPPED} == set(KINDS)
    assert any(shipped(slug).other_senses for slug in SHIPPED)


def test_prompts_of_a_concepts_own_take_the_place_of_the_sources():
    own = ["starry wheat fields swirl under a moon", "thick yellow paint, a chair"]
    concepts = [to_concept("van_gogh", SHIPPED["van_gogh"]["van_gogh"] | {"prompts": own}), shipped("drum")]
    questions = Questions.of(concepts, VocabularyPrompts(4), VOCABULARY, False, 0)
    asked = {(p.concept, p.split): [] for p in questions.prompts}
    for prompt in questions.prompts:
        asked[prompt.concept, prompt.split].append(prompt)
    assert [p.text for p in asked["van_gogh", "forget"]] == own
    assert {p.shows for p in asked["van_gogh", "forget"]} == {(("style", "in the style of van gogh"),)}
    assert len(asked["van_gogh", "retain"]) == 4 == len(asked["drum", "forget"])
    assert len(set(questions.seeds)) == len(questions.seeds)


def test_captions_repeat_no_evaluated_text_whatever_it_is():
    concept = shipped("drum")
    surroundings = Surroundings(VOCABULARY, [concept], False)
    free, rng = TrainingCaptions(concept, surroundings), np.random.default_rng(0)
    said = {text for i in range(2000) for text in free.pair(rng)} | {*free.retain(rng, 2000), *free.shot_prompts(48, 0)}
    evaluated = sorted(said - {""})[::7]
    held, rng = TrainingCaptions(concept, surroundings, evaluated), np.random.default_rng(0)
    again = {text for i in range(2000) for text in held.pair(rng)} | {
        *held.retain(rng, 2000),
        *held.shot_prompts(48, 0),
    }
    assert not again & set(evaluated) and len(again) > 1000


def bare(caption):
    """A caption of the training without the sentence around it."""
    for sentence in SENTENCES:
        before, after = sentence.split("{}")
        if caption.startswith(before) and caption.endswith(after):
            return caption[len(before) : len(caption) - len(after)]
    return caption


@pytest.mark.parametrize("slugs", [[slug] for slug in SHIPPED] + [["van_gogh", "drum"], ["bat_animal", "hokusai"]])
def test_no_text_of_the_training_is_evaluated(slugs):
    concepts = [shipped(slug) for slug in slugs]
    surroundings = Surroundings(VOCABULARY, concepts, with_motion=any(c.kind == "motion" for c in concepts))
    evaluated = {p for c in concepts for seed in range(3) for p in evaluation_prompts(c, surroundings, 24, seed)}
    trained, rng = set(), np.random.default_rng(0)
    for concept in concepts:
        captions = TrainingCaptions(concept, surroundings)
        trained |= {text for i in range(3000) for text in captions.pair(rng, i if i % 2 else None)}
        trained |= {*captions.retain(rng, 3000), *captions.shot_prompts(48, 0)}
    assert len({prompt.text for prompt in evaluated}) >= 24
    assert not {bare(text) for text in trained} & {prompt.text for prompt in evaluated}
    for prompt in evaluated:
        phrases = [phrase for concept in concepts for phrase in concept.phrases]
        named = any(f" {phrase} " in f" {prompt.text} " for phrase in phrases)
        assert named == (prompt.split == "forget")


@pytest.mark.parametrize("slug", SHIPPED)
def test_the_zoo_knows_every_word_of_the_shipped_concepts(slug):
    concept = shipped(slug)
    for phrase in (*concept.phrases, *concept.neighbours, *concept.other_senses):
        assert any(phrase == n or phrase in word(concept.part, n).phrases for n in candidates(concept.part)), phrase
    for part, phrases in VOCABULARY.items():
        for phrase in phrases:
            name_among(part, phrase)


def test_a_concept_without_neighbours_keeps_the_common_things_of_its_part():
    concept = to_concept("red_bicycle", {"name": "red bicycle", "kind": "object"})
    captions = TrainingCaptions(concept, Surroundings(VOCABULARY, [concept], False))
    assert set(captions.near) == set(VOCABULARY["subject"])
    assert concept.phrases[0] == "a red bicycle"


def test_what_is_erased_together_is_not_kept():
    concepts = [shipped("van_gogh"), shipped("hokusai"), shipped("cat")]
    surroundings, rng = Surroundings(VOCABULARY, concepts, False), np.random.default_rng(0)
    texts = [p.text for c in concepts for p in evaluation_prompts(c, surroundings, 24, 0) if p.split == "retain"]
    texts += [text for c in concepts for text in TrainingCaptions(c, surroundings).retain(rng, 200)]
    assert not [text for text in texts if "van gogh" in text or "hokusai" in text or "a cat" in text]


@pytest.mark.parametrize(
    ("slug", "config", "says"),
    [
        ("../evil", {"name": "x", "kind": "object"}, "letters, digits"),
        ("x", {"name": "x", "kind": "thing"}, "character, style, object, face, motion"),
        ("x", {"kind": "object"}, "name"),
        ("x", {"name": "x", "kind": "object", "neighbors": []}, "neighbors"),
        ("x", {"phrases": "a cat", "kind": "object"}, "phrases: 'a cat': expected a list"),
        ("x", "a cat", "found 'a cat': expected keys and values"),
        ("x", {"name": "cat", "kind": "object", "neighbours": ["A Cat"]}, "'a cat' is to be forgotten and kept"),
        (
            "x",
            {"name": "cat", "kind": "object", "neighbours": ["a dog", "a cat"]},
            "'a cat' is to be forgotten and kept",
        ),
    ],
)
def test_a_bad_concept_is_refused_by_name(slug, config, says):
    with pytest.raises(ValueError, match=says):
        to_concept(slug, config)


def test_a_sense_that_another_concept_erases_is_neither_asked_for_as_kept_nor_trained_as_kept():
    bats = [shipped("bat_animal"), to_concept("cricket", {"kind": "object", "phrases": ["a bat with a ball"]})]
    senses = [phrase for phrase in bats[0].other_senses if phrase != "a bat with a ball"]
    assert 0 < len(senses) < len(bats[0].other_senses)
    surroundings = Surroundings(VOCABULARY, bats, False)
    asked = {said for p in evaluation_prompts(bats[0], surroundings, 24, 0) if p.split == "other_sense"
             for _, said in p.shows}  # fmt: skip
    assert set(senses) <= asked and "a bat with a ball" not in asked
    assert "a bat with a ball" not in TrainingCaptions(bats[0], surroundings).near


def test_what_has_nothing_near_left_to_keep_keeps_the_rest():
    every = [shipped(slug) for slug in SHIPPED if shipped(slug).kind == "motion"]
    surroundings = Surroundings({**VOCABULARY, "motion": []}, every, True)
    asked = evaluation_prompts(every[0], surroundings, 6, 0)
    assert sum(p.split == "retain" for p in asked) == 6
    assert not [p for p in asked if p.split == "retain" for part, _ in p.shows if part == "motion"]
    monet = to_concept("monet", {"kind": "style", "name": "monet"})
    assert len(evaluation_prompts(monet, Surroundings({**VOCABULARY, "style": []}, [monet], False), 6, 0)) == 12


@pytest.mark.parametrize("phrases", ["a cat", [7], ["a cat", None]])
def test_a_vocabulary_that_is_no_lists_of_texts_is_refused(phrases):
    with pytest.raises(ValueError, match=r"found vocabulary.scene=.*expected a list of texts"):
        Surroundings({**VOCABULARY, "scene": phrases}, [], False)
    assert Surroundings({**VOCABULARY, "style": None}, [], False).vocabulary["style"] == []


def test_slugs_of_other_letters_and_signs_are_told_apart():
    assert slug_of("red bicycle") == "red_bicycle" and slug_of("Van  Gogh's") == "van_gogh_s"
    names = ["C++", "C#", "猫", "犬", "café", "cafe", "concept"]
    assert len({slug_of(name) for name in names}) == len(names)
    assert all(re.fullmatch("[a-z0-9_]{1,60}", slug_of(name)) for name in names)
