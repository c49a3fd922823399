"""Clips of motions before and after several erasers, a row each: `python experiments/motion/picture.py RUNS`.

RUNS is the folder of the sweep's runs (runs/motion); motion.webp is written beside this file.
"""

import sys
from pathlib import Path

from PIL import Image

from unreel.clips import stacked, strip
from unreel.videos import read_clip

METHODS = ("few_shot", "few_shot_plain", "zero_token")
CONCEPTS, CLIPS, FRAMES, EDGE_PX = ("jumping", "growing"), 2, 5, 96


def row(run: Path, stage: str) -> Image.Image:
    """Some frames of the first clips that ask for the motion."""
    files = sorted((run / "clips" / stage / "zoo_unet3d").glob("*_forget.mp4"))[:CLIPS]
    return strip([read_clip(file, EDGE_PX, 8, 8) for file in files], FRAMES)


def main(runs: Path) -> None:
    """Puts the rows below each other: before, then each method's."""
    rows = []
    for concept in CONCEPTS:
        found = {method: next(runs.glob(f"{concept}-{method}-*-seed0-*"), None) for method in METHODS}
        if missing := [method for method, run in found.items() if run is None]:
            raise SystemExit(f"found no run of {concept} by {', '.join(missing)}, seed 0, in {runs}: run the sweep")
        rows.append(row(found[METHODS[0]], "before"))
        rows += [row(found[method], "after") for method in METHODS]
    stacked(rows).save(Path(__file__).with_name("motion.webp"), quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/motion/picture.py RUNS/motion")
    main(Path(sys.argv[1]))
