"""Reads which motion a clip shows by holding it against drawn clips: nothing is trained.

    d_ij(x, y) = sum over colours of |frame_i - frame_j|, of all pairs of frames i < j, on a grid of 8 x 8 means
    m_ij = sqrt(max(d_ij - median of d_ij over x and y, 0))      what changes beyond a flicker of the whole picture
    motion = that of the drawn clip whose maps m have the greatest cosine with those of the clip

The drawn clips show every subject of the drawn world in every motion, in scenes and styles of training combinations. A
clip is still when it changes less than nearly all drawn motions do. It shows nothing drawn ("") when it is like no
drawn motion, or when neighbouring frames differ more than in any drawn clip: noise, or a broken clip.

Reference: the comparison of all pairs of frames is that of Junejo et al., "View-Independent Action Recognition from
Temporal Self-Similarities" (IEEE TPAMI 33, 2011), kept apart by place. Departures: no classifier is learned, and place
counts, as the drawn world knows left from right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unreel.hashes import code_hash, content_key
from unreel.judges.judge import Classifier
from unreel.zoo.judge import name_among
from unreel.zoo.words import STILL, candidates, motions, shows
from unreel.zoo.world import NUM_FRAMES, draw_clip, held_out, possible, sample_spec

NOTHING = ""  # what a clip shows that is neither still nor like anything drawn
_GRID = 8
_SEED = 21_000_000  # of the drawn clips: no training draws with seeds from there
_RARE = 0.01  # of drawn clips that a bound leaves out
_RHYTHMS = 4  # in which a drawn clip shakes, besides the even one


@dataclass(frozen=True)
class Changes:
    """What changes between the frames of B clips.

    Attributes:
        maps: m above, all pairs of frames side by side, of length 1: (B, pairs * 64).
        amount: mean of max(d - median, 0), in [0, 1]: (B,).
        restless: mean absolute difference of neighbouring frames, in [0, 1]: (B,).
    """

    maps: Tensor
    amount: Tensor
    restless: Tensor

    @classmethod
    def of(cls, clips: Tensor) -> "Changes":
        """Of clips (B, F, C, H, W) in [0, 1]."""
        grid = functional.adaptive_avg_pool2d(clips.flatten(0, 1), _GRID).unflatten(0, clips.shape[:2])
        i, j = torch.triu_indices(clips.shape[1], clips.shape[1], 1)
        changed = (grid[:, i] - grid[:, j]).abs().mean(2).flatten(2)  # (B, pairs, 64)
        beyond = (changed - changed.median(2, keepdim=True).values).clamp(min=0)
        maps = functional.normalize(beyond.sqrt().flatten(1), dim=1)
        return cls(maps, beyond.mean((1, 2)), (clips[:, 1:] - clips[:, :-1]).abs().mean((1, 2, 3, 4)))


@dataclass(frozen=True)
class Bank:
    """Drawn clips of every motion but stillness, and what they say of where motion ends.

    Attributes:
        maps, motions: of each drawn clip, as in `Changes`, and the name of its motion.
        least_amount: nearly all drawn motions change more.
        least_likeness: halfway between what nearly all drawn clips have with the nearest other one, and what clips have
            whose every frame is of another drawn clip.
        most_restless: that of the most restless drawn clip.
    """

    maps: Tensor
    motions: list[str]
    least_amount: float
    least_likeness: float
    most_restless: float

    @classmethod
    @cache
    def drawn(cls, num_frames: int, harder: bool) -> "Bank":
        """One clip of `num_frames` frames of each subject and motion; of shaking, more in rhythms of their own."""
        rng = np.random.default_rng(_SEED)
        clips, names = list[Tensor](), list[str]()
        for subject in candidates("subject"):
            for motion in motions(harder):
                while held_out(spec := replace(sample_spec(rng), subject=subject, motion=motion)):
                    pass
                if motion == STILL or not possible(spec):
                    continue
                own = [draw_clip(spec, _SEED + len(clips), num_frames)]
                if motion == "shaking":
                    poses = draw_clip(spec, _SEED + len(clips), 2 * num_frames - 1)  # those between the frames too
                    own += [poses[rng.integers(len(poses), size=num_frames)] for _ in range(_RHYTHMS)]
                clips += own
                names += [motion] * len(own)
        changes = Changes.of(drawn := torch.stack(clips))
        alike = changes.maps @ changes.maps.T
        places = torch.arange(num_frames)
        others = [drawn[torch.from_numpy(rng.permutation(len(drawn))[:num_frames]), places] for _ in range(100)]
        mixed = Changes.of(torch.stack(others)).maps @ changes.maps.T
        between = alike.fill_diagonal_(0).amax(1).quantile(_RARE), mixed.amax(1).quantile(1 - _RARE)
        return cls(
            changes.maps, names, float(changes.amount.quantile(_RARE)), float(sum(between)) / 2,
            float(changes.restless.max()),
        )  # fmt: skip


class MotionReader(Classifier):
    """Says which motion clips of the drawn world show, from drawn clips alone. It has no weights.

    Args:
        harder: whether it knows the harder motions of the second generation too.
    """

    parts = ("motion",)

    def __init__(self, harder: bool = False) -> None:
        self.harder = harder

    @property
    def content(self) -> str:
        return content_key(code=code_hash([self]), harder=self.harder)[:24]

    def name_of(self, part: str, phrase: str) -> str:
        return name_among(part, phrase, motions(self.harder))

    def shows(self, seen: str, wanted: str) -> bool:
        return shows(seen, wanted)

    def names(self, part: str, clips: Tensor, frames: Tensor | None = None) -> Sequence[str]:
        """What each clip (F >= 2) shows: a motion that it knows, or NOTHING; of long clips 8 frames are read."""
        places = np.linspace(0, clips.shape[1] - 1, min(clips.shape[1], NUM_FRAMES)).round().astype(int)
        bank, changes = Bank.drawn(len(places), self.harder), Changes.of(clips[:, places].float())
        likeness, nearest = (changes.maps @ bank.maps.T).max(1)
        return [
            NOTHING if restless > bank.most_restless
            else STILL if amount < bank.least_amount
            else bank.motions[near] if like >= bank.least_likeness
            else NOTHING
            for restless, amount, like, near in zip(
                changes.restless.tolist(), changes.amount.tolist(), likeness.tolist(), nearest.tolist(), strict=True
            )
        ]  # fmt: skip
