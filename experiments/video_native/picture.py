"""Clips before, and after an edit from images and one from clips, in every recipient: of a character and of a motion.

python experiments/video_native/picture.py runs/video_native     # -> video_native.webp
"""

import sys
from pathlib import Path

from unreel.clips import stacked, strip
from unreel.tables import finished_scores
from unreel.videos import read_clip

CONCEPTS, RECIPIENTS, FRAMES, EDGE_PX = ("wispo", "jumping"), ("zoo_unet3d", "zoo_animatediff"), 3, 80


def main(runs: Path) -> None:
    found = {(s.concept, s.t2i): runs / s.run for s in finished_scores(runs.glob("*")) if s.seed == 0}
    rows = []
    for concept in CONCEPTS:
        if missing := [t2i for t2i in ("zoo", "zoo_unet3d") if (concept, t2i) not in found]:
            raise SystemExit(f"found no run of {concept} from {', '.join(missing)}, seed 0, in {runs}: run the sweep")
        of_images, of_clips = (found[concept, t2i] for t2i in ("zoo", "zoo_unet3d"))
        for run, stage in ((of_images, "before"), (of_images, "after"), (of_clips, "after")):
            clips = run / "clips" / stage
            files = [path for name in RECIPIENTS for path in sorted((clips / name).glob("*_forget.mp4"))[:2]]
            rows.append(strip([read_clip(path, EDGE_PX, 8, 8) for path in files], FRAMES))
    stacked(rows).save(Path(__file__).with_name("video_native.webp"), quality=85)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/video_native/picture.py RUNS/video_native")
    main(Path(sys.argv[1]))
