"""MUTE: at each step, what the concept's words add to the prediction is subtracted, where they add most.

    c~ = c with the mean of all L places at the places of the concept's words                    (token neutralisation)
    d  = v(x_t, c) - v(x_t, c~)                                                                  (6, concept direction)
    M  = || d(:, f, h, w) ||_2 / max over f, h, w of it                                          (7, 8, spatial gate)
    v(x_t, c) <- v(x_t, c) - alpha M * d                                                         (9, 10)

before guidance, so that with guidance s the prediction loses s alpha M * d (12). A step takes three passes instead of
two. A prompt that does not say the concept is rendered as ever. Several concepts have a direction and a gate each
(section 6.4). Models that predict noise or clean latents need no conversion: at one x_t, d has another scale alone.

Reference: Ping Liu and Chi Zhang, "Motion Concept Unlearning in Video Diffusion Models", ACM Multimedia 2026, arXiv
2609.36832.
Departures: concepts of all kinds, and images; the paper's are motions of video transformers. The third pass is of the
prompts that say the concept, alone; Text2Video-Zero, whose layers mix the rows of a pass, takes it whole, and has a
gate for each frame. Rows of the batch are found by their embeddings, not by the order of null and prompt. Nothing is
found in embeddings that are given in place of a prompt.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from unreel.edits import Edit, components_of
from unreel.methods.guidance import GuidanceMethod
from unreel.methods.keywords import keywords_of
from unreel.methods.method import Task
from unreel.methods.negative_prompt import prompts_in, reading
from unreel.methods.zero_token import check_parts, marks_in, neutral
from unreel.models.model import Model
from unreel.validation import checked


def gate(direction: Tensor) -> Tensor:
    """M of directions (R, C, ...), (R, 1, ...) from 0 to 1; 0 everywhere of one that is 0 everywhere."""
    influence = direction.float().norm(dim=1, keepdim=True)
    most = influence.flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    return influence / most.view(-1, *[1] * (influence.ndim - 1))


def muted(cond: Tensor, neutralised: Sequence[Tensor], alpha: float) -> Tensor:
    """The prediction (R, C, ...) without what some concepts add to it, of those for the neutralised prompts."""
    lost = [gate(cond - each) * (cond - each).float() for each in neutralised]
    return cond - (alpha * torch.stack(lost).sum(0)).to(cond)


def chosen(value: Any, rows: Tensor) -> Any:
    """What belongs to some rows of a batch: of a tensor with as many, or of a dict of such; anything else as it is."""
    if isinstance(value, dict):
        return {key: chosen(each, rows) for key, each in value.items()}
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == len(rows) else value


@dataclass(frozen=True)
class Found:
    """Of a prompt that says a concept: its embeddings (L, D), and those with each concept's words neutralised."""

    own: Tensor
    others: list[Tensor]


class Muting:
    """What MUTE does to one pipeline. It remembers what was found in the prompts that were encoded last.

    Args:
        pipeline: with one tokenizer, one text encoder and a denoiser.
        keywords: of each concept.
        alpha: strength.
    """

    def __init__(self, pipeline: Any, keywords: Sequence[Sequence[str]], alpha: float) -> None:
        check_parts(pipeline, "mute")
        self.pipeline, self.keywords, self.alpha = pipeline, keywords, alpha
        self.denoiser = components_of(pipeline)["denoiser"]
        self.found: list[Found] = []

    def read(self, own: Callable[..., Any], asked: dict[str, Any]) -> Any:
        """`encode_prompt`, which looks for the concepts in the prompts."""
        plain, prompts, self.found = own(**asked), prompts_in(asked), []
        for embeds, each in [(plain[0], words) for words in self.keywords] if prompts is not None else []:
            marks = marks_in(self.pipeline, prompts or [], embeds, each)
            for row in marks.any(1).nonzero().flatten().tolist():
                other = neutral(embeds[row, None], marks[row, None], "mean")[0]
                known = next((f for f in self.found if torch.equal(f.own, embeds[row])), None)
                if known is None:
                    self.found.append(Found(embeds[row].clone(), [other]))
                elif not any(torch.equal(other, seen) for seen in known.others):
                    known.others.append(other)
        return plain

    def after(self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The denoiser's output, with the rows of prompts that say a concept muted."""
        embeds, sample = kwargs["encoder_hidden_states"], output[0]
        if not self.found:
            return None
        each = len(embeds) // len(sample)  # some families have the text once a frame
        erased = sample.clone()
        for found in self.found:
            own = (embeds == found.own.to(embeds)).flatten(1).all(1)
            rows = own.view(len(sample), each).all(1)
            if rows.any():
                others = [self.prediction(denoiser, args, kwargs, own, rows, other) for other in found.others]
                erased[rows] = muted(sample[rows], others, self.alpha)
        if isinstance(output, tuple):
            return (erased, *output[1:])
        output.sample = erased
        return output

    def prediction(
        self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any], own: Tensor, rows: Tensor, other: Tensor
    ) -> Tensor:
        """What the denoiser predicts of some rows with other embeddings (L, D) in the place of their own."""
        asked = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
        embeds = torch.where(own[:, None, None], other.to(kwargs["encoder_hidden_states"]),
                             kwargs["encoder_hidden_states"])  # fmt: skip
        processors = getattr(denoiser, "attn_processors", {}).values()
        if not any(hasattr(processor, "batch_size") for processor in processors):  # or they mix rows
            asked = {key: chosen(value, rows) for key, value in asked.items()}
            embeds, rows = embeds[own], torch.ones_like(rows[rows])
        return denoiser.forward(**{**asked, "encoder_hidden_states": embeds})[0][rows]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside the `with` block the pipeline is muted."""
        with ExitStack() as stack:
            stack.enter_context(reading(self.pipeline, self.read))
            stack.callback(self.denoiser.register_forward_hook(self.after, with_kwargs=True).remove)
            yield


@checked
class Mute(GuidanceMethod):
    """The method.

    Attributes:
        alpha: strength; at 0 nothing changes.
    """

    alpha: NonNegativeFloat
    attaches: ClassVar[Mapping[str, Any]] = {"keywords": list, "alpha": int | float}

    def check(self, model: Model, roles: Sequence[str]) -> None:
        check_parts(model.pipeline, self.name)

    def settings(self, task: Task) -> Mapping[str, Any]:
        return {"keywords": [keywords_of(concept) for concept in task.concepts], "alpha": self.alpha}

    @classmethod
    def attach(cls, pipeline: Any, edit: Edit) -> AbstractContextManager[None]:
        keywords = [[str(word) for word in each] for each in edit.settings["keywords"]]
        return Muting(pipeline, keywords if edit.settings["alpha"] else [], edit.settings["alpha"]).attached()
