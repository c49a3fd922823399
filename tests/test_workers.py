"""Workers render what one process would, under the same keys; whatever becomes of them, a run ends with one line."""

import sys
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress

from conftest import configured, opened
from unreel import door
from unreel.cache import TensorCache
from unreel.door import built
from unreel.edits import Edit
from unreel.records import Prompt
from unreel.rendering import Renderer
from unreel.workers import _CLAIMED, Order, PooledRenderer, Workers, _device_of, claimed

PROMPTS = [Prompt(text, "forget", ()) for text in ("a drum", "a cat", "a drum at night", "a drum", "a dog")]
SEEDS = [1, 2, 3, 1, 5]
ODD = """
import os, signal, time
from pathlib import Path
from unreel.models.animatediff import AnimateDiff


class Dying(AnimateDiff):
    def render(self, prompts, seeds):
        os.kill(os.getpid(), signal.SIGKILL)


class Failing(AnimateDiff):
    def render(self, prompts, seeds):
        raise ValueError("found a broken fan: expected a whole one")


class Unlike(AnimateDiff):
    @property
    def content(self):
        Path(__file__).with_name(f"{os.getpid()}.pid").touch()
        return str(os.getpid())

    def render(self, prompts, seeds):
        until = time.monotonic() + 120
        while len(list(Path(__file__).parent.glob("*.pid"))) < 2 and time.monotonic() < until:
            time.sleep(0.1)  # until the other one has begun
        return super().render(prompts, seeds)
"""


@pytest.fixture
def entry(small_folders):
    """The config of a recipient."""
    return {
        "_target_": "unreel.models.animatediff.AnimateDiff", "name": "animatediff", "num_inference_steps": 2,
        "folder": str(small_folders / "sd"), "motion_adapter": str(small_folders / "adapter"), "num_frames": 3,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pooled(entry, folder, backend="loky"):
    model, caches = built(entry, device="cpu"), [TensorCache(folder / name) for name in ("all", "own")]
    return PooledRenderer(model, *caches, 2, Workers(2, backend, "cpu", None), entry)


def edits_of(model):
    """None, an edit of the text encoder, and one that is attached."""
    name = model.select(["final_attention"])[0]
    value = {f"text_encoder/{n}": p for n, p in model.components["text_encoder"].named_parameters()}[name].detach()
    edited = model.reference(["text_encoder"])
    dict(edited.components["text_encoder"].named_parameters())[name.split("/")[1]].data = value * 2 + 0.1
    weights = Edit.between(model, edited, ["text_encoder"], "few_shot")
    return [None, weights, Edit({}, {}, "negative_prompt", {"negative_prompt": "a drum"})]


def compared(entry, tmp_path, backend, monkeypatch):
    """Each edit rendered by one process and by two workers."""
    alone = Renderer(built(entry, device="cpu"), TensorCache(tmp_path / "all1"), TensorCache(tmp_path / "own1"), 2)
    others, hashes, advanced = pooled(entry, tmp_path, backend), set(), []
    monkeypatch.setattr(others.model, "render", lambda *_: pytest.fail("this process rendered"))
    for edit in edits_of(alone.model):
        with alone.edited(edit):
            expected = alone.render(PROMPTS, SEEDS, "any", edit)
        with monkeypatch.context() as patched, others.edited(edit):
            patched.setattr(Progress, "advance", lambda self, task, clips: advanced.append(clips))
            found = others.render(PROMPTS, SEEDS, "any", edit)
        assert found.clips.keys == expected.clips.keys and found.hash == expected.hash
        assert all(seconds > 0 for seconds in found.seconds) and sorted(advanced) == [2, 2]
        hashes.add(found.hash)
        advanced.clear()
    assert len(hashes) == 3, "an edit that changed nothing would prove nothing"
    again = others.render(PROMPTS, SEEDS, "any", None)
    assert not advanced and again.hash in hashes, "it was there"
    others.release()


def test_workers_render_the_same_clips_under_the_same_keys(entry, tmp_path, monkeypatch):
    compared(entry, tmp_path, "loky", monkeypatch)


@pytest.mark.slow
def test_workers_on_ray_render_the_same_clips_under_the_same_keys(entry, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    try:
        compared(entry, tmp_path, "ray", monkeypatch)
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("Dying", "found workers.processes=2, of which one was ended from outside"),
        ("Failing", "^found a broken fan: expected a whole one$"),
        pytest.param("Unlike", "workers: found one on .* are not those of the first", marks=pytest.mark.slow),
    ],
)
def test_what_becomes_of_a_worker_is_told_in_a_line(entry, kind, says, tmp_path, monkeypatch):
    (tmp_path / "odd_models.py").write_text(ODD)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ValueError, match=says):
            pooled(entry | {"_target_": f"odd_models.{kind}"}, tmp_path).render(PROMPTS, SEEDS, "any")
    finally:
        sys.modules.pop("odd_models", None)


def test_each_worker_of_a_machine_has_a_number_of_its_own_as_long_as_it_lives(tmp_path):
    held = len(_CLAIMED)
    assert [claimed(tmp_path, 2), claimed(tmp_path, 2)] == [0, 1]
    _CLAIMED.pop(held).close()  # as the end of its process would
    assert claimed(tmp_path, 2) == 0
    while len(_CLAIMED) > held:
        _CLAIMED.pop().close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["workers.processes=0"], "found workers.processes=0: expected a whole number, 1 or more"),
        (["workers.processes=two"], "found workers.processes=two: expected a whole number"),
        (["workers.backend=dask"], "found workers.backend=dask: expected loky or ray"),
    ],
)
def test_workers_that_will_not_do_are_refused_at_the_door(options, says):
    with pytest.raises(ValueError, match=says):
        door.check(configured("train", ["concept=cat", *options]))


@pytest.mark.parametrize(("backend", "missing"), [("loky", "joblib"), ("ray", "ray")])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(backend, missing, monkeypatch):
    config = configured("train", ["concept=cat", "workers.processes=2", f"workers.backend={backend}"])
    find_spec = door.importlib.util.find_spec
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(ValueError, match=rf'{missing} is missing: pip install -e "\.\[{missing}\]"'):
        door.check(config)


def test_a_sweep_has_its_own_processes(monkeypatch):
    monkeypatch.setattr(door, "is_sweep", lambda: True)
    with pytest.raises(ValueError, match=r"workers.processes=2 in a sweep: expected workers.processes=1"):
        door.check(configured("train", ["concept=cat", "workers.processes=2"]))


def test_a_run_is_the_same_however_many_workers_render_it(tmp_path):
    folders = {
        opened(configured("train", ["concept=cat", f"runs={tmp_path}", f"workers.processes={n}"])).run.folder
        for n in (1, 2, 8)
    }
    assert len(folders) == 1


def test_a_worker_that_sees_no_gpu_renders_nothing_on_the_cpu_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    order = Order({}, "cuda:0", None, 1, None, tmp_path, tmp_path, None)
    with pytest.raises(ValueError, match=r"found no GPU on .*: expected one, as the run has, or device=cpu"):
        _device_of(order)
    assert _device_of(replace(order, device="cpu")) == "cpu"
