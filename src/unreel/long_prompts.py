"""Prompts in two forms: as another source says them, and the same at length, in splits of their own.

The long form of a prompt has its seed and is judged by the same words, so that the columns "forget" and "long forget"
of a table differ in nothing but how much a prompt says.
"""

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unreel.prompts import PromptSource
from unreel.records import LONG, Concept, Prompt
from unreel.rewriting import lengthen
from unreel.vocabulary import Surroundings, say


@dataclass(frozen=True)
class LongPrompts(PromptSource):
    """The prompts of a source, and each of them once more at length: split forget_long beside forget, and so on.

    Attributes:
        source: of the prompts.
        rewriter: folder of a causal language model of transformers, best one that follows instructions, which writes
            the long forms; None leaves that to the templates of `lengthen`, in words that the zoo knows.
        cache: folder where what the language model wrote is kept.
        device: where the language model writes: auto, cpu or cuda.

    Raises:
        ValueError: for a rewriter that is no such folder.
    """

    source: PromptSource
    rewriter: str | None = None
    cache: str = "runs/cache"
    device: str = "auto"

    def __post_init__(self) -> None:
        folder = Path(self.rewriter).expanduser() if self.rewriter else None
        if folder and not ((folder / "config.json").is_file() and list(folder.glob("*.safetensors"))):
            raise ValueError(
                f"found prompts.rewriter={self.rewriter}: expected the folder of a causal language model, with"
                " config.json and *.safetensors, or null for templates"
            )

    def prompts(self, concepts: Sequence[Concept], surroundings: Surroundings, seed: int) -> list[Prompt]:
        """Those of the source."""
        return self.source.prompts(concepts, surroundings, seed)

    def forms(self, prompts: Sequence[Prompt], seed: int) -> list[list[Prompt]]:
        """One other form of each prompt, the long one."""
        texts = [template(prompt, seed) for prompt in prompts]
        if self.rewriter:
            texts = self._rewritten(prompts, texts)
        return [
            [replace(p, text=text, split=f"{p.split}{LONG}") for p, text in zip(prompts, texts, strict=True)],
            *self.source.forms(prompts, seed),
        ]

    def _rewritten(self, prompts: Sequence[Prompt], templates: Sequence[str]) -> list[str]:
        """What the language model made of them; a template where that leaves out what the judge is asked about."""
        from unreel.language_model import rewritten  # torch and transformers, which nobody else needs so early

        assert self.rewriter
        kept = [[phrase for _, phrase in prompt.shows] for prompt in prompts]
        folder, cache = Path(self.rewriter).expanduser(), Path(self.cache)
        texts = rewritten([p.text for p in prompts], kept, folder, cache, self.device)
        whole = [all(said.casefold() in text.casefold() for said in own) for text, own in zip(texts, kept, strict=True)]
        if lost := whole.count(False):
            print(
                f"unreel: {self.rewriter} left out words that it was to keep in {lost} of {len(whole)} prompts:"
                " templates wrote those",
                file=sys.stderr,
            )
        return [t if good else plain for t, good, plain in zip(texts, whole, templates, strict=True)]


def template(prompt: Prompt, seed: int) -> str:
    """A prompt's long form by template: spread over it where the grammar made it of parts, else as one piece."""
    parts = dict(prompt.shows)
    rng = np.random.default_rng([seed, zlib.crc32(f"{prompt.concept}|{prompt.split}|{prompt.text}".encode()), 5])
    return lengthen(parts if say(parts) == prompt.text else prompt.text, rng)
