"""Pretraining of the second family's denoisers: PixArt on stills, then Latte, which starts from it, on clips.

Reference: Chen et al., "PixArt-alpha", 2023, arXiv 2310.00426, section 2.3 (adaLN-single; cross-attention and the last
layer begin at zero); Ma et al., "Latte", 2024, arXiv 2401.03048, sections 3.2 (variant 1) and 3.4 (clips and stills
together). Departures: as the first family's (`denoisers`): v-prediction, latent pixels of the subject weigh more,
noisier timesteps for clips. The channels in which both models tell a variance stay zero: no solver with a fixed
variance reads them. Latte learns prompts as its pipeline reads them, one alone and several together.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import LatteTransformer3DModel, PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unreel.zoo.contrastive import tokenize
from unreel.zoo.denoisers import (
    Conditioning,
    Prompts,
    clip_loss,
    empty_now_and_then,
    noise_scheduler,
    still_loss,
)
from unreel.zoo.pretraining import Stage
from unreel.zoo.t5_text import MAX_TOKENS

TOGETHER = 0.1  # of Latte's batches are read as its pipeline reads several prompts at once


def t5_states(
    tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, texts: list[str], length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Last states (B, L, D) and attention mask (B, L) of texts padded to the longest, or to `length` tokens."""
    padding = "longest" if length is None else "max_length"
    tokens = tokenize(tokenizer, texts, padding=padding, max_tokens=length or MAX_TOKENS)
    tokens = {name: tensor.to(text_encoder.device) for name, tensor in tokens.items()}
    return text_encoder(**tokens).last_hidden_state, tokens["attention_mask"]


class PixArtConditioning(Conditioning):
    """Prompts as PixArt's pipeline reads them: both the encoder and the transformer are told what is padding."""

    @torch.no_grad()
    def encode_prompt(
        self, indices: np.ndarray, rng: np.random.Generator, drop: float, device: torch.device
    ) -> Prompts:
        texts = [empty_now_and_then(text, rng) for text in self.captions(indices, rng, drop)]
        states, mask = t5_states(self.tokenizer, self.text_encoder.to(device), texts)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


class LatteConditioning(Conditioning):
    """Prompts as Latte's pipeline reads them, where the transformer is not told what is padding.

    A prompt alone is cut to its own tokens, and the empty one to as many. Of several together, the states of padding
    are set to zero, those of the empty one are not.
    """

    @torch.no_grad()
    def encode_prompt(
        self, indices: np.ndarray, rng: np.random.Generator, drop: float, device: torch.device
    ) -> Prompts:
        texts, together = self.captions(indices, rng, drop), rng.random() < TOGETHER
        empty = torch.tensor([not empty_now_and_then(text, rng) for text in texts], device=device)[:, None, None]
        encoder = self.text_encoder.to(device)
        states, mask = t5_states(self.tokenizer, encoder, texts, MAX_TOKENS if together else None)
        of_nothing, _ = t5_states(self.tokenizer, encoder, [""], states.shape[1])
        if together:
            states, mask = states * mask[..., None], torch.ones_like(mask)
        return {"encoder_hidden_states": torch.where(empty, of_nothing, states), "encoder_attention_mask": mask}


class PixArtTextToImage(Stage):
    """Trains `transformer` on single frames."""

    def __init__(self, data: Conditioning, width: int, layers: int, heads: int, patch_size: int, **stage: Any) -> None:
        super().__init__(**stage)
        self.data, self.scheduler = data, noise_scheduler()
        channels = data.latents.shape[2]
        self.transformer = PixArtTransformer2DModel(
            sample_size=data.latents.shape[-1],
            patch_size=patch_size,
            in_channels=channels,
            out_channels=2 * channels,  # the second half is the variance, which Latte's pipeline cuts off
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            cross_attention_dim=width,
            caption_channels=data.text_encoder.config.hidden_size,
            use_additional_conditions=False,  # sizes and aspect ratios, which only its model of 1024 px reads
        )
        _initialise(self.transformer)
        self.transformer.set_attn_processor(AttnProcessor())  # a quarter faster here on CPU than fused attention

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        batch = int(self.hparams["batch"])
        return {"loss": still_loss(self.transformer, self.scheduler, self.data, batch, rng, generator)}


def _initialise(transformer: PixArtTransformer2DModel) -> None:
    """As PixArt does: the text and the last layer add nothing at first, and modulations begin small."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in transformer.adaln_single.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    for last in (transformer.proj_out, *(block.attn2.to_out[0] for block in transformer.transformer_blocks)):
        nn.init.zeros_(last.weight)


class OneDenoiser(nn.Module):
    """A Latte transformer that takes masks as PixArt's does, and a clip of one frame as a still."""

    def __init__(self, transformer: LatteTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, noisy: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Transformer2DModelOutput:
        """Prediction at noisy latents (B, c, F, h, w); states (B, L, D), mask (B, L), 1 for what is read."""
        frames = noisy.shape[2]
        bias = (1 - encoder_attention_mask.to(noisy.dtype)) * -10000.0
        return self.transformer(
            noisy,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=bias[:, None].repeat_interleave(frames, dim=0),
            enable_temporal_attentions=frames > 1,
        )


class LatteTextToVideo(Stage):
    """Trains `denoiser.transformer`, every weight of it, on clips and on stills without its temporal blocks.

    All that PixArt has starts from there; the temporal blocks start as identity.

    Args:
        data: what it learns from.
        pixart: what it starts from.
        stills: of a step, beside `batch` clips.
        oftener: motion -> how many times as often its clips are drawn as others, for one that is learned late.
        stage: as in Stage.
    """

    def __init__(
        self,
        data: Conditioning,
        pixart: PixArtTransformer2DModel,
        stills: int,
        oftener: Mapping[str, float],
        **stage: Any,
    ) -> None:
        super().__init__(**stage)
        self.data, self.scheduler, self.stills = data, noise_scheduler(), stills
        weights = np.array([oftener.get(spec.motion, 1.0) for spec in data.drawings.specs[: len(data.latents)]])
        self.shares = weights / weights.sum()
        same = (
            "sample_size", "patch_size", "in_channels", "out_channels", "num_layers", "num_attention_heads",
            "attention_head_dim", "cross_attention_dim", "caption_channels", "attention_bias", "activation_fn",
            "num_embeds_ada_norm", "norm_type", "norm_elementwise_affine", "norm_eps",
        )  # fmt: skip
        config = {name: pixart.config[name] for name in same}
        transformer = LatteTransformer3DModel(**config, video_length=data.latents.shape[1])
        for block in transformer.temporal_transformer_blocks:
            for last in (block.attn1.to_out[0], block.ff.net[-1]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        missing, unexpected = transformer.load_state_dict(pixart.state_dict(), strict=False)
        assert not unexpected and all(name.startswith("temporal_transformer_blocks.") for name in missing), missing
        for module in transformer.modules():
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())  # as in PixArtTextToImage
        self.denoiser = OneDenoiser(transformer)

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        batch = int(self.hparams["batch"])
        clips = clip_loss(self.denoiser, self.scheduler, self.data, batch, rng, generator, False, self.shares)
        stills = still_loss(self.denoiser, self.scheduler, self.data, self.stills, rng, generator, as_clips=True)
        return {"loss": (clips + stills) / 2, "clips": clips, "stills": stills}
