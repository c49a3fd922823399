"""`make zoo-report` on a handful of clips: the rows, the page and the contact sheet it promises."""

import re
import subprocess
import sys

import pytest
from PIL import Image

from unreel.scores import read_scores
from unreel.zoo import report
from unreel.zoo.words import KINDS, candidates, word
from unreel.zoo.world import held_out


def _report(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "unreel.zoo.report", *options], capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    done = _report("--images=3", "--clips=2", "--drawn=6", "--steps=2", f"--output={folder}")
    assert done.returncode == 0, done.stderr
    assert "scores.jsonl" in done.stdout and "report.html" in done.stdout
    return folder


def test_scores_are_rows_of_the_design(output):
    rows = {(s.t2i, s.t2v, s.metric): s for s in read_scores(output / "scores.jsonl")}
    for kind in ("subject", "style", "scene"):
        assert rows["drawn", "", f"{kind}_accuracy"].n == 6 and rows["zoo", "", f"{kind}_accuracy"].n == 3
    for kind in ("subject", "style", "scene", "motion"):
        assert rows["", "zoo_animatediff", f"{kind}_accuracy"].n == 2
    assert rows["", "drawn", "motion_accuracy"].n == 6
    assert rows["", "zoo_animatediff", "seconds_per_clip"].value > 0
    assert all(0 <= s.value <= 1 for s in rows.values() if s.metric.endswith("accuracy"))
    assert {s.split for s in rows.values()} == {"held_out"} and {s.slug for s in rows.values()} == {"zoo_report"}


def test_the_page_asks_nothing_of_the_network_and_its_clips_move(output):
    page = (output / "report.html").read_text()
    addresses = re.findall(r"""\b(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", page)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "<script" not in page
    assert "url(" not in page and "@import" not in page
    assert page.count("data:image/webp;base64,") == 3 * len(report.contact_specs(90_001))
    assert Image.open(output / "contact_sheet.png").width > 600


def test_the_contact_sheet_goes_through_styles_motions_and_groups():
    specs = report.contact_specs(90_001)
    assert {s.style for s in specs} == set(candidates("style"))
    assert {s.motion for s in specs} == set(candidates("motion"))
    assert all(map(held_out, specs))


def test_prompts_state_what_is_judged():
    for index, spec in enumerate(report.contact_specs(3)):
        text = report.prompt(spec, index)
        for kind in KINDS:
            assert any(p in text for p in word(kind, getattr(spec, kind)).phrases), (text, spec)


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--images=0"], "--images 0"), (["--models=/nowhere"], "make zoo"), (["--steps=x"], "--steps")],
)
def test_bad_input_ends_in_one_line(options, says):
    done = _report(*options)
    assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr
