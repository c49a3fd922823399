"""The two commands on small real models of other sizes than the zoo's, from local folders: whole runs."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import pytest
import torch
import train
from PIL import Image
from transformers import CLIPTextModel

from conftest import ROOT, configured
from unreel import Edit
from unreel.assembly import WholeCheckpoints
from unreel.clips import write_mp4
from unreel.concepts import slug_of
from unreel.dashboard import SCORES, STEP, TRAINING
from unreel.models.pipeline_model import PipelineModel
from unreel.models.stable_diffusion import tiny_pipeline
from unreel.page import read_curves
from unreel.runs import Run
from unreel.scores import read_scores

RECIPIENTS = ("animatediff", "text2video_zero", "modelscope")
HOSTILE = "<script>document.title=1</script>../x"


def animatediff(folders):
    return [
        f"t2v.animatediff.folder={folders / 'sd'}", f"t2v.animatediff.motion_adapter={folders / 'adapter'}",
        "t2v.animatediff.dtype=float32", "t2v.animatediff.num_frames=3", "t2v.animatediff.num_inference_steps=2",
    ]  # fmt: skip


def zero(folders):
    return [
        f"t2v.text2video_zero.folder={folders / 'sd'}", "t2v.text2video_zero.dtype=float32",
        "t2v.text2video_zero.num_frames=3", "t2v.text2video_zero.num_inference_steps=4", "t2v.text2video_zero.t0=1",
        "t2v.text2video_zero.t1=2",
    ]  # fmt: skip


def modelscope(folders):
    return [
        f"t2v.modelscope.folder={folders / 'modelscope'}", "t2v.modelscope.dtype=float32",
        "t2v.modelscope.num_frames=3", "t2v.modelscope.num_inference_steps=2",
    ]  # fmt: skip


def small_run(folders, judge_folder, tmp_path):
    """README's second example with small folders in place of the hub's."""
    return [
        "t2i=sd15", f"t2i.folder={folders / 'sd'}", "t2i.num_inference_steps=2", "t2i.training.lr=1e-3",
        "concept=van_gogh", "t2v=animatediff", *animatediff(folders), f"judge.model=local-dir:{judge_folder}",
        "judge.pretrained=null", "shots=2", "method.data.steps=6", "method.guard.check_every=2",
        "method.guard.gone_below=-9", "evaluation.prompts=2", "checkpoint_every=2", "device=cpu",
        f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}",
    ]  # fmt: skip


def only_run(folder, slug="train"):
    (found,) = [path for path in (folder / "runs" / slug).iterdir() if path.is_dir()]
    return found


@pytest.fixture(scope="module")
def finished(small_folders, judge_folder, tmp_path_factory):
    """One whole run with three recipients and a look in the middle: (folder of all, run folder)."""
    tmp_path = tmp_path_factory.mktemp("finished")
    options = [*small_run(small_folders, judge_folder, tmp_path), "evaluation.at_steps=[2]"]
    options += [*zero(small_folders), *modelscope(small_folders)]
    options[options.index("t2v=animatediff")] = f"t2v=[{','.join(RECIPIENTS)}]"
    options += [f"phrase='{HOSTILE}'", "kind=character"]
    os.environ["WANDB_SILENT"] = "true"
    train.main(configured("train", options))
    return tmp_path, only_run(tmp_path)


def test_a_run_leaves_everything_that_it_promises(finished):
    _, run = finished
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "done" and status["seed"] == 0 and status["versions"]["torch"]
    assert (run / "config.yaml").is_file() and (run / "checkpoints" / "last.ckpt").is_file()
    edit = Edit.load(run / "edit.safetensors")
    assert edit.tensors and all(re.search(r"\.mlp\.|layers\.11\.self_attn\.", name) for name in edit.tensors)
    pipeline = tiny_pipeline(layers=12)
    edit.apply(pipeline)
    exported = CLIPTextModel.from_pretrained(run / "text_encoder").state_dict()
    assert all(torch.equal(value, exported[name]) for name, value in pipeline.text_encoder.state_dict().items())
    for recipient in RECIPIENTS:
        for stage in ("before", "after"):
            assert len(list((run / "clips" / stage / recipient).glob("*_van_gogh_*.mp4"))) == 4
        assert (run / "clips" / f"{recipient}_van_gogh_forget.png").is_file()
    assert not list(run.rglob("*partial*")) and not (run / "rendered").exists()


def test_scores_are_flat_rows_of_every_recipient_stage_and_split(finished):
    _, run = finished
    scores = read_scores(run / "scores.jsonl")
    assert {s.t2v for s in scores} == set(RECIPIENTS)
    assert {s.stage for s in scores} == {"before", "step_2", "after"}
    assert {(s.split, s.metric) for s in scores} >= {
        ("forget", "concept_accuracy"), ("context", "context_accuracy"), ("retain", "accuracy"),
        ("forget", "clip_score"), ("retain", "temporal_consistency"),
    }  # fmt: skip
    assert {(s.concept, s.kind, s.method, s.parameters, s.shots, s.t2i) for s in scores} == {
        ("van_gogh", "style", "few_shot", "mlp_final_attention", 2, "sd15"),
        (slug_of(HOSTILE), "character", "few_shot", "mlp_final_attention", 2, "sd15"),
    }
    edit = Edit.load(run / "edit.safetensors").hash
    assert {s.edit for s in scores if s.stage == "after"} == {edit} and {
        s.edit for s in scores if s.stage == "before"
    } == {""}


def test_wandb_got_clips_scores_and_curves(finished):
    _, run = finished
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert next(offline.glob("run-*.wandb")).stat().st_size > 10_000
    media = [path.name for path in (offline / "files" / "media").rglob("*") if path.is_file()]
    assert sum(name.endswith(".mp4") for name in media) >= 16 and any("scores" in name for name in media)
    logged = (next(run.glob("logs-*")) / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss", "train/retain", "donor/drift"} <= set(logged.split(","))
    assert "forget/animatediff/van_gogh/concept_accuracy" in logged
    names = [*SCORES[:3], *TRAINING[::2]]  # what the dashboard shows; no concept here has another sense or is known
    assert set(names) <= set(logged.split(","))
    record = next(offline.glob("run-*.wandb")).read_bytes()
    assert all(f'"{key}"'.encode() in record or key.encode() in record for key in (*Run.FLAT, *names, STEP))


def test_the_same_command_again_loads_nothing_and_does_nothing_again(
    finished, small_folders, judge_folder, capsys, monkeypatch
):
    tmp_path, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    def load(_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(PipelineModel, "_load", load)
    for family in PipelineModel.__subclasses__():
        monkeypatch.setattr(family, "_load", load)
    train.main(configured("train", [*small_run(small_folders, judge_folder, tmp_path), "evaluation.at_steps=[2]",
                                    *zero(small_folders), *modelscope(small_folders), f"t2v=[{','.join(RECIPIENTS)}]",
                                    f"phrase='{HOSTILE}'", "kind=character"]))  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert "report.html" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium (Debian's package)")
def test_the_report_opens_from_disk_plays_and_asks_the_network_for_nothing(finished, tmp_path):
    _, run = finished
    page = (run / "report.html").as_uri()
    common = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
              "--disable-background-networking", "--no-first-run", "--disable-component-update",
              "--disable-features=NetworkTimeServiceQuerying"]  # fmt: skip

    def visit(url: str) -> tuple[str, set[str]]:
        """The page's DOM, and the hosts that were asked for anything."""
        log = tmp_path / "net.json"
        command = [*common, f"--log-net-log={log}", "--dump-dom", url]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return dom, set(re.findall(r'"url":"https?://([^/"]+)', log.read_text()))

    (dumped, asked), (_, asked_by_the_browser_itself) = visit(page), visit("about:blank")
    assert "van_gogh</title>" in dumped and "&lt;script&gt;document.title=1" in dumped
    assert "<script" not in dumped
    sources = set(re.findall(r'(?:src|href)="(\w+:)', dumped))
    assert sources == {"data:"}
    assert asked <= asked_by_the_browser_itself
    clip = re.search(r'<figure><img src="(data:image/webp[^"]+)"', dumped)[1]
    (tmp_path / "decode.html").write_text(
        f"<body><script>fetch('{clip}').then(r => r.arrayBuffer()).then(async data => {{"
        "const decoder = new ImageDecoder({data, type: 'image/webp'}); await decoder.tracks.ready;"
        "const track = decoder.tracks.selectedTrack;"
        "document.body.textContent = `${track.frameCount} frames, ${track.repetitionCount} times` })</script>"
    )
    common.append("--virtual-time-budget=5000")
    assert "3 frames, Infinity times" in visit((tmp_path / "decode.html").as_uri())[0], "the browser plays no clip"


def test_an_edit_is_scored_again_without_training_and_gives_the_same_scores(finished, small_folders, judge_folder):
    tmp_path, run = finished
    options = [
        f"edit={run / 'edit.safetensors'}", "t2v=animatediff", *animatediff(small_folders),
        f"judge.model=local-dir:{judge_folder}", "judge.pretrained=null", "device=cpu",
        f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    evaluate.main(configured("evaluate", options))
    again = read_scores(only_run(tmp_path, "evaluate") / "scores.jsonl")
    first = [s for s in read_scores(run / "scores.jsonl") if s.t2v == "animatediff" and s.stage in ("before", "after")]

    assert {s.unit for s in again} == {"share", "points"} and {s.goal for s in again} == {"up", "down"}
    assert [path.name for path in only_run(tmp_path, "evaluate").glob("wandb/offline-run-*/run-*.wandb")]
    before = [s for s in again if s.stage == "before"]
    assert {(s.split, s.seconds) for s in before} == {(s.split, s.seconds) for s in first if s.stage == "before"}, (
        "clips that were found cost what rendering them had cost"
    )

    def key(s):
        return s.stage, s.split, s.metric, s.concept, s.value, s.edit, s.clips

    assert sorted(map(key, again)) == sorted(map(key, first))


def test_a_run_killed_at_any_moment_continues_to_the_same_end(small_folders, judge_folder, tmp_path):
    """Killed in its training, and again after the last step, while it renders what came of it."""
    base = small_run(small_folders, judge_folder, tmp_path)
    options = [*base, "method.data.steps=60", "evaluation.at_steps=[2]"]
    train.main(configured("train", [*options, "logger=none", f"output={tmp_path / 'whole'}"]))
    broken = tmp_path / "broken"
    command = [sys.executable, str(ROOT / "train.py"), *options, f"output={broken}"]
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # that of this process's runs

    def killed_when(path: Path) -> None:
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=tmp_path, env=env)
        for _ in range(6000):
            if path.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        assert process.poll() is None, (tmp_path / "said").read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert json.loads((broken / "status.json").read_text())["status"] == "running"

    killed_when(broken / "checkpoints" / "last.ckpt")
    assert not (broken / "edit.safetensors").exists(), "the kill came too late to test anything"
    (broken / "clips" / ".partial_1_of_the_killed.mp4").write_bytes(b"half")
    killed_when(broken / "edit.safetensors")
    assert not (broken / "report.html").exists(), "the kill came too late to test anything"
    train.main(configured("train", [*options, f"output={broken}"]))
    assert not list(broken.rglob("*partial*"))
    assert Edit.load(broken / "edit.safetensors").hash == Edit.load(tmp_path / "whole" / "edit.safetensors").hash
    first, second = (read_scores(folder / "scores.jsonl") for folder in (tmp_path / "whole", broken))
    assert {s.stage for s in first} == {"before", "step_2", "after"}
    assert sorted((s.stage, s.metric, s.split, s.value) for s in first) == sorted(
        (s.stage, s.metric, s.split, s.value) for s in second
    )
    on_wandb = [path.name.rpartition("-")[2] for path in (broken / "wandb").glob("offline-run-*")]
    assert on_wandb == [json.loads((broken / "status.json").read_text())["mirror"]] * 3, "W&B got several runs"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["concept=[]"], "no concept"),
        (["shots=-1"], "shots=-1"),
        (["shots=1.5"], "shots=1.5"),
        (["threads=0"], "threads=0: expected a whole number"),
        (["trainer=ddp"], "all GPUs, on cpu: expected trainer=ddp_cpu"),
        (["concept.van_gogh.images=/nowhere"], "/nowhere is no folder"),
        (["concept.van_gogh.images=images"], "b.png cannot be read as an image"),
        (["parameters.roles=[lora]"], "'lora' matches nothing"),
        (["t2i.folder=/nowhere"], "/nowhere: expected a diffusers folder"),
        (["evaluation.prompts=1"], "evaluation.prompts=1"),
        (["concept=[]", "phrase=red bicycle", "kind=thing"], "kind=character|style|object|face|motion"),
        (["device=cuda"], "torch sees no GPU"),
        (["device=cuda:1"], "device=cuda:1: expected auto, cpu or cuda"),
        (["trainer.devices=[0,1]"], "trainer.devices=[0, 1]: expected how many"),
        (["objectives=[retian]"], "objectives=retian: expected some of"),
        (["method.data.batch=0"], "batch=0"),
        (["judge.model=local-dir:/nowhere"], "/nowhere is no folder"),
        (["t2v.animatediff.name=../up"], "found the name '../up'"),
        (["concept.van_gogh.neighbours=as a sketch"], "neighbours: 'as a sketch': expected a list"),
        (["least_free_mb=99999999999"], "MB free"),
        (["t2v=[animatediff,modelscope]"], "t2v.modelscope.folder is missing"),
        (["concept=spinning"], "spinning is a motion, but this judge reads subject, scene, style alone"),
        (["t2i.folder='~/nowhere'"], "~/nowhere: expected a diffusers folder"),
        (["evaluation.batch=0"], "evaluation.batch=0: expected a whole number, 1 or more"),
        (["evaluation.at_steps=[0]"], "evaluation.at_steps=0"),
        (["checkpoint_every=0"], "checkpoint_every=0"),
        (["trainer.precision=banana"], "trainer: "),
        (["method.optimizer.lr=-1"], "method.optimizer: Invalid learning rate: -1"),
        (["method.guard.check_every=0"], "method.guard.check_every=0"),
        (["parameters=cross_attention"], "method few_shot cannot change denoiser/"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(small_folders, judge_folder, tmp_path, overrides, says):
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("a GPU is there")
    options = small_run(small_folders, judge_folder, tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    (images / "b.png").write_text("no image")
    overrides = [text.replace("=images", f"={images}") for text in overrides]
    with pytest.raises(SystemExit) as ended:
        train.main(configured("train", [*options, *overrides]))
    message = str(ended.value)
    assert says in message and "\n" not in message
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["concept=spinning", "t2v.zoo_animatediff.num_frames=16"], "clips of 16 frames: this judge reads motion in"),
        (["phrase=red bicycle", "kind=object"], "the zoo's judge knows no subject 'a red bicycle'"),
        (["concept=cat", "method=few_shot", "parameters.roles=[denoiser.all]"], "it changes text_encoder"),
    ],
)
def test_what_the_zoo_cannot_do_is_said_before_anything_is_made(tmp_path, overrides, says):
    options = [*overrides, f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit, match=re.escape(says)):
        train.main(configured("train", options))
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_expanded_where_no_shell_does(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "t2i=sd15", "t2i.folder=~/sd", "concept=cat", "--cfg=job"]
    env = {**os.environ, "HOME": str(tmp_path)}
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=True).stdout
    assert f"folder: {tmp_path}/sd" in shown


