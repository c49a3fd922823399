"""Clips before, and after an edit from images and one from clips, in every recipient: of a character and of a motion.

python experiments/video_native/picture.py runs/video_native     # -> video_native.webp
"""

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

from unreel.tables import finished_scores

CONCEPTS, RECIPIENTS, FRAMES, EDGE_PX, GAP_PX = (
    ("wispo", "jumping"),
    ("zoo_unet3d", "zoo_animatediff"),
    (0, 3, 7),
    80,
    4,
)


def strip(run: Path, stage: str, recipient: str) -> np.ndarray:
    """Some frames of the first two clips that ask for the concept, side by side."""
    files = sorted((run / "clips" / stage / recipient).glob("*_forget.mp4"))[:2]
    frames = [
        Image.fromarray(frame).resize((EDGE_PX,) * 2) for file in files for frame in imageio.imread(file)[list(FRAMES)]
    ]
    return np.concatenate([np.array(frame) for frame in frames], axis=1)


def main(runs: Path) -> None:
    found = {(s.concept, s.t2i): runs / s.run for s in finished_scores(runs.glob("*")) if s.seed == 0}
    rows = []
    for concept in CONCEPTS:
        images, clips = (found[concept, t2i] for t2i in ("zoo", "zoo_unet3d"))
        for run, stage in ((images, "before"), (images, "after"), (clips, "after")):
            rows.append(np.concatenate([strip(run, stage, recipient) for recipient in RECIPIENTS], axis=1))
    height, width = rows[0].shape[:2]
    page = Image.new("RGB", (width, len(rows) * (height + GAP_PX)), "white")
    for i, row in enumerate(rows):
        page.paste(Image.fromarray(row), (0, i * (height + GAP_PX)))
    page.save(Path(__file__).with_name("video_native.webp"), quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/video_native/picture.py RUNS/video_native")
    main(Path(sys.argv[1]))
