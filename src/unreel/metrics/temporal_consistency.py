"""Temporal consistency: how alike neighbouring frames are, by the judge's open_clip model.

    100 * cos(E_frame f, E_frame f+1), the mean over neighbouring frames and clips

Reference: "frame consistency" of Esser et al., "Structure and Content-Guided Video Synthesis", ICCV 2023, arXiv
2302.03011, section 5. Range [-100, 100]. Departures: times 100, as the CLIP score.
"""

from typing import Any

from unreel.metrics.clip_score import mean_of
from unreel.rendering import Rendered


class TemporalConsistency:
    """Rows of temporal consistency; higher is better. Images have none."""

    def __call__(self, judge: Any, rendered: Rendered) -> dict[tuple[str, str], tuple[float, float | None, int]]:
        """(split, metric) -> (value in [-100, 100], standard error, clips)."""
        if rendered.clips.shape[1] < 2:
            return {}
        frames = judge.embed_clips(rendered.clips)
        scores = 100 * (frames[:, 1:] * frames[:, :-1]).sum(-1).mean(1)
        return {
            (split, "temporal_consistency"): mean_of(scores[[p.split == split for p in rendered.prompts]])
            for split in dict.fromkeys(prompt.split for prompt in rendered.prompts)
        }
