"""The drawn world: a `Spec` and an integer seed make one clip, always the same.

A clip is float32 (F, C, H, W) = (8, 3, 64, 64) in [0, 1]; a still is one of its frames, (3, 64, 64).
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unreel.zoo.scenes import SIZE_PX, draw_scene
from unreel.zoo.sprites import sprites
from unreel.zoo.styles import apply_style
from unreel.zoo.words import DANCERS, HARDER, IMPLIED, KINDS, NO_STYLE, STILL, SUBJECTS, at_once, candidates, word

NUM_FRAMES = 8
_HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Spec:
    """What one clip shows. Fields are names from `candidates(field)`.

    Raises:
        ValueError: for a name that is not in the world, listing the choices.
    """

    subject: str
    scene: str
    style: str = NO_STYLE
    motion: str = STILL

    def __post_init__(self) -> None:
        for kind in KINDS:
            word(kind, getattr(self, kind))


def held_out(spec: Spec) -> bool:
    """Whether this (subject, scene, style) is kept out of all training, for evaluation; one in eight is."""
    return zlib.crc32(f"{spec.subject}|{spec.scene}|{spec.style}".encode()) % _HELD_OUT_ONE_IN == 0


def possible(spec: Spec) -> bool:
    """Whether the world has it: not everything dances."""
    return word("motion", spec.motion).group != "dance" or word("subject", spec.subject).group in DANCERS


def sample_spec(
    rng: np.random.Generator,
    held_out_only: bool = False,
    plain: float = 0.4,
    still: float = 0.125,
    harder: float = 0.0,
) -> Spec:
    """A random spec, from the training combinations or from the held-out ones.

    Args:
        rng: the generator drawn from.
        held_out_only: draw among the held-out combinations instead of the training ones.
        plain: probability of no style; the other styles share the rest evenly.
        still: probability of no motion; the other motions share the rest evenly.
        harder: probability of two motions at once, one that the subject implies, one that few subjects do, or rest.
    """
    while True:
        style = NO_STYLE if rng.random() < plain else str(rng.choice(candidates("style")[1:]))
        motion = STILL if rng.random() < still else str(rng.choice(candidates("motion")[1:]))
        spec = Spec(str(rng.choice(candidates("subject"))), str(rng.choice(candidates("scene"))), style, motion)
        if harder and rng.random() < harder:
            spec = _harder(spec, rng)
        if held_out(spec) == held_out_only:
            return spec


# Of harder draws. A text encoder that has never read of dancing tells it little from nothing: without more dancers at
# rest, in 13 of 48 clips something moved when nothing was said, 10 of them in a dance.
_HARDER_SHARES = {"two": 0.25, "implied": 0.1, "dance": 0.15, "dancer at rest": 0.25, "rest": 0.25}


def _harder(spec: Spec, rng: np.random.Generator) -> Spec:
    """The spec as one of _HARDER_SHARES says: two motions at once, one that its subject implies, a dance, rest."""
    match case := rng.choice(list(_HARDER_SHARES), p=list(_HARDER_SHARES.values())):
        case "two":
            return replace(spec, motion=str(rng.choice([w.name for w in HARDER if w.group == "two"])))
        case "implied":
            subject = str(rng.choice(list(IMPLIED)))
            return replace(spec, subject=subject, motion=IMPLIED[subject])
        case "rest":
            return replace(spec, motion=STILL)
        case _:
            subject = str(rng.choice([w.name for w in SUBJECTS if w.group in DANCERS]))
            dance = str(rng.choice([w.name for w in HARDER if w.group == "dance"]))
            return replace(spec, subject=subject, motion=dance if case == "dance" else STILL)


@dataclass(frozen=True)
class _Pose:
    """Where a subject is at time t in [0, 1]: offset in px, angle in degrees, scale, and whether left is right."""

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    scale: float = 1.0
    mirrored: bool = False


_POSES: dict[str, Callable[[float], _Pose]] = {
    STILL: lambda t: _Pose(),
    "moving left": lambda t: _Pose(x=15 - 30 * t),
    "moving right": lambda t: _Pose(x=30 * t - 15),
    "jumping": lambda t: _Pose(y=5 - 20 * np.sin(np.pi * t)),
    "spinning": lambda t: _Pose(angle=-315 * t),
    "growing": lambda t: _Pose(scale=0.5 + 0.75 * t),
    "shaking": lambda t: _Pose(x=4.5 * np.cos(7 * np.pi * t), angle=11 * np.cos(7 * np.pi * t)),
    "falling": lambda t: _Pose(y=34 * t - 20),
    "dancing": lambda t: _Pose(7 * _beat(t), 3 - 9 * abs(np.sin(4 * np.pi * t)), 24 * _beat(t), mirrored=_beat(t) < 0),
}


def _beat(t: float) -> float:
    """1 and -1 in turn, two of each."""
    return 1.0 if int(4 * min(max(t, 0), 0.999)) % 2 == 0 else -1.0


def _pose_at(motion: str, t: float) -> _Pose:
    """The pose of a motion, or of two at once."""
    poses = [_POSES[one](t) for one in at_once(motion)]
    return _Pose(
        sum(p.x for p in poses), sum(p.y for p in poses), sum(p.angle for p in poses),
        float(np.prod([p.scale for p in poses])), any(p.mirrored for p in poses),
    )  # fmt: skip


_TRAIL = (0.14, 0.3)  # opacity of the ghosts one and two half-steps behind; they show a motion in a single frame


def _generator(spec: Spec, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("|".join(astuple(spec)).encode())])


def _compose(
    spec: Spec, rng: np.random.Generator, num_frames: int, only: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The scene with the subject in it, before any style: frames (F, 64, 64, 3) and the subject's mask (F, 64, 64)."""
    background = draw_scene(spec.scene, rng)
    sprite = sprites()[spec.subject]
    size_px = float(rng.uniform(34, 44))
    centre = (rng.uniform(27, 37), rng.uniform(32, 38))
    half_step = 0.5 / max(num_frames - 1, 1)
    moments = np.linspace(0, 1, num_frames)[list(only) if only is not None else slice(None)]
    frames = np.empty((len(moments), SIZE_PX, SIZE_PX, 3), dtype=np.float32)
    masks = np.empty((len(moments), SIZE_PX, SIZE_PX), dtype=np.float32)
    for index, t in enumerate(moments):
        frame, mask = background.copy(), Image.new("L", background.size)
        times = [t - 2 * half_step, t - half_step, t] if spec.motion != STILL else [t]
        for opacity, time in zip((*_TRAIL, 1.0)[-len(times) :], times, strict=True):
            pose = _pose_at(spec.motion, float(time))
            edge = max(round(size_px * pose.scale), 4)
            drawn = sprite.resize((edge, edge), Image.Resampling.BILINEAR)
            if pose.mirrored:
                drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if pose.angle:
                drawn = drawn.rotate(pose.angle, Image.Resampling.BILINEAR)
            alpha = (
                drawn.getchannel("A") if opacity == 1 else drawn.getchannel("A").point(lambda a, o=opacity: int(a * o))
            )
            corner = (round(centre[0] + pose.x - edge / 2), round(centre[1] + pose.y - edge / 2))
            frame.paste(drawn.convert("RGB"), corner, alpha)
            if opacity == 1:
                mask.paste(alpha, corner)
        frames[index] = np.asarray(frame, dtype=np.float32) / 255
        masks[index] = np.asarray(mask, dtype=np.float32) / 255
    return frames, masks


