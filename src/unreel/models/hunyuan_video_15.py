"""Models of the HunyuanVideo-1.5 family: clips by a transformer in which text and frames attend jointly. It reads
Qwen2.5-VL, and what is to be written in the frames letter by letter, by ByT5.

Reference: Bing Wu et al., "HunyuanVideo 1.5 Technical Report", 2025, arXiv 2511.18870.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from pydantic import PositiveInt
from torch import Tensor
from transformers import ByT5Tokenizer

from unreel.models import qwen, t5
from unreel.models.model import Conditioning, Reading
from unreel.models.padding import unpadded
from unreel.models.pipeline_model import Common, PipelineModel
from unreel.validation import ModelFolder


def _longest(mask: Tensor) -> int:
    """How many columns of a mask of texts (B, L), padded on the right, have a token."""
    return int(mask.sum(1).max())


class HunyuanVideo15(PipelineModel):
    """Clips by a HunyuanVideo15Pipeline.

    Args:
        folder: a local diffusers folder or a hub id.
        revision: of a hub id.
        num_frames: 1, or one more than a multiple of 4.
        height, width: of the frames, in px; multiples of 16.
        num_inference_steps: how it renders.
        guidance_scale: of the pipeline's guider; None leaves that as it is.
        max_sequence_length: tokens of a prompt. Nothing looks at padding: fewer take less time and change nothing for
            prompts that are no longer.
        fps, common: as in PipelineModel.
    """

    kind = HunyuanVideo15Pipeline
    denoiser = "transformer"
    latent_axis = 2
    steps_flows = True
    temporal = True
    grid = (4, 16)
    consulted = ("vae",)
    encoded: ClassVar = {
        "prompt_embeds": 0, "prompt_attention_mask": 1, "prompt_embeds_2": 2, "prompt_attention_mask_2": 3
    }  # fmt: skip

    def __init__(
        self,
        folder: ModelFolder,
        revision: str | None = None,
        num_frames: PositiveInt = 121,
        height: PositiveInt = 480,
        width: PositiveInt = 848,
        num_inference_steps: PositiveInt = 50,
        guidance_scale: float | None = None,
        max_sequence_length: PositiveInt = 1000,
        fps: PositiveInt = 24,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "num_frames": num_frames, "height": height, "width": width, "num_inference_steps": num_inference_steps
        }  # fmt: skip
        super().__init__({"": (folder, revision)}, options, fps, num_frames, **common)
        self.held = {"guidance_scale": guidance_scale, "max_sequence_length": max_sequence_length}

    def _prepared(self, pipeline: Any) -> Any:
        pipeline.vae.enable_slicing()  # the mask of its attention fits one clip at a time (diffusers 0.42)
        pipeline.tokenizer_max_length = self.held["max_sequence_length"]
        if (scale := self.held["guidance_scale"]) is not None:
            pipeline.guider = pipeline.guider.new(guidance_scale=scale)
        return super()._prepared(pipeline)

    @property
    def reading(self) -> Reading:
        pipeline = self.pipeline
        said = format_text_input(["{}"], pipeline.system_message)
        template = pipeline.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)[0]
        length = self.held["max_sequence_length"]
        return Reading(length, True, -3, normed=False, template=template, keeps="after", pads="masked")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (self.components["vae"].config.latent_channels, *super().latent_shape[1:])

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        pipeline = self.pipeline
        before = pipeline.prompt_template_encode_start_idx
        tokens = pipeline.tokenizer.apply_chat_template(
            format_text_input(list(texts), pipeline.system_message), add_generation_prompt=True, return_dict=True,
            padding="max_length", truncation=True, max_length=before + self.held["max_sequence_length"],
            return_tensors="pt",
        )  # fmt: skip
        return tokens.input_ids[:, before:], tokens.attention_mask[:, before:]

    def encode_prompt(self, texts: Sequence[str]) -> Conditioning:
        with unpadded(self.components["text_encoder"], self.reading):
            found = type(self.pipeline).encode_prompt(self.pipeline, list(texts), self.device, batch_size=len(texts))
        read = {name: found[place] for name, place in self.encoded.items()}
        return Conditioning({name: tensor.long() if "mask" in name else tensor for name, tensor in read.items()})

    def set_timesteps(self, scheduler: Any, num_inference_steps: int) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1])

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output; tokens that no row of the masks has, and those of an image, it is not given at all."""
        denoiser, read = self.components["denoiser"], conditioning
        dtype, (count, channels, *shape) = denoiser.dtype, noisy.shape
        no_image = noisy.new_zeros(count, 0, self.pipeline.vision_states_dim, dtype=dtype)
        no_frames = noisy.new_zeros(count, channels + 1, *shape, dtype=dtype)  # that it is given, and which they are
        most, most_2 = (_longest(read[name]) for name in ("prompt_attention_mask", "prompt_attention_mask_2"))
        return denoiser(
            torch.cat([noisy.to(dtype), no_frames], dim=1), timesteps.to(dtype),
            encoder_hidden_states=read["prompt_embeds"][:, :most].to(dtype),
            encoder_attention_mask=read["prompt_attention_mask"][:, :most],
            encoder_hidden_states_2=read["prompt_embeds_2"][:, :most_2].to(dtype),
            encoder_attention_mask_2=read["prompt_attention_mask_2"][:, :most_2], image_embeds=no_image,
        ).sample.float()  # fmt: skip

    @classmethod
    def tiny(cls) -> Self:
        told = HunyuanVideo15Pipeline._get_mllm_prompt_embeds.__defaults__
        tokenizer = qwen.tiny_tokenizer([text for text in told if isinstance(text, str)])
        letters = ByT5Tokenizer()
        torch.manual_seed(1)
        vae = AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1, downsample_match_channel=False,
            upsample_match_channel=False,
        )  # fmt: skip
        transformer = HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=32, text_embed_2_dim=32, image_embed_dim=12,
            rope_axes_dim=(2, 2, 4), target_size=16, task_type="t2v",
        )  # fmt: skip
        pipeline = HunyuanVideo15Pipeline(
            text_encoder=qwen.tiny_encoder(tokenizer), tokenizer=tokenizer, transformer=transformer, vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0), text_encoder_2=t5.tiny_encoder(letters),
            tokenizer_2=letters, guider=ClassifierFreeGuidance(),
        )  # fmt: skip
        return cls.of(
            pipeline, num_frames=5, height=32, width=32, num_inference_steps=2, guidance_scale=4.0,
            max_sequence_length=64, name="tiny_hunyuan_video_15",
        )  # fmt: skip
