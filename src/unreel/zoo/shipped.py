"""The shipped models as a work folder of the pretraining, from which a new generation of the video models starts, or
Latte from PixArt.

    python -m unreel.zoo.shipped runs/zoo_2
    NEW="work=runs/zoo_2 init_from=runs/zoo_2/before drawings={count:8000,seed:8,harder:0.6} latents.clips=8000"
    python -m unreel.zoo.pretrain stage=latents $NEW
    python -m unreel.zoo.pretrain stage=unet3d $NEW unet3d.steps=2000 unet3d.lr=5e-4 unet3d.stills=8 unet3d.share=0.9
    python -m unreel.zoo.pretrain stage=export $NEW export.models=[unet3d]

So came UNet3D's second generation from its first, in three parts, each of which began with the weights of the last:
2,000 steps at 5e-4 on 8,000 drawings of seed 5, 35 % of them harder; 700 at 4e-4 (ema_decay 0.99) on 6,000 of seed 6,
60 % harder; 550 at 3e-4 (0.99) on 5,000 of seed 7, 60 %. The shares of what is harder changed on the way, and are now
those of the last part (world.py). Last, a mean of 88 % of its weights and 12 % of the first generation's: after the
three parts dancers danced in one clip of ten when nothing was said (experiments/motion_words).

And so Latte came from PixArt, in three parts, the last of which saw what shakes five times as often:

    python -m unreel.zoo.shipped runs/latte
    python -m unreel.zoo.pretrain stage=latents work=runs/latte init_from=runs/latte/before   # the VAE keeps its scale
    python -m unreel.zoo.pretrain stage=latte work=runs/latte compile=true
    mkdir runs/latte/first && mv runs/latte/latte runs/latte/first
    AGAIN="stage=latte work=runs/latte compile=true latte.lr=5e-4 latte.stills=8"
    python -m unreel.zoo.pretrain $AGAIN init_from=runs/latte/first latte.steps=1600
    mkdir runs/latte/second && mv runs/latte/latte runs/latte/second
    python -m unreel.zoo.pretrain $AGAIN init_from=runs/latte/second latte.steps=1800 latte.oftener.shaking=5
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from unreel.files import whole_folder
from unreel.zoo.store import MODELS


def unpack(work: Path, models: Path = MODELS) -> None:
    """Writes text encoders, tokenizers, VAE, T2I UNet and PixArt as the stages before leave them, in float32, and below
    `before` the weights and records of the stages `motion` and `unet3d`, for `init_from`. The folder appears whole.

    Raises:
        ValueError: for a work folder that is there already.
    """
    if work.exists():
        raise ValueError(f"found {work}: expected a work folder that is not there yet")
    source = models / "t2i"
    unet = UNet2DConditionModel.from_pretrained(source / "unet", torch_dtype=torch.float32)
    adapter = MotionAdapter.from_pretrained(models / "motion_adapter", torch_dtype=torch.float32)
    motion = UNetMotionModel.from_unet2d(unet, adapter)
    clips = UNet3DConditionModel.from_pretrained(models / "unet3d", torch_dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(source / "text_encoder", dtype=torch.float32)
    second = models / "pixart"
    t5 = T5EncoderModel.from_pretrained(second / "text_encoder", dtype=torch.float32)
    pixart = PixArtTransformer2DModel.from_pretrained(second / "transformer", torch_dtype=torch.float32)
    with whole_folder(work) as aside:
        _keep(aside / "before" / "motion", {"unet": unet, "motion_unet": motion}, source)
        _keep(aside / "before" / "unet3d", {"video_unet": clips}, models / "unet3d")
        for part, place in ((unet, "t2i"), (vae, "vae"), (text, "text"), (t5, "t5"), (pixart, "pixart")):
            part.save_pretrained(aside / place / "model")
        unet.save_pretrained(aside / "motion" / "unet")
        shutil.copytree(source / "tokenizer", aside / "tokenizer" / "model")
        shutil.copytree(second / "tokenizer", aside / "t5_tokenizer" / "model")


def _keep(folder: Path, parts: dict[str, torch.nn.Module], model: Path) -> None:
    """What `fit` reads of an earlier generation of the stage that the folder is named after."""
    weights: dict[str, Tensor] = {f"{n}.{key}": t for n, part in parts.items() for key, t in part.state_dict().items()}
    folder.mkdir(parents=True)
    torch.save({"state_dict": weights}, folder / "last.ckpt")
    records = json.loads((model / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(records[folder.name]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m unreel.zoo.shipped WORK")
    try:
        unpack(Path(sys.argv[1]))
    except ValueError as error:
        raise SystemExit(str(error)) from None
