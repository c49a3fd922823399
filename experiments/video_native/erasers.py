"""Encoder edits from images and from clips, and erasers on the video model itself, side by side in clips of UNet3D.

    python experiments/video_native/erasers.py runs/video_native_erasers     # -> erasers.md and .jsonl

Training's seconds are of runs two at a time on two cores; gigabytes are those of memory.jsonl, from memory.py.
"""

import json
import sys
from pathlib import Path

import numpy as np

from unreel.files import write_text
from unreel.scores import write_scores
from unreel.status import read_status
from unreel.tables import cells, finished_scores

HERE = Path(__file__).parent
COLUMNS = ("forget", "worst frame", "context", "retain", "motions kept", "motion amount", "ssim", "overall")
NAMES = {
    ("zoo", "few_shot"): "encoder edit from images",
    ("zoo_unet3d", "few_shot"): "encoder edit from clips",
    ("zoo_unet3d", "t2v_unlearning_tuned"): "T2VUnlearning, tuned",
    ("zoo_unet3d", "esd_tuned"): "ESD-x, tuned",
    ("zoo_unet3d", "uce_tuned"): "UCE on the video model, tuned",
    ("zoo_unet3d", "negative_prompt"): "negative prompt",
    ("zoo_unet3d", "mute"): "`mute`",
}


def main(runs: Path) -> None:
    scores = finished_scores(runs.glob("*"))
    told = [json.loads(line) for line in (HERE / "memory.jsonl").read_text().splitlines()]
    memory = {(row["t2i"], row["method"]): row["training_gb"] for row in told}
    head = ["eraser", *COLUMNS, "training, s", "training, GB", "runs"]
    lines = [head, ["---"] * len(head)]
    for name, title in NAMES.items():
        rows = [s for s in scores if (s.t2i, s.method) == name]
        own, row = sorted({s.run for s in rows}), cells(rows)
        if not own:
            raise SystemExit(f"found no finished run of {' and '.join(name)} in {runs}: run the commands of README.md")
        seconds = np.mean([status.seconds.get("training", 0.0) for run in own if (status := read_status(runs / run))])
        figures = [f"{seconds:.1f}", f"{memory[name]:.2f}", str(len(own))]
        lines.append([title, *(row[column] for column in COLUMNS), *figures])
    write_scores(HERE / "erasers.jsonl", scores)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(HERE / "erasers.md", text)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python experiments/video_native/erasers.py RUNS/video_native_erasers")
    main(Path(sys.argv[1]))
