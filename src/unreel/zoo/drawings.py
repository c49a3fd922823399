"""Training draws: specs that come in groups which differ by one word, and their clips, drawn once to disk."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from unreel.files import whole
from unreel.zoo.captions import Caption, caption
from unreel.zoo.words import KINDS
from unreel.zoo.world import NUM_FRAMES, SIZE_PX, Spec, draw_clip, draw_mask, held_out, possible, sample_spec

GROUP = 4  # specs a group: one, and three that differ from it in one field each
_STILL = 0.3
_CHUNK = 64  # clips that a process draws at a time
_APART = 1_000_003  # drawings of different seeds are that far apart in the seeds of their clips


def draw_specs(count: int, seed: int, harder: float = 0.0) -> list[Spec]:
    """`count` training specs in groups of GROUP, the hard negatives of contrastive training.

    Args:
        count: how many.
        seed: which.
        harder: as in `sample_spec`.
    """
    rng = np.random.default_rng([seed, 7])
    specs: list[Spec] = []
    while len(specs) < count:
        first = sample_spec(rng, still=_STILL, harder=harder)
        specs.append(first)
        for field in rng.permutation(KINDS)[: GROUP - 1]:
            for _ in range(100):
                drawn = sample_spec(rng, still=_STILL, harder=harder)
                other = replace(first, **{str(field): getattr(drawn, str(field))})
                if fits := other != first and not held_out(other) and possible(other):
                    break
            assert fits, other
            specs.append(other)
    return specs[:count]


def _draw_uint8(spec_and_seed: tuple[Spec, int], first_seed: int) -> np.ndarray:
    spec, index = spec_and_seed
    return (draw_clip(spec, first_seed + index) * 255).round().byte().numpy()


def _processes(count: int) -> AbstractContextManager[Pool | None]:
    """Fresh processes that draw, as forks of one whose torch has threads may hang; None for what is drawn at once."""
    return get_context("spawn").Pool() if count > _CHUNK else nullcontext()


class Drawings:
    """`count` drawn clips and their specs; the clips are drawn by the first process that asks and kept in `folder`.

    Args:
        folder: where the clips are kept, as one uint8 array file (count, F, C, H, W).
        count: number of clips.
        seed: which draws; different seeds share no drawing.
        harder: probability of harder motions, as in `sample_spec`; captions may leave out what a subject implies.
    """

    def __init__(self, folder: Path, count: int, seed: int, harder: float = 0.0) -> None:
        self.specs = draw_specs(count, seed, harder)
        self.seed, self.harder = seed, harder > 0
        self.path = Path(folder) / f"drawings_{seed}_{count}{f'_{harder}' if harder else ''}.npy"
        shape = (count, NUM_FRAMES, 3, SIZE_PX, SIZE_PX)
        if not self.path.exists():
            draw = partial(_draw_uint8, first_seed=seed * _APART)
            jobs = list(zip(self.specs, range(count), strict=True))
            with whole(self.path) as aside, _processes(count) as pool:
                array = np.lib.format.open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
                drawn = pool.imap(draw, jobs, _CHUNK) if pool else map(draw, jobs)
                for index, clip in enumerate(track(drawn, f"drawing {count} clips", total=count)):
                    array[index] = clip
                array.flush()
        self.clips = np.load(self.path, mmap_mode="r")
        assert self.clips.shape == shape, f"{self.path}: {self.clips.shape}"

    def __deepcopy__(self, memo: dict) -> "Drawings":
        return self  # read-only and large: an EMA copy of a module that holds it shares it

    def __len__(self) -> int:
        return len(self.specs)

    def frames(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        """One random frame of each clip, (B, C, H, W) in [0, 1]."""
        picked = rng.integers(NUM_FRAMES, size=len(indices))
        return torch.from_numpy(self.clips[indices, picked]).float() / 255

    def batch_of_clips(self, indices: np.ndarray) -> Tensor:
        """Whole clips, (B, F, C, H, W) in [0, 1]."""
        return torch.from_numpy(self.clips[indices]).float() / 255

    def masks(self, indices: np.ndarray) -> Tensor:
        """Where the subject is in the clips, (B, F, H, W) in [0, 1]; drawn anew."""
        return torch.stack([draw_mask(self.specs[i], self.seed * _APART + int(i)) for i in indices])

    def captions(
        self, indices: np.ndarray, rng: np.random.Generator, drop: float = 0.0, long: float = 0.3
    ) -> list[Caption]:
        """A random caption for each clip; every field is left unsaid with probability `drop`."""
        made = []
        for i in indices:
            is_long, said = rng.random() < long, frozenset(k for k in KINDS if rng.random() >= drop)
            made.append(caption(self.specs[i], rng, is_long, said, self.harder))
        return made


def groups(rng: np.random.Generator, count: int, total: int) -> np.ndarray:
    """Indices of `count` whole groups among `total` drawings, (count * GROUP,)."""
    first = rng.choice(total // GROUP, count, replace=False) * GROUP
    return (first[:, None] + np.arange(GROUP)).ravel()


def consistent(captions: list[Caption], specs: list[Spec], caption_specs: list[Spec]) -> Tensor:
    """Whether caption i is true of spec j, (len(captions), len(specs)) bool: all that it states agrees."""
    names = {
        k: {n: i for i, n in enumerate(dict.fromkeys(getattr(s, k) for s in [*specs, *caption_specs]))} for k in KINDS
    }
    shown = torch.tensor([[names[k][getattr(s, k)] for k in KINDS] for s in specs])
    said = torch.tensor([[names[k][getattr(s, k)] for k in KINDS] for s in caption_specs])
    unsaid = torch.tensor([[k not in c.states for k in KINDS] for c in captions])
    return ((said[:, None] == shown[None]) | unsaid[:, None]).all(-1)
