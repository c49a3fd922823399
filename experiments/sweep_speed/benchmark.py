"""What a sweep saves, and what parallel workers bring; on an otherwise idle machine. Prints seconds and ratios.

python experiments/sweep_speed/benchmark.py            # about half an hour on 2 CPU cores
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
    """Wall-clock time of one command, which must succeed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "train.py", *COMMON, *options], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - started


def sweep_against_single_runs(folder: Path) -> None:
    """One sweep over shots and parameters with its cache, against the same runs one by one, each with none."""
    shots, parameters = ["1", "2", "4"], ["mlp", "attention", "mlp_attention", "mlp_final_attention"]
    single = 0.0
    for i, (k, name) in enumerate(product(shots, parameters)):
        own = folder / f"single_{i}"
        single += seconds(f"shots={k}", f"parameters={name}", f"runs={own}", f"cache={own}/cache")
        print(f"single run {i + 1} of {len(shots) * len(parameters)}: {single:.0f} s so far", flush=True)
    choices = ["-m", f"shots={','.join(shots)}", f"parameters={','.join(parameters)}"]
    sweep = seconds(*choices, f"runs={folder}/sweep", f"cache={folder}/sweep/cache")
    print(f"12 single runs {single:.0f} s, the sweep {sweep:.0f} s: {sweep / single:.0%}", flush=True)


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
    parser.add_argument("--runs", type=int, default=6, help="runs of each way of working, default 6")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        workers(Path(folder), runs)
        sweep_against_single_runs(Path(folder))


if __name__ == "__main__":
    main()
