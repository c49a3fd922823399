"""How long the page over many runs takes: to be written, and to be opened in Chromium. Prints seconds.

python experiments/sweep_speed/page.py --runs 500
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unreel.files import write_text
from unreel.overview import write_overview
from unreel.records import Score
from unreel.scores import write_scores
from unreel.tables import COLUMNS

PROMPTS = [f"a subject in place {i}" for i in range(8)]
CONCEPTS = ("van_gogh", "wispo", "drum", "greta_holm")


def make_run(folder: Path, number: int, concept: str) -> None:
    """One finished run as train.py leaves it: its scores, its status, and a strip a split."""
    run = f"{concept}-{number}"
    shared = dict(
        slug="page", run=run, t2v="zoo_animatediff", concept=concept, kind="object", method="few_shot",
        parameters="mlp", shots=(1, 2, 4, 8)[number % 4], seed=number // 4, n=8, stderr=0.1, steps=200,
    )  # fmt: skip
    scores = [
        Score(**shared, stage=stage, split=split, metric=metric, value=(number % 8) / 8 if stage == "after" else 1.0)
        for stage, (split, metric) in product(("before", "after"), COLUMNS.values())
    ]
    write_scores(folder / run / "scores.jsonl", scores)
    write_text(folder / run / "status.json", json.dumps({"status": "done"}))
    for split in ("forget", "retain"):
        texts = PngInfo()
        texts.add_itxt("prompts", json.dumps(PROMPTS))
        (folder / run / "clips").mkdir(exist_ok=True)
        strips = Image.effect_noise((530, 66 * len(PROMPTS)), 60).convert("RGB")
        strips.save(folder / run / "clips" / f"zoo_animatediff_{concept}_{split}.png", pnginfo=texts)


def opened(page: Path, profile: Path) -> float:
    """Seconds from the start of loading the page to the end of its load event, without Chromium's own start."""
    timed = page.with_name("timed.html")
    tell = "addEventListener('load', () => setTimeout(() => document.title = 'took ' + performance.now()))"
    timed.write_text(page.read_text().replace("</main>", f"</main><script>{tell}</script>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--timeout=60000", "--dump-dom", timed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    took = re.search(r"<title>took ([\d.]+)", dom)
    if took is None:
        sys.exit(f"{page} was not loaded within 60 s: expected Chromium to tell how long it took")
    return float(took[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="default 500")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "page"
        for i in range(runs):
            make_run(folder, i // len(CONCEPTS), CONCEPTS[i % len(CONCEPTS)])
        started = time.perf_counter()
        page = write_overview(folder)
        written = time.perf_counter() - started
        seconds = opened(page, Path(name) / "profile")
        kilobytes = page.stat().st_size // 1000
        print(f"{runs} runs: a page of {kilobytes} kB, written in {written:.1f} s, opened in {seconds:.1f} s")


if __name__ == "__main__":
    main()
