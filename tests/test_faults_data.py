"""What is read back or shared: foreign edits, folders that two commands want, damaged and unreadable files."""

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import evaluate
import pytest
import torch
import train
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conftest import ROOT, configured, opened
from test_train import animatediff, small_run
from unreel import Edit
from unreel.assembly import checkpoint_in
from unreel.cache import TensorCache
from unreel.cli import one_line
from unreel.concepts import to_concept
from unreel.hashes import folder_hash
from unreel.metadata import ConceptSaid, shareable, without_folders
from unreel.models.readings import states
from unreel.models.roles import select
from unreel.models.stable_diffusion import StableDiffusion
from unreel.overview import _strips
from unreel.runs import Run
from unreel.validation import validated


@pytest.fixture(scope="module")
def made(small_folders, judge_folder, tmp_path_factory):
    """One finished run: (the options of its command, its folder)."""
    folder = tmp_path_factory.mktemp("made")
    options = [*small_run(small_folders, judge_folder, folder), "logger=none", f"output={folder / 'run'}"]
    train.main(configured("train", options))
    return options, folder / "run"


def test_an_edit_does_not_say_where_on_the_machine_its_files_were(made):
    options, folder = made
    provenance = Edit.load(folder / "edit.safetensors").provenance
    assert str(folder) in str(options) and str(folder.parent) not in json.dumps(provenance)
    assert provenance["config"]["output"] == "run"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("runs=/home/Jane Doe/out", "runs=out"),
        ("t2i.folder=~/models/sd15/", "t2i.folder=sd15"),
        (r"D:\\models\\sd15", "sd15"),
        ("t2v=[zoo_images,{folder:/data/secret/wan}]", "t2v=[zoo_images,{folder:wan}]"),
        ("edit=[/home/Jane Doe/a b.safetensors, /tmp/x/b.safetensors]", "edit=[a b.safetensors, b.safetensors]"),
        ("https://host/a/b", "https://host/a/b"),
        ("t2i.folder=stabilityai/sd15", "t2i.folder=stabilityai/sd15"),
        ("a cat and/or a dog, 1/2", "a cat and/or a dog, 1/2"),
        ("prompts.path=experiments/motion/x.csv", "prompts.path=experiments/motion/x.csv"),
        ({"folder": ["/a/b/c", 3, None]}, {"folder": ["c", 3, None]}),
    ],
)
def test_of_a_path_an_edit_says_the_last_part(said, told):
    assert without_folders(said) == told


def test_a_command_that_was_cut_within_quotation_marks_is_said_all_the_same():
    told = shareable({"command": "python train.py 'runs=/home/jane/out", "config": {}, "seed": 0})
    assert "jane" not in told["command"] and told["seed"] == 0


def test_words_that_look_like_a_path_stay_what_they_are():
    """An evaluation of the edit asks for the same clips by them."""
    concept = {"kind": "object", "name": "</a/b/c>", "phrases": ["/x/y/z"], "images": "/home/jane/shots"}
    config = {"concept": {"c": concept}, "phrase": "/p/q", "vocabulary": {"subject": ["/a/b"]}}
    told = shareable({"command": "python train.py", "config": config})["config"]
    assert told == config | {"concept": {"c": concept | {"images": "shots"}}}


def evaluated(made, edit, small_folders, tmp_path):
    """What `evaluate.py` says of an edit."""
    options = [f"edit={edit}", "t2v=animatediff", *animatediff(small_folders), "logger=none", f"runs={tmp_path / 'r'}"]
    options += [o for o in made[0] if o.startswith(("judge", "cache", "device"))]
    with pytest.raises(SystemExit) as ended:
        evaluate.main(configured("evaluate", options))
    assert "\n" not in str(ended.value) and not (tmp_path / "r").exists()
    return str(ended.value)


