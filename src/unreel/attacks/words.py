"""Words, tokens and slots: what attacks on text encoders have in common.

A slot is a word of the model's own vocabulary that no prompt says. It stands in a text where learned embeddings enter:
the text is read as any other, by the model's own `encode_prompt`, and the rows of the slots are put in before the
encoder's first layer. No weight is changed for it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unreel.methods.keywords import keywords_of
from unreel.models.model import Model
from unreel.records import Concept, Prompt
from unreel.vocabulary import NEUTRAL


def name_of(concept: Concept) -> str:
    """The words that all phrases of a concept share: "van gogh", "cat"; where they share none, those of the first."""
    return keywords_of(concept)[0]


def said_with(text: str, concept: Concept, other: str) -> str:
    """A text with something else where it says the concept; where it says it in no known way, at the concept's end."""
    for phrase in sorted([*concept.phrases, name_of(concept)], key=len, reverse=True):
        found = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)
        if found:
            return " ".join(f"{text[: found.start()]}{other}{text[found.end() :]}".split())
    return " ".join((f"{other} {text}" if concept.part == "subject" else f"{text} {other}").split())


def without(text: str, concept: Concept) -> str:
    """A text that says something in the concept's place, or nothing."""
    return said_with(text, concept, NEUTRAL[concept.part]) or NEUTRAL["subject"]


def check_clip_like(model: Model, attack: str) -> None:
    """ValueError for a model whose text encoder has no embeddings of tokens that can be learned."""
    encoder, tokenizer = model.components.get("text_encoder"), model.tokenizer
    if encoder is None or tokenizer is None or not hasattr(encoder, "get_input_embeddings"):
        raise ValueError(f"attack {attack} learns tokens: {model.name} has no text encoder with a table of them")


def table_of(model: Model) -> Tensor:
    """The embeddings of all tokens of a model's text encoder as they are now, (V, D)."""
    return model.components["text_encoder"].get_input_embeddings().weight.detach()


def words_of(model: Model) -> dict[str, int]:
    """Word -> id, of all words of the tokenizer that are one token and are read back as such, in the order of ids."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    found = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = token.removesuffix("</w>").removeprefix("▁")
        whole = token.endswith("</w>") or token.startswith("▁")
        if index in special or not whole or not re.fullmatch(r"[a-z]{2,}", word):
            continue
        if tokenizer(word, add_special_tokens=False).input_ids == [index]:
            found[word] = index
    return found


def slots_of(model: Model, count: int, texts: Sequence[str]) -> list[str]:
    """`count` words of one token each that none of the texts says.

    Raises:
        ValueError: when the vocabulary has too few.
    """
    said = {word for text in texts for word in re.findall(r"\w+", text.casefold())}
    free = [word for word in words_of(model) if word not in said]
    if len(free) < count:
        raise ValueError(f"{model.name} has {len(free)} words that no prompt says: expected {count}, use fewer tokens")
    return free[-count:]


@contextmanager
def learned(model: Model, slots: Sequence[str], rows: Tensor) -> Iterator[None]:
    """Inside the `with` block the encoder reads rows of its own in place of the slots' embeddings.

    Args:
        model: its weights stay as they are.
        slots: S words of `slots_of`.
        rows: (S, D), or (B, S, D) with others for each text of a batch; gradients go through.
    """
    tokenizer = model.tokenizer
    ids = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in slots]

    def put(_module: nn.Module, given: Any, embeds: Tensor) -> Tensor:
        read = given[0]
        for place, index in enumerate(ids):
            row = rows[..., place, :].to(embeds)
            at = (read == index)[..., None]
            embeds = torch.where(at, row if row.ndim == 1 else row[:, None], embeds)
        return embeds

    encoder = model.components["text_encoder"]
    table = encoder.get_input_embeddings().weight
    with ExitStack() as stack:  # T5 reads by a second module that holds the same table
        for module in encoder.modules():
            if getattr(module, "weight", None) is table:
                stack.callback(module.register_forward_hook(put).remove)
        yield


def attacked(prompts: Sequence[Prompt], of: Sequence[int], texts: Sequence[str], split: str) -> list[Prompt]:
    """Attacked prompts: the judge is asked about the concept alone."""
    made = []
    for i, text in zip(of, texts, strict=True):
        own = prompts[i]
        shows = tuple(pair for pair in own.shows if pair[0] == own.part)
        made.append(Prompt(text, split, shows, own.concept, own.part, own.seed))
    return made
