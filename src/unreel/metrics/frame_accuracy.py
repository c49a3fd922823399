"""Frame accuracy: what the judge sees of a concept at each frame, as it may come back in the course of a clip.

    first_frame_accuracy, last_frame_accuracy    over what is seen in the first frames alone, and in the last ones
    worst_frame_accuracy    forget: the clips of which any frame shows the concept; others: over each clip's worst frame

Of forget prompts it is the concept that counts, of others all that they say; motions, which no frame shows, do not. An
eraser under which a concept comes back has a higher last than first frame, and a worst one above both.

Reference: the share of videos with one positive frame or more of Xu et al., "VideoEraser" (arXiv 2508.15314). Range
[0, 1]. Departures: all frames are looked at, not 5 of them.
"""

import torch
from torch import Tensor

from unreel.judges.judge import Judged
from unreel.metrics.metric import Metric, share_of
from unreel.records import Value


class FrameAccuracy(Metric):
    """Values of accuracy by frame; on the forget split, lower is better. Images have none."""

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """Three values in [0, 1]; none where no single frame could show what is asked for."""
        if not after.frame_marks or after.frames.shape[1] < 2:
            return []
        found = by_frame(after)
        if not len(found):
            return []
        worst = found.amax(1) if after.must_go else found.amin(1)
        chosen, goal = {"first": found[:, 0], "last": found[:, -1], "worst": worst}, "down" if after.must_go else "up"
        return [
            Value(after.split, f"{which}_frame_accuracy", *share_of(own[:, None].tolist()), "share", goal)
            for which, own in chosen.items()
        ]


def by_frame(judged: Judged) -> Tensor:
    """For each clip that says any of it, the share of what is asked for that each frame shows: (clips, F) in [0, 1]."""
    rows = []
    for prompt, marks in zip(judged.rendered.prompts, judged.frame_marks, strict=True):
        own = [m for part, m in marks.items() if not judged.must_go or part == prompt.part]
        if own:
            rows.append(torch.tensor(own, dtype=torch.float).mean(0))
    return torch.stack(rows) if rows else torch.zeros(0, judged.frames.shape[1])
