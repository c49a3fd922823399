"""Motion: how much moves in clips, and what has taken the place of a motion that was to be forgotten.

    motion_amount           100 * length of the optical flow in shares of the shorter side, mean over blocks and frames
    motion_seen_share       of clips that ask for an erased motion, those in which the reader sees it
    still_share             ... those without it that do not move
    another_motion_share    ... those that show another motion
    broken_share            ... those that show nothing known: the reader is at a loss, or the judge sees neither
                            subject nor scene. The four are 1 together
    read_motion_accuracy    of other clips whose prompt says a motion, those in which the reader sees it
    motion_agreement        clips in which reader and judge say the same of whether the said motion is there

The judge reads motion with a network; the reader (`unreel.zoo.motion_reader` on the zoo) was never trained, so that an
eraser that only fools the network shows here, and a frozen or broken clip does not count as one that forgot. The share
of retained clips' motion_amount that is left after an edit says whether they still move as they did.

Reference: the motion scores of Huang et al., "VBench" (CVPR 2024, arXiv 2311.17982) and the flow ratio of motion
editing papers. Range: shares [0, 1]; amount [0, 100]. Departures: the flow is block matching, no RAFT
(`unreel.metrics.optical_flow`).
"""

from collections.abc import Sequence

import torch

from unreel.judges.judge import Classifier, Judged
from unreel.metrics.metric import Metric, mean_of, share_of
from unreel.metrics.optical_flow import magnitudes
from unreel.records import Concept, Prompt, Value

STILL = "still"  # what a reader calls clips that do not move
_AT_A_TIME = 32  # clips that are read from disk together
_GOALS = {"motion_seen_share": "down", "still_share": "", "another_motion_share": "", "broken_share": "down"}


class Motion(Metric):
    """Values of motion. Images have none.

    Args:
        reader: a classifier that reads motion and needs no training; None measures the amount alone.
    """

    def __init__(self, reader: Classifier | None = None) -> None:
        self.reader = reader

    @property
    def content(self) -> str:
        """Hash of the reader."""
        return self.reader.content if self.reader else ""

    def check(self, prompts: Sequence[Prompt], concepts: Sequence[Concept], num_frames: Sequence[int]) -> None:
        """ValueError for motions that the reader does not know."""
        if self.reader:
            try:
                self.reader.check(prompts, [], num_frames)
            except ValueError as error:
                raise ValueError(
                    f"metric=motion: {error}; metric.motion.reader=null measures the amount alone"
                ) from None

    def __call__(self, after: Judged, before: Judged | None) -> list[Value]:
        """One amount in [0, 100], and shares in [0, 1] where prompts say motions."""
        prompts, clips = after.rendered.prompts, after.rendered.clips
        if clips[0].shape[0] < 2:
            return []
        amount = torch.stack([100 * magnitudes(clip).mean() for clip in clips])
        values = [Value(after.split, "motion_amount", *mean_of(amount), "points", "")]
        said = [i for i, prompt in enumerate(prompts) if "motion" in dict(prompt.shows)]
        if self.reader is None or not said:
            return values
        read = list[str]()
        for start in range(0, len(said), _AT_A_TIME):
            some = torch.stack([clips[i] for i in said[start : start + _AT_A_TIME]])
            read += self.reader.names("motion", some)
        asked = [self.reader.name_of("motion", dict(prompts[i].shows)["motion"]) for i in said]
        seen = [self.reader.shows(name, wanted) for name, wanted in zip(read, asked, strict=True)]
        erased = [prompts[i].part == "motion" and after.must_go for i in said]
        if all(erased):
            kinds = [_kind(name, there, after.marks[i]) for i, name, there in zip(said, read, seen, strict=True)]
            for name, goal in _GOALS.items():
                share = share_of([[kind == name] for kind in kinds])
                values.append(Value(after.split, name, *share, "share", goal))
        else:
            split = after.split.replace("forget", "context")
            values.append(Value(split, "read_motion_accuracy", *share_of([[mark] for mark in seen]), "share", "up"))
        both = [(after.marks[i].get("motion"), there) for i, there in zip(said, seen, strict=True)]
        if same := [[mark == there] for mark, there in both if mark is not None]:
            values.append(Value(after.split, "motion_agreement", *share_of(same), "share", "up"))
        return values


def _kind(name: str, seen: bool, marks: dict[str, bool]) -> str:
    """Which of the four shares a clip belongs to, by what the reader and the judge saw in it."""
    looks = [marks[part] for part in ("subject", "scene") if part in marks]
    if seen:
        return "motion_seen_share"
    if not name or (looks and not any(looks)):
        return "broken_share"
    return "still_share" if name == STILL else "another_motion_share"
