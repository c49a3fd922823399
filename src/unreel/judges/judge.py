"""Judge: the contract of models that say what clips show, and the record of what one saw. No training sees them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unreel.records import Concept, Prompt, must_go
from unreel.rendering import Rendered

_AT_A_TIME = 32  # clips that are read from disk together


class Classifier(ABC):
    """Says what clips show. Its model is loaded when it first looks; all that can be asked before is asked before.

    Attributes:
        parts: the parts of a prompt that it can read: subject, motion, scene, style.
        num_frames: how many frames clips need for it to read their motion; None where it does not matter.
    """

    parts: ClassVar[tuple[str, ...]]
    num_frames: ClassVar[int | None] = None

    @property
    @abstractmethod
    def content(self) -> str:
        """Hash of its weights and of what it chooses among."""

    @abstractmethod
    def name_of(self, part: str, phrase: str) -> str:
        """The name of what a phrase says. ValueError for a phrase that it cannot know."""

    @abstractmethod
    def names(self, part: str, clips: Tensor, frames: Tensor | None = None) -> Sequence[str]:
        """What each clip shows, one of the part's names.

        Args:
            part: one of `parts`.
            clips: (B, F, C, H, W) in [0, 1].
            frames: their embeddings, by those who have them already; most have none.
        """

    def shows(self, seen: str, wanted: str) -> bool:
        """Whether a clip that shows the name `seen` shows what the name `wanted` says."""
        return seen == wanted

    def marks(self, prompts: Sequence[Prompt], clips: Tensor, frames: Tensor | None = None) -> list[dict[str, bool]]:
        """For each clip, part -> whether what its prompt is said to show is seen; other arguments as in `names`.

        Parts that it cannot read are left out, and so is motion where clips have one frame, which shows none.
        """
        said = {part for prompt in prompts for part, _ in prompt.shows} - ({"motion"} if clips.shape[1] == 1 else set())
        seen = {part: self.names(part, clips, frames) for part in self.parts if part in said}
        return [
            {p: self.shows(seen[p][i], self.name_of(p, phrase)) for p, phrase in prompt.shows if p in seen}
            for i, prompt in enumerate(prompts)
        ]

    def frame_marks(
        self, prompts: Sequence[Prompt], clips: Tensor, frames: Tensor | None = None
    ) -> list[dict[str, list[bool]]]:
        """The same of every frame looked at alone: part -> one mark a frame; arguments as in `marks`."""
        count = clips.shape[1]
        alone = clips.flatten(0, 1)[:, None], None if frames is None else frames.flatten(0, 1)[:, None]
        marks = self.marks([prompt for prompt in prompts for _ in range(count)], *alone)
        of_clips = [marks[start : start + count] for start in range(0, len(marks), count)]
        return [{part: [mark[part] for mark in own] for part in own[0]} for own in of_clips]

    def check(self, prompts: Sequence[Prompt], concepts: Sequence[Concept], num_frames: Sequence[int]) -> None:
        """Everything that it will be asked, asked before anything is rendered.

        Args:
            prompts: what will be judged.
            concepts: what is erased.
            num_frames: F of each recipient's clips.

        Raises:
            ValueError: for a concept whose part it does not read, a phrase that it cannot know, or clips of other
                numbers of frames than it needs.
        """
        for concept in concepts:
            if concept.part not in self.parts:
                raise ValueError(
                    f"{concept.slug} is a {concept.kind}, but this judge reads {', '.join(self.parts)} alone: what is"
                    f" left of it could not be measured; expected a judge= that reads {concept.part}"
                )
        asked = dict.fromkeys(pair for prompt in prompts for pair in prompt.shows)
        for part, phrase in asked:
            if part in self.parts:
                self.name_of(part, phrase)
        wrong = [n for n in num_frames if self.num_frames is not None and n not in (1, self.num_frames)]
        if wrong and any(part == "motion" for part, _ in asked):
            raise ValueError(
                f"found clips of {wrong[0]} frames: this judge reads motion in clips of {self.num_frames}; expected"
                f" num_frames={self.num_frames}, or another judge="
            )


class Judge(Classifier):
    """The classifier of a run, which embeds clips and texts too: what CLIP scores are made of."""

    @abstractmethod
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised embeddings (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (B, D)."""

    def release(self) -> None:
        """Frees the memory of its model, which is loaded again when it next looks; judges that say nothing keep it."""


@dataclass(frozen=True)
class Judged:
    """Clips and what a judge saw in them: what metrics are made of, and what the report shows.

    Attributes:
        rendered: B clips.
        marks: for each clip, part -> whether what its prompt is said to show is seen; parts that the judge cannot read
            are left out.
        frames: normalised embeddings of the frames, (B, F, D).
        texts: normalised embeddings of the prompts, (B, D).
        frame_marks: the same as `marks`, of every frame alone: part -> F marks; empty where nobody looked.
    """

    rendered: Rendered
    marks: list[dict[str, bool]]
    frames: Tensor
    texts: Tensor
    frame_marks: Sequence[dict[str, list[bool]]] = ()

    @classmethod
    def of(cls, judge: Judge, rendered: Rendered) -> "Judged":
        """Every frame is embedded once; a few clips are in memory at a time."""
        prompts, embeds, marks = rendered.prompts, [], list[dict[str, bool]]()
        frame_marks: list[dict[str, list[bool]]] = []
        for start in range(0, len(prompts), _AT_A_TIME):
            part = prompts[start : start + _AT_A_TIME]
            clips = torch.stack([rendered.clips[start + i] for i in range(len(part))])
            frames = judge.embed_clips(clips)
            marks += judge.marks(part, clips, frames)
            if clips.shape[1] > 1:
                frame_marks += judge.frame_marks(part, clips, frames)
            embeds.append(frames)
        texts = judge.embed_texts([prompt.text for prompt in prompts])
        return cls(rendered, marks, torch.cat(embeds), texts, frame_marks)

    @property
    def split(self) -> str:
        """The split of the first prompt."""
        return self.rendered.prompts[0].split

    @property
    def must_go(self) -> bool:
        """Whether they are of prompts that ask for what is erased, in any form."""
        return must_go(self.split)

    def splits(self, concept: str) -> list["Judged"]:
        """The clips of one concept, one for each split that its prompts have."""
        own = [self.rendered.places(split, concept) for split in dict.fromkeys(p.split for p in self.rendered.prompts)]
        return [
            Judged(
                self.rendered.at(i), [self.marks[k] for k in i], self.frames[i], self.texts[i],
                [self.frame_marks[k] for k in i] if self.frame_marks else (),
            )
            for i in own
            if i
        ]  # fmt: skip