def changed(made, **config):
    edit = Edit.load(made[1] / "edit.safetensors")
    return replace(edit, provenance=edit.provenance | {"config": edit.provenance["config"] | config})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"vocabulary": {"subject": ["${oc.env:SECRET_TOKEN}"]}}, "interpolation"),
        ({"concept": {"cat": {"kind": "object", "name": "${oc.env:SECRET_TOKEN}"}}}, "interpolation"),
        ({"concept": {"../../up": {"kind": "object", "name": "cat"}}}, "pattern"),
        ({"evaluation": {"prompts": 5_000_000, "motions": False, "seed": 0, "batch": 8}}, "10000"),
        ({"evaluation": {"prompts": "8", "motions": False, "seed": 0, "batch": 8}}, "integer"),
        ({"shots": -1}, "shots"),
        ({"method": {"name": ["few_shot"]}}, "method.name"),
    ],
)
def test_a_foreign_edit_is_data_and_no_word_of_it_is_filled_in(
    made, small_folders, tmp_path, monkeypatch, config, says
):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    changed(made, **config).save(tmp_path / "edit.safetensors")
    said = evaluated(made, tmp_path / "edit.safetensors", small_folders, tmp_path)
    assert says in said and "hunter2" not in said


def test_words_that_were_changed_after_they_were_written_are_seen(made, tmp_path):
    path = tmp_path / "edit.safetensors"
    raw = (made[1] / "edit.safetensors").read_bytes()
    assert b"van_gogh" in raw
    path.write_bytes(raw.replace(b"van_gogh", b"van_gohg"))
    with pytest.raises(ValueError, match="words were changed"):
        Edit.load(path)


@pytest.mark.parametrize("provenance", [{"surprise": 1}, {"seed": "0"}, {"versions": {"torch": 2}}])
def test_unknown_keys_and_other_types_are_refused(made, tmp_path, provenance):
    edit = Edit.load(made[1] / "edit.safetensors")
    replace(edit, provenance={**edit.provenance, **provenance}).save(tmp_path / "edit.safetensors")
    with pytest.raises(ValueError, match=next(iter(provenance))):
        Edit.load(tmp_path / "edit.safetensors")


@pytest.mark.parametrize("harm", ["shape", "nan", "name"])
def test_tensors_that_are_not_the_encoders_are_refused(made, small_folders, tmp_path, harm):
    edit = Edit.load(made[1] / "edit.safetensors")
    name, tensor = next(iter(edit.tensors.items()))
    new = {
        "shape": {name: torch.ones(1)},
        "nan": {name: tensor * torch.nan},
        "name": {"text_encoder/x": tensor.clone()},
    }[harm]
    replace(edit, tensors={**edit.tensors, **new}).save(tmp_path / "edit.safetensors")
    said = evaluated(made, tmp_path / "edit.safetensors", small_folders, tmp_path)
    assert {"shape": "of shape (1,)", "nan": "finite", "name": "no such tensor"}[harm] in said


def test_the_second_of_two_commands_with_one_folder_does_not_take_the_firsts_result(made, tmp_path):
    options = [*made[0], "seed=1", f"output={tmp_path / 'new'}"]
    parts = opened(configured("train", options))
    shutil.copytree(made[1], tmp_path / "new")  # another command has begun and ended meanwhile
    with pytest.raises(ValueError, match="belongs to another config"), parts.run.working():
        pytest.fail("it began to work in the folder of another")


def test_files_have_the_mode_that_the_user_asks_for(tmp_path):
    TensorCache(tmp_path).save("abc", {"x": torch.ones(1)})
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "ab" / "abc.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_damaged_checkpoint_is_named_and_the_training_starts_again(tmp_path, capsys):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save({"erasure": {"weights": torch.ones(1000)}}, path)
    assert checkpoint_in(tmp_path) == path
    path.write_bytes(path.read_bytes()[:500])
    assert checkpoint_in(tmp_path) is None
    assert "last.ckpt is damaged" in (said := capsys.readouterr().err) and said.count("\n") == 1


