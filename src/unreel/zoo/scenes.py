"""The eight backgrounds: two colour gradients meeting at a horizon, and a few shapes that name the place."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 64
Colour = tuple[int, int, int]


def _gradient(top: Colour, middle: Colour, ground: Colour, ground_end: Colour, horizon: int) -> Image.Image:
    rows = np.empty((SIZE_PX, 1, 3), dtype=np.float32)
    sky = np.linspace(0, 1, horizon)[:, None]
    land = np.linspace(0, 1, SIZE_PX - horizon)[:, None]
    rows[:horizon, 0] = (1 - sky) * np.array(top) + sky * np.array(middle)
    rows[horizon:, 0] = (1 - land) * np.array(ground) + land * np.array(ground_end)
    return Image.fromarray(np.repeat(rows, SIZE_PX, axis=1).astype(np.uint8))


def _disc(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, colour: Colour, low: int, high: int, radius: int
) -> None:
    x, y = int(rng.integers(8, 56)), int(rng.integers(low, high))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _beach(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    _disc(draw, rng, (255, 236, 120), 6, 14, 5)
    draw.rectangle((0, horizon - 9, 64, horizon - 1), fill=(60, 150, 215))
    for _ in range(4):
        x, y = int(rng.integers(0, 56)), int(rng.integers(horizon - 8, horizon - 2))
        draw.line((x, y, x + 7, y), fill=(235, 248, 255))


def _city(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    x = int(rng.integers(-6, 0))
    while x < SIZE_PX:
        width, height = int(rng.integers(9, 14)), int(rng.integers(16, 36))
        shade = int(rng.integers(85, 130))
        draw.rectangle((x, horizon - height, x + width - 2, horizon), fill=(shade, shade, shade + 18))
        for window_y in range(horizon - height + 3, horizon - 2, 5):
            for window_x in range(x + 2, x + width - 3, 4):
                draw.rectangle((window_x, window_y, window_x + 1, window_y + 1), fill=(250, 230, 140))
        x += width


def _forest(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    for x in range(-4, SIZE_PX + 4, 9):
        x, height = x + int(rng.integers(-2, 3)), int(rng.integers(20, 34))
        for step in range(3):
            top = horizon - height + step * height // 4
            draw.polygon(
                [(x, top), (x - 4 - step, top + height // 2), (x + 4 + step, top + height // 2)],
                fill=(18, 78 + 6 * step, 40),
            )
        draw.rectangle((x - 1, horizon - 4, x + 1, horizon + 1), fill=(84, 56, 30))


def _snow(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    for x, y in rng.integers(0, SIZE_PX, (26, 2)):
        draw.rectangle((x, y, x + 1, y + 1), fill=(255, 255, 255))


def _desert(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    for x in (int(rng.integers(4, 14)), int(rng.integers(48, 60))):
        draw.rectangle((x - 2, horizon - 14, x + 1, horizon + 4), fill=(38, 120, 62))
        draw.rectangle((x - 6, horizon - 9, x - 3, horizon - 7), fill=(38, 120, 62))
        draw.rectangle((x + 2, horizon - 6, x + 5, horizon - 4), fill=(38, 120, 62))
    x = int(rng.integers(10, 40))
    draw.polygon([(x, horizon), (x + 12, horizon - 7), (x + 26, horizon)], fill=(205, 140, 70))


def _sea(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    for x in (int(rng.integers(3, 14)), int(rng.integers(48, 60))):
        for y in range(44, SIZE_PX, 4):
            draw.ellipse((x - 2 + (y // 4) % 2 * 2, y, x + 1 + (y // 4) % 2 * 2, y + 5), fill=(20, 140, 100))
    for x, y in rng.integers(3, 60, (9, 2)):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=(170, 225, 250))


def _sunset(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    _disc(draw, rng, (255, 225, 110), horizon - 8, horizon - 2, 9)
    draw.rectangle((0, horizon, SIZE_PX, horizon + 1), fill=(255, 190, 120))


def _night(draw: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    _disc(draw, rng, (250, 245, 215), 7, 14, 5)
    for x, y in zip(rng.integers(0, SIZE_PX, 18), rng.integers(0, horizon - 2, 18), strict=True):
        draw.point((int(x), int(y)), fill=(255, 255, 235))


_SCENES: dict[str, tuple[tuple[Colour, Colour, Colour, Colour], tuple[int, int], Callable]] = {
    "beach": (((105, 190, 250), (190, 230, 250), (245, 220, 150), (225, 190, 115)), (40, 46), _beach),
    "city": (((150, 165, 205), (215, 215, 225), (88, 84, 90), (60, 58, 64)), (46, 52), _city),
    "forest": (((120, 195, 160), (170, 220, 170), (72, 116, 40), (44, 84, 28)), (44, 50), _forest),
    "snow": (((165, 190, 215), (205, 222, 236), (246, 250, 255), (222, 234, 246)), (36, 44), _snow),
    "desert": (((255, 214, 130), (255, 236, 190), (226, 165, 88), (196, 130, 62)), (42, 48), _desert),
    "sea": (((20, 120, 190), (14, 84, 160), (10, 66, 134), (8, 40, 96)), (30, 36), _sea),
    "sunset": (((130, 50, 130), (250, 120, 60), (112, 46, 76), (70, 26, 64)), (42, 48), _sunset),
    "night": (((10, 12, 48), (28, 34, 92), (26, 40, 52), (14, 22, 30)), (46, 52), _night),
}


def draw_scene(name: str, rng: np.random.Generator) -> Image.Image:
    """An RGB background of 64 x 64 px; `name` is one of `candidates("scene")`."""
    colours, (low, high), shapes = _SCENES[name]
    horizon = int(rng.integers(low, high))
    image = _gradient(*colours, horizon=horizon)
    shapes(ImageDraw.Draw(image), rng, horizon)
    return image