def draw_clip(spec: Spec, seed: int, num_frames: int = NUM_FRAMES, only: Sequence[int] | None = None) -> Tensor:
    """Draws a clip.

    Args:
        spec: what it shows.
        seed: layout, sizes and texture of the drawing; any non-negative integer.
        num_frames: how many frames the motion is spread over.
        only: draw these frames of the clip and no others; all of them unless given.

    Returns:
        float32 (F, C, H, W) = (num_frames or len(only), 3, 64, 64) in [0, 1].
    """
    rng = _generator(spec, seed)
    frames, masks = _compose(spec, rng, num_frames, only)
    styled = apply_style(spec.style, frames, masks, rng)
    return torch.from_numpy(np.ascontiguousarray(styled.transpose(0, 3, 1, 2), dtype=np.float32))


def draw_mask(spec: Spec, seed: int, num_frames: int = NUM_FRAMES) -> Tensor:
    """Where the subject is in `draw_clip(spec, seed, num_frames)`: float32 (F, H, W) in [0, 1]."""
    return torch.from_numpy(_compose(spec, _generator(spec, seed), num_frames, None)[1])


def draw_still(spec: Spec, seed: int, frame: int | None = None) -> Tensor:
    """Draws one frame of a clip, (3, 64, 64) in [0, 1]; a random one of its frames unless `frame` says which."""
    if frame is None:
        frame = int(np.random.default_rng([seed, 1]).integers(NUM_FRAMES))
    return draw_clip(spec, seed, only=[frame])[0]
