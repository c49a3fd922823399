"""Readings: what one text encoder makes of texts under the reading of any model that holds it too."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from unreel.models.model import Model, Reading


def _mended(text: str) -> str:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean  # takes its time

    return str(prompt_clean(text))


CLEANINGS: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text, "lower": lambda text: text.lower().strip(), "ftfy": _mended
}  # fmt: skip


def states(model: Model, texts: Sequence[str], reading: Reading) -> tuple[Tensor, Tensor]:
    """The text encoder's states of B texts as a model with this reading has them, with gradient where it is trained.

    Args:
        model: whose `text_encoder` and tokenizer read.
        texts: the prompts.
        reading: its own, or that of a model which holds the same text encoder.

    Returns:
        States (B, L, D), and which of them the denoiser reads as the text's, (B, L) booleans: of all places where the
        padding is read too.

    Raises:
        ValueError: for a reading that cleans texts in a way that is not known here.
    """
    if reading.cleaning not in CLEANINGS:
        raise ValueError(f"found a reading with cleaning={reading.cleaning!r}: expected {', '.join(CLEANINGS)}")
    said = [reading.template.replace("{}", CLEANINGS[reading.cleaning](text)) for text in texts]
    before = 0 if reading.keeps == "all" else len(model.tokenizer.encode(reading.template.partition("{}")[0]))
    kept = [0, *range(-reading.max_length + 1, 0)] if reading.keeps == "ends" else slice(before, None)
    most = reading.max_length + before - (2 if reading.keeps == "ends" else 0)
    read = model.tokenizer(said, padding="max_length", truncation=True, max_length=most, return_tensors="pt")
    ids, mask = read.input_ids.to(model.device), read.attention_mask.to(model.device)
    encoder = model.components["text_encoder"]
    found = encoder(ids, attention_mask=mask if reading.masked else None, output_hidden_states=True)
    last = reading.hidden_state == -1 and reading.normed
    embeds = found.last_hidden_state if last else found.hidden_states[reading.hidden_state]
    embeds, mask = embeds[:, kept], mask[:, kept]
    if reading.pads == "zero":
        embeds = embeds * mask[..., None]
    return embeds, mask.bool() if reading.pads == "masked" else torch.ones_like(mask, dtype=torch.bool)
