"""The door: whatever any setting of any shipped YAML says, it is a run or one line, and nothing is written."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from conftest import ROOT, configured, opened
from test_train import animatediff, modelscope, small_run, zero
from unreel import door
from unreel.cli import one_line

HUB = {  # choices that name hub models -> overrides with small folders in their place
    "sd14": list, "sd15": list, "open_clip": list, "animatediff": animatediff, "text2video_zero": zero,
    "modelscope": modelscope,
}  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 3), st.floats(), st.just(10**30), st.just(""),
    st.text("ab/.-_ \n\0<${}é", max_size=8), st.just([]), st.just(["a"]), st.just({}), st.just("x" * 5000),
)  # fmt: skip


def scalars(config, where=""):
    """Dotted keys of all values that are no groups of others."""
    for key in config:
        value = config._get_node(key)
        if isinstance(value, DictConfig) and value:
            yield from scalars(value, f"{where}{key}.")
        else:
            yield f"{where}{key}"


def options():
    """All choices of all groups of train.yaml that a run has one of: (group, choice)."""
    groups = (
        "method",
        "parameters",
        "t2i",
        "t2v",
        "judge",
        "metric",
        "attack",
        "prompts",
        "vocabulary",
        "trainer",
        "logger",
        "concept",
    )
    return [(g, path.stem) for g in groups for path in sorted((ROOT / "conf" / g).glob("*.yaml"))]


def base(group="", choice=""):
    """Overrides of a config with the zoo's models and one choice."""
    chosen = {"concept": "cat"} | ({group: choice} if group else {})
    return [
        f"{key}=[{value}]" if key in ("t2v", "metric", "attack", "concept") else f"{key}={value}"
        for key, value in chosen.items()
    ]


CASES = [
    ("", "", key) for key in scalars(configured("train", base())) if "." not in key or key.startswith("evaluation.")
]
CASES += [
    pytest.param(group, choice, key, marks=[] if choice == "few_shot" else pytest.mark.slow)
    for group, choice in options()
    for key in scalars(configured("train", base(group, choice)))
    if key.startswith(f"{group}.") and not key.startswith("vocabulary.") and not key.endswith("_")
]


def at_the_door_of_evaluate(config):
    door.check(config, partial=True)
    door.edits_of(config)


def tried(config, checks) -> str:
    """What the door says of a config: "" for a run that may begin."""
    try:
        checks(config)
    except Exception as error:
        said = one_line(error)
        if not said:
            raise
        return said
    return ""


def throw_values_at(config, key, checks):
    """Each value of one setting gives a run or one line."""

    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(value=VALUES)
    def throw(value):
        changed = config.copy()
        OmegaConf.set_struct(changed, False)
        OmegaConf.update(changed, key, value, merge=False)
        said = tried(changed, checks)
        assert "\n" not in said and len(said) < 2000

    throw()


@pytest.mark.parametrize(("group", "choice", "key"), CASES)
def test_any_value_of_any_setting_is_a_run_or_one_line(
    tmp_path_factory, small_folders, judge_folder, group, choice, key
):
    folder = tmp_path_factory.mktemp("door")
    overrides = base(group, choice)
    if choice in HUB:
        own = small_run(small_folders, judge_folder, folder)
        if group == "t2v":
            own = [text for text in own if "t2v" not in text] + HUB[choice](small_folders)
        overrides = [*own, *overrides]
        overrides += [f"t2i.folder={small_folders / 'sd'}"] if group == "t2i" else []
    config = configured("train", [*overrides, f"runs={folder / 'runs'}", f"cache={folder / 'cache'}"])

    throw_values_at(config, key, opened)
    assert not list(folder.iterdir()), "something was written"


@pytest.mark.parametrize("key", [key for key in scalars(configured("evaluate", [])) if not key.endswith("_")])
def test_any_value_of_any_setting_of_evaluate_is_one_line_too(tmp_path_factory, key):
    folder = tmp_path_factory.mktemp("door")
    (folder / "edit.safetensors").touch()
    options = [f"edit={folder / 'edit.safetensors'}", f"runs={folder / 'runs'}", f"cache={folder / 'cache'}"]
    config = configured("evaluate", options)
    assert tried(config, at_the_door_of_evaluate) == ""

    throw_values_at(config, key, at_the_door_of_evaluate)


SLOW_TO_IMPORT = ("torch", "diffusers", "transformers", "pytorch_lightning", "wandb", "matplotlib", "scipy")
WITHOUT_THEM = f"""
import atexit, runpy, sys
atexit.register(lambda: print("imported:", [name for name in {SLOW_TO_IMPORT} if name in sys.modules]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train.py --help", "concept:"),
        ("train.py concept=cat nonsense=1", "nonsense"),
        ("train.py concept=nobody", "nobody"),
        ("train.py concept=cat shots=-1", "found shots=-1: expected a whole number, 0 or more"),
        ("train.py concept=cat method.data.batch=0", "found method.data.batch=0: expected greater than 0"),
        ("train.py concept=cat method.guard.patience=x", "found method.guard.patience='x': expected a valid integer"),
        ("train.py concept=cat method.name=../../up", "found method.name='../../up'"),
        ("train.py concept=cat logger.offline=maybe", "found logger.offline='maybe': expected a valid boolean"),
        ("train.py concept=cat method.ascent=up", "expected 'unbounded', 'bounded' or 'none'"),
        ("train.py phrase=bus kind=object images=/nowhere/at/all", "/nowhere/at/all is no folder"),
        ("train.py concept=cat t2i=sd14 t2i.folder=/nowhere/at/all", "/nowhere/at/all: expected a diffusers folder"),
        ("train.py concept=cat prompts=file prompts.path=/nowhere/at/all", "/nowhere/at/all is no file"),
        ("train.py concept=cat runs=/proc/nowhere", "/proc has 0 MB free"),
        (f"train.py concept=cat +concept.{'x' * 300}.kind=object", "expected at most 200 characters"),
        ("train.py", "no concept: expected concept=NAME"),
        ("evaluate.py edit=/nowhere/at/all", "/nowhere/at/all is missing"),
        ("evaluate.py edit=x evaluation.prompts=1.5", "found evaluation.prompts=1.5"),
        ("evaluate.py --help", "edit:"),
        ("report.py --help", "folder of runs"),
        ("report.py /nowhere/at/all", "/nowhere/at/all is no folder"),
    ],
)
def test_an_error_at_the_door_waits_for_no_import(command, says):
    name, *arguments = command.split()
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_THEM, name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = ended.stdout + ended.stderr
    assert says in said and "Traceback" not in said
    assert ended.returncode == (0 if "--help" in command else 1)
    assert "imported: []" in ended.stdout