def test_places_and_images_that_will_not_do_are_one_line(made, small_folders, tmp_path):
    images, pipe, file = (tmp_path / name for name in ("images", "pipe", "file"))
    images.mkdir()
    pipe.mkdir()
    file.write_text("mine")
    os.mkfifo(pipe / "a.png")
    Image.new("F", (8, 8)).save(images / "a.tiff")
    for options, says in [
        ([f"output={file}"], "is a file"),
        ([f"cache={file / 'cache'}", f"output={tmp_path / 'a'}"], "is a file"),
        ([f"images={pipe}", "shots=1", f"output={tmp_path / 'b'}"], "is no file"),
        ([f"images={images}", "shots=1", f"output={tmp_path / 'c'}"], "holds fractions"),
        ([f"images={images}", "shots=0", f"output={tmp_path / 'd'}"], "shots=0 and"),
        (["phrase=van gogh", "kind=style", f"output={tmp_path / 'e'}"], "expected one of the two"),
        (["concept=[]", "phrase=a cat", "kind=object", f"output={tmp_path / 'f'}"], "without an article"),
        (["kind=style", f"output={tmp_path / 'g'}"], "without a phrase"),
        (["+concept.van_gogh.anchor=van gogh style", f"output={tmp_path / 'h'}"], "the concept itself"),
        (["metric=[]", f"output={tmp_path / 'i'}"], "no metric"),
    ]:
        with pytest.raises(SystemExit) as ended:
            train.main(configured("train", [*made[0], *options]))
        assert says in str(ended.value) and "\n" not in str(ended.value)
    assert file.read_text() == "mine" and {p.name for p in tmp_path.iterdir()} == {"images", "pipe", "file"}


def test_a_machine_without_git_makes_runs(made, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    parts = opened(configured("train", made[0]))
    assert isinstance(parts.run, Run) and json.loads(json.dumps(parts.run.provenance))["commit"] == ""


def refused(command, options):
    """What a command says of options that will not do: one line."""
    with pytest.raises(SystemExit) as ended:
        command.main(configured(command.__name__, options))
    assert str(ended.value).startswith("unreel: ") and "\n" not in str(ended.value)
    return str(ended.value)


@pytest.mark.parametrize("harm", ["cut", "gone", "changed"])
def test_a_finished_run_whose_edit_was_harmed_since_says_so(made, tmp_path, harm):
    shutil.copytree(made[1], tmp_path / "run")
    edit, options = tmp_path / "run" / "edit.safetensors", [*made[0], f"output={tmp_path / 'run'}"]
    data = edit.read_bytes()
    if harm == "gone":
        edit.unlink()
    else:
        edit.write_bytes(data[:5000] if harm == "cut" else data[:-8] + b"\0" * 4 + data[-4:])
    said = refused(train, options)
    assert "the run was finished, but since then" in said and "edit.safetensors" in said and "first remove" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"status": "asleep"}', '{"id": 5, "status": "done"}', '{"status": "done", "seconds": [1]}']
)
def test_a_damaged_status_is_named(made, tmp_path, text):
    shutil.copytree(made[1], tmp_path / "run")
    (tmp_path / "run" / "status.json").write_text(text)
    assert "status.json is damaged" in refused(train, [*made[0], f"output={tmp_path / 'run'}"])


def test_what_a_disk_changed_in_the_cache_is_made_again(tmp_path):
    cache, tensors = TensorCache(tmp_path), {"x": torch.arange(100.0), "none": torch.empty(0, 2), "n": torch.tensor(3)}
    cache.save("abc", tensors)
    assert all(torch.equal(tensors[name], found) for name, found in cache.load("abc").items())
    path = tmp_path / "ab" / "abc.safetensors"
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    assert cache.load("abc") is None


