"""Temporal consistency: how alike neighbouring frames are, by the judge's open_clip model.

    100 * cos(E_frame f, E_frame f+1), the mean over neighbouring frames and clips

Reference: "frame consistency" of Esser et al., "Structure and Content-Guided Video Synthesis", ICCV 2023, arXiv
2302.03011, section 5. Range [-100, 100]. Departures: times 100, as the CLIP score.
"""

from torchmetrics.functional import cosine_similarity

from unreel.metrics.clip_score import mean_of
from unreel.metrics.judges import Judged


class TemporalConsistency:
    """Values of temporal consistency; higher is better. Images have none."""

    def __call__(self, judged: Judged) -> dict[tuple[str, str], tuple[float, float | None, int]]:
        """(split, metric) -> (value in [-100, 100], standard error, clips), of the clips of one split."""
        clips, frames, _ = judged.frames.shape
        if frames < 2:
            return {}
        neighbours = judged.frames[:, 1:].flatten(0, 1), judged.frames[:, :-1].flatten(0, 1)
        cosine = cosine_similarity(*neighbours, reduction="none").view(clips, frames - 1)
        return {(judged.split, "temporal_consistency"): mean_of(100 * cosine.mean(1))}
