"""Donors: text-to-image models that pay for the training.

A donor is a StableDiffusionPipeline of any size (a CLIP text encoder, a VAE and a UNet2DConditionModel), from a local
folder or from a hub id that the user named. Only its text encoder is ever trained.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from unreel.cache import content_key
from unreel.edits import parameter_hashes

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def pipeline_options(folder: str | Path, revision: str | None, dtype: str) -> dict[str, Any]:
    """Arguments of a diffusers `from_pretrained`: safetensors only, and no network for a path.

    Raises:
        ValueError: for a path that is no pipeline folder, or an unknown dtype.
    """
    if dtype not in ("float32", "float16"):  # weights in bfloat16 would not hash as their other copies
        raise ValueError(f"found dtype {dtype!r}: expected float32 or float16")
    local = Path(folder).exists() or str(folder).startswith((".", "/", "~"))
    if local and not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder}: expected a diffusers folder with a model_index.json, or the id of a hub model")
    return {
        "pretrained_model_name_or_path": str(folder),
        "revision": None if local else revision,
        "local_files_only": local,
        "use_safetensors": True,
        "torch_dtype": getattr(torch, dtype),
    }


def select_parameters(text_encoder: nn.Module, roles: Sequence[str]) -> list[str]:
    """Names of the text encoder's parameters that have one of the roles, by the depth that the model really has.

    Args:
        text_encoder: a CLIPTextModel.
        roles: of all, embeddings, mlp, attention, final_attention, final_layer_norm, or a regular expression that
            is searched in the names.

    Raises:
        ValueError: for a role that matches nothing, naming what was tried and the names there are.
    """
    names = [name for name, _ in text_encoder.named_parameters()]
    depths = [int(layer[1]) for name in names if (layer := re.search(r"\.layers\.(\d+)\.", name))]
    last = max(depths, default=-1)
    patterns = {
        "all": r"",
        "embeddings": r"(^|\.)token_embedding\.",
        "mlp": r"\.mlp\.",
        "attention": r"\.self_attn\.",
        "final_attention": rf"\.layers\.{last}\.self_attn\.",
        "final_layer_norm": r"(^|\.)final_layer_norm\.",
    }
    chosen: set[str] = set()
    for role in roles:
        try:
            found = {name for name in names if re.search(patterns.get(role, role), name)}
        except re.error as error:
            raise ValueError(f"parameters: {role!r} is no role and no regular expression ({error})") from None
        if not found:
            tails = sorted({re.sub(r"^.*?\.layers\.\d+\.", "", name) for name in names})
            raise ValueError(
                f"parameters: {role!r} matches nothing; roles: {', '.join(patterns)}; names: {', '.join(tails)}"
            )
        chosen |= found
    if not chosen:
        raise ValueError(f"parameters: expected at least one role of {', '.join(patterns)}")
    return [name for name in names if name in chosen]


class Donor:
    """A text-to-image model; everything but its text encoder is frozen.

    Args:
        pipeline: the diffusers pipeline.
        num_inference_steps, guidance_scale: how it generates.
        name: what scores call it.
        lr: the learning rate that suits its text encoder; a method's optimizer takes it from here.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        num_inference_steps: int,
        guidance_scale: float,
        name: str = "",
        lr: float = 1e-5,
    ) -> None:
        self.pipeline, self.name, self.lr = pipeline, name, lr
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for module in (self.unet, self.vae, self.text_encoder):
            module.eval().requires_grad_(False)
        if "FlowMatch" in type(pipeline.scheduler).__name__:  # no pipeline of this class steps those
            shift = pipeline.scheduler.config.get("shift", 1.0)
            pipeline.scheduler = DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
            )
        config = pipeline.scheduler.config
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(
                f"{name}: found prediction type {self.prediction_type!r}: expected {', '.join(PREDICTIONS)}"
            )
        self.num_train_timesteps = int(config.num_train_timesteps)
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        revision: str | None = None,
        dtype: str = "float32",
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        name: str = "",
        lr: float = 1e-5,
        device: str = "cpu",
    ) -> "Donor":
        """From a local diffusers folder or a hub id. ValueError for a folder that is none."""
        pipeline = StableDiffusionPipeline.from_pretrained(
            **pipeline_options(folder, revision, dtype), safety_checker=None, requires_safety_checker=False
        )
        return cls(pipeline.to(device), num_inference_steps, guidance_scale, name or str(folder), lr)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def size_px(self) -> int:
        """Edge of its images in px."""
        return int(self.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @cached_property
    def vae_hash(self) -> str:
        """Content hash of the VAE."""
        return content_key(vae=parameter_hashes(self.vae))

    @cached_property
    def content(self) -> str:
        """Content hash of all that decides its images: weights, schedule and sampling settings."""
        modules = {name: parameter_hashes(m) for name, m in (("unet", self.unet), ("text", self.text_encoder))}
        schedule = {key: str(value) for key, value in self.pipeline.scheduler.config.items()}
        sampling = [self.num_inference_steps, self.guidance_scale, str(self.unet.dtype)]
        return content_key(vae=self.vae_hash, schedule=schedule, sampling=sampling, **modules)

    def encode_prompt(self, texts: Sequence[str], text_encoder: nn.Module | None = None) -> Tensor:
        """encoder_hidden_states (B, L, D): the last hidden state after the final norm, padded to the full length."""
        encoder = text_encoder or self.text_encoder
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        mask = {}
        if getattr(encoder.config, "use_attention_mask", None):  # as the pipelines do
            mask["attention_mask"] = tokens.attention_mask.to(self.device)
        return encoder(tokens.input_ids.to(self.device), **mask)[0]

    @property
    def _max_length(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (K, c, h, w), a sample of the posterior times the scale factor, of pixels (K, 3, H, W) in [-1, 1]."""
        posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def _signal(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of clean latents and of noise at the timesteps, broadcastable to `like`."""
        if self.prediction_type == "flow_prediction":
            noise = (timesteps.float() + 1) / self.num_train_timesteps
            signal = 1 - noise
        else:
            kept = self.pipeline.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
            signal, noise = kept.sqrt(), (1 - kept).sqrt()
        shape = (-1,) + (1,) * (like.ndim - 1)
        return signal.view(shape).to(like), noise.view(shape).to(like)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of latents (B, c, h, w) at integer timesteps (B,) in [0, num_train_timesteps)."""
        alpha, sigma = self._signal(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet is to predict there, by its prediction type; same shape as the latents."""
        alpha, sigma = self._signal(timesteps, latents)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * latents
        return noise - latents

    def predict(self, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The UNet's output, float32, (B, c, h, w)."""
        embeds = prompt_embeds.to(self.unet.dtype)
        return self.unet(noisy.to(self.unet.dtype), timesteps, encoder_hidden_states=embeds).sample.float()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]; each has a generator of its own."""
        images = self.pipeline(
            list(prompts),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        return images.float().cpu()
