"""The shipped models as a work folder of the pretraining, from which a new generation of the video models starts.

    python -m unreel.zoo.shipped runs/zoo_2
    python -m unreel.zoo.pretrain stage=latents work=runs/zoo_2 init_from=runs/zoo_2/before drawings.harder=0.35
    python -m unreel.zoo.pretrain stage=unet3d work=runs/zoo_2 init_from=runs/zoo_2/before drawings.harder=0.35

Steps, batches and rates are those of conf/zoo.yaml, or what the command says.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from torch import Tensor
from transformers import CLIPTextModel

from unreel.files import whole, write_text
from unreel.zoo.store import MODELS


def unpack(work: Path, models: Path = MODELS) -> None:
    """Writes text encoder, tokenizer, VAE and T2I UNet as the stages before leave them, in float32, and below `before`
    the weights and records of the stages `motion` and `unet3d`, for `init_from`.

    Raises:
        ValueError: for a work folder in which something was trained already.
    """
    if taken := [name for name in ("text", "tokenizer", "vae", "t2i", "motion", "unet3d") if (work / name).exists()]:
        raise ValueError(f"found {', '.join(taken)} in {work}: expected a work folder in which nothing was trained")
    source = models / "t2i"
    unet = UNet2DConditionModel.from_pretrained(source / "unet", torch_dtype=torch.float32)
    adapter = MotionAdapter.from_pretrained(models / "motion_adapter", torch_dtype=torch.float32)
    motion = UNetMotionModel.from_unet2d(unet, adapter)
    clips = UNet3DConditionModel.from_pretrained(models / "unet3d", torch_dtype=torch.float32)
    _keep(work / "before" / "motion", {"unet": unet, "motion_unet": motion}, source)
    _keep(work / "before" / "unet3d", {"video_unet": clips}, models / "unet3d")
    for place in ("t2i/model", "motion/unet"):
        unet.save_pretrained(work / place)
    shutil.copytree(source / "tokenizer", work / "tokenizer" / "model")
    AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32).save_pretrained(work / "vae" / "model")
    text = CLIPTextModel.from_pretrained(source / "text_encoder", dtype=torch.float32)
    text.save_pretrained(work / "text" / "model")


def _keep(folder: Path, parts: dict[str, torch.nn.Module], model: Path) -> None:
    """What `fit` reads of an earlier generation of the stage that the folder is named after."""
    weights: dict[str, Tensor] = {f"{n}.{key}": t for n, part in parts.items() for key, t in part.state_dict().items()}
    folder.mkdir(parents=True)
    with whole(folder / "last.ckpt") as aside:
        torch.save({"state_dict": weights}, aside)
    records = json.loads((model / "training.json").read_text())
    write_text(folder / "training.json", json.dumps(records[folder.name]))


if __name__ == "__main__":
    try:
        unpack(Path(sys.argv[1] if len(sys.argv) == 2 else sys.exit("expected one argument, the work folder")))
    except ValueError as error:
        sys.exit(str(error))
