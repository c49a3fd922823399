"""From the work folder of the pretraining to package data: fp16 safetensors, configs, cards and hashes."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    LatteTransformer3DModel,
    MotionAdapter,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from unreel.exports.components import forget_paths
from unreel.files import whole_folder
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


def _save_t2i(work: Path, folder: Path) -> None:
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae" / "model"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text" / "model", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer" / "model"),
        unet=UNet2DConditionModel.from_pretrained(work / "motion" / "unet"),
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def transformer_scheduler() -> DPMSolverMultistepScheduler:
    """The solver of PixArt's own checkpoints, on the noise schedule that the zoo's denoisers learned.

    Of the first order, which is DDIM: in the few steps of `rendering=fast` the second order loses three in ten of
    PixArt's subjects (experiments/rendering).
    """
    return DPMSolverMultistepScheduler.from_config(noise_scheduler().config, solver_order=1)


def _save_pixart(work: Path, folder: Path) -> None:
    PixArtAlphaPipeline(
        tokenizer=T5Tokenizer.from_pretrained(work / "t5_tokenizer" / "model"),
        text_encoder=T5EncoderModel.from_pretrained(work / "t5" / "model", dtype=torch.float32),
        vae=AutoencoderKL.from_pretrained(work / "vae" / "model"),
        transformer=PixArtTransformer2DModel.from_pretrained(work / "pixart" / "model"),
        scheduler=transformer_scheduler(),
    ).save_pretrained(folder)


def _save_part(work: Path, folder: Path, source: str, kind: type[ModelMixin]) -> None:
    kind.from_pretrained(work / source).save_pretrained(folder)


def _copy_judge(work: Path, folder: Path) -> None:
    shutil.copytree(work / "judge" / "model", folder)


# Each model: the stages whose records its card shows, what they leave in the work folder, and what makes it from there.
EXPORTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Path, Path], None]]] = {
    "t2i": (
        ("text", "vae", "t2i", "motion"),
        ("text/model", "tokenizer/model", "vae/model", "motion/unet"),
        _save_t2i,
    ),
    "motion_adapter": (
        ("motion",),
        ("motion/motion_adapter",),
        partial(_save_part, source="motion/motion_adapter", kind=MotionAdapter),
    ),
    "unet3d": (
        ("unet3d",),
        ("unet3d/model",),
        partial(_save_part, source="unet3d/model", kind=UNet3DConditionModel),
    ),
    "pixart": (("t5", "pixart"), ("t5/model", "t5_tokenizer/model", "vae/model", "pixart/model"), _save_pixart),
    "latte": (
        ("latte",),
        ("latte/model",),
        partial(_save_part, source="latte/model", kind=LatteTransformer3DModel),
    ),
    "judge": (("judge",), ("judge/model",), _copy_judge),
    "motion_judge": (
        ("motion_judge",),
        ("motion_judge/model",),
        partial(_save_part, source="motion_judge/model", kind=MotionJudge),
    ),
    "verb_judge": (
        ("verb_judge",),
        ("verb_judge/model",),
        partial(_save_part, source="verb_judge/model", kind=MotionJudge),
    ),
    "cnn_judge": (
        ("cnn_judge",),
        ("cnn_judge/model",),
        partial(_save_part, source="cnn_judge/model", kind=FrameClassifier),
    ),
}


def export_models(work: Path, names: Sequence[str] = tuple(EXPORTS), models: Path = MODELS) -> None:
    """Writes finished models of `work` to `models`; until all is written, what was there stays, as do other models."""
    with whole_folder(models) as aside:
        if models.exists() and set(names) != set(EXPORTS):
            shutil.copytree(models, aside, dirs_exist_ok=True)
        for name in names:
            stages, _, save = EXPORTS[name]
            shutil.rmtree(aside / name, ignore_errors=True)
            save(work, aside / name)
            _halve(aside / name)
            forget_paths(aside / name)
            records = {stage: json.loads((work / stage / "training.json").read_text()) for stage in stages}
            (aside / name / "training.json").write_text(json.dumps(records) + "\n")
        write_sums(aside)