@pytest.mark.parametrize("harm", ["scores.jsonl", "strip", "status.json"])
def test_a_page_over_harmed_runs_is_one_line_that_names_the_file(made, tmp_path, harm):
    one = tmp_path / "runs" / made[1].name
    shutil.copytree(made[1], one)
    if harm == "scores.jsonl":
        (one / harm).unlink()
    elif harm == "strip":
        strips = sorted((one / "clips").glob("*.png"))[0]
        strips.write_bytes(strips.read_bytes()[:40])
    else:
        (one / harm).write_text("{")
    command = [sys.executable, str(ROOT / "report.py"), str(tmp_path / "runs")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and ended.stderr.startswith("unreel: ")
    assert (".png" if harm == "strip" else harm) in ended.stderr


def test_a_long_phrase_names_no_file_that_is_too_long(made, tmp_path):
    options = [o for o in made[0] if not o.startswith(("concept", "output"))]
    phrases = [f"a thing that {'goes on and ' * 400}{end}" for end in ("stops", "ends")]
    folders = []
    for phrase in phrases:
        config = configured(
            "train", [*options, "concept=[]", f"phrase='{phrase}'", "kind=character", f"runs={tmp_path}"]
        )
        parts = opened(config)
        (concept,) = parts.questions.concepts
        assert len(concept.slug) <= 60 and concept.phrases == (phrase,)
        folders.append(parts.run.folder.name)
    assert folders[0] != folders[1] and max(map(len, folders)) < 200
    with pytest.raises(ValueError, match="1 to 60 letters"):
        to_concept("x" * 300, {"kind": "object", "name": "bus"})


def test_wandb_online_without_a_key_is_one_line(made, tmp_path):
    options = [o for o in made[0] if not o.startswith(("logger", "output"))]
    command = [sys.executable, "train.py", *options, "logger.offline=false", f"output={tmp_path / 'run'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment | {"HOME": str(tmp_path)}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("unreel: ")]
    assert "W&B" in said and "wandb login" in said and "logger=none" in said


def test_a_number_is_a_name_in_an_edit_as_on_the_command_line():
    said = validated(ConceptSaid, {"kind": "object", "name": 1984, "neighbours": [1985, "a cat"]})
    assert said.name == "1984" and said.neighbours == ["1985", "a cat"]
    with pytest.raises(ValueError, match="name"):
        validated(ConceptSaid, {"kind": "object", "name": True})


def test_a_home_of_nobody_is_one_line():
    with pytest.raises(RuntimeError) as caught:
        Path("~nobody_of_that_name/x").expanduser()
    assert "expected a path" in one_line(caught.value) and one_line(RuntimeError("a bug")) == ""


@pytest.mark.parametrize("roles", [None, [], "mlp", ["mlp", 7]])
def test_roles_that_are_no_list_of_texts_are_refused(roles):
    with pytest.raises(ValueError, match=r"found parameters.roles=.*expected a list of names"):
        select(StableDiffusion.tiny().components, roles)


def test_an_instruction_may_have_braces():
    model = StableDiffusion.tiny()
    template = 'answer as {"prompt": "..."}: {}'
    read, _ = states(model, ["a cat"], replace(model.reading, template=template))
    said, _ = states(model, ['answer as {"prompt": "..."}: a cat'], model.reading)
    assert torch.equal(read, said)


def test_another_chat_template_is_another_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("one")
    first = folder_hash(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("another")
    assert folder_hash(tmp_path) != first


def test_clips_of_a_concept_whose_name_ends_another_are_told_apart(tmp_path):
    texts = PngInfo()
    texts.add_itxt("prompts", json.dumps(["a cat"]))
    after = tmp_path / "run" / "clips" / "after" / "v"
    after.mkdir(parents=True)
    for name in ("gogh", "van_gogh"):
        Image.new("RGB", (530, 66)).save(tmp_path / "run" / "clips" / f"v_{name}_forget.png", pnginfo=texts)
        (after / f"000_{name}_forget.mp4").touch()
    assert _strips(tmp_path, "run", "v", "gogh")["forget"]["clips"] == ["000_gogh_forget.mp4"]
