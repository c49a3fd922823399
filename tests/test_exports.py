"""Exports: plain diffusers and transformers load each, and render what the edit renders; card, artifact, hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import evaluate
import pytest
import torch
import train
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from huggingface_hub import ModelCard
from pytorch_lightning.loggers import WandbLogger
from safetensors.torch import load_file
from transformers import CLIPTextModel
from wandb.errors import CommError

from conftest import configured
from test_train import HOSTILE, animatediff, only_run, small_run
from unreel import Edit
from unreel.edits import hashes_of
from unreel.exports import artifact, comfyui, lora, pipeline
from unreel.exports.card import paper_of, plain
from unreel.exports.components import export_components
from unreel.files import whole_folder
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.pipeline_model import PipelineModel
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import StableDiffusion, tiny_pipeline
from unreel.models.text2video_zero import Text2VideoZero
from unreel.scores import read_scores

PROMPTS, SEEDS = ["a cat on the beach", "a drum in the style of van gogh"], [3, 4]
SCHEDULE = {"beta_schedule": "linear", "timestep_spacing": "linspace", "steps_offset": 1}


def models_of(folders):
    """One of each family, from folders as a user has them."""
    sd, few = folders / "sd", {"num_inference_steps": 2, "guidance_scale": 4.0}
    return [
        StableDiffusion(sd, **few, name="images"),
        AnimateDiff(sd, folders / "adapter", num_frames=3, scheduler=SCHEDULE, **few, name="animatediff"),
        Text2VideoZero(sd, num_frames=3, num_inference_steps=4, t0=1, t1=2, name="zero"),
        ModelScope(folders / "modelscope", num_frames=3, **few, name="modelscope"),
    ]


def edit_of(model, *wanted, scale=0.3, rank=None):
    """Random changes of all parameters "component/name" that one of the patterns matches."""
    torch.manual_seed(7)
    tensors = {}
    for key in ("text_encoder", "denoiser"):
        for name, old in model.components[key].named_parameters():
            if any(re.search(pattern, f"{key}/{name}") for pattern in wanted):
                change = torch.randn_like(old)
                if rank and old.ndim > 1:
                    flat = change.flatten(1)
                    change = (flat[:, :rank] @ flat[:rank]).view_as(old) / rank**0.5
                tensors[f"{key}/{name}"] = old + scale * (old.std() or 1) * change
    keys = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
    return Edit(tensors, hashes_of(model.components, keys), "few_shot")


def reloaded(model, folder):
    """By plain diffusers; of Text2Video-Zero's class it demands to be told of a safety checker."""
    absent = {"safety_checker": None, "feature_extractor": None} if isinstance(model, Text2VideoZero) else {}
    assert pipeline.absent_parts(model.pipeline) == sorted(absent), "what a card says"
    return DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, model.dtype), **absent)


def rendered(model, loaded):
    """Clips (B, F, C, H, W) of a plain diffusers pipeline that is called as the model calls its own.

    Its weights are frozen, as a run's are: torch takes other kernels for those that might be trained (3e-7 apart).
    """
    loaded.set_progress_bar_config(disable=True)
    for part in loaded.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    with torch.inference_mode():
        if isinstance(model, Text2VideoZero):  # one prompt at a time, (F, H, W, C)
            clips = [loaded(p, generator=g, **model.options).images for p, g in zip(PROMPTS, generators, strict=True)]
            return torch.stack([torch.as_tensor(clip).float().permute(0, 3, 1, 2) for clip in clips])
        found = loaded(PROMPTS, generator=generators, output_type="pt", **model.options)
        return found.frames if hasattr(found, "frames") else found.images[:, None]


@pytest.mark.parametrize("changed", ["text_encoder/.*mlp", "denoiser/.*attn2.to_[kv]"])
def test_a_pipeline_folder_is_links_that_plain_diffusers_loads_and_renders_the_same_clips_from(
    small_folders, tmp_path, changed
):
    models = models_of(small_folders)
    images, video = models[:3], models[3:]
    edits = [edit_of(images[0], changed), edit_of(video[0], changed)]
    for edit, own in zip(edits, (images, video), strict=True):
        pipeline.write(own, edit, tmp_path / edit.hash)
        for model in own:
            before = model.render(PROMPTS, SEEDS)
            with edit.applied(model):
                wanted = model.render(PROMPTS, SEEDS)
            folder = tmp_path / edit.hash / model.name
            clips = rendered(model, reloaded(model, folder))
            assert torch.equal(clips, wanted), f"{model.name}: {(clips - wanted).abs().max()}"
            assert not torch.equal(wanted, before), "the edit shows in no clip"
            weights = {path.parent.name: path.is_symlink() for path in folder.rglob("*.safetensors")}
            edited = "text_encoder" if "text" in changed else "unet"
            assert not weights.pop(edited) and weights and all(weights.values()), "base weights were copied"
            assert str(small_folders) not in (folder / "model_index.json").read_text()


