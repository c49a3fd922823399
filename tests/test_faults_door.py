"""The door: whatever any setting of any shipped YAML says, it is a run or one line, and nothing is written."""

import pytest
import train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from conftest import ROOT, configured
from test_train import animatediff, modelscope, small_run, zero
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
        f"{key}=[{value}]" if key in ("t2v", "metric", "concept") else f"{key}={value}" for key, value in chosen.items()
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


def tried(config) -> str:
    """What the door says of a config: "" for a run that may begin."""
    try:
        train.opened(config)
    except Exception as error:
        said = one_line(error)
        if not said:
            raise
        return said
    return ""


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

    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(value=VALUES)
    def throw(value):
        changed = config.copy()
        OmegaConf.set_struct(changed, False)
        OmegaConf.update(changed, key, value, merge=False)
        said = tried(changed)
        assert "\n" not in said and len(said) < 2000

    throw()
    assert not list(folder.iterdir()), "something was written"
