"""What the table of shots saves: seconds of the default training beside the one before it. Prints ratios.

python experiments/sweep_speed/training.py              # on an otherwise idle machine, about two minutes on 2 CPU cores
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEFORE = ["method.data.table=null", "method.guard.check_every=20"]


def seconds(folder: Path, concept: str, turn: int, *options: str) -> float:
    """Of the training of one run, without shots and clips; what it said, should it fail."""
    output = folder / f"{concept}_{turn}_{len(options)}"
    command = [sys.executable, "train.py", f"concept={concept}", "t2v=zoo_images", "logger=none", *options,
               f"output={output}", f"cache={folder / 'cache'}", "evaluation.prompts=2"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode:
        sys.exit(f"{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
    return json.loads((output / "status.json").read_text())["seconds"]["training"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of trainings with and without the table.")
    parser.add_argument("concepts", nargs="*", default=["van_gogh", "drum"])
    with tempfile.TemporaryDirectory() as folder:
        for concept in parser.parse_args().concepts:
            old = new = 0.0
            for turn in range(2):  # in turns, so that a machine that slows down favours neither
                old += seconds(Path(folder), concept, turn, *BEFORE)
                new += seconds(Path(folder), concept, turn)
            print(f"{concept}: before {old / 2:.1f} s, now {new / 2:.1f} s: {new / old:.2f}", flush=True)


if __name__ == "__main__":
    main()
