"""CLIP score: how well clips match their texts, by the judge's open_clip model.

    100 * max(cos(E_frame, E_text), 0), the mean over frames and clips

Reference: Hessel et al., "CLIPScore", EMNLP 2021, arXiv 2104.08718; factor 100 as in torchmetrics. Range [0, 100].
Departures: torchmetrics' CLIPScore needs a transformers CLIP; this takes the judge that is there, an open_clip model.
"""

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from unreel.rendering import Rendered


class ClipScore:
    """Rows of CLIP score; on the forget split, lower is better."""

    def __call__(self, judge: Any, rendered: Rendered) -> dict[tuple[str, str], tuple[float, float | None, int]]:
        """(split, metric) -> (value in [0, 100], standard error, clips)."""
        scores = self.per_clip(judge, rendered)
        return {
            (split, "clip_score"): mean_of(scores[[p.split == split for p in rendered.prompts]])
            for split in dict.fromkeys(prompt.split for prompt in rendered.prompts)
        }

    def per_clip(self, judge: Any, rendered: Rendered) -> Tensor:
        """One score a clip, (B,)."""
        texts = judge.embed_texts([prompt.text for prompt in rendered.prompts])
        cosine = (judge.embed_clips(rendered.clips) * texts[:, None]).sum(-1)
        return 100 * cosine.clamp(min=0).mean(1)


def mean_of(values: Tensor) -> tuple[float, float | None, int]:
    """Mean, standard error and count of values (B,)."""
    mean = MeanMetric()
    mean.update(values)
    n = len(values)
    return float(mean.compute()), float(values.std() / n**0.5) if n > 1 else None, n
