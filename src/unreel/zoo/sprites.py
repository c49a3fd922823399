"""The sprite sheet: one small picture a subject, rendered once from Noto Color Emoji and shipped as `sprites.png`.

Run `python -m unreel.zoo.sprites` to render the sheet again (needs Debian's fonts-noto-color-emoji and Pillow with
raqm). The emoji images are Google's, under the Apache License 2.0; the font is under the SIL Open Font License 1.1.
"""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unreel.zoo.words import SUBJECTS

SIZE_PX = 64  # a cell of the sheet
COLUMNS = 7
SHEET = Path(__file__).with_name("sprites.png")
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_PX = 109  # the only size the bitmap font has


def render_sprite(emoji: str, font: ImageFont.FreeTypeFont, grey: bool = False) -> Image.Image:
    """One emoji as an RGBA image of SIZE_PX x SIZE_PX, cropped, scaled to fit, and centred."""
    canvas = Image.new("RGBA", (2 * FONT_PX, 2 * FONT_PX))
    ImageDraw.Draw(canvas).text((20, 20), emoji, font=font, embedded_color=True)
    sprite = canvas.crop(canvas.getbbox())
    scale = SIZE_PX / max(sprite.size)
    sprite = sprite.resize((round(sprite.width * scale), round(sprite.height * scale)), Image.Resampling.LANCZOS)
    if grey:  # Noto has no crane, so the flamingo loses its pink
        luminance = np.asarray(sprite.convert("L"), dtype=np.float32)
        grey_blue = np.stack([0.9 * luminance + 20, luminance + 22, 1.1 * luminance + 30], axis=-1).clip(0, 255)
        alpha = sprite.getchannel("A")
        sprite = Image.fromarray(grey_blue.astype(np.uint8)).convert("RGBA")
        sprite.putalpha(alpha)
    cell = Image.new("RGBA", (SIZE_PX, SIZE_PX))
    cell.paste(sprite, ((SIZE_PX - sprite.width) // 2, (SIZE_PX - sprite.height) // 2))
    return cell


def render_sheet(font_path: Path = FONT) -> Image.Image:
    """The whole sheet, subjects in the order of `words.SUBJECTS`, COLUMNS a row."""
    font = ImageFont.truetype(str(font_path), FONT_PX, layout_engine=ImageFont.Layout.RAQM)
    rows = -(-len(SUBJECTS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SIZE_PX, rows * SIZE_PX))
    for index, subject in enumerate(SUBJECTS):
        sprite = render_sprite(subject.emoji, font, grey=subject.name == "crane (bird)")
        sheet.paste(sprite, ((index % COLUMNS) * SIZE_PX, (index // COLUMNS) * SIZE_PX))
    return sheet


@cache
def sprites() -> dict[str, Image.Image]:
    """Subject name -> premultiplied-alpha-safe RGBA sprite of SIZE_PX x SIZE_PX, read from the shipped sheet."""
    sheet = Image.open(SHEET).convert("RGBA")
    cells = {}
    for index, subject in enumerate(SUBJECTS):
        left, top = (index % COLUMNS) * SIZE_PX, (index // COLUMNS) * SIZE_PX
        cells[subject.name] = sheet.crop((left, top, left + SIZE_PX, top + SIZE_PX))
    return cells


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the sprite sheet from Noto Color Emoji.")
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--output", type=Path, default=SHEET)
    arguments = parser.parse_args()
    render_sheet(arguments.font).save(arguments.output, optimize=True)
    print(arguments.output)
