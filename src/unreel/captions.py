"""Training captions: what the shots are said to show, the same without the concept, and what must not move."""

import zlib
from collections.abc import Collection

import numpy as np

from unreel.records import Concept
from unreel.rewriting import lengthen, lengthen_alike
from unreel.vocabulary import NEUTRAL, SENTENCES, TEMPLATES, Surroundings, say


class TrainingCaptions:
    """Captions of the training: with the concept, the same without it, and others that must not move.

    Args:
        concept: what is erased.
        surroundings: what else they say.
        evaluated: texts of the evaluation, which no caption repeats, with or without a sentence around it.

    Raises:
        ValueError: when the evaluation leaves nothing to say.
    """

    def __init__(self, concept: Concept, surroundings: Surroundings, evaluated: Collection[str] = ()) -> None:
        self.concept, self.surroundings = concept, surroundings
        self.evaluated = {text.casefold() for text in evaluated}
        rng = np.random.default_rng([zlib.crc32(concept.slug.encode()), 2])
        contexts = surroundings.contexts(concept.part, False, rng, 96)
        self.contexts = [c for c in contexts if all(self._is_free(c, phrase) for phrase in concept.phrases)]
        if not self.contexts:
            raise ValueError(
                f"{concept.slug}: the evaluation's prompts say all that training captions could say: use fewer"
            )
        self.anchor = concept.anchor or NEUTRAL[concept.part]
        self.bare = self._templates()
        self.senses = surroundings.kept(concept.other_senses)
        self.near = [*surroundings.neighbours(concept), *self.senses]

    def pair(self, rng: np.random.Generator, shot: int | None = None, long: float = 0.0) -> tuple[str, str]:
        """A caption that names the concept, and the same one with its anchor in its place.

        Args:
            rng: chooses wording and surroundings.
            shot: the shot whose surroundings it says, as `shot_prompts` did; None for any.
            long: the probability that both are said at length, as people prompt video models.
        """
        sentence = rng.integers(len(SENTENCES))
        phrase = self.concept.phrases[rng.integers(len(self.concept.phrases))]
        context = self._context(rng, phrase) if shot is None else self.contexts[shot % len(self.contexts)]
        named, anchored = ({**context, self.concept.part: said} for said in (phrase, self.anchor))
        if long and rng.random() < long:
            long_named, long_anchored = lengthen_alike([named, anchored], rng)
            return long_named, long_anchored
        return self._sentence(sentence, say(named)), self._sentence(sentence, say(anchored))

    def bare_pair(self, rng: np.random.Generator) -> tuple[str, str]:
        """A caption that names the concept and says nothing else, and the same one with its anchor in its place."""
        return self.bare[rng.integers(len(self.bare))]

    def _templates(self) -> list[tuple[str, str]]:
        """All captions of `bare_pair`. ValueError when the evaluation says every one of them."""
        templates, name = TEMPLATES[self.concept.part], self.concept.phrases[0]
        named, anchored = ([" ".join(form.format(said).split()) for form in templates] for said in (name, self.anchor))
        pairs = list(zip(named, anchored, strict=True))
        free = [pair for pair in pairs if not {said.casefold() for said in pair} & self.evaluated]
        if not free:
            raise ValueError(f"{self.concept.slug}: the evaluation's prompts are all templates of captions: use others")
        return free

    def shot_prompts(self, count: int, seed: int) -> list[str]:
        """What the donor is given for `count` shots: the concept in the first contexts of the training."""
        rng = np.random.default_rng([seed, 4])
        phrases = self.concept.phrases
        said = [
            {**self.contexts[i % len(self.contexts)], self.concept.part: phrases[i % len(phrases)]}
            for i in range(count)
        ]
        return [self._sentence(rng.integers(len(SENTENCES)), say(parts)) for parts in said]

    def retain(self, rng: np.random.Generator, count: int, long: float = 0.0) -> list[str]:
        """`count` captions that must keep their meaning: of near things, far ones, other senses, and of nothing.

        Of those that say something each is said at length with probability `long`.
        """
        captions = []
        far = self.surroundings.vocabulary[self.concept.part] or [""]
        for i in range(count):
            choices = (self.near, far, self.senses or self.near, [NEUTRAL[self.concept.part]])[i % 4]
            phrase = str(choices[rng.integers(len(choices))]) if choices else ""
            parts = {**self._context(rng, phrase), self.concept.part: phrase}
            text = self._sentence(rng.integers(len(SENTENCES)), say(parts)) if rng.random() < 0.8 else ""
            captions.append(lengthen(parts, rng) if text and long and rng.random() < long else text)
        return captions

    def _sentence(self, which: int | np.integer, text: str) -> str:
        """A text in one of the sentences, the next one where the evaluation says exactly that."""
        said = [SENTENCES[(int(which) + i) % len(SENTENCES)].format(text) for i in range(len(SENTENCES))]
        return next((each for each in said if each.casefold() not in self.evaluated), said[0])

    def _can_be_said(self, text: str) -> bool:
        """Whether the evaluation says neither the text alone nor all sentences around it."""
        said = [sentence.format(text).casefold() for sentence in SENTENCES]
        return text.casefold() not in self.evaluated and any(each not in self.evaluated for each in said)

    def _context(self, rng: np.random.Generator, phrase: str) -> dict[str, str]:
        """Some of the parts around a phrase, each left out now and then, as no evaluation says them."""
        while True:
            whole = self.contexts[rng.integers(len(self.contexts))]
            context = {part: said for part, said in whole.items() if rng.random() < 0.8}
            if self._is_free(context, phrase):
                return context

    def _is_free(self, context: dict[str, str], phrase: str) -> bool:
        """Whether no evaluation says the phrase, or the anchor, exactly so."""
        said = [{**context, self.concept.part: each} if each else context for each in (phrase, self.concept.anchor)]
        if self.evaluated and not all(self._can_be_said(say(parts)) for parts in said):
            return False
        return not any(map(self.surroundings.is_evaluated, said))