def test_a_schedule_that_was_put_in_the_place_of_another_is_written(tmp_path):
    made = tiny_pipeline()
    made.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    made.save_pretrained(tmp_path / "flow")
    model = StableDiffusion(tmp_path / "flow", num_inference_steps=2, guidance_scale=4.0, name="flow")
    edit = edit_of(model, "text_encoder/.*mlp")
    pipeline.write([model], edit, tmp_path / "pipeline")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipeline" / "flow")
    with edit.applied(model):
        assert torch.equal(rendered(model, loaded), model.render(PROMPTS, SEEDS))


def test_a_half_precision_model_is_written_as_it_is(small_folders, tmp_path):
    model = StableDiffusion(small_folders / "sd", dtype="float16", num_inference_steps=2, name="half")
    edit = edit_of(StableDiffusion(small_folders / "sd"), "text_encoder/.*mlp")
    pipeline.write([model], edit, tmp_path / "pipeline")
    loaded = reloaded(model, tmp_path / "pipeline" / "half")
    with edit.applied(model):
        assert torch.equal(rendered(model, loaded), model.render(PROMPTS, SEEDS).half())
        comfyui.write(model, ("text_encoder",), "x", tmp_path / "comfyui")
    lora.write(model, edit, 0.99, "x", tmp_path / "lora")
    for path in (*tmp_path.glob("pipeline/half/text_encoder/*.safetensors"), *tmp_path.glob("comfyui/*/*")):
        assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    found = load_file(tmp_path / "lora" / "x.safetensors")
    assert {value.dtype for name, value in found.items() if not name.endswith("alpha")} == {torch.float16}


def test_a_pipeline_that_is_only_in_memory_is_written_whole(tmp_path):
    for family in (StableDiffusion, AnimateDiff, Text2VideoZero, ModelScope):
        model = family.tiny()
        edit = edit_of(model, "text_encoder/.*mlp")
        pipeline.write([model], edit, tmp_path / model.name)
        loaded = reloaded(model, tmp_path / model.name / model.name)
        with edit.applied(model):
            assert torch.equal(rendered(model, loaded), model.render(PROMPTS, SEEDS))


def test_a_pipeline_folder_that_fails_leaves_the_one_before(small_folders, tmp_path):
    model = models_of(small_folders)[0]
    edit = edit_of(model, "text_encoder/.*mlp")
    pipeline.write([model], edit, tmp_path / "pipeline")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match="belongs to other weights"):
        pipeline.write([model, StableDiffusion.tiny()], edit, tmp_path / "pipeline")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_comfyuis_text_encoder_has_the_names_by_which_its_loader_tells_clip(small_folders, tmp_path):
    model = models_of(small_folders)[0]
    edit = edit_of(model, "text_encoder/.*mlp", "denoiser/.*attn2")
    with edit.applied(model):
        comfyui.write(model, edit.components, "sd_without_x", tmp_path / "comfyui")
        encoder = {name: value.clone() for name, value in model.components["text_encoder"].state_dict().items()}
        unet = {name: value.clone() for name, value in model.components["denoiser"].state_dict().items()}
    found = load_file(tmp_path / "comfyui" / "text_encoders" / "sd_without_x.safetensors")
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in found, "detect_te_model knows it by this"
    assert "text_model.encoder.layers.22.mlp.fc1.weight" not in found, "it has 12 layers"
    bare = {name.removeprefix("text_model."): value for name, value in found.items()}
    encoder = {name.removeprefix("text_model."): value for name, value in encoder.items()}
    assert {n.removeprefix("text_model.") for n in found} == encoder.keys() and all(
        name.startswith("text_model.") and torch.equal(bare[name.removeprefix("text_model.")], found[name])
        for name in found
    )
    assert all(torch.equal(value, encoder[name]) for name, value in bare.items())
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    assert all(f"text_model.encoder.layers.11.{part}.weight" in found for part in parts)
    assert {"text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.bias"} <= found.keys()
    found = load_file(tmp_path / "comfyui" / "diffusion_models" / "sd_without_x.safetensors")
    assert "conv_in.weight" in found, "unet_config_from_diffusers_unet knows a UNet of diffusers by this"
    assert found.keys() == unet.keys() and all(torch.equal(found[name], unet[name]) for name in unet)


