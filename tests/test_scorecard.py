"""`make zoo-report` on a handful of clips: the rows, the page and the contact sheet it promises."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
from PIL import Image

from unreel.records import Score
from unreel.scores import read_scores
from unreel.zoo import scorecard
from unreel.zoo.readings import HARDER_SPLITS, harder_specs, prompt
from unreel.zoo.words import IMPLIED, KINDS, candidates, word
from unreel.zoo.world import held_out, possible


def _report(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "unreel.zoo.scorecard", *options], capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    done = _report("--images=3", "--clips=2", "--harder=1", "--drawn=6", "--steps=2", f"--output={folder}")
    assert done.returncode == 0, done.stderr
    assert "scores.jsonl" in done.stdout and "report.html" in done.stdout
    return folder


def test_scores_are_rows_of_the_design(output):
    rows = {(s.t2i, s.t2v, s.split, s.metric): s for s in read_scores(output / "scores.jsonl")}
    for kind in ("subject", "style", "scene"):
        assert rows["drawn", "", "held_out", f"{kind}_accuracy"].n == 6
        for t2i in ("zoo", "zoo_pixart"):
            assert rows[t2i, "", "held_out", f"{kind}_accuracy"].n == 3
    for t2v in ("zoo_animatediff", "zoo_unet3d", "zoo_latte"):
        for kind in ("subject", "style", "scene", "motion"):
            assert rows["", t2v, "held_out", f"{kind}_accuracy"].n == 2
        assert rows["", t2v, "long", "subject_accuracy"].n == 2
        assert rows["", t2v, "held_out", "seconds_per_clip"].value > 0
    assert rows["zoo", "", "senses", "bat_accuracy"].n == 2
    assert rows["", "drawn", "held_out", "motion_accuracy"].n == 6
    for t2v, split in product(("drawn", "zoo_unet3d"), HARDER_SPLITS):
        assert rows["", t2v, split, "motion_accuracy"].n == 1
    assert all(0 <= s.value <= 1 for s in rows.values() if s.metric.endswith("accuracy"))
    assert {s.slug for s in rows.values()} == {"zoo_report"}


def test_the_page_asks_nothing_of_the_network_and_its_clips_move(output):
    page = (output / "report.html").read_text()
    addresses = re.findall(r"""\b(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]*)""", page)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "<script" not in page
    assert "url(" not in page and "@import" not in page
    assert page.count("data:image/webp;base64,") == 6 * len(scorecard.contact_specs(90_001))
    assert Image.open(output / "contact_sheet.png").width > 600


def test_the_contact_sheet_goes_through_styles_motions_and_groups():
    specs = scorecard.contact_specs(90_001)
    assert {s.style for s in specs} == set(candidates("style"))
    assert {s.motion for s in specs} == set(candidates("motion"))
    assert all(map(held_out, specs))


@pytest.mark.parametrize("long", [False, True])
def test_prompts_state_what_is_judged(long):
    for index, spec in enumerate(scorecard.contact_specs(3)):
        text = prompt(spec, index, long=long)
        assert not long or len(text.split()) >= 20
        for kind in KINDS:
            assert any(p in text for p in word(kind, getattr(spec, kind)).phrases), (text, spec)


def test_harder_specs_are_held_out_and_what_their_question_asks():
    asked = {split: harder_specs(split, 24, seed=5) for split in HARDER_SPLITS}
    assert all(held_out(spec) and possible(spec) for specs in asked.values() for spec in specs)
    assert {word("motion", s.motion).group for s in asked["two"]} == {"two"}
    assert {s.motion for s in asked["dance"]} == {"dancing"}
    assert {(s.subject, s.motion) for s in asked["implied"]} == set(IMPLIED.items())
    assert {s.motion for s in asked["unsaid"]} == {"still"} and not {s.subject for s in asked["unsaid"]} & set(IMPLIED)
    said = [prompt(spec, i, ("subject", "style", "scene")) for i, spec in enumerate(asked["implied"] + asked["unsaid"])]
    said = [text.replace("in falling snow", "") for text in said]  # which is a scene
    assert not [text for text in said for name in candidates("motion") if word("motion", name).phrases[0] in text]


def test_a_long_prompt_may_cost_four_points():
    short = Score(slug="", t2v="zoo_unet3d", split="held_out", metric="subject_accuracy", value=0.9, n=9)
    long = replace(short, split="long", value=0.5)
    assert scorecard.bar(long, [short, long]) == pytest.approx(0.86)
    assert scorecard.bar(short, [short, long]) == 0.87


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--images=0"], "--images 0"), (["--models=/nowhere"], "make zoo"), (["--steps=x"], "--steps")],
)
def test_bad_input_ends_in_one_line(options, says):
    done = _report(*options)
    assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr
