"""Video quality as VBench has it, without a download: consistency always beside how much moves, as a still clip has it.

    subject_consistency       mean over frames i > 0 of (max(cos(i, 0), 0) + max(cos(i, i - 1), 0)) / 2, by DINO
    ..._stand_in              the same by another network that was given in DINO's place
    background_consistency    the same by the judge's image encoder; with an open_clip judge, a CLIP as in VBench
    temporal_flickering       1 - mean |frame i - frame i-1|
    motion_smoothness_linear  1 - mean |odd frame - the mean of its two neighbours|
    dynamic_degree_blocks     share of clips that move: of n frames, round(4 n / 16) pairs or more have a flow whose
                              largest 5 % are longer than 6/256 of the shorter side, by block matching

Reference: Huang et al., "VBench" (CVPR 2024, arXiv 2311.17982), the dimensions of these names. Range [0, 1].
Departures: flickering is measured on all clips, where VBench takes still ones alone. Smoothness interpolates linearly,
where VBench has AMT; dynamic degree matches blocks, where it has RAFT: their names say so. No score is rescaled.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional import cosine_similarity
from transformers import AutoImageProcessor, AutoModel

from unreel.hashes import content_key, folder_hash
from unreel.judges.judge import Judged
from unreel.metrics.metric import Metric, mean_of, share_of
from unreel.metrics.optical_flow import magnitudes
from unreel.records import Value


class Embedder(Protocol):
    """Whatever embeds the frames of clips."""

    @property
    def content(self) -> str:
        """Hash of its weights."""

    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised embeddings (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""


class Dino:
    """A vision transformer in transformers' format, whose first token embeds a frame; loaded when it first looks.

    Args:
        folder: a local folder, as of facebook/dino-vitb16, which VBench takes.

    Raises:
        ValueError: for a folder without a model.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "config.json").is_file() or not list(self.folder.glob("*.safetensors")):
            raise ValueError(
                f"metric.video_quality.dino={folder}: expected a folder with config.json and model.safetensors, as of"
                " facebook/dino-vitb16"
            )
        self._loaded: tuple[Any, Any] | None = None

    @property
    def content(self) -> str:
        return folder_hash(self.folder)

    @torch.inference_mode()
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised embeddings (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""
        if self._loaded is None:
            processor = AutoImageProcessor.from_pretrained(self.folder, local_files_only=True)
            model = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
            self._loaded = processor, model.eval()
        processor, model = self._loaded
        inputs = processor(images=list(clips.flatten(0, 1)), do_rescale=False, return_tensors="pt")
        return functional.normalize(model(**inputs).last_hidden_state[:, 0], dim=-1).unflatten(0, clips.shape[:2])


class VideoQuality(Metric):
    """Values of VBench's dimensions; images have none.

    Args:
        dino: folder of a DINO ViT-B/16 in transformers' format, for subject_consistency.
        stand_in: embeds frames in its place where there is none; without either, the subject's is left out.
    """

    def __init__(self, dino: str | None = None, stand_in: Embedder | None = None) -> None:
        self.subject = Dino(dino) if dino else stand_in
        self.name = "subject_consistency" if dino else "subject_consistency_stand_in"

    @property
    def content(self) -> str:
        """Hash of the network that looks at the subject."""
        return content_key(subject=self.subject.content if self.subject else "", name=self.name)

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """In [0, 1]; all are good when they are high but dynamic_degree_blocks, which is neither."""
        clips = after.rendered.clips
        if clips[0].shape[0] < 2:
            return []
        found = {"background_consistency": consistency(after.frames)}
        if self.subject:
            embedded = [self.subject.embed_clips(clip[None])[0] for clip in clips]
            found = {self.name: consistency(torch.stack(embedded))} | found
        found["temporal_flickering"] = torch.stack([1 - (clip[1:] - clip[:-1]).abs().mean() for clip in clips])
        if clips[0].shape[0] > 2:
            found["motion_smoothness_linear"] = torch.stack([smoothness(clip) for clip in clips])
        values = [Value(after.split, name, *mean_of(each), "share", "up") for name, each in found.items()]
        dynamic = share_of([[moves(clip)] for clip in clips])
        return [*values, Value(after.split, "dynamic_degree_blocks", *dynamic, "share", "")]


def consistency(frames: Tensor) -> Tensor:
    """How alike the frames of each clip are, (B,) in [0, 1], by their embeddings (B, F, D)."""
    first, last, now = frames[:, :1].expand_as(frames[:, 1:]), frames[:, :-1], frames[:, 1:]
    both = [cosine_similarity(now.flatten(0, 1), other.flatten(0, 1), reduction="none") for other in (first, last)]
    return torch.stack(both).clamp(0, 1).mean(0).view(now.shape[:2]).mean(1)


def smoothness(clip: Tensor) -> Tensor:
    """1 - mean |odd frame - the mean of its neighbours| of a clip (F, C, H, W) in [0, 1], F >= 3."""
    odd, even = clip[1:-1:2], clip[::2]
    return 1 - (odd - (even[: len(odd)] + even[1 : len(odd) + 1]) / 2).abs().mean()


def moves(clip: Tensor) -> bool:
    """Whether a clip (F, C, H, W) is dynamic by VBench's rule, with the flow of block matching."""
    lengths = magnitudes(clip)
    largest = lengths.topk(max(lengths.shape[1] // 20, 1), 1).values.mean(1)
    return int((largest > 6 / 256).sum()) >= max(round(4 * len(clip) / 16), 1)
