"""Where learned embeddings enter what a denoiser reads of a text: in slots before the encoder, or behind it.

A slot is a word of the model's own vocabulary that no prompt says. The text is read as any other, by the model's own
`encode_prompt`, and rows of one's own take the place of the slots' embeddings. No weight is changed for it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unreel.models.model import Conditioning, Model


def check_table(model: Model, who: str) -> None:
    """ValueError for a model whose text encoder has no embeddings of tokens that can be learned.

    Args:
        model: that is asked.
        who: wants to learn them, as the error says it: "attack cce".
    """
    encoder, tokenizer = model.components.get("text_encoder"), model.tokenizer
    if encoder is None or tokenizer is None or not hasattr(encoder, "get_input_embeddings"):
        raise ValueError(f"{who} learns tokens: {model.name} has no text encoder with a table of them")


def table_of(model: Model) -> Tensor:
    """The embeddings of all tokens of a model's text encoder as they are now, (V, D)."""
    return model.components["text_encoder"].get_input_embeddings().weight.detach()


def words_of(model: Model) -> dict[str, int]:
    """Word -> id, of all words of the tokenizer that are one token and are read back as such, in the order of ids."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    found = {}
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = token.removesuffix("</w>").removeprefix("▁").removeprefix("Ġ")
        whole = token.endswith("</w>") or token.startswith(("▁", "Ġ"))
        if index in special or not whole or not re.fullmatch(r"[a-z]{2,}", word):
            continue
        if _within(tokenizer, word) == [index]:
            found[word] = index
    return found


def _within(tokenizer: Any, word: str) -> list[int]:
    """The tokens of a word that stands within a text; Gemma's tokenizer reads one that begins a text otherwise."""
    first = tokenizer("a", add_special_tokens=False).input_ids
    return list(tokenizer(f"a {word}", add_special_tokens=False).input_ids[len(first) :])


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
    ids = [_within(tokenizer, word)[0] for word in slots]

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


def added(conditioning: Conditioning, vectors: Tensor) -> Conditioning:
    """What is read of B prompts, with a vector each, (B, D), added to all embeddings but the first."""
    embeds = conditioning["prompt_embeds"]
    place = torch.arange(embeds.shape[1], device=embeds.device)[:, None] > 0  # all but the beginning of text
    return Conditioning({**conditioning, "prompt_embeds": embeds + place * vectors[:, None].to(embeds)})
