"""Unified Concept Editing: ridge regression that gives a concept the keys and values of its guide and keeps all others.

For every key and value matrix W of the cross-attention, which was W_0, with token embeddings c_i of texts that name a
concept, g_i of the same texts with the guide in its place, and c_j of texts that are preserved (equation 7):

    W* = argmin_W  s_e sum_i || W c_i - W_0 g_i ||^2 + s_p sum_j || W c_j - W_0 c_j ||^2 + lam || W - W_0 ||_F^2

All values are W_0 times an embedding, so that W* = W_0 A with one matrix A for all of them: the same ridge around I.

Reference: Rohit Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761.
Departures: The guide is the concept's anchor unless a text is given; the released code has "art" or "". Preserved are
the empty prompt, the guides, neighbours, other senses and the vocabulary; the released code has what its user lists, or
nothing. The embeddings are those that keys and values are made from: where a denoiser projects the text first, behind
the projection. Biases of keys and values stay as they are and cancel out of the equation. `tokens: all` pairs rows by
their place in the text, as RECE's code does; UCE's first code pairs them from the last subject token on. The system is
solved in float64, since float32 loses digits when many texts are alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, StringConstraints
from torch import Tensor

from unreel.captions import TrainingCaptions
from unreel.methods.closed_form import ClosedFormMethod, ridge
from unreel.methods.method import Task
from unreel.models.model import Model
from unreel.validation import checked
from unreel.vocabulary import say

_AT_ONCE = 32  # texts


@dataclass(frozen=True)
class Rows:
    """Token embeddings, float64: c_i (N, D), their g_i (N, D), and c_j (M, D)."""

    erased: Tensor
    guides: Tensor
    preserved: Tensor


def edited(
    weights: Mapping[str, Tensor], rows: Rows, erase_scale: float, preserve_scale: float, lam: float
) -> dict[str, Tensor]:
    """W* of each W_0 (O, D) in `weights`, by its name."""
    inputs, sources = torch.cat([rows.erased, rows.preserved]), torch.cat([rows.guides, rows.preserved])
    counts = torch.tensor([len(rows.erased), len(rows.preserved)], device=inputs.device)
    scales = inputs.new_tensor([erase_scale, preserve_scale]).repeat_interleave(counts)
    factor = ridge(torch.eye(inputs.shape[1]).to(inputs), inputs, sources, scales, lam)  # A
    return {name: w @ factor for name, w in weights.items()}


def last_tokens(model: Model, texts: Sequence[str]) -> Tensor:
    """Place of each text's last token before its end-of-text token, (B,); 0 for a text that says nothing."""
    return (model.tokenized(texts)[1].sum(1) - 2).clamp_min(0)


@checked
class UCE(ClosedFormMethod):
    """The method; hyperparameters and their sources are in conf/method/uce.yaml.

    Attributes:
        lam, erase_scale, preserve_scale: lam, s_e and s_p of the formula.
        tokens: which rows of a text's embedding take part: "last" (its last subject token) or "all".
        templates: texts around a phrase, which "{}" stands for.
        guide: what takes the place of the whole text; None is the same text with the concept's anchor in its place.

    Raises:
        ValueError: for a value that will not do.
    """

    lam: PositiveFloat
    erase_scale: NonNegativeFloat
    preserve_scale: NonNegativeFloat
    tokens: Literal["last", "all"]
    templates: Annotated[Sequence[Annotated[str, StringConstraints(pattern=r"^[^{]*\{\}[^{]*$")]], Field(min_length=1)]
    guide: str | None = None
    edits = ("denoiser",)
    roles = ("denoiser.cross_attention.kv",)

    def check(self, model: Model, roles: Sequence[str]) -> None:
        super().check(model, roles)
        with torch.no_grad():
            width = model.attended(model.encode_prompt([""])).shape[-1]
        for name in model.select(roles):
            found = model.components["denoiser"].get_parameter(name.partition("/")[2]).shape[1]
            if found != width:
                raise ValueError(
                    f"{name} reads width {found}, and what {model.name} reads of texts has {width}: method {self.name}"
                    " needs a denoiser whose cross-attention reads the text itself"
                )

    def texts(self, captions: TrainingCaptions) -> tuple[list[str], list[str], list[str]]:
        """Texts that name the concept, what guides each of them, and texts that are preserved; none is evaluated."""
        concept = captions.concept

        def around(phrase: str) -> list[str]:
            return [template.format(say({concept.part: phrase})) for template in self.templates]

        guides = around(captions.anchor) if self.guide is None else [self.guide] * len(self.templates)
        pairs = {said: guide for phrase in concept.phrases for said, guide in zip(around(phrase), guides, strict=True)}
        pairs = {said: guide for said, guide in pairs.items() if said.casefold() not in captions.evaluated}
        if not pairs:
            raise ValueError(f"{concept.slug}: the evaluation's prompts say all that the templates say: use more")
        vocabulary = captions.surroundings.vocabulary
        kept = [*guides, *(said for phrase in captions.near for said in around(phrase))]
        kept += [say({part: phrase}) for part, phrases in vocabulary.items() for phrase in phrases]
        return list(pairs), list(pairs.values()), [said for said in kept if said.casefold() not in captions.evaluated]

    def embedded(self, model: Model, texts: Sequence[str]) -> Tensor:
        """The rows of these texts that take part, one text after the other, (N, D)."""
        chunks = [texts[i : i + _AT_ONCE] for i in range(0, len(texts), _AT_ONCE)]
        embeds = torch.cat([model.attended(model.encode_prompt(chunk)).double() for chunk in chunks])
        if self.tokens == "all":
            return embeds.flatten(0, 1)
        return embeds[torch.arange(len(texts)), last_tokens(model, texts)]

    def rows(self, model: Model, task: Task) -> Rows:
        """All rows of all concepts."""
        said = [self.texts(captions) for captions in task.captions]
        erased, guides, kept = ([text for each in said for text in each[k]] for k in range(3))
        preserved = [text for text in dict.fromkeys(["", *kept]) if text not in erased]
        return Rows(*(self.embedded(model, texts) for texts in (erased, guides, preserved)))

    def solve(self, model: Model, task: Task, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return edited(weights, self.rows(model, task), self.erase_scale, self.preserve_scale, self.lam)
