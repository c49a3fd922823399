"""Captions say what they claim to say, and any text becomes tokens."""

import numpy as np
import pytest

from unreel.zoo.captions import caption
from unreel.zoo.words import KINDS, SUBJECTS, candidates, word
from unreel.zoo.world import Spec, sample_spec


@pytest.mark.parametrize("long", [False, True])
def test_a_caption_states_exactly_what_it_claims(long):
    rng = np.random.default_rng(1)
    for _ in range(400):
        spec = sample_spec(rng)
        asked = frozenset(k for k in KINDS if rng.random() < 0.7)
        said = caption(spec, rng, long, asked)
        assert said.states <= asked
        for kind in KINDS:
            phrases = word(kind, getattr(spec, kind)).phrases
            assert any(phrase in said.text for phrase in phrases) == (kind in said.states), (said, spec, kind)
        assert said.text == said.text.lower().strip() and "  " not in said.text and " ," not in said.text
        assert not long or len(said.text.split()) >= 12


def test_harder_captions_leave_out_what_a_subject_implies():
    rng = np.random.default_rng(3)
    falling, still = (Spec("parachute", "beach", motion=m) for m in ("falling", "still"))
    unsaid = [np.mean(["motion" not in caption(s, rng, harder=h).states for _ in range(200)])
              for s, h in ((falling, True), (still, True), (falling, False), (still, False))]  # fmt: skip
    assert 0.4 < unsaid[0] < 0.8 and unsaid[1] == 0 and unsaid[2] == 0 and 0.4 < unsaid[3] < 0.8


def test_long_captions_of_everything_have_twenty_words():
    rng = np.random.default_rng(2)
    texts = [caption(Spec("cat", "beach", "mondrian", "jumping"), rng, long=True).text for _ in range(300)]
    assert min(len(text.split()) for text in texts) >= 20
    assert len(set(texts)) > 150


def test_a_word_with_two_senses_comes_with_words_that_tell_which():
    for name in ("bat", "mouse", "crane"):
        first, second = (w.phrases for w in SUBJECTS if w.name.startswith(f"{name} ("))
        assert all(name in phrase.split() or f"{name}," in phrase for phrase in (*first, *second))
        assert not set(first) & set(second) and all(len(p.split()) > 2 for p in (*first, *second))


def test_no_two_words_of_a_kind_share_a_phrase():
    for kind in KINDS:
        for name in candidates(kind):
            others = [p for other in candidates(kind) if other != name for p in word(kind, other).phrases]
            for phrase in word(kind, name).phrases:
                assert not any(phrase == other for other in others)