def test_comfyui_takes_no_video_unet(small_folders):
    for model in models_of(small_folders)[1::2]:
        with pytest.raises(ValueError, match=r"export=comfyui: found a UNet\w+, which ComfyUI does not load"):
            comfyui.check(model, ("denoiser",))
        comfyui.check(model, ("text_encoder",))


LINEAR = r"(proj|fc[12]|to_[qkv]|to_out\.0|net\.[02]|linear_[12]|proj_in|proj_out)\.weight$"
CONVOLUTIONS = r"(conv[12]?|conv_in|conv_out|conv_shortcut)\.weight$"
IMAGES = "denoiser/(?!.*motion_modules)"  # AnimateDiff's UNet but for its motion modules


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(
            [f"text_encoder/.*layers.*{LINEAR}", f"{IMAGES}.*{LINEAR}", f"{IMAGES}.*{CONVOLUTIONS}"], id="every matrix"
        ),
        pytest.param([r"text_encoder/.*[qkv]_proj\.weight"], id="q, k and v alone"),
        pytest.param([r"text_encoder/.*fc1\.weight"], id="fc1 alone"),
        pytest.param([rf"{IMAGES}.*attn2\.to_[kv]\.weight"], id="keys and values"),
    ],
)
@pytest.mark.parametrize("family", [0, 1])
def test_a_lora_of_low_rank_changes_loads_in_diffusers_and_renders_the_same_clips(
    small_folders, tmp_path, family, wanted
):
    pytest.importorskip("peft")
    model = models_of(small_folders)[family]
    edit = edit_of(model, *wanted, scale=0.05, rank=2)
    one = sorted(edit.tensors)[0]  # ranks differ between matrices
    old = dict(model.components[one.partition("/")[0]].named_parameters())[one.partition("/")[2]]
    edit = replace(edit, tensors={**edit.tensors, one: old + torch.randn_like(old) * old.std() * 0.05})
    lora.write(model, edit, 1 - 1e-9, "x", tmp_path / "lora")
    said = lora.said_in(tmp_path / "lora")
    assert json.loads(said["unreel_lost"]) == [] and float(said["unreel_kept"]) > 0.999999
    low, high = said["unreel_ranks"].split("-")
    assert int(low) == 2 < int(high)
    before = model.render(PROMPTS, SEEDS)
    with edit.applied(model):
        after = model.render(PROMPTS, SEEDS)
    model.pipeline.load_lora_weights(tmp_path / "lora", weight_name="x.safetensors")
    loaded = {name for part in (model.pipeline.text_encoder, model.pipeline.unet)
              for name, module in part.named_modules() if hasattr(module, "base_layer")}  # fmt: skip
    assert {name.partition("/")[2].removesuffix(".weight") for name in edit.tensors} <= loaded
    clips, change = rendered(model, model.pipeline), (after - before).abs().max()
    assert change > 1e-3, "the edit shows in no clip"
    assert (clips - after).abs().max() < 0.01 * change, f"{(clips - after).abs().max()} of {change}"


def test_modelscopes_pipeline_takes_a_lora_of_its_text_encoder_as_the_card_says(small_folders, tmp_path):
    pytest.importorskip("peft")
    model = models_of(small_folders)[3]
    edit = edit_of(model, r"text_encoder/.*fc1\.weight", rank=2)
    lora.write(model, edit, 1 - 1e-9, "x", tmp_path / "lora")
    with edit.applied(model):
        after = model.render(PROMPTS, SEEDS)
    before, own = model.render(PROMPTS, SEEDS), model.pipeline
    own.load_lora_into_text_encoder(
        *own.lora_state_dict(tmp_path / "lora", weight_name="x.safetensors"), own.text_encoder
    )
    assert (rendered(model, own) - after).abs().max() < 0.01 * (after - before).abs().max()


