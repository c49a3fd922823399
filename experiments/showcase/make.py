"""The moving picture at the top of README: clips before and after of a style, a character, a face, an object, a motion.

    python experiments/showcase/make.py

Each is a run of train.py with the default method, and shows the first of its prompts: none was chosen by its looks. A
run that is finished is not repeated.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unreel.files import whole

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = ("van_gogh", "wispo", "greta_holm", "drum", "jumping")
EDGE_PX, GAP_PX, TEXT_PX, FPS = 176, 8, 42, 8


def run_of(concept: str) -> Path:
    """The folder of the concept's run, made unless it is there and finished."""
    folder = ROOT / "runs" / "showcase" / concept
    command = [sys.executable, "train.py", f"concept={concept}", "shots=4", "logger=none", f"output={folder}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def frames_of(path: Path) -> list[Image.Image]:
    """The frames of a clip, EDGE_PX wide and high."""
    return [Image.fromarray(f).resize((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS) for f in imageio.imread(path)]


def panel(concept: str, folder: Path) -> list[Image.Image]:
    """A concept's frames: its prompt, the clip before, and the clip after below it."""
    (strips,) = (folder / "clips").glob(f"*_{concept}_forget.png")
    with Image.open(strips) as opened:
        prompt = json.loads(opened.text["prompts"])[0]
    name = f"clips/{{}}/zoo_animatediff/000_{concept}_forget.mp4"
    before, after = (frames_of(folder / name.format(stage)) for stage in ("before", "after"))
    font, made = ImageFont.load_default(13), []
    for pair in zip(before, after, strict=True):
        image = Image.new("RGB", (EDGE_PX, TEXT_PX + 2 * EDGE_PX + GAP_PX), "white")
        ImageDraw.Draw(image).multiline_text((0, 2), "\n".join(textwrap.wrap(prompt, 28)[:2]), "black", font, spacing=3)
        for i, frame in enumerate(pair):
            image.paste(frame, (0, TEXT_PX + i * (EDGE_PX + GAP_PX)))
        made.append(image)
    return made


def main() -> None:
    panels = [panel(concept, run_of(concept)) for concept in CONCEPTS]
    gap = np.full((panels[0][0].height, GAP_PX, 3), 255, np.uint8)
    frames = []
    for column in zip(*panels, strict=True):
        parts = [part for image in column for part in (np.asarray(image), gap)]
        frames.append(Image.fromarray(np.concatenate(parts[:-1], axis=1)))
    out = Path(__file__).with_name("before_after.webp")
    with whole(out) as aside:
        frames[0].save(
            aside, "webp", save_all=True, append_images=frames[1:], duration=1000 // FPS, loop=0, quality=85, method=6
        )
    print(
        f"{out}: {out.stat().st_size / 1e6:.2f} MB, {len(frames)} frames of {frames[0].width} x {frames[0].height} px"
    )


if __name__ == "__main__":
    main()
