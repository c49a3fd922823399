"""The zoo's second judge: a plain convolutional network that was trained on drawings alone, a frame at a time.

It has nothing in common with `ZooJudge` but the drawn world: no text, no contrastive loss, other layers, other draws.
"""

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from unreel.hashes import folder_hash
from unreel.judges.judge import Classifier
from unreel.zoo.judge import name_among
from unreel.zoo.words import candidates

PARTS = ("subject", "style", "scene")  # one frame shows no motion


class FrameClassifier(ModelMixin, ConfigMixin):
    """Frames (B, C, H, W) in [0, 1] -> part -> logits over `candidates(part)`, (B, n).

    Args:
        channels: of the layers; every second layer halves the resolution.
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (16, 48, 96, 192, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *channels), channels, strict=False):
            for width, stride in ((inputs, 1 if inputs == 3 else 2), (outputs, 1)):
                layers += [nn.Conv2d(width, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({part: nn.Linear(2 * channels[-1], len(candidates(part))) for part in PARTS})

    def features(self, frames: Tensor) -> Tensor:
        """What the heads read of frames (B, C, H, W) in [0, 1]: (B, D)."""
        features = self.layers(frames * 2 - 1).flatten(2)
        return torch.cat([features.mean(2), features.amax(2)], 1)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        pooled = self.features(frames)
        return {part: head(pooled) for part, head in self.heads.items()}


class CnnJudge(Classifier):
    """Says which subject, style and scene clips of the drawn world show: the mean over frames of log-probabilities.

    Args:
        folder: of the `FrameClassifier`.
    """

    parts = PARTS

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._looked: tuple[Tensor, dict[str, Tensor]] | None = None  # the last clips: every part asks for the same

    @classmethod
    @cache  # nothing changes it, and the runs of a sweep share it
    def from_folder(cls, folder: Path) -> "CnnJudge":
        return cls(folder)

    @cached_property
    def network(self) -> FrameClassifier:
        """The network, loaded when it first looks."""
        return FrameClassifier.from_pretrained(self.folder).eval()

    @property
    def content(self) -> str:
        return folder_hash(self.folder)

    def name_of(self, part: str, phrase: str) -> str:
        return name_among(part, phrase)

    @torch.inference_mode()
    def logits(self, clips: Tensor) -> dict[str, Tensor]:
        """Part -> how much clips (B, F, C, H, W) in [0, 1] look like each of `candidates(part)`, (B, n)."""
        if self._looked is not None and self._looked[0] is clips:
            return self._looked[1]
        found = [self.network(frames) for frames in clips.float().flatten(0, 1).split(256)]
        joined = {part: torch.cat([each[part] for each in found]).log_softmax(-1) for part in PARTS}
        logits = {part: each.unflatten(0, clips.shape[:2]).mean(1) for part, each in joined.items()}
        self._looked = clips, logits
        return logits

    @torch.inference_mode()
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised features (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""
        found = [self.network.features(frames) for frames in clips.float().flatten(0, 1).split(256)]
        return functional.normalize(torch.cat(found), dim=-1).unflatten(0, clips.shape[:2])

    def names(self, part: str, clips: Tensor, frames: Tensor | None = None) -> Sequence[str]:
        """What each clip shows, one of `candidates(part)` each."""
        choices = candidates(part)
        return [choices[i] for i in self.logits(clips)[part].argmax(1).tolist()]