def test_clips_of_the_unedited_model_are_rendered_and_encoded_once_for_all_runs(
    small_folders, judge_folder, tmp_path, monkeypatch
):
    encoded = []

    def counted(clip, path, fps):
        encoded.append(path.parts[-3])
        return write_mp4(clip, path, fps)

    monkeypatch.setattr("unreel.evaluation.write_mp4", counted)
    for seed in (0, 1):
        train.main(configured("train", [*small_run(small_folders, judge_folder, tmp_path), f"seed={seed}"]))
    assert encoded.count("before") == 4 and encoded.count("after") == 8
    one, other = (sorted(run.rglob("clips/before/*/*.mp4")) for run in (tmp_path / "runs" / "train").iterdir())
    assert len(one) == 4 and [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(small_folders, judge_folder, tmp_path, monkeypatch):
    options = [*small_run(small_folders, judge_folder, tmp_path), "logger=none"]

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "clip.mp4")

    told: list[tuple] = []  # what W&B was told of how runs ended
    monkeypatch.setattr("wandb.finish", lambda *code: told.append(code))
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match=r"disk is full \(clip.mp4\)"):
        patched.setattr("unreel.evaluation.write_mp4", no_space)
        train.main(configured("train", options))
    assert told == [(1,)]
    run = only_run(tmp_path)
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed" and "No space left" in status["message"]
    train.main(configured("train", options))
    assert told[-1] == (0,)
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    score = [f"edit={run / 'edit.safetensors'}", "t2v=animatediff", *animatediff(small_folders)]
    score += [o for o in options if o.startswith(("judge", "runs", "cache", "device"))]
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="disk is full"):
        patched.setattr("unreel.evaluation.write_mp4", no_space)
        evaluate.main(configured("evaluate", score))
    evaluate.main(configured("evaluate", score))
    status = json.loads((only_run(tmp_path, "evaluate") / "status.json").read_text())
    assert (status["status"], status["message"]) == ("done", "")


