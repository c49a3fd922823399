"""CLIP score: how well clips match their texts, by the judge's open_clip model.

    100 * max(cos(E_frame, E_text), 0), the mean over frames and clips

Reference: Hessel et al., "CLIPScore", EMNLP 2021, arXiv 2104.08718; factor 100 as in torchmetrics. Range [0, 100].
Departures: torchmetrics' CLIPScore takes a transformers CLIP, and clamps the mean; this takes the judge that is there,
an open_clip model, and clamps each frame.
"""

from torchmetrics.functional import cosine_similarity

from unreel.judges.judge import Judged
from unreel.metrics.metric import Metric, mean_of
from unreel.records import Value


class ClipScore(Metric):
    """Values of CLIP score; of what must go, lower is better."""

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """One value in [0, 100]."""
        clips, frames, _ = after.frames.shape
        texts = after.texts.repeat_interleave(frames, 0)
        cosine = cosine_similarity(after.frames.flatten(0, 1), texts, reduction="none").view(clips, frames)
        found = mean_of(100 * cosine.clamp(min=0).mean(1))
        return [Value(after.split, "clip_score", *found, "points", "down" if after.must_go else "up")]
