"""Clips of motions before and after several erasers, a row each: `python experiments/motion/picture.py RUNS`.

RUNS is the folder of the sweep's runs (runs/motion); motion.webp is written beside this file.
"""

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

METHODS = ("few_shot", "few_shot_plain", "zero_token")
CONCEPTS, CLIPS, FRAMES, EDGE_PX = ("jumping", "growing"), 2, (0, 2, 4, 6, 7), 96


def row(run: Path, stage: str) -> Image.Image:
    """Some frames of the first clips that ask for the motion."""
    files = sorted((run / "clips" / stage / "zoo_unet3d").glob("*_forget.mp4"))[:CLIPS]
    frames = [frame for file in files for frame in imageio.imread(file)[list(FRAMES)]]
    return Image.fromarray(
        np.concatenate([np.array(Image.fromarray(f).resize((EDGE_PX,) * 2)) for f in frames], axis=1)
    )


def main(runs: Path) -> None:
    """Puts the rows below each other: before, then each method's."""
    rows = []
    for concept in CONCEPTS:
        found = {method: next(runs.glob(f"{concept}-{method}-*-seed0-*")) for method in METHODS}
        rows.append(row(found[METHODS[0]], "before"))
        rows += [row(found[method], "after") for method in METHODS]
    whole = Image.new("RGB", (rows[0].width, sum(each.height + 4 for each in rows)), "white")
    for i, each in enumerate(rows):
        whole.paste(each, (0, i * (each.height + 4)))
    whole.save(Path(__file__).parent / "motion.webp", quality=85)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