def test_a_checkpoint_that_cannot_be_finished_leaves_the_one_before(tmp_path):
    checkpoints, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    checkpoints.save_checkpoint({"step": 1}, path)
    with pytest.raises(TypeError):
        checkpoints.save_checkpoint({"step": 2, "weights": torch.zeros(9), "never": (i for i in ())}, path)
    assert checkpoints.load_checkpoint(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_recipient_with_another_encoder_is_refused_before_training(small_folders, judge_folder, tmp_path):
    shutil.copytree(small_folders / "sd", tmp_path / "other")
    tiny_pipeline(layers=12, seed=5).text_encoder.save_pretrained(tmp_path / "other" / "text_encoder")
    options = small_run(small_folders, judge_folder, tmp_path)
    with pytest.raises(
        SystemExit, match=r"animatediff holds other weights than sd15: in its text encoder \d+ of \d+ tensors"
    ):
        train.main(configured("train", [*options, f"t2v.animatediff.folder={tmp_path / 'other'}"]))
    assert not (tmp_path / "runs").exists()


def test_other_weights_or_images_behind_the_same_names_are_another_run(small_folders, judge_folder, tmp_path):
    shutil.copytree(small_folders / "sd", tmp_path / "sd")
    images = tmp_path / "images"
    images.mkdir()
    options = [
        *small_run(small_folders, judge_folder, tmp_path), "logger=none", f"t2i.folder={tmp_path / 'sd'}",
        f"concept.van_gogh.images={images}", "method.data.steps=1",
    ]  # fmt: skip

    def runs_after(colour: str) -> int:
        for name in "ab":
            Image.new("RGB", (8, 8), colour).save(images / f"{name}.png")
        train.main(configured("train", options))
        return len([path for path in (tmp_path / "runs" / "train").iterdir()])

    assert [runs_after("red"), runs_after("red"), runs_after("blue")] == [1, 1, 2]
    tiny_pipeline("v_prediction", layers=12).scheduler.save_pretrained(tmp_path / "sd" / "scheduler")
    assert runs_after("blue") == 3


def test_two_processes_train_what_one_does(small_folders, judge_folder, tmp_path):
    options = [*small_run(small_folders, judge_folder, tmp_path), "logger=none", "threads=1", "evaluation.at_steps=[2]"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    train.main(configured("train", [*options, f"output={alone}"]))
    command = [sys.executable, str(ROOT / "train.py"), *options, f"output={both}", "trainer=ddp_cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    first, second = (Edit.load(folder / "edit.safetensors") for folder in (alone, both))
    before = dict(tiny_pipeline(layers=12).text_encoder.named_parameters())
    before = {f"text_encoder/{name.removeprefix('text_model.')}": value.detach() for name, value in before.items()}
    changes = [
        torch.cat([(e.tensors[n] - before[n]).flatten() for n in sorted(first.tensors)]) for e in (first, second)
    ]
    assert torch.cosine_similarity(*changes, dim=0) > 0.97 and first.tensors.keys() == second.tensors.keys()
    assert {s.stage for s in read_scores(both / "scores.jsonl")} == {"before", "step_2", "after"}
    assert json.loads((both / "status.json").read_text())["status"] == "done" and (both / "report.html").is_file()


def test_an_edit_that_does_not_say_what_it_erases_is_refused(tmp_path):
    Edit({}, {}).save(tmp_path / "bare.safetensors")
    for given, says in (("null", "no edit"), (str(tmp_path / "bare.safetensors"), "does not say what it erases")):
        with pytest.raises(SystemExit, match=says):
            evaluate.main(configured("evaluate", [f"edit={given}", f"runs={tmp_path / 'runs'}"]))
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_another_config_or_of_other_files_is_never_reused(finished, small_folders, judge_folder, tmp_path):
    _, run = finished
    options = small_run(small_folders, judge_folder, tmp_path)
    before = (run / "scores.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="belongs to another config"):
        train.main(configured("train", [*options, f"output={run}", "seed=7"]))
    assert (run / "scores.jsonl").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit, match="holds other files"):
        train.main(configured("train", [*options, f"output={tmp_path / 'mine'}"]))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_unknown_concept_and_an_unknown_key_list_the_choices(tmp_path):
    for override, says in (("concept=van_gog", "van_gogh"), ("shot=4", "shot")):
        command = [sys.executable, str(ROOT / "train.py"), override]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert ended.returncode != 0 and says in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_a_concept_of_the_users_own_is_one_file_anywhere(tmp_path):
    (tmp_path / "concept").mkdir()
    (tmp_path / "concept" / "my_bike.yaml").write_text("my_bike: {name: red bicycle, kind: object}\n")
    command = [sys.executable, str(ROOT / "train.py"), f"--config-dir={tmp_path}", "concept=my_bike", "--cfg=job"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert "red bicycle" in shown and not (tmp_path / "runs").exists()


def test_curves_of_many_resumptions_are_read_in_their_order(tmp_path):
    for number, value in ((2, 0.5), (10, 0.25)):
        (tmp_path / f"logs-{number}").mkdir()
        (tmp_path / f"logs-{number}" / "metrics.csv").write_text(f"step,train/loss\n7,{value}\n")
    assert read_curves(tmp_path) == {"train/loss": [(7, 0.25)]}


def test_an_edited_method_file_is_another_run(small_folders, judge_folder, tmp_path):
    """And a method is one file and one YAML, here the user's own, which no file of ours knows of."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "halved.yaml").write_text(
        "defaults: [{override /parameters@_global_.parameters: cross_attention_kv}]\n"
        "_target_: halved.Halved\nname: halved\n"
    )
    code = """
from dataclasses import dataclass
from unreel.methods.closed_form import ClosedFormMethod


@dataclass(frozen=True, kw_only=True)
class Halved(ClosedFormMethod):
    edits = ("denoiser",)

    def solve(self, model, task, weights):
        return {name: weight * FACTOR for name, weight in weights.items()}
"""
    options = [o for o in small_run(small_folders, judge_folder, tmp_path) if not o.startswith("method.")]
    command = [sys.executable, str(ROOT / "train.py"), f"--config-dir={tmp_path / 'conf'}", *options, "method=halved",
               "logger=none"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def runs_with(factor: str) -> set[str]:
        (tmp_path / "halved.py").write_text(code.replace("FACTOR", factor))
        ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
        assert ended.returncode == 0, ended.stderr
        return {path.name for path in (tmp_path / "runs" / "train").iterdir()}

    once = runs_with("0.5")
    assert runs_with("0.5") == once and len(runs_with("0.25")) == 2
    clips = {}
    for run in (tmp_path / "runs" / "train").iterdir():
        edit = Edit.load(run / "edit.safetensors")
        assert edit.method == "halved" and all(re.search(r"attn2\.to_[kv]\.weight$", name) for name in edit.tensors)
        assert (run / "unet" / "config.json").is_file() and not (run / "text_encoder").exists()
        for s in read_scores(run / "scores.jsonl"):
            clips.setdefault((s.stage, s.split), set()).add(s.clips)
    assert len(clips["before", "forget"]) == 1 and len(clips["after", "forget"]) == 2
    assert not clips["before", "forget"] & clips["after", "forget"], "an edited UNet was served from the cache"


def test_a_run_of_several_edits_keeps_each_and_an_image_unets_edit_is_refused_by_a_video_unet(
    small_folders, judge_folder, tmp_path
):
    options = [o for o in small_run(small_folders, judge_folder, tmp_path) if not o.startswith("method.")]
    options[options.index("t2v=animatediff")] = "t2v=[animatediff,modelscope]"
    options += ["method=uce", "logger=none", *modelscope(small_folders)]
    train.main(configured("train", options))
    run = only_run(tmp_path)
    first, second = (Edit.load(run / where / "edit.safetensors") for where in (".", "edits/modelscope"))
    assert first.hash != second.hash and first.method == second.method == "uce"
    assert {(s.t2v, s.edit) for s in read_scores(run / "scores.jsonl") if s.stage == "after"} == {
        ("animatediff", first.hash), ("modelscope", second.hash)
    }  # fmt: skip
    assert (run / "unet").is_dir() and (run / "edits" / "modelscope" / "unet").is_dir()
    score = [f"edit={run / 'edit.safetensors'}", "t2v=modelscope", *modelscope(small_folders), "logger=none"]
    score += [o for o in options if o.startswith(("judge", "cache", "device"))]
    with pytest.raises(SystemExit, match="belongs to other weights: in its denoiser"):
        evaluate.main(configured("evaluate", [*score, f"runs={tmp_path / 'refused'}"]))
    assert not (tmp_path / "refused").exists()


def test_a_recipient_that_is_trained_itself_can_be_looked_at_meanwhile(small_folders, judge_folder, tmp_path):
    own = [o for o in small_run(small_folders, judge_folder, tmp_path) if "method." not in o and "t2v" not in o]
    options = [*own, "method=esd", "method.trajectories=2", "method.num_inference_steps=2", "method.data.steps=3",
               "t2v=modelscope", *modelscope(small_folders), "evaluation.at_steps=[2]", "logger=none"]  # fmt: skip
    train.main(configured("train", options))
    run = only_run(tmp_path)
    assert {s.stage for s in read_scores(run / "scores.jsonl")} == {"before", "step_2", "after"}
    train.main(configured("train", [*options, "evaluation.at_steps=[]", f"output={tmp_path / 'without'}"]))
    assert Edit.load(run / "edit.safetensors").hash == Edit.load(tmp_path / "without" / "edit.safetensors").hash
