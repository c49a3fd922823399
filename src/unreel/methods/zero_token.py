"""Zeroing the concept's tokens: what the denoiser reads at the places of the concept's words is zero.

    c_i <- 0    at the places i of the concept's words in the prompt's embeddings c (L, D); or the mean over c, or what
                the empty prompt has at i

Reference: Ping Liu and Chi Zhang, "Motion Concept Unlearning in Video Diffusion Models", ACM Multimedia 2026, arXiv
2609.36832, section 4.1 and table 1: their probe of how far an edit of what the cross-attention reads can go, with the
verb of a motion zeroed. They note that it is no eraser of its own, as it takes the instruction out of the prompt.
Departures: `value` other than zero is ours. Words of all kinds of concepts are zeroed, theirs are verbs. Places cannot
be known where embeddings are given in place of a prompt (`prompt_embeds`, or a Conditioning for `Model.render`): these
are left as they are. The negative prompt keeps its words.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unreel.edits import Edit
from unreel.methods.guidance import GuidanceMethod
from unreel.methods.keywords import keywords_of, marked
from unreel.methods.method import Task
from unreel.methods.negative_prompt import prompts_in, reading
from unreel.models.model import Model, cleaned
from unreel.validation import checked

VALUES = ("zero", "mean", "empty")


def check_parts(pipeline: Any, method: str) -> None:
    """ValueError for a pipeline that does not read prompts with one text encoder, whose tokens the denoiser gets."""
    parts, kind = pipeline.components, type(pipeline).__name__
    if parts.get("tokenizer") is None or parts.get("text_encoder") is None or parts.get("text_encoder_2") is not None:
        raise ValueError(f"{kind} reads prompts otherwise: {method} expects one tokenizer and one text encoder")


def neutral(embeds: Tensor, marks: Tensor, value: str, empty: Tensor | None = None) -> Tensor:
    """Embeddings (B, L, D) with others at the marked places (B, L).

    Args:
        embeds: of prompts.
        marks: booleans.
        value: "zero", the "mean" over all L places, padding too, or that of the "empty" prompt at the same place.
        empty: embeddings (B, L, D) of the empty prompt, for that.
    """
    if value == "zero":
        other = torch.zeros_like(embeds)
    elif value == "mean":
        other = embeds.mean(1, keepdim=True).expand_as(embeds)
    else:
        assert empty is not None
        other = empty
    return torch.where(marks.to(embeds.device)[..., None], other, embeds)


def marks_in(pipeline: Any, prompts: Sequence[str], embeds: Tensor, keywords: Sequence[str]) -> Tensor:
    """Which places of embeddings (B, L, D) are of the keywords, (B, L); each prompt has B / len(prompts) rows."""
    read = [cleaned(pipeline, prompt) for prompt in prompts]
    marks = marked(pipeline.tokenizer, read, [cleaned(pipeline, word) for word in keywords], embeds.shape[1])
    return marks.repeat_interleave(len(embeds) // len(prompts), 0)


@checked
class ZeroToken(GuidanceMethod):
    """The method.

    Attributes:
        value: what stands in the place of the concept's tokens: zero, the mean of all places, or what the empty prompt
            has there.
    """

    value: Literal["zero", "mean", "empty"]
    attaches: ClassVar[Mapping[str, Any]] = {"keywords": list, "value": str}

    def check(self, model: Model, roles: Sequence[str]) -> None:
        check_parts(model.pipeline, self.name)

    def settings(self, task: Task) -> Mapping[str, Any]:
        return {"keywords": [word for c in task.concepts for word in keywords_of(c)], "value": self.value}

    @classmethod
    def attach(cls, pipeline: Any, edit: Edit) -> AbstractContextManager[None]:
        check_parts(pipeline, edit.method)
        keywords, value = [str(word) for word in edit.settings["keywords"]], edit.settings["value"]
        if value not in VALUES:
            raise ValueError(f"found value={value!r:.80} in the edit: expected {', '.join(VALUES)}")

        def read(own: Callable[..., Any], asked: dict[str, Any]) -> Any:
            plain, prompts = own(**asked), prompts_in(asked)
            if prompts is None:
                return plain
            marks = marks_in(pipeline, prompts, plain[0], keywords)
            if not marks.any():
                return plain
            nothing = "" if isinstance(asked["prompt"], str) else [""] * len(prompts)
            empty = own(**asked | {"prompt": nothing})[0] if value == "empty" else None
            return (neutral(plain[0], marks, value, empty), *plain[1:])

        return reading(pipeline, read)
