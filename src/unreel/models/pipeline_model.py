"""PipelineModel: what all families share that diffusers has a pipeline for, with one text encoder and one VAE."""

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from torch import Tensor, nn

from unreel.hashes import content_key, folder_hash, parameter_hashes
from unreel.models.model import Conditioning, Model, Reading
from unreel.models.roles import select
from unreel.models.running import (
    Common,
    check_common,
    checkpointed,
    computes_bfloat16,
    computing_in,
    kept_in_8_bits,
    source_options,
)

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
_IN_MEMORY = "in memory"  # in place of a folder, of a pipeline that was given


class PipelineModel(Model):
    """A model in a diffusers pipeline; families say how it is loaded and called.

    Args:
        sources: what it is loaded from: "" -> (folder, revision) of the pipeline, and those of parts beside it.
        options: what the pipeline is called with beside prompts and generators; part of the content.
        fps: frames a second.
        num_frames: F.
        common: as in Common.

    Raises:
        ValueError: for a folder that is none, or a number that will not do. Nothing is loaded before it is used.
    """

    denoiser: ClassVar[str] = "unet"  # the pipeline's name for it
    latent_axis: ClassVar[int | None] = None  # where latents of clips have their frames; None of images

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
        """A model around a pipeline that is there already; `settings` as for the class, without any folder."""
        model = cls(folder=_IN_MEMORY, **settings)  # type: ignore[call-arg]
        model._pipeline = model._prepared(pipeline)
        return model

    @abstractmethod
    def _load(self) -> Any:
        """The pipeline, from `sources`."""

    def _prepared(self, pipeline: Any) -> Any:
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.eval().requires_grad_(False)
        if "FlowMatch" in type(pipeline.scheduler).__name__:  # no pipeline of these classes steps those
            shift = pipeline.scheduler.config.get("shift", 1.0)
            pipeline.scheduler = DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
            )
        found = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if found not in PREDICTIONS:
            raise ValueError(f"{self.name}: found prediction type {found!r}: expected {', '.join(PREDICTIONS)}")
        if (spacing := self.timestep_spacing) is not None:
            kind, config = type(pipeline.scheduler), pipeline.scheduler.config
            pipeline.scheduler = kind.from_config(config, timestep_spacing=spacing)
        denoiser = getattr(pipeline, self.denoiser)
        if self.denoiser_dtype is not None:
            computing_in(denoiser, getattr(torch, self.denoiser_dtype))
        if self.denoiser_storage is not None:
            kept_in_8_bits(denoiser)
        if self.checkpointing:
            checkpointed(denoiser, pipeline.text_encoder)
        if self.vae_slicing:
            pipeline.vae.enable_slicing()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:
            with torch.inference_mode(False):  # or weights that are first asked for by `render` could not be trained
                self._pipeline = self._placed(self._prepared(self._load()))
        return self._pipeline

    def _placed(self, pipeline: Any) -> Any:
        """The pipeline on its device; with `group_offload` only the text encoder, which edits write to."""
        if not self.group_offload:
            return pipeline.to(self._device)
        streams = self._device.type == "cuda"
        pipeline.enable_group_offload(
            self._device, offload_type="leaf_level", use_stream=streams, exclude_modules=["text_encoder"]
        )
        return pipeline

    def release(self) -> None:
        if self.sources:  # what was never loaded from anywhere cannot be loaded again
            self._pipeline = None

    @property
    def components(self) -> Mapping[str, Any]:
        pipeline = self.pipeline
        return {
            "text_encoder": pipeline.text_encoder, "denoiser": getattr(pipeline, self.denoiser), "vae": pipeline.vae
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def prediction_type(self) -> str:
        """One of PREDICTIONS."""
        return self.pipeline.scheduler.config.get("prediction_type", "epsilon")

    @property
    def num_train_timesteps(self) -> int:  # type: ignore[override]
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def size_px(self) -> int:
        return int(self.latent_shape[-1]) * int(self.pipeline.vae_scale_factor)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.components["denoiser"].config
        edges = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else tuple(config.sample_size)
        frames = () if self.latent_axis is None else (self.num_frames,)
        return (config.in_channels, *frames, *edges)

    @property
    def reading(self) -> Reading:
        tokenizer, encoder = self.pipeline.tokenizer, self.pipeline.text_encoder
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        return Reading(length, masked=bool(getattr(encoder.config, "use_attention_mask", None)))

    @cached_property
    def content(self) -> str:
        told = {key: self._told_by(source) for key, source in self.sources.items()}
        if not told or None in told.values():
            told = {key: content_key(weights=parameter_hashes(m)) for key, m in self.components.items()}
            told["schedule"] = content_key(**{k: str(v) for k, v in self.pipeline.scheduler.config.items()})
        return content_key(
            sources=told, options=self.options, dtype=self.dtype, autocast=self.autocast, kind=type(self).__name__,
            denoiser_dtype=self.denoiser_dtype, timestep_spacing=self.timestep_spacing, vae_slicing=self.vae_slicing,
            denoiser_storage=self.denoiser_storage,
        )  # fmt: skip

    @staticmethod
    def _told_by(source: Mapping[str, Any]) -> str | None:
        """What a folder or a pinned hub id says of its content; None of a hub id without a revision."""
        where = source["pretrained_model_name_or_path"]
        if source["local_files_only"]:
            return folder_hash(Path(where))
        return f"{where}@{source['revision']}" if source["revision"] else None

    def encode_prompt(self, texts: Sequence[str]) -> Conditioning:
        """The last hidden state after the final norm, padded to the full length: prompt_embeds (B, L, D)."""
        encoder, reading = self.components["text_encoder"], self.reading
        tokens = self.pipeline.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=reading.max_length, return_tensors="pt"
        )
        mask = {"attention_mask": tokens.attention_mask.to(self.device)} if reading.masked else {}
        return Conditioning({"prompt_embeds": encoder(tokens.input_ids.to(self.device), **mask)[0]})

    @torch.no_grad()
    def encode_pixels(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        vae = self.components["vae"]
        posterior = vae.encode(clips.flatten(0, 1).to(self.device, vae.dtype)).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        latents = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
        frames = latents.unflatten(0, clips.shape[:2])
        return frames[:, 0] if self.latent_axis is None else frames.movedim(1, self.latent_axis)

    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_train_timesteps, (count,), generator=generator)

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

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._signal(timesteps, latents)
        target = {
            "epsilon": noise, "sample": latents, "v_prediction": alpha * noise - sigma * latents,
            "flow_prediction": noise - latents,
        }[self.prediction_type]  # fmt: skip
        return alpha * latents + sigma * noise, target.float()

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser = self.components["denoiser"]
        embeds = conditioning["prompt_embeds"].to(denoiser.dtype)
        return denoiser(noisy.to(denoiser.dtype), timesteps, encoder_hidden_states=embeds).sample.float()

    def render(self, prompts: Sequence[str] | Conditioning, seeds: Sequence[int]) -> Tensor:
        bfloat16 = self.autocast and computes_bfloat16(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            if not isinstance(prompts, Conditioning):
                return self._render(prompts, seeds)
            with self._reads(prompts):
                return self._render([""] * prompts.count, seeds)

    @contextmanager
    def _reads(self, conditioning: Conditioning) -> Iterator[None]:
        """Inside the `with` block the pipeline's prompts are read as the given embeddings, in their order."""
        pipeline, embeds = self.pipeline, list(conditioning["prompt_embeds"])
        kept, own = vars(pipeline).get("encode_prompt"), pipeline.encode_prompt
        denoiser = self.components["denoiser"]  # which computes in another dtype than its weights may be kept in

        def encode_prompt(prompt: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            _, negative = own(prompt, *args, **kwargs)
            count = 1 if isinstance(prompt, str) else len(prompt)
            return torch.stack([embeds.pop(0) for _ in range(count)]).to(self.device, denoiser.dtype), negative

        pipeline.encode_prompt = encode_prompt
        try:
            yield
        finally:
            if kept is None:
                del pipeline.encode_prompt
            else:  # what an edit attached
                pipeline.encode_prompt = kept

    def _render(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.pipeline(list(prompts), generator=generators, output_type="pt", **self.options)
        return self._clips(found).float().cpu()

    def _clips(self, found: Any) -> Tensor:
        """The clips in what the pipeline returned, (B, F, C, H, W)."""
        return found.frames

    def select(self, roles: Sequence[str]) -> list[str]:
        return select({key: self.components[key] for key in ("text_encoder", "denoiser")}, roles)

    def reference(self, components: Sequence[str], shared: bool = False) -> Self:
        twin = copy.copy(self)
        twin._pipeline = copy.copy(self.pipeline)
        for key in components:
            name = self.denoiser if key == "denoiser" else key
            own = self.components[key]
            kept = {id(p): p for p in (*own.parameters(), *own.buffers())} if shared else {}
            setattr(twin._pipeline, name, copy.deepcopy(own, kept).eval().requires_grad_(False))
        return twin
