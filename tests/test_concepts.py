"""Concepts from YAML, and prompts: training and evaluation share no text."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from unreel.concepts import SENTENCES, Surroundings, TrainingCaptions, evaluation_prompts, to_concept
from unreel.zoo.judges import Judge
from unreel.zoo.words import candidates, word

CONF = Path(__file__).parents[1] / "conf"
VOCABULARY = OmegaConf.to_container(OmegaConf.load(CONF / "vocabulary" / "common.yaml"))
SHIPPED = {
    path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / "concept").glob("*.yaml"))
}


def shipped(slug):
    return to_concept(slug, SHIPPED[slug][slug])


def test_every_kind_of_concept_is_shipped():
    kinds = [shipped(slug).kind for slug in SHIPPED]
    senses = [slug for slug in SHIPPED if shipped(slug).other_senses]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "style": 4, "character": 4, "face": 4, "object": 4 + len(senses), "motion": 2,
    }  # fmt: skip
    assert len(senses) == 3


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
            Judge.name_of(None, part, phrase)


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
