"""What a sweep saves, and what parallel workers bring; on an otherwise idle machine. Prints seconds and ratios.

python experiments/sweep_speed/benchmark.py                # both, about 40 minutes on 2 CPU cores
python experiments/sweep_speed/benchmark.py workers        # or cache: one of them
"""

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMON = ["concept=van_gogh", "logger=none"]


def seconds(*options: str) -> float:
    """Wall-clock time of one command; what it said, should it fail."""
    command = [sys.executable, "train.py", *options, *COMMON]  # -m comes first
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode:
        sys.exit(f"{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}")
    return time.perf_counter() - started


def sweep_against_single_runs(folder: Path) -> None:
    """One sweep over shots and parameters with its cache, against the same runs one by one, each with none.

    Half of those come before the sweep and half after it, so that a machine that slows down favours neither.
    """
    shots, parameters = ["1", "2", "4"], ["mlp", "attention", "mlp_attention", "mlp_final_attention"]
    choices = ["-m", f"shots={','.join(shots)}", f"parameters={','.join(parameters)}"]
    runs = list(product(shots, parameters))
    single = sweep = 0.0
    for i, (k, name) in enumerate(runs):
        if i == len(runs) // 2:
            sweep = seconds(*choices, f"runs={folder}/sweep", f"cache={folder}/sweep/cache")
            print(f"the sweep: {sweep:.0f} s", flush=True)
        own = folder / f"single_{i}"
        single += seconds(f"shots={k}", f"parameters={name}", f"runs={own}", f"cache={own}/cache")
        print(f"single run {i + 1} of {len(runs)}: {single:.0f} s so far", flush=True)
    print(f"{len(runs)} single runs {single:.0f} s, the sweep {sweep:.0f} s: {sweep / single:.1%}", flush=True)


def workers(folder: Path, runs: int) -> None:
    """The same runs on one worker of one thread, on one of two threads, and on two of one thread."""
    seeds = ["-m", f"seed=range({runs})"]
    seconds(*seeds, f"runs={folder}/warm", f"cache={folder}/cache")  # shots and unedited clips, once
    ways = {
        "one worker, one thread": ["threads=1"],
        "one worker, two threads": ["threads=2"],
        "two workers, one thread each": ["launcher=joblib", "hydra.launcher.n_jobs=2"],
    }
    spent = {}
    for way, options in ways.items():
        own = f"{folder}/{way.replace(' ', '_').replace(',', '')}"
        spent[way] = seconds(*seeds, *options, f"runs={own}", f"cache={folder}/cache")
        print(f"{way}: {runs} runs in {spent[way]:.0f} s", flush=True)
    one, two, both = spent.values()
    print(f"two workers against one: {one / both:.2f} times the runs; against one with both cores: {two / both:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["workers", "cache"], help="only this one")
    parser.add_argument("--runs", type=int, default=6, help="runs of each way of working, default 6")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.part != "cache":
            workers(Path(folder), given.runs)
        if given.part != "workers":
            sweep_against_single_runs(Path(folder))


if __name__ == "__main__":
    main()
