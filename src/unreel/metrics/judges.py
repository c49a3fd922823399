"""The judge of any world: an open_clip model that says which of a list of phrases a clip shows.

It only evaluates; no training ever sees it. A judge has `embed_clips`, `embed_texts`, `parts` (what it can read) and
`name_of(part, phrase)`, `names(part, clips)`: the name of what a phrase says, and of what each clip shows.
"""

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from unreel.records import PARTS, Prompt


class OpenClipJudge:
    """Zero-shot classification of clips among the phrases that the prompts say.

    Args:
        model: name of an open_clip model, or "local-dir:FOLDER".
        pretrained: tag of its weights on the hub; None for a folder.
        vocabulary: part -> phrases to choose among; those of `prompts` are added.
        prompts: all that will be judged.
        device: where it runs.
    """

    parts = ("subject", "scene", "style")  # a single frame shows no motion

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        vocabulary: dict[str, list[str]],
        prompts: Sequence[Prompt],
        device: str = "cpu",
    ) -> None:
        if model.startswith("local-dir:") and not Path(model.removeprefix("local-dir:")).is_dir():
            raise ValueError(
                f"judge: {model.removeprefix('local-dir:')} is no folder: expected one of an open_clip model"
            )
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            model, pretrained=pretrained, device=device
        )
        self.model.eval()
        self.tokenizer, self.device = open_clip.get_tokenizer(model), device
        said = [pair for prompt in prompts for pair in prompt.shows]
        self.candidates = {
            part: list(dict.fromkeys([*vocabulary.get(part, ()), *(phrase for p, phrase in said if p == part)]))
            for part in PARTS
        }

    def name_of(self, part: str, phrase: str) -> str:
        """A phrase is its own name here."""
        return phrase

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

    def names(self, part: str, clips: Tensor) -> list[str]:
        """What each clip shows, one of the part's phrases; "a picture" + phrase decides, over all frames."""
        choices = self.candidates[part]
        texts = [f"a picture of {phrase}" if part == "subject" else f"a picture {phrase}" for phrase in choices]
        logits = self.embed_clips(clips).mean(1) @ self.embed_texts(texts).T
        return [choices[i] for i in logits.argmax(1).tolist()]
