"""`make zoo`: pretrains every model of the zoo, stage after stage, and exports them as package data.

`python -m unreel.zoo.pretrain stage=t2i` runs one; conf/zoo.yaml lists them with their sizes and schedules.
"""

import json
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, UNet2DConditionModel
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from unreel.files import whole, write_text
from unreel.zoo.autoencoder import Autoencoder, encode_latents
from unreel.zoo.contrastive import ContrastiveText, train_tokenizer
from unreel.zoo.denoisers import Conditioning, TextToImage, TextToVideo, TextToVideo3D
from unreel.zoo.diffusion_transformers import (
    LatteConditioning,
    LatteTextToVideo,
    PixArtConditioning,
    PixArtTextToImage,
)
from unreel.zoo.drawings import Drawings
from unreel.zoo.export import EXPORTS, export_models, save_judge
from unreel.zoo.judge_training import ContrastiveJudge, FrameClassification, MotionClassification
from unreel.zoo.pretraining import Stage, device_of, fit
from unreel.zoo.t5_text import ContrastiveT5, train_t5_tokenizer


def _fit(stage: Stage, name: str, cfg: DictConfig) -> dict[str, Any]:
    if cfg.compile:
        for network in stage.children():
            network.compile()
    return fit(
        stage,
        Path(cfg.work) / name,
        accelerator=cfg.accelerator,
        precision=cfg.precision,
        ema_decay=cfg[name].ema_decay,
        minutes=cfg.minutes_between_checkpoints,
        init=Path(cfg.init_from) / name / "last.ckpt" if cfg.init_from else None,
    )


def _options(cfg: DictConfig, name: str) -> dict[str, Any]:
    return {"seed": cfg.seed, **{key: value for key, value in cfg[name].items() if key not in ("ema_decay", "share")}}


def _drawings(cfg: DictConfig) -> Drawings:
    return Drawings(Path(cfg.work), **cfg.drawings)


def _tokenizer(cfg: DictConfig) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(Path(cfg.work) / "tokenizer" / "model")


def _captions(cfg: DictConfig, count: int) -> list[str]:
    """What tokenizers learn from."""
    drawings, rng = _drawings(cfg), np.random.default_rng([cfg.seed, 3])
    return [c.text for c in drawings.captions(rng.integers(len(drawings), size=count), rng, drop=0.1)]


def tokenizer(cfg: DictConfig) -> None:
    own = train_tokenizer(_captions(cfg, cfg.tokenizer.captions), cfg.tokenizer.vocabulary)
    own.save_pretrained(Path(cfg.work) / "tokenizer" / "model")


def text(cfg: DictConfig) -> None:
    stage = ContrastiveText(_drawings(cfg), _tokenizer(cfg), **_options(cfg, "text"))
    _fit(stage, "text", cfg)
    stage.text_encoder.save_pretrained(Path(cfg.work) / "text" / "model")


def vae(cfg: DictConfig) -> None:
    stage = Autoencoder(_drawings(cfg), **_options(cfg, "vae"))
    _fit(stage, "vae", cfg)
    stage.vae.save_pretrained(Path(cfg.work) / "vae" / "model")


def latents(cfg: DictConfig) -> None:
    """All frames of the drawings through the VAE, and the factor that scales them to unit variance into its config.

    The VAE of an earlier generation (`init_from`) keeps its factor, which other models have learned.
    """
    folder = Path(cfg.work) / "vae" / "model"
    device = device_of(cfg.accelerator)
    model = AutoencoderKL.from_pretrained(folder).to(device).eval()
    encoded = encode_latents(model, _drawings(cfg), cfg.latents.clips, device)
    if not cfg.init_from:
        model.register_to_config(scaling_factor=round(1 / float(encoded["latents"].float().std()), 5))
        model.save_pretrained(folder)
    with whole(Path(cfg.work) / "latents.safetensors") as aside:
        save_file(encoded, aside)


def _latents(cfg: DictConfig) -> dict[str, torch.Tensor]:
    """What `latents` wrote, scaled."""
    encoded = load_file(Path(cfg.work) / "latents.safetensors")
    encoded["latents"] *= AutoencoderKL.load_config(Path(cfg.work) / "vae" / "model")["scaling_factor"]
    return encoded


