"""CLIP score: how well clips match their texts, by the judge's open_clip model.

    100 * max(cos(E_frame, E_text), 0), the mean over frames and clips

Reference: Hessel et al., "CLIPScore", EMNLP 2021, arXiv 2104.08718; factor 100 as in torchmetrics. Range [0, 100].
Departures: torchmetrics' CLIPScore takes a transformers CLIP, and clamps the mean; this takes the judge that is there,
an open_clip model, and clamps each frame.
"""

from torch import Tensor
from torchmetrics.functional import cosine_similarity

from unreel.metrics.judges import Judged


class ClipScore:
    """Values of CLIP score; on the forget split, lower is better."""

    def __call__(self, judged: Judged) -> dict[tuple[str, str], tuple[float, float | None, int]]:
        """(split, metric) -> (value in [0, 100], standard error, clips), of the clips of one split."""
        clips, frames, _ = judged.frames.shape
        texts = judged.texts.repeat_interleave(frames, 0)
        cosine = cosine_similarity(judged.frames.flatten(0, 1), texts, reduction="none").view(clips, frames)
        return {(judged.split, "clip_score"): mean_of(100 * cosine.clamp(min=0).mean(1))}


def mean_of(values: Tensor) -> tuple[float, float | None, int]:
    """Mean, standard error and count of values (B,)."""
    n = len(values)
    return float(values.mean()), float(values.std() / n**0.5) if n > 1 else None, n
