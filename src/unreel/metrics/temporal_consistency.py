"""Temporal consistency: how alike neighbouring frames are, by the judge's open_clip model.

    100 * cos(E_frame f, E_frame f+1), the mean over neighbouring frames and clips

Reference: "frame consistency" of Esser et al., "Structure and Content-Guided Video Synthesis", ICCV 2023, arXiv
2302.03011, section 5. Range [-100, 100]. Departures: times 100, as the CLIP score.
"""

from torchmetrics.functional import cosine_similarity

from unreel.judges.judge import Judged
from unreel.metrics.metric import Metric, mean_of
from unreel.records import Value


class TemporalConsistency(Metric):
    """Values of temporal consistency; higher is better. Images have none."""

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """One value in [-100, 100]."""
        clips, frames, _ = after.frames.shape
        if frames < 2:
            return []
        neighbours = after.frames[:, 1:].flatten(0, 1), after.frames[:, :-1].flatten(0, 1)
        cosine = cosine_similarity(*neighbours, reduction="none").view(clips, frames - 1)
        return [Value(after.split, "temporal_consistency", *mean_of(100 * cosine.mean(1)), "points", "up")]
