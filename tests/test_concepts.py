"""Concepts from YAML, and prompts: training and evaluation share no text."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from unreel.concepts import Surroundings, TrainingCaptions, evaluation_prompts, to_concept
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


@pytest.mark.parametrize("slug", SHIPPED)
def test_no_text_of_the_training_is_evaluated(slug):
    concept = shipped(slug)
    surroundings = Surroundings(VOCABULARY, [concept], with_motion=concept.kind == "motion")
    prompts = evaluation_prompts(concept, surroundings, 24, seed=0)
    captions, rng = TrainingCaptions(concept, surroundings), np.random.default_rng(0)
    forget, anchors = captions.pairs(rng, 500)
    trained = {*forget, *anchors, *captions.retain(rng, 500), *captions.shot_prompts(16, 0)}
    assert len({prompt.text for prompt in prompts}) >= 24
    assert not trained & {prompt.text for prompt in prompts}
    # nor is one only the other inside a sentence: what surrounds the concept differs
    contexts = [tuple(sorted(context.items())) for context in captions.contexts]
    for prompt in prompts:
        if prompt.split == "forget":
            said = tuple(sorted(pair for pair in prompt.shows if pair[0] != concept.part))
            assert said not in contexts
            assert any(phrase in prompt.text for phrase in concept.phrases)
        else:
            assert not any(f" {phrase} " in f" {prompt.text} " for phrase in concept.phrases)


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