def test_what_a_lora_loses_is_what_it_says(small_folders, tmp_path):
    """Read as kohya's files are, W + alpha / rank * up down, without any loader."""
    model = models_of(small_folders)[0]
    edit = edit_of(model, r"text_encoder/.*layers\.3\.mlp", r"text_encoder/.*layers\.3\.layer_norm1")
    lora.write(model, edit, 0.8, "x", tmp_path / "lora")
    said, found = lora.said_in(tmp_path / "lora"), load_file(tmp_path / "lora" / "x.safetensors")
    asked = left = 0.0
    lost = []
    for name, old in model.components["text_encoder"].named_parameters():
        if (new := edit.tensors.get(f"text_encoder/{name}")) is not None:
            stem = f"lora_te_text_model_{name.removesuffix('.weight').replace('.', '_')}"
            if f"{stem}.lora_up.weight" in found:
                down, up, alpha = (found.pop(f"{stem}.{x}") for x in ("lora_down.weight", "lora_up.weight", "alpha"))
                missing = (new - old - alpha / len(down) * up @ down).square().sum() / (new - old).square().sum()
                assert missing <= 0.2 and len(down) < min(old.shape), "less than was asked for, or of full rank"
                fewer = torch.linalg.svdvals(new - old)[: len(down) - 1].square().sum() / (new - old).square().sum()
                assert fewer < 0.8, "a smaller rank would have done"
                left += (new - old - alpha / len(down) * up @ down).square().sum().item()
            elif not torch.equal(new, old):
                lost.append(f"text_encoder/{name}")
                left += (new - old).square().sum().item()
            asked += (new - old).square().sum().item()
    assert not found and sorted(json.loads(said["unreel_lost"])) == sorted(lost) and len(lost) >= 2
    assert float(said["unreel_kept"]) == pytest.approx(1 - left / asked, abs=1e-5)


def test_a_lora_of_nothing_that_it_can_hold_is_refused(small_folders, tmp_path):
    models = models_of(small_folders)
    for model, changed in ((models[0], "token_embedding"), (models[0], "layer_norm"), (models[3], "denoiser/.*to_k")):
        edit = edit_of(model, changed)
        with pytest.raises(ValueError, match=r"^export=lora: found a change of .*: expected a weight of a linear") as e:
            lora.write(model, edit, 0.99, "x", tmp_path / "lora")
        assert "\n" not in str(e.value) and len(str(e.value)) < 500
    assert not (tmp_path / "lora").exists()


def files_in(run):
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def finished(small_folders, judge_folder, tmp_path_factory):
    """A run of two concepts, one of them hostile, that exported a LoRA: (its options, its folder)."""
    tmp_path = tmp_path_factory.mktemp("exported")
    os.environ["WANDB_SILENT"] = "true"
    options = [*small_run(small_folders, judge_folder, tmp_path), f"phrase='{HOSTILE}'", "kind=character"]
    train.main(configured("train", [*options, "export=[lora]"]))
    return options, only_run(tmp_path)


def test_a_finished_run_gets_the_exports_that_it_lacks_without_training(finished, small_folders, monkeypatch):
    options, run = finished
    assert not (run / "text_encoder").exists() and [p.suffix for p in (run / "lora").iterdir()] == [".safetensors"]
    before = files_in(run)

    def erase(*_):
        raise AssertionError("it trained again")

    with monkeypatch.context() as patched:
        patched.setattr("unreel.methods.gradient.GradientMethod.erase", erase)
        patched.setattr("unreel.evaluation.Evaluation.look", erase)
        asked = [*options, "export=[transformers,comfyui,lora,pipeline]"]
        train.main(configured("train", asked))
        after = files_in(run)
        changed = {path.relative_to(run).parts[0] for path in after if after[path] != before.get(path)}
        assert changed == {"text_encoder", "comfyui", "pipeline", "README.md"}
        patched.setattr(PipelineModel, "_load", erase)
        for family in PipelineModel.__subclasses__():
            patched.setattr(family, "_load", erase)
        train.main(configured("train", asked))
        train.main(configured("train", [*options, "export=lora"]))
        train.main(configured("train", [*options, "export=[]"]))
        assert files_in(run) == after, "what was there was written again"
    train.main(configured("train", [*options, "export=[lora]", "lora_keeps=0.5", "licence=apache-2.0"]))
    assert lora.said_in(run / "lora")["unreel_keeps"] == "0.5"
    assert ModelCard.load(run / "README.md").data.license == "apache-2.0"
    model = models_of(small_folders)[1]
    with Edit.load(run / "edit.safetensors").applied(StableDiffusion(small_folders / "sd")):
        pass  # the donor's weights are those that it belongs to
    loaded = DiffusionPipeline.from_pretrained(run / "pipeline" / "animatediff")
    assert type(loaded).__name__ == "AnimateDiffPipeline" and loaded.scheduler.config.beta_schedule == "linear"
    encoder = CLIPTextModel.from_pretrained(run / "text_encoder").state_dict()
    with Edit.load(run / "edit.safetensors").applied(model):
        for found in (encoder, loaded.text_encoder.state_dict(), model.components["text_encoder"].state_dict()):
            assert all(torch.equal(value, encoder[name]) for name, value in found.items())


