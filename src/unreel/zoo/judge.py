"""The zoo's judge: models that look at clips of the drawn world and say what they see. They only evaluate.

`ZooJudge` reads subject, style and scene zero-shot with a small open_clip model (a residual network, where the text
encoder was trained against a plain CNN; other seed, other draws); `MotionJudge` classifies the motion of a whole clip.
"""

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

from unreel.hashes import content_key, folder_hash
from unreel.judges.judge import Judge
from unreel.zoo.captions import caption
from unreel.zoo.contrastive import tokenize
from unreel.zoo.words import KINDS, candidates, motions, shows, word
from unreel.zoo.world import NUM_FRAMES, Spec

PROMPTS_A_NAME = 24  # zero-shot prompts that are averaged for one candidate, those that are equal once


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """input_ids (B, L) padded with zeros, as open_clip wants them: it pools at the largest id, the end of the text."""
    tokens = tokenize(tokenizer, texts, padding="max_length")
    return tokens["input_ids"] * tokens["attention_mask"]


def name_alone(kind: str, name: str, rng: np.random.Generator) -> str:
    """A short caption that states nothing but that `kind` is `name`."""
    spec = Spec(**({"subject": "cat", "scene": "beach"} | {kind: name}))
    while (said := caption(spec, rng, states=frozenset({kind}))).states != {kind}:
        pass
    return said.text


def name_among(part: str, phrase: str, names: Sequence[str] = ()) -> str:
    """What a phrase of a prompt says: the name that it is a phrase of.

    Args:
        part: one of KINDS.
        phrase: as a prompt says it.
        names: what is chosen among; `candidates(part)` where none are given.

    Raises:
        ValueError: for a phrase that the drawn world does not know, listing its names.
    """
    names = names or candidates(part)
    for name in names:
        if phrase in (name, *word(part, name).phrases):
            return name
    raise ValueError(f"the zoo's judge knows no {part} {phrase!r}: expected a phrase of {', '.join(names)}")


def embed_frames(clip: nn.Module, frames: Tensor) -> Tensor:
    """Normalised embeddings (B, D) of frames (B, C, H, W) in [-1, 1]."""
    size: int = clip.visual.image_size  # type: ignore[union-attr, assignment]
    enlarged = functional.interpolate(frames, size=(size, size), mode="bilinear")
    return clip.encode_image(enlarged, normalize=True)  # type: ignore[operator]


class MotionJudge(ModelMixin, ConfigMixin):
    """A small 3-D CNN: clips (B, F, C, H, W) in [0, 1] -> logits over the first `num_motions` of all motions."""

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128), num_motions: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool3d((1, 2, 2))]
        for inputs, outputs in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv3d(inputs, outputs, 3, (1, 2, 2), 1), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * NUM_FRAMES, num_motions)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.layers((clips * 2 - 1).transpose(1, 2))
        return self.head(features.mean((3, 4)).flatten(1))


class ZooJudge(Judge):
    """Says what clips of the drawn world show.

    Args:
        judge: folder of the open_clip model.
        motion_judge: folder of the motion classifier.
        tokenizer: folder of the zoo's tokenizer.
    """

    parts = KINDS
    num_frames = NUM_FRAMES

    def __init__(self, judge: Path, motion_judge: Path, tokenizer: Path) -> None:
        self.folders = {"judge": Path(judge), "motion_judge": Path(motion_judge), "tokenizer": Path(tokenizer)}
        self._prompts: dict[str, Tensor] = {}

    @classmethod
    @cache  # nothing changes it, and the runs of a sweep share what it has made of its names
    def from_folders(cls, judge: Path, motion_judge: Path, tokenizer: Path) -> "ZooJudge":
        return cls(judge, motion_judge, tokenizer)

    @cached_property
    def clip(self) -> nn.Module:
        """The open_clip model that reads subject, style and scene."""
        return open_clip.create_model(f"local-dir:{self.folders['judge']}").eval()

    @cached_property
    def motion_judge(self) -> MotionJudge:
        """The classifier of motions."""
        return MotionJudge.from_pretrained(self.folders["motion_judge"]).eval()

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.folders["tokenizer"])

    @property
    def content(self) -> str:
        return content_key(**{name: folder_hash(folder) for name, folder in self.folders.items()})

    @torch.inference_mode()
    def _prompt_embeds(self, kind: str) -> Tensor:
        """One normalised embedding a candidate, the mean over PROMPTS_A_NAME captions that state it alone: (n, D)."""
        if kind not in self._prompts:
            rng = np.random.default_rng(0)
            rows = []
            for name in candidates(kind):
                texts = sorted({name_alone(kind, name, rng) for _ in range(PROMPTS_A_NAME)})
                embeds = self.clip.encode_text(token_ids(self.tokenizer, texts), normalize=True)  # type: ignore[operator]
                rows.append(functional.normalize(embeds.mean(0), dim=-1))
            self._prompts[kind] = torch.stack(rows)
        return self._prompts[kind]

    @torch.inference_mode()
    def logits(self, kind: str, clips: Tensor, frames: Tensor | None = None) -> Tensor:
        """How much clips (B, F, C, H, W) in [0, 1] look like each of what it chooses among: (B, n), higher is more.

        Args:
            kind: one of KINDS.
            clips: what is looked at.
            frames: `embed_clips(clips)`, by those who have it already.

        Raises:
            ValueError: for an unknown kind, or motion of clips with another number of frames than the world's.
        """
        if kind == "motion":
            if clips.shape[1] != NUM_FRAMES:
                raise ValueError(f"found clips of {clips.shape[1]} frames: the motion judge needs {NUM_FRAMES}")
            return torch.cat([self.motion_judge(part) for part in clips.float().split(64)])
        frames = self.embed_clips(clips) if frames is None else frames
        return frames.mean(1) @ self._prompt_embeds(kind).T

    @torch.inference_mode()
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised embeddings (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""
        frames = clips.float().flatten(0, 1) * 2 - 1
        return torch.cat([embed_frames(self.clip, part) for part in frames.split(256)]).unflatten(0, clips.shape[:2])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.clip.encode_text(token_ids(self.tokenizer, list(texts)), normalize=True)  # type: ignore[operator]

    def name_of(self, part: str, phrase: str) -> str:
        return name_among(part, phrase, self._choices(part))

    def shows(self, seen: str, wanted: str) -> bool:
        return shows(seen, wanted)

    def _choices(self, part: str) -> tuple[str, ...]:
        """What it chooses among: of motions the harder ones too, if its classifier learned them."""
        return self._motions if part == "motion" else candidates(part)

    @cached_property
    def _motions(self) -> tuple[str, ...]:
        return motions(True)[: MotionJudge.load_config(self.folders["motion_judge"])["num_motions"]]

    def names(self, part: str, clips: Tensor, frames: Tensor | None = None) -> list[str]:
        """What each clip shows, a name each; arguments as in `logits`."""
        choices = self._choices(part)
        return [choices[i] for i in self.logits(part, clips, frames).argmax(1).tolist()]
