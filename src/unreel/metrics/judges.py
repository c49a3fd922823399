"""Judges: models that say what clips show, and what one saw. They only evaluate; no training ever sees them.

A judge has `embed_clips`, `embed_texts`, `parts` (what it can read) and `name_of(part, phrase)`, `names(part, clips,
frames)`: the name of what a phrase says, and of what each clip shows. `OpenClipJudge` is the one of any world.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from unreel.records import PARTS, Concept, Prompt
from unreel.rendering import Rendered


@dataclass(frozen=True)
class Judged:
    """Clips and what a judge saw in them: what metrics are made of, and what the report shows.

    Attributes:
        rendered: B clips.
        marks: for each clip, part -> whether what its prompt says is seen; parts that the judge cannot read are left
            out.
        frames: normalised embeddings of the frames, (B, F, D).
        texts: normalised embeddings of the prompts, (B, D).
    """

    rendered: Rendered
    marks: list[dict[str, bool]]
    frames: Tensor
    texts: Tensor

    @classmethod
    def of(cls, judge: Any, rendered: Rendered) -> "Judged":
        """Every frame is embedded once."""
        prompts, frames = rendered.prompts, judge.embed_clips(rendered.clips)
        said = {part for prompt in prompts for part, _ in prompt.shows}
        if rendered.clips.shape[1] == 1:
            said.discard("motion")  # no image shows it
        seen = {part: judge.names(part, rendered.clips, frames) for part in judge.parts if part in said}
        marks = [
            {part: seen[part][i] == judge.name_of(part, phrase) for part, phrase in prompt.shows if part in seen}
            for i, prompt in enumerate(prompts)
        ]
        return cls(rendered, marks, frames, judge.embed_texts([prompt.text for prompt in prompts]))

    @property
    def split(self) -> str:
        """The split of the first prompt."""
        return self.rendered.prompts[0].split

    def splits(self, concept: str) -> list["Judged"]:
        """The clips of one concept, one for each split that its prompts have."""
        own = [self.rendered.places(split, concept) for split in dict.fromkeys(p.split for p in self.rendered.prompts)]
        return [
            Judged(self.rendered.at(i), [self.marks[k] for k in i], self.frames[i], self.texts[i]) for i in own if i
        ]


class OpenClipJudge:
    """Zero-shot classification of clips among the phrases that the prompts say.

    Args:
        model: name of an open_clip model, or "local-dir:FOLDER".
        pretrained: tag of its weights on the hub; None for a folder.
        vocabulary: part -> phrases to choose among; those of `prompts` are added.
        prompts: all that will be judged.
        concepts: all phrases of a concept are one choice, and so are those of its other sense.
        device: where it runs.
    """

    parts = ("subject", "scene", "style")  # a single frame shows no motion

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        vocabulary: dict[str, list[str]],
        prompts: Sequence[Prompt],
        concepts: Sequence[Concept] = (),
        device: str = "cpu",
    ) -> None:
        if model.startswith("local-dir:") and not Path(model.removeprefix("local-dir:")).is_dir():
            raise ValueError(
                f"judge: {model.removeprefix('local-dir:')} is no folder: expected one of an open_clip model"
            )
        self.model = open_clip.create_model(model, pretrained=pretrained, device=device).eval()
        self.tokenizer, self.device = open_clip.get_tokenizer(model), device
        self.synonyms = {(c.part, p): said[0] for c in concepts for said in (c.phrases, c.other_senses) for p in said}
        known = [(part, phrase) for part in PARTS for phrase in vocabulary.get(part, ())]
        known += [*self.synonyms, *(pair for prompt in prompts for pair in prompt.shows)]
        self.candidates: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}  # part -> name -> phrases
        for part, phrase in dict.fromkeys(known):
            self.candidates[part].setdefault(self.name_of(part, phrase), []).append(phrase)

    def name_of(self, part: str, phrase: str) -> str:
        """A concept's first phrase for any of its phrases; all else is its own name."""
        return self.synonyms.get((part, phrase), phrase)

    @torch.inference_mode()
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised embeddings (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""
        visual = self.model.visual
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (visual.image_mean, visual.image_std))
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        out = []
        for part in clips.flatten(0, 1).split(64):
            frames = functional.interpolate(part, size=size, mode="bicubic", antialias=True).clamp(0, 1)
            out.append(self.model.encode_image(((frames - mean) / std).to(self.device), normalize=True).float().cpu())
        return torch.cat(out).unflatten(0, clips.shape[:2])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True).float().cpu()

    def names(self, part: str, clips: Tensor, frames: Tensor) -> list[str]:
        """What each clip shows, one of the part's names: whose phrases, after "a picture", fit all frames best.

        Args:
            part: one of `parts`.
            clips: (B, F, C, H, W) in [0, 1].
            frames: their embeddings, `embed_clips(clips)`.
        """
        form = "a picture of {}" if part == "subject" else "a picture {}"
        names = self.candidates[part]
        texts = [self.embed_texts([form.format(phrase) for phrase in phrases]).mean(0) for phrases in names.values()]
        logits = frames.mean(1) @ functional.normalize(torch.stack(texts), dim=-1).T
        return [list(names)[i] for i in logits.argmax(1).tolist()]
