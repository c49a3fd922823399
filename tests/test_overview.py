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
from unreel.page import doubts
from unreel.tables import finished_scores

HOSTILE = "<script>document.title=1</script>"


@pytest.fixture
def runs(tmp_path):
    """Twelve runs: two concepts, two numbers of shots, three seeds; with strips of three prompts each.

    Seed 2 has other prompts, as a run that erases other concepts too.
    """
    folder, prompts = tmp_path / "runs" / "shots", ["a cat at night", "a bus at night", HOSTILE]
    for concept in ("cat", "bus"):
        for shots in (1, 16):
            for seed in range(3):
                name = f"{concept}-{shots}-{seed}"
                scores = rows(name, seed, {FORGET: 1.0, RETAIN: 1.0}, {FORGET: 1 / shots, RETAIN: 0.9})
                scores = [replace(s, shots=shots, concept=concept, method=HOSTILE) for s in scores]
                write_run(folder, name, scores)
                texts = PngInfo()
                texts.add_itxt("prompts", json.dumps(prompts if seed < 2 else ["a dog at night", *prompts[1:]]))
                (folder / name / "clips").mkdir()
                Image.new("RGB", (530, 198), "red").save(
                    folder / name / "clips" / f"v_{concept}_forget.png", pnginfo=texts
                )
                (folder / name / "report.html").write_text("a page")
    return folder


def test_means_are_over_concepts_and_seeds(runs):
    made = summary(finished_scores(runs.iterdir()))
    assert [(row["shots"], row["runs"]) for row in made] == [("1", 6), ("16", 6)]
    assert made[0]["forget"][0] == pytest.approx(1) and made[1]["forget"][0] == pytest.approx(1 / 16)


@pytest.fixture
def opened(runs, tmp_path):
    """Opens the page in Chromium with a filter, does something to it, and gives what it then is."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium (Debian's package)")

    def dom(hash="", script=""):
        page = write_overview(runs)
        acted = page.with_name("acted.html")
        acted.write_text(page.read_text().replace("</main>", f"</main><script>{script}</script>"))
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
                   "--virtual-time-budget=5000", "--dump-dom", acted.as_uri() + hash]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return dom


def table(page, name):
    return re.search(rf'<table id="{name}".*?</table>', page, re.S)[0]


def test_the_page_shows_every_run_and_escapes_names(opened):
    page = opened()
    assert len(re.findall("<tr><td", table(page, "runs"))) == 12
    assert "<title>unreel: shots</title>" in page and "&lt;script&gt;document.title=1" in page
    assert set(re.findall(r'(?:src|href)="(https?:|//)', page)) == set()


def test_a_filter_keeps_the_runs_that_say_it_and_their_clips(opened):
    page = opened("#concept=bus%20shots=1")  # which is not shots=16
    lines = re.findall(r'<tr( hidden="")?><td', table(page, "runs"))
    assert len(lines) == 12 and lines.count("") == 3
    gallery = table(page, "gallery")
    assert gallery.count("<img") == 3 * 3 * 2 and 'src="bus-1-0/clips/v_bus_forget.png"' in gallery
    headers = re.findall(r"<th>(a \w+) at night</th>", gallery)
    assert headers == ["a cat", "a bus", "a dog", "a bus"]  # each run under its own prompts
    assert opened("#bus-16-2").count('loading="lazy"') == 2 * 3  # a run by its name


def test_clips_play_under_the_pointer(opened, runs):
    for run in runs.iterdir():
        for stage in ("before", "after"):
            (run / "clips" / stage / "v").mkdir(parents=True)
            for i in range(3):
                (run / "clips" / stage / "v" / f"{i:03}_bus_forget.mp4").touch()
    enter = """document.querySelectorAll(".pair")[1].dispatchEvent(new Event("pointerenter"));"""
    leave = """document.querySelectorAll(".pair")[1].dispatchEvent(new Event("pointerleave"));"""
    page = opened("#bus-1-0", enter)
    assert re.findall(r'<video[^>]*src="([^"]*)"', page) == [
        f"bus-1-0/clips/{stage}/v/001_bus_forget.mp4" for stage in ("before", "after")
    ]
    page = opened("#bus-1-0", enter + leave)
    assert "<video" not in page and page.count('loading="lazy"') == 2 * 3


def test_a_click_on_a_column_sorts_the_runs_and_their_clips(opened):
    click = '[...document.querySelectorAll("#runs th")].find(head => head.textContent === "forget").click();'
    for clicks, best in ((1, "16"), (2, "1")):
        page = opened(script=click * clicks)
        runs = re.findall(r">(\w+-\d+-\d)</a>", table(page, "runs"))
        assert len(runs) == 12 and {run.split("-")[1] for run in runs[:6]} == {best}
        first = re.search(r'src="(\w+)-(\d+)-\d/clips', table(page, "gallery"))
        assert first[2] == best


def test_a_folder_without_runs_is_one_line(tmp_path):
    command = [sys.executable, str(Path(__file__).parents[1] / "report.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no finished run" in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_forgot_nothing_says_so():
    def said(before, after, clips):
        found = rows("run", 0, {FORGET: before}, {FORGET: after})
        return doubts([replace(s, clips=clips[s.stage == "after"]) for s in found])

    assert said(1.0, 0.0, ("a", "b")) == said(0.5, 0.375, ("a", "b")) == []
    (same,), (none,), (unmoved,) = said(1.0, 1.0, ("a", "a")), said(0.0, 0.0, ("a", "b")), said(0.5, 0.625, ("a", "b"))
    assert "to the last pixel" in same and "nothing to forget" in none and "62% and 50%" in unmoved
