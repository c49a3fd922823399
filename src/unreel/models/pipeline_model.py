"""PipelineModel: what all families share that diffusers has a pipeline for.

A family says how its pipeline is loaded and called, and where it differs from the first families, whose one CLIP text
encoder is read to the end by a UNet: what else it encodes, what its denoiser is called with, how its VAE sees time.
"""

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unreel.hashes import content_key, parameter_hashes
from unreel.models import latents as vaes
from unreel.models import schedules
from unreel.models.model import Conditioning, Model, Reading, cleaned
from unreel.models.padding import unpadded
from unreel.models.roles import select
from unreel.models.running import (
    Common,
    check_common,
    check_grid,
    computes_bfloat16,
    configured,
    fetched,
    frozen_copy,
    placed,
    reads,
    scale_factor,
    source_options,
    told_by,
)

_IN_MEMORY = "in memory"  # in place of a folder, of a pipeline that was given


class PipelineModel(Model):
    """A model in a diffusers pipeline; families say how it is loaded and called.

    Args:
        sources: what it is loaded from: "" -> (folder, revision) of the pipeline, and those of parts beside it.
        options: what the pipeline is called with beside prompts and generators; part of the content.
        fps: frames a second.
        num_frames: F.
        common: as in Common.

    Attributes:
        denoiser: the pipeline's name for it.
        shared_encoder: the pipeline's name for the text encoder that other families hold too, `text_encoder` of
            `components`; the pipeline's own `text_encoder` takes its place there.
        latent_axis: where latents of clips have their frames, 2; None of images.
        steps_flows: whether the pipeline itself steps schedulers of flow matching; elsewhere DPM-Solver does.
        temporal: whether the VAE reads clips whole and compresses their frames too; `options` have height and width.
        grid: of such a family: frames are one more than a multiple of the first, height and width one of the second.
        kind: the pipeline's class.
        asked: options that the pipeline's `encode_prompt` is called with; None where one CLIP text encoder is read,
            whose last state after its norm is all.
        encoded: what the pipeline's `encode_prompt` returns: name that `attended` and `predict` read it by -> place.
        projections: what stands between the embeddings and the cross-attention, in order: names in the denoiser.
        consulted: parts of which the pipeline asks something when it is made, and cannot be made without.
        held: what the pipeline is told when it is loaded, in place of `options`; part of the content too.

    Raises:
        ValueError: for a folder that is none, or a number that will not do. Nothing is loaded before it is used.
    """

    denoiser: ClassVar[str] = "unet"
    shared_encoder: ClassVar[str] = "text_encoder"
    latent_axis: ClassVar[int | None] = None
    steps_flows: ClassVar[bool] = False
    temporal: ClassVar[bool] = False
    grid: ClassVar[tuple[int, int]] = (1, 1)
    kind: ClassVar[type[DiffusionPipeline]] = DiffusionPipeline
    asked: ClassVar[tuple[str, ...] | None] = None
    encoded: ClassVar[Mapping[str, int]] = {"prompt_embeds": 0}
    projections: ClassVar[tuple[str, ...]] = ()
    consulted: ClassVar[tuple[str, ...]] = ()
    held: Mapping[str, Any] = {}

    def __init__(
        self,
        sources: Mapping[str, tuple[str | Path, str | None]],
        options: Mapping[str, Any],
        fps: int = 8,
        num_frames: int = 1,
        **common: Unpack[Common],
    ) -> None:
        check_common(common)
        name = common.get("name") or str(sources[""][0])
        dtype = common.get("dtype", "float32")
        for key, value in {**options, "fps": fps, "num_frames": num_frames}.items():
            counts = key.startswith("num_") or key in ("fps", "video_length")
            if counts and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: found {key}={value}: expected a whole number, 1 or more")
        if self.temporal:
            check_grid(name, num_frames, {key: options[key] for key in ("height", "width")}, *self.grid)
        given = sources[""][0] == _IN_MEMORY
        self.sources = {} if given else {key: source_options(*where, dtype) for key, where in sources.items()}
        self.options, self.name, self.dtype = dict(options), name, dtype
        self.fps, self.num_frames, self._device = fps, num_frames, torch.device(common.get("device", "cpu"))
        self.autocast = common.get("autocast", False)  # as wanted: what runs are known by, on whichever machine
        self.denoiser_dtype, self.timestep_spacing = common.get("denoiser_dtype"), common.get("timestep_spacing")
        self.checkpointing, self.group_offload = common.get("checkpointing", False), common.get("group_offload", False)
        self.vae_slicing, self.denoiser_storage = common.get("vae_slicing", False), common.get("denoiser_storage")
        self._pipeline: Any = None

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, **settings: Any) -> Self:
        """A model around a pipeline, where that is unless a `device` is given; `settings` as for the class."""
        model = cls(folder=_IN_MEMORY, **{"device": str(pipeline.device)} | settings)  # type: ignore[call-arg]
        model._pipeline = placed(model._prepared(pipeline), model._device, model.group_offload)
        return model

    def _load(self) -> Any:
        """The pipeline, from `sources`; families that are made of several parts put them together."""
        return self.kind.from_pretrained(**self.sources[""])

    def _prepared(self, pipeline: Any) -> Any:
        try:
            pipeline.scheduler = schedules.prepared(pipeline.scheduler, self.steps_flows, self.timestep_spacing)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        configured(self, getattr(pipeline, self.denoiser), getattr(pipeline, self.shared_encoder), pipeline)
        return pipeline

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:
            with torch.inference_mode(False), fetched(self.name, self.sources):  # inference's weights cannot be trained
                self._pipeline = placed(self._prepared(self._load()), self._device, self.group_offload)
        return self._pipeline

    def release(self) -> None:
        if self.sources:  # what was never loaded from anywhere cannot be loaded again
            self._pipeline = None
            gc.collect()  # what was trained, and with it the pipeline, is held by Lightning's circles of references

    @property
    def components(self) -> Mapping[str, Any]:
        pipeline, count = self.pipeline, 1 + sum(n.startswith("text_encoder_") for n in self.pipeline.components)
        encoders = ["text_encoder", *(f"text_encoder_{i}" for i in range(2, count + 1))]
        found = {key: getattr(pipeline, self.part(key)) for key in (*encoders, "denoiser", "vae")}
        return {key: module for key, module in found.items() if module is not None}

    def part(self, component: str) -> str:
        first, shared = "text_encoder", self.shared_encoder
        return {"denoiser": self.denoiser, first: shared, shared: first}.get(component, component)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.pipeline, self.shared_encoder.replace("text_encoder", "tokenizer"), None)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def prediction_type(self) -> str:
        """One of `schedules.PREDICTIONS`."""
        return schedules.prediction_type(self.pipeline.scheduler)

    @property
    def num_train_timesteps(self) -> int:  # type: ignore[override]
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def size_px(self) -> int:
        high, wide = self.latent_shape[-2:]
        if high != wide:
            raise ValueError(f"{self.name}: found frames of {wide} x {high} latents: shots are square, expected height"
                             " and width alike where a model is the donor")  # fmt: skip
        return high * scale_factor(self.pipeline, "spatial")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config, pipeline = self.components["denoiser"].config, self.pipeline
        if self.temporal:  # such a denoiser has no size of its own
            frames = (self.num_frames - 1) // scale_factor(pipeline, "temporal") + 1
            high, wide = (self.options[name] // scale_factor(pipeline, "spatial") for name in ("height", "width"))
            return (config.in_channels, frames, high, wide)
        edges = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else tuple(config.sample_size)
        return (config.in_channels, *(() if self.latent_axis is None else (self.num_frames,)), *edges)

    @property
    def reading(self) -> Reading:
        tokenizer, encoder = self.tokenizer, self.pipeline.text_encoder
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        return Reading(length, masked=bool(getattr(encoder.config, "use_attention_mask", None)))

    @property
    def asks(self) -> Mapping[str, Any] | None:
        """What the pipeline's `encode_prompt` is called with beside prompts; None as of `asked`."""
        return None if self.asked is None else {name: self.options[name] for name in self.asked}

    @cached_property
    def content(self) -> str:
        told = {key: told_by(source) for key, source in self.sources.items()}
        if not told or None in told.values():
            told = {key: content_key(weights=parameter_hashes(m)) for key, m in self.components.items()}
            told["schedule"] = content_key(**{k: str(v) for k, v in self.pipeline.scheduler.config.items()})
        return content_key(
            sources=told, options={**self.options, **self.held}, dtype=self.dtype, autocast=self.autocast,
            kind=type(self).__name__,
            denoiser_dtype=self.denoiser_dtype, timestep_spacing=self.timestep_spacing, vae_slicing=self.vae_slicing,
            denoiser_storage=self.denoiser_storage,
        )  # fmt: skip

    def encode_prompt(self, texts: Sequence[str]) -> Conditioning:
        """What the pipeline's own `encode_prompt` makes of the texts, whatever is attached to it now."""
        if self.asks is None:
            ids, mask = (t.to(self.device) for t in self.tokenized(texts))
            told = {"attention_mask": mask} if self.reading.masked else {}
            return Conditioning({"prompt_embeds": self.components["text_encoder"](ids, **told)[0]})
        asked = {"prompt": list(texts), "device": self.device, "do_classifier_free_guidance": False, **self.asks}
        with unpadded(self.components["text_encoder"], self.reading):
            found = type(self.pipeline).encode_prompt(self.pipeline, **asked)
        return Conditioning({name: found[place] for name, place in self.encoded.items()})

    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        reading = self.reading
        said = [reading.template.replace("{}", cleaned(self.pipeline, text)) for text in texts]
        tokens = self.tokenizer(
            said, padding="max_length", truncation=True, max_length=reading.max_length, return_tensors="pt"
        )
        return tokens.input_ids, tokens.attention_mask

    def attended(self, conditioning: Conditioning) -> Tensor:
        denoiser, embeds = self.components["denoiser"], conditioning["prompt_embeds"]
        modules = [denoiser.get_submodule(name) for name in self.projections]
        if modules:
            embeds = embeds.to(denoiser.dtype)
        for module in modules:
            embeds = module(embeds)
        return embeds

    @torch.no_grad()
    def encode_pixels(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        vae = self.components["vae"]
        found = vaes.encoded(vae, clips.to(self.device, vae.dtype), generator, self.temporal)
        return found[:, :, 0] if self.latent_axis is None else found

    def set_timesteps(self, scheduler: Any, num_inference_steps: int) -> None:
        scheduler.set_timesteps(num_inference_steps)

    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return schedules.sample_timesteps(self.pipeline.scheduler, count, generator, self.steps_flows)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return schedules.noised(self.pipeline.scheduler, latents, noise, timesteps, self.steps_flows)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        embeds = conditioning["prompt_embeds"].to(denoiser.dtype)
        return denoiser(noisy.to(denoiser.dtype), timesteps, encoder_hidden_states=embeds).sample.float()

    def render(self, prompts: Sequence[str] | Conditioning, seeds: Sequence[int]) -> Tensor:
        bfloat16 = self.autocast and computes_bfloat16(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            if not isinstance(prompts, Conditioning):
                return self._render(prompts, seeds)
            with reads(self.pipeline, prompts, self._given):
                return self._render([""] * prompts.count, seeds)

    def _given(self, own: Callable[..., Any], asked: Mapping[str, Any], rows: Conditioning) -> tuple[Any, ...]:
        """What `encode_prompt` returns for prompts that are read as `rows`.

        Args:
            own: encode_prompt as it was.
            asked: its arguments.
            rows: of these prompts.
        """
        found, denoiser = list(own(**asked)), self.components["denoiser"]
        for name, place in self.encoded.items():  # a denoiser may compute in another dtype than its weights are kept in
            dtype = denoiser.dtype if rows[name].is_floating_point() else rows[name].dtype
            found[place] = rows[name].to(self.device, dtype)
        return tuple(found)

    def _render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.pipeline(list(prompts), generator=generators, output_type="pt", **self.options)
        return self._clips(found).float().cpu()

    def _clips(self, found: Any) -> Tensor:
        """The clips in what the pipeline returned, (B, F, C, H, W)."""
        return found.frames if hasattr(found, "frames") else found.images[:, None]

    def select(self, roles: Sequence[str]) -> list[str]:
        return select({key: module for key, module in self.components.items() if key != "vae"}, roles)

    def reference(self, components: Sequence[str], shared: bool = False) -> Self:
        twin = copy.copy(self)
        twin._pipeline = copy.copy(self.pipeline)
        for key in components:
            setattr(twin._pipeline, self.part(key), frozen_copy(self.components[key], shared))
        return twin
