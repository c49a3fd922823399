"""Pretraining of the first family's denoisers: the T2I UNet on stills, then the AnimateDiff motion modules together
with it on clips, and a UNet3D of the ModelScope family.

Reference: Rombach et al. 2022 (arXiv 2112.10752), eq. 3, with v-prediction (Salimans & Ho 2022, arXiv 2202.00512,
appendix D), all timesteps alike, so that the noisiest, where the caption decides, count as much as the others; Guo et
al., "AnimateDiff", 2023, arXiv 2307.04725, section 4. Departures: the drawn world knows where its subject is, and those
latent pixels weigh more, or the texture of the styles is nearly all of the loss; in the motion stage the spatial
weights keep learning, from clips through the motion modules and from stills without them, so that motion words reach
the features that the motion modules see, and noisy timesteps, where motion is decided, are drawn more often. The UNet3D
starts from the T2I and learns all of its weights, from clips and from stills as clips of one frame, as Jiuniu Wang et
al., ModelScope, 2023, arXiv 2308.06571, section 3.3.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unreel.zoo.contrastive import tokenize
from unreel.zoo.drawings import Drawings
from unreel.zoo.pretraining import Stage

Prompts = Mapping[str, Tensor]
EMPTY_CAPTIONS = 0.1  # for classifier-free guidance
SUBJECT_WEIGHT = 3.0  # of a latent pixel that the subject covers; the rest of a frame has weight 1


def noise_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule (scaled-linear betas), with v-prediction as in SD 2."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing",
    )  # fmt: skip


def empty_now_and_then(text: str, rng: np.random.Generator) -> str:
    """The text, or nothing, which a denoiser has to know for classifier-free guidance."""
    return "" if rng.random() < EMPTY_CAPTIONS else text


class Conditioning:
    """Frozen text encoder and encoded drawings: what the denoiser stages learn from.

    Args:
        latents: of the first clips, (count, F, c, h, w), already scaled.
        masks: the share of each latent pixel that the subject covers, (count, F, h, w).
    """

    def __init__(
        self,
        drawings: Drawings,
        latents: Tensor,
        masks: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
    ) -> None:
        self.drawings, self.latents, self.masks, self.tokenizer = drawings, latents, masks, tokenizer
        self.text_encoder = text_encoder.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict) -> "Conditioning":
        return self  # frozen and large: an EMA copy of a module that holds it shares it

    def captions(self, indices: np.ndarray, rng: np.random.Generator, drop: float) -> list[str]:
        """Fresh captions; every field is left unsaid with probability `drop`."""
        return [c.text for c in self.drawings.captions(indices, rng, drop=drop, long=0.2)]

    @torch.no_grad()
    def encode_prompt(
        self, indices: np.ndarray, rng: np.random.Generator, drop: float, device: torch.device
    ) -> Prompts:
        """What the denoiser reads of fresh captions, one in ten of them empty, by its names for it.

        Here encoder_hidden_states (B, L, D) alone, of captions padded to CLIP's length and without a mask, as Stable
        Diffusion's pipeline does.
        """
        texts = [empty_now_and_then(text, rng) for text in self.captions(indices, rng, drop)]
        tokens = tokenize(self.tokenizer, texts, padding="max_length")
        states = self.text_encoder.to(device)(tokens["input_ids"].to(device)).last_hidden_state
        return {"encoder_hidden_states": states}


def denoising_loss(
    model: nn.Module,
    scheduler: DDIMScheduler,
    latents: Tensor,
    masks: Tensor,
    prompts: Prompts,
    generator: torch.Generator,
    noisier_of: int = 1,
) -> Tensor:
    """Weighted MSE of the v-prediction; channels beyond those of the latents (a learned variance) are not trained.

    Args:
        model: the denoiser.
        scheduler: of the noise.
        latents: (B, c, h, w) or (B, c, F, h, w).
        masks: where the subject is, latents' shape with one channel, in [0, 1].
        prompts: what else the denoiser reads, by its names for it.
        generator: of noise and timesteps.
        noisier_of: each timestep is the noisiest of that many draws.
    """
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    draws = torch.randint(scheduler.config.num_train_timesteps, (noisier_of, len(latents)), generator=generator)
    timesteps = draws.amax(0).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    predicted = model(noisy, timestep=timesteps, **prompts).sample[:, : latents.shape[1]].float()
    weights = 1 + (SUBJECT_WEIGHT - 1) * masks
    return (weights * (predicted - target).square()).mean() / weights.mean()


class TextToImage(Stage):
    """Trains `unet` on single frames."""

    def __init__(
        self, data: Conditioning, channels: list[int], layers_per_block: int, heads: int, **stage: Any
    ) -> None:
        super().__init__(**stage)
        self.data, self.scheduler = data, noise_scheduler()
        self.unet = UNet2DConditionModel(
            sample_size=data.latents.shape[-1],
            in_channels=data.latents.shape[2],
            out_channels=data.latents.shape[2],
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1),
            up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",),
            layers_per_block=layers_per_block,
            cross_attention_dim=data.text_encoder.config.hidden_size,
            attention_head_dim=heads,  # diffusers' name for the number of heads here
            norm_num_groups=16,
        )
        self.unet.set_attn_processor(AttnProcessor())  # at these sizes a third faster on CPU than fused attention

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": still_loss(self.unet, self.scheduler, self.data, int(self.hparams["batch"]), rng, generator)}


def still_loss(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    data: Conditioning,
    batch: int,
    rng: np.random.Generator,
    generator: torch.Generator,
    as_clips: bool = False,
) -> Tensor:
    """Denoising loss on one random frame of `batch` random clips; `as_clips`: the denoiser wants clips of one frame."""
    device = next(unet.parameters()).device
    indices = rng.choice(len(data.latents), batch, replace=False)
    frames = rng.integers(data.latents.shape[1], size=batch)
    latents = data.latents[indices, frames].float().to(device)
    masks = data.masks[indices, frames].float().to(device)[:, None]
    if as_clips:
        latents, masks = latents.unsqueeze(2), masks.unsqueeze(2)
    return denoising_loss(unet, scheduler, latents, masks, data.encode_prompt(indices, rng, 0.08, device), generator)


def share_spatial_weights(motion_unet: UNetMotionModel, unet: UNet2DConditionModel) -> None:
    """Makes every parameter that both have one object, so that training either trains both."""
    for name, parameter in unet.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(motion_unet.get_submodule(owner), leaf, parameter)


class TextToVideo(Stage):
    """Trains `motion_unet` (motion modules on the T2I UNet) on clips and, by the shared weights, `unet` on stills.

    With 0 stills the motion modules alone are trained, and the T2I UNet stays as it is.
    """

    def __init__(self, data: Conditioning, unet: UNet2DConditionModel, heads: int, stills: int, **stage: Any) -> None:
        super().__init__(**stage)
        self.data, self.scheduler, self.stills, self.unet = data, noise_scheduler(), stills, unet
        adapter = MotionAdapter(
            block_out_channels=unet.config.block_out_channels,
            motion_layers_per_block=unet.config.layers_per_block,
            motion_num_attention_heads=heads,
            motion_norm_num_groups=16,
            motion_max_seq_length=16,
            use_motion_mid_block=False,
        )
        self.motion_unet = UNetMotionModel.from_unet2d(unet, adapter)
        share_spatial_weights(self.motion_unet, unet)
        for name, parameter in self.motion_unet.named_parameters():
            parameter.requires_grad_(stills > 0 or "motion_modules" in name)
        for model in (self.unet, self.motion_unet):
            model.set_attn_processor(AttnProcessor())  # as in TextToImage

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        clips = clip_loss(self.motion_unet, self.scheduler, self.data, int(self.hparams["batch"]), rng, generator, True)
        if not self.stills:
            return {"loss": clips}
        stills = still_loss(self.unet, self.scheduler, self.data, self.stills, rng, generator)
        return {"loss": (clips + stills) / 2, "clips": clips, "stills": stills}


def clip_loss(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    data: Conditioning,
    batch: int,
    rng: np.random.Generator,
    generator: torch.Generator,
    per_frame: bool,
    shares: np.ndarray | None = None,
) -> Tensor:
    """Denoising loss on `batch` random clips; `per_frame`: the denoiser wants its prompts once for every frame.

    `shares`: the probability of each of the clips to be the first that is drawn; None of equal ones.
    """
    device = next(unet.parameters()).device
    indices = rng.choice(len(data.latents), batch, replace=False, p=shares)
    latents = data.latents[indices].float().to(device).transpose(1, 2)  # (B, c, F, h, w)
    masks = data.masks[indices].float().to(device)[:, None]
    prompts = data.encode_prompt(indices, rng, 0.0, device)
    if per_frame:
        prompts = {name: tensor.repeat_interleave(latents.shape[2], dim=0) for name, tensor in prompts.items()}
    return denoising_loss(unet, scheduler, latents, masks, prompts, generator, noisier_of=2)


class TextToVideo3D(Stage):
    """Trains `video_unet`, every weight of it, on clips and on stills.

    Weights that the T2I UNet has by the same name and shape start from there; what moves between frames starts as
    identity.
    """

    def __init__(
        self,
        data: Conditioning,
        unet: UNet2DConditionModel,
        channels: list[int],
        head_dim: int,
        stills: int,
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.data, self.scheduler, self.stills = data, noise_scheduler(), stills
        self.video_unet = UNet3DConditionModel(
            sample_size=unet.config.sample_size,
            in_channels=unet.config.in_channels,
            out_channels=unet.config.out_channels,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock3D",) + ("CrossAttnDownBlock3D",) * (len(channels) - 1),
            up_block_types=("CrossAttnUpBlock3D",) * (len(channels) - 1) + ("UpBlock3D",),
            layers_per_block=unet.config.layers_per_block,
            cross_attention_dim=unet.config.cross_attention_dim,
            attention_head_dim=head_dim,
            norm_num_groups=unet.config.norm_num_groups,
        )
        for module in self.video_unet.modules():
            if isinstance(module, TransformerTemporalModel):  # as its temporal convolutions do by themselves
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)
        own = self.video_unet.state_dict()
        fits = {name: w for name, w in unet.state_dict().items() if name in own and own[name].shape == w.shape}
        self.video_unet.load_state_dict(fits, strict=False)
        self.video_unet.set_attn_processor(AttnProcessor())  # as in TextToImage

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        batch = int(self.hparams["batch"])
        clips = clip_loss(self.video_unet, self.scheduler, self.data, batch, rng, generator, per_frame=False)
        stills = still_loss(self.video_unet, self.scheduler, self.data, self.stills, rng, generator, as_clips=True)
        return {"loss": (clips + stills) / 2, "clips": clips, "stills": stills}
