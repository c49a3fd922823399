"""What edits from images and from clips leave and keep in every recipient, of motions and of the other concepts.

python experiments/video_native/table.py runs/video_native     # -> donors.md and .jsonl; also of other folders of runs
"""

import sys
from pathlib import Path

from unreel.files import write_text
from unreel.records import Score
from unreel.scores import write_scores
from unreel.tables import finished_scores, markdown

DONORS = {"zoo": "images", "zoo_unet3d": "clips"}


def setting(score: Score) -> tuple[str, ...]:
    """A row of the table."""
    how = f"`{score.method}`" + (f", {score.setting}" if score.setting else "")
    return "motions" if score.kind == "motion" else "others", how, DONORS[score.t2i], score.t2v.removeprefix("zoo_")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/video_native/table.py RUNS/video_native")
    runs = Path(sys.argv[1])
    scores = finished_scores(runs.glob("*"))
    if not scores:
        raise SystemExit(f"found no finished run in {runs}: run the commands of README.md")
    text = markdown(scores, setting, ("concepts", "method", "edit from", "read in"))
    file = Path(__file__).with_name(runs.name.replace("video_native", "donors"))
    write_scores(file.with_suffix(".jsonl"), scores)
    write_text(file.with_suffix(".md"), text)
    print(text)