def test_the_card_says_what_was_erased_and_nothing_in_it_is_a_mark_or_a_path(finished):
    _, run = finished
    text, card = (run / "README.md").read_text(), ModelCard.load(run / "README.md")
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-video"
    assert (
        "<script" not in text and "&lt;script&gt;" in text and not re.search(r"(?<![\w.])/(tmp|root|home|work)/", text)
    )
    assert "van gogh" in card.text and "2405.07288" in card.text and Edit.load(run / "edit.safetensors").hash in text
    rows = {(r.dataset_config, r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    scores = [s for s in read_scores(run / "scores.jsonl") if s.stage == "after"]
    assert {(f"{s.t2v}/{s.concept}", s.split, s.metric): round(s.value, 4) for s in scores} == rows and rows
    for hostile in (
        HOSTILE,
        "a\n# b",
        "[x](http://e.vil)",
        "![x](y)",
        "a | b",
        "`rm`",
        "www.e.vil",
        "me@e.vil",
        "---\n",
    ):
        said = plain(hostile)
        assert "\n" not in said and not re.search(r"(?<!\\)[\[\]()`|<>#!@:]|(?<!\\)\.(?=e\.vil)", said)
    assert paper_of("uce").endswith("arXiv 2308.14761.") and paper_of("few_shot_plain") and not paper_of("no_such")


def test_wandb_has_the_edit_as_an_artifact_and_those_that_score_it_again_name_it(
    finished, small_folders, judge_folder, tmp_path
):
    _, run = finished
    edit = Edit.load(run / "edit.safetensors")
    offline = b"".join(path.read_bytes() for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb")))
    assert offline.count(f"edit-{edit.hash}".encode()) == 1, "logged once, by the run that made it"
    settings = edit.provenance["config"] | {"t2i": {"name": HOSTILE}}
    hostile = replace(edit, method=f"{HOSTILE}\n# x", provenance=dict(edit.provenance) | {"config": settings})
    hostile.save(tmp_path / "given.safetensors")
    score = [f"edit={tmp_path / 'given.safetensors'}", "t2v=animatediff", *animatediff(small_folders), "device=cpu",
             f"judge.model=local-dir:{judge_folder}", "judge.pretrained=null", f"runs={tmp_path / 'runs'}",
             f"cache={tmp_path / 'cache'}", "export=[comfyui,pipeline]"]  # fmt: skip
    evaluate.main(configured("evaluate", score))
    again = only_run(tmp_path, "evaluate")
    assert {path.name for path in (again / "pipeline").iterdir()} == {"animatediff"} and (again / "README.md").is_file()
    text = (again / "README.md").read_text()
    assert ModelCard(text).data.model_name.startswith(HOSTILE), "as text, in YAML"
    assert "<script" not in text.partition("\n---\n")[2] and text.count("\n# ") == 1
    assert not (again / "text_encoder").exists()
    (found,) = (again / "comfyui" / "text_encoders").iterdir()
    assert all(torch.equal(value, edit.tensors[f"text_encoder/{name.removeprefix('text_model.')}"])
               for name, value in load_file(found).items()
               if f"text_encoder/{name.removeprefix('text_model.')}" in edit.tensors)  # fmt: skip
    offline = next(again.glob("wandb/offline-run-*/run-*.wandb")).read_bytes()
    assert f'"{edit.hash}"'.encode() in offline and f"edit-{edit.hash}".encode() not in offline


def test_online_the_artifact_is_used_and_one_that_is_not_there_is_no_error():
    class Online:
        offline, used, config = False, [], type("Config", (), {"update": lambda *_, **__: None})()

        def use_artifact(self, name, type):
            self.used.append((name, type))
            raise CommError("it is not there")

    edit = Edit({}, {}, "few_shot")
    artifact.use(edit, [WandbLogger(experiment=Online())])
    assert Online.used == [(f"edit-{edit.hash}:latest", "edit")]


HUB = """
import sys
from pathlib import Path
from unreel import Edit
from unreel.exports import pipeline
from unreel.models.stable_diffusion import StableDiffusion
model = StableDiffusion("me/sd", num_inference_steps=2, name="sd")
pipeline.write([model], Edit.load(sys.argv[1]), Path(sys.argv[2]))
"""


def test_files_of_a_hub_model_are_links_into_the_hubs_cache(small_folders, tmp_path):
    snapshot = tmp_path / "hub" / "models--me--sd" / "snapshots" / ("0" * 40)
    shutil.copytree(small_folders / "sd", snapshot)
    (snapshot / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    edit = edit_of(models_of(small_folders)[0], "text_encoder/.*mlp")
    edit.save(tmp_path / "edit.safetensors")
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", HUB, str(tmp_path / "edit.safetensors"), str(tmp_path / "pipeline")]
    subprocess.run(command, check=True, env=env, capture_output=True)
    found = tmp_path / "pipeline" / "sd"
    link = found / "unet" / "diffusion_pytorch_model.safetensors"
    assert link.is_symlink() and link.resolve().is_relative_to(snapshot)
    assert not list(found.rglob("*.bin")), "a pickle was linked"
    assert "me/sd" not in (found / "model_index.json").read_text()
    DiffusionPipeline.from_pretrained(found)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["export=[lorra]"], "found export=lorra: expected some of transformers, comfyui, lora, pipeline"),
        (["export=7"], "found export=7: expected a list"),
        (["lora_keeps=0"], "found lora_keeps=0: expected a share above 0 and at most 1"),
        (["licence=my own"], "found licence='my own': expected its name on the hub"),
        (["export=[transformers,lora]", "method=safree"], "found export=lora: safree acts while the pipeline samples"),
        (["export=[comfyui]", "method=negative_prompt"], "which no file of weights holds"),
        (["export=[lora]", "parameters=embeddings"], "found a change of text_encoder/embeddings.token_embedding"),
        (["export=[comfyui]", "method=uce", "t2v=zoo_unet3d"], "found a UNet3DConditionModel, which ComfyUI does not"),
    ],
)
def test_what_cannot_be_exported_is_one_line_before_anything_is_made(tmp_path, overrides, says):
    options = ["concept=cat", "logger=none", f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}", *overrides]
    with pytest.raises(SystemExit, match=re.escape(says)) as ended:
        train.main(configured("train", options))
    assert "\n" not in str(ended.value) and not list(tmp_path.iterdir())


def test_comfyui_takes_clips_text_encoders_alone():
    with pytest.raises(ValueError, match=r"export=comfyui: found a T5EncoderModel: expected a CLIP text encoder"):
        comfyui.check(PixArt.tiny(), ("text_encoder",))


def test_exported_components_say_no_path_of_this_machine(small_folders, tmp_path):
    model = models_of(small_folders)[0]
    assert str(small_folders) in json.dumps(dict(model.pipeline.unet.config)), "diffusers keeps it"
    for folder in export_components(model, ("text_encoder", "denoiser"), tmp_path):
        assert str(small_folders) not in (folder / "config.json").read_text()


def test_models_of_other_schedules_are_other_models(small_folders):
    made = [AnimateDiff(small_folders / "sd", small_folders / "adapter", scheduler=said)
            for said in (None, SCHEDULE, {**SCHEDULE, "beta_schedule": "scaled_linear"})]  # fmt: skip
    assert len({model.content for model in made}) == 3


def test_a_folder_whose_writer_was_killed_between_its_renames_is_not_lost(tmp_path):
    (tmp_path / ".old_made").mkdir()
    (tmp_path / ".old_made" / "a").write_text("kept")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "made"):
        raise RuntimeError
    assert (tmp_path / "made" / "a").read_text() == "kept"
