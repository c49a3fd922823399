"""Models of the Latte family: clips by a transformer that reads the T5 encoder of the PixArt family.

Reference: Xin Ma et al., "Latte: Latent Diffusion Transformer for Video Generation", TMLR 2025, arXiv 2401.03048.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, Unpack

import torch
from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel
from pydantic import PositiveInt
from torch import Tensor

from unreel.models.model import Conditioning, Reading
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.models.running import beside
from unreel.models.stable_diffusion import tiny_parts
from unreel.models.t5 import tiny_encoder, tiny_tokenizer
from unreel.validation import ModelFolder

_LENGTH = 120  # tokens of a prompt, which its pipeline does not let choose


class Latte(PipelineModel):
    """Clips by a LattePipeline.

    The pipeline reads a prompt that comes alone otherwise than several at a time: alone, its padding is cut off, as the
    model was trained; together, it becomes zeros that are read. Clips are rendered one at a time here, and a training
    masks the padding, which is the same as to cut it off. The pipeline cuts a negative prompt to the prompt's length.

    Args:
        folder: a local diffusers folder or a hub id.
        transformer: folder of a LatteTransformer3DModel that takes the place of the one in there, or None.
        revision: of a hub id.
        num_frames: as many as its transformer was made for.
        num_inference_steps, guidance_scale: how it renders.
        fps, common: as in PipelineModel.
    """

    kind = LattePipeline
    denoiser = "transformer"
    latent_axis = 2
    projections = ("caption_projection",)

    def __init__(
        self,
        folder: ModelFolder,
        transformer: ModelFolder | None = None,
        revision: str | None = None,
        num_frames: PositiveInt = 16,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float = 7.5,
        fps: PositiveInt = 8,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "video_length": num_frames, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "height": None, "width": None, "clean_caption": False,
        }  # fmt: skip
        sources = {"": (folder, revision), **beside("transformer", transformer, LatteTransformer3DModel)}
        super().__init__(sources, options, fps, num_frames, **common)

    def _load(self) -> Any:
        own = {part: LatteTransformer3DModel.from_pretrained(**where) for part, where in self.sources.items() if part}
        return self.kind.from_pretrained(**self.sources[""], **own)

    def _prepared(self, pipeline: Any) -> Any:
        made_for = pipeline.transformer.config.video_length
        if self.num_frames not in (1, made_for):
            raise ValueError(f"{self.name}: found num_frames={self.num_frames}: its transformer makes {made_for}, or 1")
        return super()._prepared(pipeline)

    @property
    def asks(self) -> Mapping[str, Any]:
        return {"clean_caption": False, "mask_feature": False}

    @property
    def reading(self) -> Reading:
        return Reading(_LENGTH, masked=True, cleaning="lower", pads="masked")

    def encode_prompt(self, texts: Sequence[str]) -> Conditioning:
        mask = self.tokenized(texts)[1].to(self.device)
        return Conditioning({**super().encode_prompt(texts), "prompt_attention_mask": mask})

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        pads = conditioning["prompt_attention_mask"][:, None] == 0
        bias = torch.zeros(pads.shape, dtype=denoiser.dtype, device=noisy.device).masked_fill(pads, -10000.0)
        predicted = denoiser(
            noisy.to(denoiser.dtype), timestep=timesteps,
            encoder_hidden_states=conditioning["prompt_embeds"].to(denoiser.dtype),
            encoder_attention_mask=bias.repeat_interleave(noisy.shape[2], 0),  # it wants the mask once a frame
        ).sample  # fmt: skip
        return predicted[:, : noisy.shape[1]].float()  # the rest is a variance

    def _given(self, own: Callable[..., Any], asked: Mapping[str, Any], rows: Conditioning) -> tuple[Any, ...]:
        found = super()._given(own, {**asked, "mask_feature": False}, rows)
        length = int(rows["prompt_attention_mask"].sum(1).max())  # of one prompt
        return tuple(tensor[:, :length] if tensor is not None else None for tensor in found)

    def _render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.cat([super(Latte, self)._render([p], [s]) for p, s in zip(prompts, seeds, strict=True)])

    @classmethod
    def tiny(cls) -> Self:
        parts, tokenizer = tiny_parts(), tiny_tokenizer()
        torch.manual_seed(1)
        transformer = LatteTransformer3DModel(
            sample_size=16, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True,
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6, video_length=3,
        )  # fmt: skip
        pipeline = LattePipeline(
            tokenizer=tokenizer, text_encoder=tiny_encoder(tokenizer), vae=parts["vae"], transformer=transformer,
            scheduler=DDIMScheduler(clip_sample=False),
        )  # fmt: skip
        return cls.of(pipeline, num_frames=3, num_inference_steps=2, guidance_scale=4.0, name="tiny_latte")
