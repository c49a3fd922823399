"""From the work folder of the pretraining to package data: fp16 safetensors, configs, cards and hashes."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from unreel.zoo.cnn_judge import FrameClassifier
from unreel.zoo.denoisers import noise_scheduler
from unreel.zoo.judge import MotionJudge
from unreel.zoo.judge_training import clip_config
from unreel.zoo.store import MODELS, write_sums


def save_judge(clip: nn.Module, vocabulary: int, folder: Path) -> None:
    """An open_clip model as a folder that `open_clip.create_model("local-dir:folder")` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    model = clip_config(vocabulary)
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": model["vision_cfg"]["image_size"]}
    config = {"model_cfg": model, "preprocess_cfg": {**pixels, "interpolation": "bilinear", "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")


def _halve(folder: Path) -> None:
    """Rewrites every safetensors file of a folder in fp16; integer tensors stay."""
    for path in folder.rglob("*.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def _forget_paths(folder: Path) -> None:
    """Takes out of every config where on this machine its model was loaded from."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def export_models(work: Path, models: Path = MODELS) -> None:
    """Writes the finished stages of `work` to `models`; until all is written, what was there stays."""
    aside = models.with_name(models.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae" / "model"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text" / "model", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer" / "model"),
        unet=UNet2DConditionModel.from_pretrained(work / "motion" / "unet"),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(aside / "t2i")
    MotionAdapter.from_pretrained(work / "motion" / "motion_adapter").save_pretrained(aside / "motion_adapter")
    UNet3DConditionModel.from_pretrained(work / "unet3d" / "model").save_pretrained(aside / "unet3d")
    shutil.copytree(work / "judge" / "model", aside / "judge")
    MotionJudge.from_pretrained(work / "motion_judge" / "model").save_pretrained(aside / "motion_judge")
    FrameClassifier.from_pretrained(work / "cnn_judge" / "model").save_pretrained(aside / "cnn_judge")
    _halve(aside)
    _forget_paths(aside)
    stages: dict[str, tuple[str, ...]] = {name: (name,) for name in ("unet3d", "judge", "motion_judge", "cnn_judge")}
    stages |= {"t2i": ("text", "vae", "t2i", "motion"), "motion_adapter": ("motion",)}
    for name, parts in stages.items():
        records = {part: json.loads((work / part / "training.json").read_text()) for part in parts}
        (aside / name / "training.json").write_text(json.dumps(records) + "\n")
    write_sums(aside)
    old = models.with_name(models.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if models.exists():
        models.rename(old)
    aside.rename(models)
    shutil.rmtree(old, ignore_errors=True)
