"""Optical flow by block matching, a plain substitute for RAFT (Teed & Deng, ECCV 2020), whose weights are not shipped.

    v(b) = argmin over |d| <= RANGE of  mean over the block b of |frame_{t+1}(x + d) - frame_t(x)|  +  STAY |d|

on frames of 64 px (the shorter side), in blocks of 8 px every 4 px. It finds whole pixels, of translations: blocks of
what turns or grows find the nearest thing to it. STAY keeps blocks in place where everything fits equally well.

Reference: block motion compensation as in Jain & Jain, "Displacement Measurement and Its Application in Interframe
Image Coding" (IEEE Trans. Communications 29, 1981), searched in full.
"""

import torch
from torch import Tensor
from torch.nn import functional

SIZE = 64  # px, the shorter side of what is matched
_RANGE = 10  # px
_STAY = 0.004  # of [0, 1], a px


def magnitudes(clip: Tensor) -> Tensor:
    """How far each block moves from each frame to the next, in shares of the shorter side.

    Args:
        clip: (F, C, H, W) in [0, 1], F >= 2.

    Returns:
        (F - 1, blocks).
    """
    scale = SIZE / min(clip.shape[-2:])
    size = [round(side * scale) for side in clip.shape[-2:]]
    frames = functional.interpolate(clip, size=size, mode="area") if scale < 1 else clip
    first = frames[:-1]
    beyond = functional.pad(frames[1:], [_RANGE] * 4, mode="replicate")  # outside of a frame its edge goes on
    best, moved = torch.full((1,), torch.inf), torch.zeros(1)
    for dy in range(2 * _RANGE + 1):
        for dx in range(2 * _RANGE + 1):
            length = ((dy - _RANGE) ** 2 + (dx - _RANGE) ** 2) ** 0.5
            there = beyond[..., dy : dy + first.shape[-2], dx : dx + first.shape[-1]]
            apart = functional.avg_pool2d((there - first).abs().mean(1), 4)
            cost = functional.avg_pool2d(apart, 2, 1) + _STAY * length  # blocks of 2 x 2 squares of 4 px
            best, moved = torch.minimum(best, cost), torch.where(cost < best, length, moved)
    return moved.flatten(1) / min(frames.shape[-2:])
