"""Encoder edits from images and from clips, and erasers on the video model itself, side by side in clips of UNet3D.

    python experiments/video_native/erasers.py runs/video_native runs/video_native_erasers     # -> erasers.md

Of the concepts that both have. Training's seconds are of runs two at a time on two cores; the gigabytes are those of
memory.jsonl, which memory.py writes.
"""

import json
import sys
from pathlib import Path

import numpy as np

from unreel.files import write_text
from unreel.records import Score
from unreel.scores import write_scores
from unreel.status import read_status
from unreel.tables import estimated, finished_scores

HERE = Path(__file__).parent
COLUMNS = ("forget", "context", "retain", "motions kept", "motion amount", "worst frame", "ssim")
NAMES = {
    ("zoo", "few_shot"): "encoder edit from images",
    ("zoo_unet3d", "few_shot"): "encoder edit from clips",
    ("zoo_unet3d", "t2v_unlearning_tuned"): "T2VUnlearning, tuned",
    ("zoo_unet3d", "uce_tuned"): "UCE on the video model, tuned",
    ("zoo_unet3d", "negative_prompt"): "negative prompt",
    ("zoo_unet3d", "mute"): "`mute`",
}


def percent(scores: list[Score], column: str) -> str:
    """A column's value, and half its interval over seeds where there are several."""
    found = estimated(scores, column)
    if found is None:
        return "–"
    value, half = (100 * part for part in found)
    return f"{value:.1f}" + (f" ± {half:.1f}" if np.isfinite(half) else "") + " %"


def main(runs: list[Path]) -> None:
    scores = [s for s in finished_scores(run for folder in runs for run in folder.glob("*")) if s.t2v == "zoo_unet3d"]
    both = set.intersection(*({s.concept for s in scores if (s.t2i, s.method) == name} for name in NAMES))
    if not both:
        raise SystemExit("found no concept with a finished run of every eraser: run the commands of README.md")
    told = [json.loads(line) for line in (HERE / "memory.jsonl").read_text().splitlines()]
    memory = {(row["t2i"], row["method"]): row["training_gb"] for row in told}
    folders = {run.name: run for folder in runs for run in folder.glob("*")}
    head = ["eraser", *COLUMNS, "training, s", "training, GB", "runs"]
    lines, kept = [head, ["---"] * len(head)], []
    for name, title in NAMES.items():
        own = {s.run: s for s in scores if (s.t2i, s.method) == name and s.concept in both}
        first = {(s.concept, s.seed): s.run for s in reversed(list(own.values()))}  # not the same run of both commands
        rows = [s for s in scores if s.run in first.values() and (s.t2i, s.method) == name]
        status = [read_status(folders[run]) for run in first.values()]
        seconds = np.mean([s.seconds.get("training", 0.0) for s in status if s is not None])
        lines.append([title, *(percent(rows, column) for column in COLUMNS), f"{seconds:.1f}", f"{memory[name]:.2f}"])
        lines[-1].append(str(len(first)))
        kept += rows
    write_scores(HERE / "erasers.jsonl", kept)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(HERE / "erasers.md", text)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(
            "usage: python experiments/video_native/erasers.py RUNS/video_native RUNS/video_native_erasers"
        )
    main([Path(name) for name in sys.argv[1:]])
