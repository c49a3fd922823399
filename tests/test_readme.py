"""README's recipes for a method, a family, a metric, a concept and a prompt set, followed in a scratch folder."""

import os
import re
import shlex
import subprocess
import sys

from conftest import ROOT
from unreel import Edit
from unreel.scores import read_scores

FENCED = re.compile(r"^```(?:python|yaml|csv)\n# (\S+)\n(.*?)^```$", re.S | re.M)


def test_what_readme_says_of_adding_ones_own_works_and_edits_nothing_of_ours(tmp_path):
    text = (ROOT / "README.md").read_text()
    recipes = FENCED.findall(text[text.index("## Add your own") : text.index("## The zoo")])
    assert {name.split("/")[1] for name, _ in recipes if name.startswith("conf/")} == {
        "method",
        "t2v",
        "metric",
        "concept",
    }
    for name, content in recipes:
        assert len(content.splitlines()) <= 14, f"{name} is no ten lines"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (line,) = re.findall(r"^    python train\.py (--config-dir=.*)$", text, re.M)
    command = [sys.executable, str(ROOT / "train.py"), *shlex.split(line), "threads=1"]
    env = {**os.environ, "PYTHONPATH": "."}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (run,) = (tmp_path / "runs" / "train").iterdir()
    assert Edit.load(run / "edit.safetensors").method == "fade"
    rows = {(s.split, s.metric, s.stage): s for s in read_scores(run / "scores.jsonl")}
    assert rows["forget", "brightness", "after"].value != rows["forget", "brightness", "before"].value
    assert {s.t2v for s in rows.values()} == {"solver"} and {s.concept for s in rows.values()} == {"owl"}
    assert rows["forget", "concept_accuracy", "after"].n == 1 == rows["retain", "accuracy", "after"].n
    page = (run / "report.html").read_text()
    assert "an owl that sits very still under the northern lights" in page