def _conditioning(cfg: DictConfig) -> Conditioning:
    text_encoder = CLIPTextModel.from_pretrained(Path(cfg.work) / "text" / "model", dtype=torch.float32)
    return Conditioning(_drawings(cfg), **_latents(cfg), tokenizer=_tokenizer(cfg), text_encoder=text_encoder)


def t2i(cfg: DictConfig) -> None:
    stage = TextToImage(_conditioning(cfg), **_options(cfg, "t2i"))
    _fit(stage, "t2i", cfg)
    stage.unet.save_pretrained(Path(cfg.work) / "t2i" / "model")


def motion(cfg: DictConfig) -> None:
    """Clips and stills together: the T2I UNet and the motion modules of the zoo come out of this stage."""
    unet = UNet2DConditionModel.from_pretrained(Path(cfg.work) / "t2i" / "model")
    stage = TextToVideo(_conditioning(cfg), unet, **_options(cfg, "motion"))
    _fit(stage, "motion", cfg)
    stage.unet.save_pretrained(Path(cfg.work) / "motion" / "unet")
    stage.motion_unet.save_motion_modules(str(Path(cfg.work) / "motion" / "motion_adapter"))


def _toward_earlier(stage: Stage, share: float, earlier: Path) -> dict[str, Any]:
    """Makes the weights a mean of what was learned, `share` of it, and an earlier generation's, which brings back what
    that one did better (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). What the stage's record says of it."""
    before = torch.load(earlier / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    learned = {name: weights.cpu().float() for name, weights in stage.state_dict().items()}
    stage.load_state_dict({name: torch.lerp(before[name].float(), now, share) for name, now in learned.items()})
    return {"share": round(1 - share, 4), "steps": json.loads((earlier / "training.json").read_text())["steps"]}


def unet3d(cfg: DictConfig) -> None:
    unet = UNet2DConditionModel.from_pretrained(Path(cfg.work) / "motion" / "unet")
    stage = TextToVideo3D(_conditioning(cfg), unet, **_options(cfg, "unet3d"))
    record, folder = _fit(stage, "unet3d", cfg), Path(cfg.work) / "unet3d"
    record.pop("mean_with", None)  # of the same command with another share, before
    if cfg.unet3d.share < 1:
        record["mean_with"] = _toward_earlier(stage, cfg.unet3d.share, Path(cfg.init_from) / "unet3d")
    write_text(folder / "training.json", json.dumps(record))
    stage.video_unet.save_pretrained(folder / "model")


def t5_tokenizer(cfg: DictConfig) -> None:
    own = train_t5_tokenizer(_captions(cfg, cfg.t5_tokenizer.captions), cfg.t5_tokenizer.vocabulary)
    own.save_pretrained(Path(cfg.work) / "t5_tokenizer" / "model")


def _t5_tokenizer(cfg: DictConfig) -> T5Tokenizer:
    return T5Tokenizer.from_pretrained(Path(cfg.work) / "t5_tokenizer" / "model")


def t5(cfg: DictConfig) -> None:
    stage = ContrastiveT5(_drawings(cfg), _t5_tokenizer(cfg), **_options(cfg, "t5"))
    _fit(stage, "t5", cfg)
    stage.text_encoder.save_pretrained(Path(cfg.work) / "t5" / "model")


def _t5_conditioning(cfg: DictConfig, kind: type[Conditioning]) -> Conditioning:
    text_encoder = T5EncoderModel.from_pretrained(Path(cfg.work) / "t5" / "model", dtype=torch.float32)
    return kind(_drawings(cfg), **_latents(cfg), tokenizer=_t5_tokenizer(cfg), text_encoder=text_encoder)


def pixart(cfg: DictConfig) -> None:
    stage = PixArtTextToImage(_t5_conditioning(cfg, PixArtConditioning), **_options(cfg, "pixart"))
    _fit(stage, "pixart", cfg)
    stage.transformer.save_pretrained(Path(cfg.work) / "pixart" / "model")


def latte(cfg: DictConfig) -> None:
    transformer = PixArtTransformer2DModel.from_pretrained(Path(cfg.work) / "pixart" / "model")
    stage = LatteTextToVideo(_t5_conditioning(cfg, LatteConditioning), transformer, **_options(cfg, "latte"))
    _fit(stage, "latte", cfg)
    stage.denoiser.transformer.save_pretrained(Path(cfg.work) / "latte" / "model")


def judge(cfg: DictConfig) -> None:
    stage = ContrastiveJudge(_tokenizer(cfg), **_options(cfg, "judge") | {"seed": cfg.seed + 100})
    _fit(stage, "judge", cfg)
    save_judge(stage.clip, len(_tokenizer(cfg)), Path(cfg.work) / "judge" / "model")


def motion_judge(cfg: DictConfig) -> None:
    _motion_judge(cfg, "motion_judge")


def verb_judge(cfg: DictConfig) -> None:
    """The same of all motions, the harder ones too."""
    _motion_judge(cfg, "verb_judge")


def _motion_judge(cfg: DictConfig, name: str) -> None:
    drawings = Drawings(Path(cfg.work), **cfg[f"{name}_drawings"])
    stage = MotionClassification(drawings, **_options(cfg, name) | {"seed": cfg.seed + 200})
    _fit(stage, name, cfg)
    stage.motion_judge.save_pretrained(Path(cfg.work) / name / "model")


def cnn_judge(cfg: DictConfig) -> None:
    drawings = Drawings(Path(cfg.work), **cfg.cnn_judge_drawings)
    stage = FrameClassification(drawings, **_options(cfg, "cnn_judge") | {"seed": cfg.seed + 300})
    _fit(stage, "cnn_judge", cfg)
    stage.network.save_pretrained(Path(cfg.work) / "cnn_judge" / "model")


def export(cfg: DictConfig) -> None:
    export_models(Path(cfg.work), cfg.export.models)


STAGES = {
    "tokenizer": tokenizer, "text": text, "vae": vae, "latents": latents, "t2i": t2i, "motion": motion,
    "unet3d": unet3d, "t5_tokenizer": t5_tokenizer, "t5": t5, "pixart": pixart, "latte": latte,
    "judge": judge, "motion_judge": motion_judge, "verb_judge": verb_judge, "cnn_judge": cnn_judge,
    "export": export,
}  # fmt: skip


NEEDS = {
    "text": ["tokenizer/model"], "latents": ["vae/model"], "t2i": ["text/model", "latents.safetensors"],
    "motion": ["t2i/model"], "unet3d": ["motion/unet"], "t5": ["t5_tokenizer/model"],
    "pixart": ["t5/model", "latents.safetensors"], "latte": ["pixart/model"], "judge": ["tokenizer/model"],
}  # fmt: skip


def _refuse_missing(cfg: DictConfig) -> None:
    """Ends the program in one line for models to export that are none, a stage that lacks what earlier stages make, or
    an `init_from` that is no folder."""
    if unknown := [name for name in cfg.export.models if name not in EXPORTS]:
        raise SystemExit(f"export.models: found {', '.join(unknown)}: expected some of {', '.join(EXPORTS)}")
    needs = NEEDS.get(cfg.stage, [])
    if cfg.stage == "export":
        needs = sorted({path for name in cfg.export.models for path in EXPORTS[name][1]})
    missing = [path for path in needs if not (Path(cfg.work) / path).exists()]
    if missing:
        raise SystemExit(f"stage {cfg.stage} needs {', '.join(missing)} in {cfg.work}: run the earlier stages first")
    if not 0 < cfg.unet3d.share <= 1 or (cfg.unet3d.share < 1 and not cfg.init_from):
        raise SystemExit(
            f"found unet3d.share={cfg.unet3d.share}: expected above 0 and at most 1, below 1 with init_from"
        )
    if cfg.init_from and not Path(cfg.init_from).is_dir():
        raise SystemExit(f"init_from={cfg.init_from} is no folder: expected the work folder of an earlier generation")


@hydra.main(version_base="1.3", config_path="../../../conf", config_name="zoo")
def main(cfg: DictConfig) -> None:
    if cfg.stage != "all" and cfg.stage not in STAGES:
        raise SystemExit(f"unknown stage {cfg.stage!r}: expected all or one of {', '.join(STAGES)}")
    _refuse_missing(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    for name in STAGES if cfg.stage == "all" else [cfg.stage]:
        STAGES[name](cfg)


if __name__ == "__main__":
    main()
