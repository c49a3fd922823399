"""SSIM: how like the clip of the unedited model a clip stayed, structure for structure.

    SSIM(frame after, frame before), Gaussian windows of 11 px, standard deviation 1.5; the mean over frames and clips

Reference: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, as
torchmetrics computes it. Range [-1, 1]; 1 is the same clip. Departures: none.
"""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from unreel.judges.judge import Judged
from unreel.metrics.metric import Metric, mean_of
from unreel.records import Value, must_go


class Ssim(Metric):
    """Values of SSIM after an edit: high is good of clips that must stay; of the others it is neither good nor bad."""

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """One value in [-1, 1]; none before an edit."""
        if before is None:
            return []
        both = zip(after.rendered.clips, before.rendered.clips, strict=True)
        found = [torch.as_tensor(structural_similarity_index_measure(clip, old, data_range=1.0)) for clip, old in both]
        goal = "" if must_go(after.split) else "up"
        return [Value(after.split, "ssim", *mean_of(torch.stack(found)), "share", goal)]
