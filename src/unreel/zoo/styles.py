"""The drawing styles: filters over the frames of a clip.

Each takes frames (F, 64, 64, 3) float in [0, 1], the subject's mask (F, 64, 64) in [0, 1] and a generator that is
drawn from once a clip, so that a style does not flicker. Each leaves the subject visible inside its style.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy import ndimage

from unreel.zoo.words import NO_STYLE

Array = np.ndarray
SIZE_PX = 64
_BANK = 16  # precomputed textures a style chooses among


def _colours(*rgb: tuple[int, int, int]) -> Array:
    return np.array(rgb, dtype=np.float32) / 255


def _luminance(frames: Array) -> Array:
    return frames @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _ramp(values: Array, colours: Array) -> Array:
    """Piecewise linear palette over [0, 1]: (...,) -> (..., 3)."""
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(colours)), c) for c in colours.T], axis=-1
    )
    return table.astype(np.float32)[(values.clip(0, 1) * 255).astype(np.uint8)]


def _outline(mask: Array) -> Array:
    """Soft edge of the mask, (F, 64, 64) in [0, 1]."""
    solid = mask > 0.5
    edge = solid.copy()
    edge[:, 1:-1, 1:-1] = solid[:, 1:-1, 1:-1] & ~(
        solid[:, :-2, 1:-1] & solid[:, 2:, 1:-1] & solid[:, 1:-1, :-2] & solid[:, 1:-1, 2:]
    )
    return edge.astype(np.float32)


@cache
def _strokes() -> Array:
    """Line-integral noise along random swirling fields: (16, 64, 64) in [-1, 1]."""
    rng = np.random.default_rng(20240719)
    bank = []
    rows, columns = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32)
    for _ in range(_BANK):
        angle = 6 * ndimage.gaussian_filter(rng.standard_normal((SIZE_PX, SIZE_PX)), 12, mode="wrap")
        angle = angle / np.abs(angle).max() * np.pi
        for x, y in rng.uniform(8, 56, (2, 2)):  # two swirls
            weight = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 220)
            angle = (1 - weight) * angle + weight * (np.arctan2(rows - y, columns - x) + np.pi / 2)
        noise, total = rng.standard_normal((SIZE_PX, SIZE_PX)), np.zeros((SIZE_PX, SIZE_PX))
        for direction in (-1, 1):
            y, x = rows.copy(), columns.copy()
            for _ in range(7):
                total += ndimage.map_coordinates(noise, [y, x], order=1, mode="wrap")
                local = ndimage.map_coordinates(angle, [y, x], order=0, mode="wrap")
                y, x = y + direction * np.sin(local), x + direction * np.cos(local)
        bank.append(np.clip(total / (2 * total.std()), -1, 1))
    return np.stack(bank).astype(np.float32)


def van_gogh(frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    stroke = _strokes()[rng.integers(_BANK)]
    palette = _ramp(
        _luminance(frames) * 0.85 + 0.18 * stroke + 0.05,
        _colours((12, 24, 84), (36, 80, 168), (96, 156, 196), (226, 200, 96), (252, 236, 150)),
    )
    own = np.where(mask[..., None] > 0.5, 0.7, 0.38).astype(np.float32)
    painted = own * frames + (1 - own) * palette + 0.17 * stroke[None, ..., None]
    return painted * (1 - 0.6 * _outline(mask))[..., None]


def mondrian(frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    flat = np.round(frames * 2) / 2
    backdrop = flat.copy()
    lines_x = np.sort(rng.choice([6, 14, 22, 42, 50, 58], 3, replace=False)) + rng.integers(-2, 3)
    lines_y = np.sort(rng.choice([6, 14, 24, 44, 54], 3, replace=False)) + rng.integers(-2, 3)
    primaries = _colours((222, 30, 34), (28, 70, 170), (250, 214, 40), (250, 250, 246))
    for colour in primaries[rng.permutation(4)]:
        i, j = rng.integers(0, 4, 2)
        columns = slice(0 if i == 0 else lines_x[i - 1], SIZE_PX if i == 3 else lines_x[i])
        rows = slice(0 if j == 0 else lines_y[j - 1], SIZE_PX if j == 3 else lines_y[j])
        backdrop[:, rows, columns] = colour
    for line in lines_x:
        backdrop[:, :, line - 1 : line + 2] = 0.04
    for line in lines_y:
        backdrop[:, line - 1 : line + 2] = 0.04
    painted = np.where(mask[..., None] > 0.5, np.round(frames * 3) / 3, backdrop)
    return painted * (1 - 0.9 * _outline(mask))[..., None]


@cache
def _scallops() -> Array:
    """Overlapping fish-scale waves, the pattern of woodblock seas: (64, 64) in {0, 1}."""
    rows, columns = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32)
    pattern = np.zeros((SIZE_PX, SIZE_PX), dtype=np.float32)
    for row in range(0, 10):  # nearer scales cover the farther ones
        centre_y, shift = row * 8, (row % 2) * 8
        x = (columns - shift) % 16 - 8
        distance = np.hypot(x, rows - centre_y - 8)
        inside = (distance < 9) & (rows >= centre_y - 1)
        pattern[inside] = ((distance[inside] > 7.6) | (abs(distance[inside] - 4.3) < 0.8)).astype(np.float32)
    return pattern


def hokusai(frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    pattern = np.roll(_scallops(), (int(rng.integers(2)) * 8, int(rng.integers(2)) * 8), axis=(0, 1))
    steps = np.round(_luminance(frames) * 5) / 5
    print_colours = _ramp(
        steps, _colours((22, 44, 92), (70, 112, 150), (168, 184, 176), (240, 226, 190), (250, 242, 216))
    )
    backdrop = 0.72 * print_colours + 0.28 * frames
    backdrop = backdrop * (1 - 0.55 * pattern)[None, ..., None] + 0.55 * pattern[None, ..., None] * _colours(
        (22, 44, 92)
    )
    subject = 0.75 * frames + 0.25 * _colours((240, 226, 190))
    painted = np.where(mask[..., None] > 0.5, subject, backdrop)
    edge = _outline(mask)[..., None]
    return painted * (1 - edge) + edge * _colours((16, 30, 70))


@cache
def _dot() -> Array:
    """One lattice of dots, 4 px apart: (64, 64) in [0, 1]."""
    axis = (np.arange(SIZE_PX) % 4) - 1.5
    distance = np.hypot(axis[:, None], axis[None])
    return np.clip(2.3 - distance, 0, 1).astype(np.float32)


def _blocks(frames: Array, size_px: int) -> Array:
    """Mean over size_px x size_px blocks, at full size."""
    count = SIZE_PX // size_px
    means = frames.reshape(len(frames), count, size_px, count, size_px, 3).mean(axis=(2, 4))
    return means.repeat(size_px, axis=1).repeat(size_px, axis=2)


def seurat(frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    hue = rng.normal(0, 0.11, (16, 16, 3)).astype(np.float32).repeat(4, axis=0).repeat(4, axis=1)
    dots = _blocks(frames, 4) + hue
    dot = _dot()[None, ..., None]
    painted = dots * dot + (1 - dot) * _colours((250, 240, 214))
    own = np.where(mask[..., None] > 0.5, 0.7, 0.12).astype(np.float32)
    return own * frames + (1 - own) * painted


def pencil_sketch(frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    luminance = _luminance(frames)
    edges = np.zeros_like(luminance)
    edges[:, :, 1:] += np.abs(np.diff(luminance, axis=2))
    edges[:, 1:] += np.abs(np.diff(luminance, axis=1))
    hatch = ((np.add.outer(np.arange(SIZE_PX), np.arange(SIZE_PX)) + int(rng.integers(4))) % 4 < 1).astype(np.float32)
    shade = (1 - luminance) * np.where(mask > 0.5, 0.5, 0.12 + 0.2 * hatch[None])
    grey = 0.95 - shade - (edges * 2.2).clip(0, 0.75) - 0.5 * _outline(mask)
    return grey[..., None] * _colours((252, 248, 238))


def pixel_art(frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    vivid = (0.5 + 1.25 * (frames - 0.5)).clip(0, 1)
    coarse = np.round(_blocks(vivid, 8) * 5) / 5
    fine = np.round(_blocks(vivid, 2) * 5) / 5
    block_mask = _blocks(np.repeat(mask[..., None], 3, axis=-1), 2) > 0.45
    painted = np.where(block_mask, fine, coarse)
    edge = block_mask[..., 0]
    border = ndimage.binary_dilation(edge, structure=np.ones((1, 3, 3), dtype=bool), iterations=2) & ~edge
    return np.where(border[..., None], 0.06, painted)


_FILTERS: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    NO_STYLE: lambda frames, mask, rng: frames,
    "van gogh": van_gogh,
    "mondrian": mondrian,
    "hokusai": hokusai,
    "seurat": seurat,
    "pencil sketch": pencil_sketch,
    "pixel art": pixel_art,
}


def apply_style(name: str, frames: Array, mask: Array, rng: np.random.Generator) -> Array:
    """The frames (F, 64, 64, 3) in a style; `name` is one of `candidates("style")`."""
    return _FILTERS[name](frames, mask, rng).clip(0, 1)
