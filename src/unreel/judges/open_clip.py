"""A judge for any world: an open_clip model that chooses among the phrases which the prompts say, zero-shot."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from unreel.hashes import content_key, folder_hash
from unreel.judges.judge import Judge
from unreel.records import PARTS, Concept, Prompt


class OpenClipJudge(Judge):
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
        if model.startswith("local-dir:"):
            folder = Path(model.removeprefix("local-dir:")).expanduser()
            if not folder.is_dir():
                raise ValueError(f"judge: {folder} is no folder: expected one of an open_clip model")
            model = f"local-dir:{folder}"
        self.source, self.pretrained, self.device = model, pretrained, device
        self.synonyms = {(c.part, p): said[0] for c in concepts for said in (c.phrases, c.other_senses) for p in said}
        known = [(part, phrase) for part in PARTS for phrase in vocabulary.get(part, ())]
        known += [*self.synonyms, *(pair for prompt in prompts for pair in prompt.shows)]
        self.candidates: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}  # part -> name -> phrases
        for part, phrase in dict.fromkeys(known):
            self.candidates[part].setdefault(self.name_of(part, phrase), []).append(phrase)

    @cached_property
    def model(self) -> Any:
        """The open_clip model, loaded when it is first used."""
        return open_clip.create_model(self.source, pretrained=self.pretrained, device=self.device).eval()

    def release(self) -> None:
        vars(self).pop("model", None)  # the cached property's

    @cached_property
    def tokenizer(self) -> Any:
        return open_clip.get_tokenizer(self.source)

    @property
    def content(self) -> str:
        folder = Path(self.source.removeprefix("local-dir:"))
        weights = folder_hash(folder) if self.source.startswith("local-dir:") else f"{self.source}@{self.pretrained}"
        return content_key(weights=weights, candidates=self.candidates)

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

    def names(self, part: str, clips: Tensor, frames: Tensor | None = None) -> list[str]:
        """What each clip shows, one of the part's names: whose phrases, after "a picture", fit all frames best.

        Args:
            part: one of `parts`.
            clips: (B, F, C, H, W) in [0, 1].
            frames: their embeddings, `embed_clips(clips)`.
        """
        form = "a picture of {}" if part == "subject" else "a picture {}"
        names = self.candidates[part]
        texts = [self.embed_texts([form.format(phrase) for phrase in phrases]).mean(0) for phrases in names.values()]
        frames = self.embed_clips(clips) if frames is None else frames
        logits = frames.mean(1) @ functional.normalize(torch.stack(texts), dim=-1).T
        return [list(names)[i] for i in logits.argmax(1).tolist()]
