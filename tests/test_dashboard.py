"""The W&B dashboard, up to where an account is needed."""

import json
import os
import subprocess
import sys

import pytest

from unreel.dashboard import ABLATED, SCORES, STEP, TRAINING, workspace
from unreel.runs import Run


def test_the_workspace_has_a_panel_for_everything():
    made = workspace("someone", "unreel", "mine", ["zoo_animatediff"])
    sent = json.dumps(made._to_model().model_dump(mode="json"), default=str)  # what save() would send
    assert [section.name for section in made.sections] == ["Forget and retain", "Ablations", "Clips", "Training"]
    for key in (*SCORES, STEP, *TRAINING, "clips/zoo_animatediff/forget"):
        assert key in sent, key
    assert set(ABLATED) <= set(Run.FLAT)


@pytest.mark.parametrize(
    ("options", "says"), [([], "expected entity=NAME"), (["entity=a", "project=b", "colour=red"], "found colour")]
)
def test_bad_input_is_one_line(options, says):
    command = [sys.executable, "-m", "unreel.dashboard", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"WANDB_MODE": "offline"}
    )
    assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr
