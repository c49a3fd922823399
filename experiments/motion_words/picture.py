"""Clips of harder motions before and after the default: `python experiments/motion_words/picture.py RUNS`.

RUNS is the folder that holds the runs of all questions (runs); motion_words.webp is written beside this file.
"""

import sys
from pathlib import Path

from unreel.clips import stacked, strip
from unreel.videos import read_clip

QUESTIONS = {
    "motion_words": ("jumping", "falling"),
    "motion_words_dance": ("dancing",),
    "motion_words_implied": ("falling", "moving_left"),
}
CLIPS = (0, 2)  # which prompts of a question
EDGE_PX, FRAMES = 64, 8


def main(runs: Path) -> None:
    """A row for each question: before above after, of two prompts."""
    rows = []
    for slug, concept in ((slug, concept) for slug, concepts in QUESTIONS.items() for concept in concepts):
        run = next((runs / slug).glob(f"{concept}-few_shot-*-seed0-*"), None)
        if run is None:
            raise SystemExit(
                f"found no few_shot run of {concept}, seed 0, in {runs / slug}: run the commands of README.md"
            )
        for stage in ("before", "after"):
            files = sorted((run / "clips" / stage / "zoo_unet3d").glob("*_forget.mp4"))
            rows.append(strip([read_clip(files[i], EDGE_PX, FRAMES, FRAMES) for i in CLIPS], FRAMES, gap=1))
    stacked(rows).save(Path(__file__).with_name("motion_words.webp"), quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/motion_words/picture.py RUNS")
    main(Path(sys.argv[1]))
