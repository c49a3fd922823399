"""Clips of harder motions before and after the default: `python experiments/motion_words/picture.py RUNS`.

RUNS is the folder that holds the runs of all questions (runs); motion_words.webp is written beside this file.
"""

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

QUESTIONS = {
    "motion_words": ("jumping", "falling"),
    "motion_words_dance": ("dancing",),
    "motion_words_implied": ("falling", "moving_left"),
}
CLIPS = (0, 2)  # which prompts of a question
EDGE_PX, GAP_PX = 64, 6


def strip(file: Path) -> np.ndarray:
    """All frames of a clip side by side."""
    frames = [np.array(Image.fromarray(frame).resize((EDGE_PX,) * 2)) for frame in imageio.imread(file)]
    return np.concatenate(frames, axis=1)


def main(runs: Path) -> None:
    """A row for each question: before above after, of two prompts."""
    pairs = []
    for slug, concept in ((slug, concept) for slug, concepts in QUESTIONS.items() for concept in concepts):
        run = next((runs / slug).glob(f"{concept}-few_shot-*-seed0-*"), None)
        if run is None:
            raise SystemExit(
                f"found no few_shot run of {concept}, seed 0, in {runs / slug}: run the commands of README.md"
            )
        for stage in ("before", "after"):
            files = sorted((run / "clips" / stage / "zoo_unet3d").glob("*_forget.mp4"))
            pairs.append([strip(files[i]) for i in CLIPS])
    height, width = pairs[0][0].shape[:2]
    page = Image.new("RGB", (2 * width + GAP_PX, len(pairs) * (height + 2 + GAP_PX // 2)), "white")
    for i, pair in enumerate(pairs):
        for k, each in enumerate(pair):
            page.paste(Image.fromarray(each), (k * (width + GAP_PX), i * (height + 2) + (i // 2) * GAP_PX))
    page.save(Path(__file__).with_name("motion_words.webp"), quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/motion_words/picture.py RUNS")
    main(Path(sys.argv[1]))
