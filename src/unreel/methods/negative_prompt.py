"""Negative prompt: guidance that steers away from a text that says the concept, in place of the empty text.

    eps = eps(x_t, n) + s (eps(x_t, c) - eps(x_t, n))        with n the concept's phrases, s the guidance scale

Reference: the practice of Stable Diffusion's users, without a paper of its own; guidance by Jonathan Ho and Tim
Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598. Compared as a baseline by Patrick Schramowski et
al., "Safe Latent Diffusion", CVPR 2023, arXiv 2211.05105.
Departures: none. A negative prompt of the user's own is kept, and n follows it. What exceeds the tokenizer's length is
cut off at the end, as of every negative prompt. Nothing changes in a pipeline that is called without guidance.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from unreel.edits import Edit
from unreel.methods.guidance import GuidanceMethod, replaced
from unreel.methods.method import Task
from unreel.models.model import Model
from unreel.records import Concept

Reader = Callable[[Callable[..., Any], dict[str, Any]], Any]


def said(concepts: Iterable[Concept]) -> str:
    """All phrases of some concepts as one text, each once."""
    return ", ".join(dict.fromkeys(phrase for concept in concepts for phrase in concept.phrases))


@contextmanager
def reading(pipeline: Any, read: Reader) -> Iterator[None]:
    """Inside the `with` block, `pipeline.encode_prompt(...)` is `read(own, asked)`.

    Args:
        pipeline: any that has an `encode_prompt` with a negative prompt.
        read: gets encode_prompt as it was, and its arguments by their names.

    Raises:
        ValueError: for a pipeline that reads no negative prompt.
    """
    own = getattr(pipeline, "encode_prompt", None)
    signature = inspect.signature(own) if own else inspect.Signature()
    if own is None or "negative_prompt" not in signature.parameters:
        kind = type(pipeline).__name__
        raise ValueError(f"{kind} reads no negative prompt: expected a pipeline whose encode_prompt takes one")

    @functools.wraps(own)
    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        asked = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                asked |= asked.pop(name, {})
        return read(own, asked)

    with replaced(pipeline, "encode_prompt", encode_prompt):
        yield


def prompts_in(asked: Mapping[str, Any]) -> list[str] | None:
    """The prompts that `encode_prompt` was asked for; None where their embeddings were given instead."""
    prompt = asked.get("prompt")
    if prompt is None or asked.get("prompt_embeds") is not None:
        return None
    return [prompt] if isinstance(prompt, str) else list(prompt)


def appended(asked: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """The arguments of `encode_prompt` with a text after each prompt's negative prompt; "" leaves that as it is.

    Raises:
        ValueError: when the negative prompt was given as embeddings, which no text can be appended to.
    """
    if not any(texts):
        return asked
    if asked.get("negative_prompt_embeds") is not None:
        raise ValueError("found negative_prompt_embeds, to which the edit cannot append what it steers away from:"
                         " expected negative_prompt, a text")  # fmt: skip
    own = asked.get("negative_prompt") or ""
    owns = [own] * len(texts) if isinstance(own, str) else list(own)
    if len(owns) != len(texts):
        raise ValueError(f"found {len(owns)} negative prompts for {len(texts)} prompts: expected one each, or one text")
    negative = [", ".join(filter(None, pair)) for pair in zip(owns, texts, strict=True)]
    return asked | {"negative_prompt": negative[0] if isinstance(asked.get("prompt"), str) else negative}


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(GuidanceMethod):
    """The method.

    Attributes:
        text: n; None is the concepts' phrases, one after the other.
    """

    text: str | None = None
    attaches: ClassVar[Mapping[str, Any]] = {"negative_prompt": str}

    def check(self, model: Model, roles: Sequence[str]) -> None:
        with reading(model.pipeline, lambda own, asked: own(**asked)):
            pass  # or it says what it expects

    def settings(self, task: Task) -> Mapping[str, Any]:
        return {"negative_prompt": said(task.concepts) if self.text is None else self.text}

    @classmethod
    def attach(cls, pipeline: Any, edit: Edit) -> AbstractContextManager[None]:
        text = edit.settings["negative_prompt"]

        def read(own: Callable[..., Any], asked: dict[str, Any]) -> Any:
            prompts = prompts_in(asked)
            count = len(asked["prompt_embeds"]) if prompts is None else len(prompts)
            return own(**appended(asked, [text] * count))

        return reading(pipeline, read)
