"""The page over many runs, in a real browser."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from test_tables import FORGET, RETAIN, rows, write_run
from unreel.overview import summary, write_overview
from unreel.tables import finished_scores

HOSTILE = "<script>document.title=1</script>"


@pytest.fixture
def runs(tmp_path):
    """Twelve runs: two concepts, two numbers of shots, three seeds; with strips of three prompts each."""
    folder, prompts = tmp_path / "runs" / "shots", ["a cat at night", "a bus at night", HOSTILE]
    for concept in ("cat", "bus"):
        for shots in (2, 16):
            for seed in range(3):
                name = f"{concept}-{shots}-{seed}"
                scores = rows(name, seed, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: 1 / shots, RETAIN: 0.9})
                scores = [replace(s, shots=shots, concept=concept, method=HOSTILE) for s in scores]
                write_run(folder, name, scores)
                texts = PngInfo()
                texts.add_itxt("prompts", json.dumps(prompts))
                (folder / name / "clips").mkdir()
                Image.new("RGB", (530, 198), "red").save(
                    folder / name / "clips" / f"v_{concept}_forget.png", pnginfo=texts
                )
                (folder / name / "report.html").write_text("a page")
    return folder


def test_means_are_over_concepts_and_seeds(runs):
    made = summary(finished_scores(runs.iterdir()))
    assert [(row["shots"], row["runs"]) for row in made] == [("2", 6), ("16", 6)]
    assert made[0]["forget"][0] == pytest.approx(0.5) and made[1]["forget"][0] == pytest.approx(1 / 16)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium (Debian's package)")
def test_the_page_filters_runs_and_shows_their_clips(runs, tmp_path):
    def dom(hash: str) -> str:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--virtual-time-budget=5000", "--dump-dom", write_overview(runs).as_uri() + hash]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    whole, some = dom(""), dom("#concept=bus%20shots=16")
    table = re.compile(r'<table id="runs".*?</table>', re.S)
    lines = [re.findall(r"<tr( hidden=\"\")?><td", table.search(page)[0]) for page in (whole, some)]
    assert [len(found) for found in lines] == [12, 12] and [found.count("") for found in lines] == [12, 3]
    gallery = re.search(r'<table id="gallery".*?</table>', some, re.S)[0]
    assert gallery.count("<img") == 3 * 3 and 'src="bus-16-0/clips/v_bus_forget.png"' in gallery
    assert "<title>unreel: shots</title>" in whole and "&lt;script&gt;document.title=1" in whole
    assert set(re.findall(r'(?:src|href)="(https?:|//)', whole)) == set()


def test_a_folder_without_runs_is_one_line(tmp_path):
    command = [sys.executable, str(Path(__file__).parents[1] / "report.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no finished run" in done.stderr and "Traceback" not in done.stderr
