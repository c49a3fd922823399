"""How a pipeline is loaded and run: what all families take beside their own options, and how it is carried out."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.modeling_utils import ModelMixin
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from typing_extensions import TypedDict  # which pydantic asks for below Python 3.12

from unreel.hashes import folder_hash
from unreel.models.model import Conditioning
from unreel.validation import STRICT, check_model_folder, is_local, told


class Common(TypedDict, total=False):
    """How a pipeline runs: arguments that all families take.

    Attributes:
        name: what scores call it; the folder, unless it is given.
        dtype: of the weights; float32 unless it is given. In bfloat16 nothing but low-rank factors is trained beside
            them, and they are known again where the files hold bfloat16, too: others are rounded otherwise.
        denoiser_dtype: of the denoiser's weights and of all that it computes, if another one. Nothing may edit it then.
        denoiser_storage: "float8" keeps the denoiser's weights, those of its norms aside, rounded to 8 bits each
            (torch.float8_e4m3fn); a layer computes in the dtype that they had. Recipients only; nothing may edit it.
        autocast: whether the large operations of a float32 pipeline are done in bfloat16 when it renders, where the
            machine can; the weights, the latents and the schedule stay as they are.
        checkpointing: whether a training keeps the inputs of blocks and layers alone, of denoiser and text encoder, and
            computes what is inside of them once more on the way back (Chen et al. 2016, arXiv 1604.06174).
        vae_slicing: whether the VAE decodes one frame at a time, which takes less memory.
        group_offload: whether the weights of denoiser and VAE wait in the CPU's memory and visit the device layer by
            layer, which is slow; recipients only, as nothing that is trained may come and go.
        timestep_spacing: how the steps are spread over the schedule, as diffusers' schedulers call it. "trailing"
            begins with pure noise however few they are (Lin et al. 2023, arXiv 2305.08891); None leaves the model's.
        device: where it runs; the CPU unless it is given.
        encoder: which text encoder its authors say it has: for the table of known pairs and hints, nothing else.
    """

    __pydantic_config__ = STRICT | {"extra": "forbid"}  # type: ignore[misc]
    name: str
    dtype: Literal["float32", "float16", "bfloat16"]
    denoiser_dtype: Literal["float32", "float16", "bfloat16"] | None
    denoiser_storage: Literal["float8"] | None
    autocast: bool
    checkpointing: bool
    vae_slicing: bool
    group_offload: bool
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None
    device: str
    encoder: str


def check_common(given: Common) -> None:
    """ValueError for an argument that families do not take, or a value of another type than it has."""
    try:
        TypeAdapter(Common).validate_python(given)
    except ValidationError as error:
        raise ValueError(told(error)) from None


def check_grid(name: str, num_frames: int, edges: Mapping[str, int], frames: int, px: int) -> None:
    """ValueError for clips of a size that a VAE and a denoiser cannot cut into their latents and patches.

    Args:
        name: of the model.
        num_frames: F, which is to be 1 and a multiple of `frames`.
        edges: height and width in px, multiples of `px`.
        frames, px: of the family.
    """
    if (num_frames - 1) % frames:
        least = num_frames - (num_frames - 1) % frames
        raise ValueError(
            f"{name}: found num_frames={num_frames}: expected one more than a multiple of {frames}, as {least} or"
            f" {least + frames}"
        )
    for key, edge in edges.items():
        if edge % px or not edge:
            raise ValueError(f"{name}: found {key}={edge}: expected a multiple of {px}")


def checkpointed(denoiser: nn.Module, text_encoder: nn.Module) -> None:
    """Switches checkpointing on in both; all else of them stays in eval mode."""
    denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    text_encoder.activation_checkpointing_enable()  # type: ignore[operator]
    for module in text_encoder.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # which it asks for; dropout belongs to the modules inside of it


def computing_in(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with weights of this dtype, which takes tensors of any other and gives them back in theirs."""

    def cast(value: Any, to: torch.dtype) -> Any:
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(to) if floats else tuple(cast(v, to) for v in value) if isinstance(value, tuple) else value

    given = [dtype]  # of the tensors that it was last called with

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given[0] = (args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]).dtype
        return cast(args, dtype), {name: cast(value, dtype) for name, value in kwargs.items()}

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return cast(output, given[0])
        output.sample = cast(output.sample, given[0])
        return output

    if next(module.parameters()).dtype != dtype:
        module.to(dtype)
    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after)
    return module


def kept_in_8_bits(denoiser: nn.Module) -> None:
    """Keeps weights as float8_e4m3fn and casts each layer's, while it computes, to the dtype that they have now."""
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn)  # type: ignore[operator]


def configured(asked: Any, denoiser: nn.Module, text_encoder: nn.Module, pipeline: Any) -> None:
    """Freezes a pipeline, silences it, and has it run as asked.

    Args:
        asked: has the attributes of Common.
        denoiser, text_encoder: of the pipeline.
        pipeline: not on its device yet.
    """
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.eval().requires_grad_(False)
    if asked.denoiser_dtype is not None:
        computing_in(denoiser, getattr(torch, asked.denoiser_dtype))
    if asked.denoiser_storage is not None:
        kept_in_8_bits(denoiser)
    if asked.checkpointing:
        checkpointed(denoiser, text_encoder)
    if asked.vae_slicing:
        pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)


def source_options(folder: str | Path, revision: str | None, dtype: str) -> dict[str, Any]:
    """Arguments of a diffusers `from_pretrained`: safetensors only, and no network for a path.

    Args:
        folder: a local diffusers folder ("~" is the home folder), or the id of a hub model.
        revision: of a hub id.
        dtype: float32 or float16.

    Raises:
        ValueError: for a path that is no pipeline's or model's folder.
    """
    path, local = Path(folder).expanduser(), is_local(folder)
    check_model_folder(folder)
    return {
        "pretrained_model_name_or_path": str(path) if local else str(folder),
        "revision": None if local else revision,
        "local_files_only": local,
        "use_safetensors": True,
        "dtype": getattr(torch, dtype),
    }


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16 there; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def frozen_copy(module: nn.Module, shared: bool) -> nn.Module:
    """A copy in eval mode that takes no gradient; with `shared` a module of its own around the same weights."""
    kept = {id(p): p for p in (*module.parameters(), *module.buffers())} if shared else {}
    return copy.deepcopy(module, kept).eval().requires_grad_(False)


def placed(pipeline: Any, device: torch.device, group_offload: bool) -> Any:
    """The pipeline on its device; with `group_offload` only the text encoders, which edits write to."""
    if not group_offload:
        return pipeline.to(device)
    encoders = [name for name in pipeline.components if name.startswith("text_encoder")]
    pipeline.enable_group_offload(
        device, offload_type="leaf_level", use_stream=device.type == "cuda", exclude_modules=encoders
    )
    return pipeline


@contextmanager
def fetched(name: str, sources: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Inside the `with` block, a model of the hub that cannot be had is told in one line, with what to do.

    Args:
        name: of the model.
        sources: what it is loaded from.

    Raises:
        OSError: where a hub id is neither whole in the hub's cache nor can be fetched.
    """
    hub = [str(s["pretrained_model_name_or_path"]) for s in sources.values() if not s["local_files_only"]]
    try:
        yield
    except OSError as error:
        if error.errno or not hub:  # the machine's own, such as a full disk
            raise
        raise OSError(
            f"{name}: found {' and '.join(hub)} neither whole on this machine nor on a hub that can be reached"
            f" ({str(error).split(' (')[0]:.160}): expected a connection to the hub, once, or a local diffusers folder"
            " as its folder=FOLDER"
        ) from error


def told_by(source: Mapping[str, Any]) -> str | None:
    """What a folder or a pinned hub id says of its content; None of a hub id without a revision."""
    where = source["pretrained_model_name_or_path"]
    if source["local_files_only"]:
        return folder_hash(Path(where))
    return f"{where}@{source['revision']}" if source["revision"] else None


def beside(part: str, folder: str | Path | None, kind: type[ModelMixin]) -> dict[str, tuple[str | Path, None]]:
    """Where a part comes from that takes the place of the pipeline's own, by its name; nothing without a folder.

    Raises:
        ValueError: for a folder that holds no model.
    """
    if folder is None:
        return {}
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise ValueError(f"{folder}: expected the folder of a {kind.__name__}")
    return {part: (folder, None)}


def scale_factor(pipeline: Any, axis: Literal["spatial", "temporal"]) -> int:
    """How many px, or frames, are one of the pipeline's latents."""
    names = (
        f"vae_scale_factor_{axis}", f"vae_{axis}_compression_ratio", f"vae_{axis}_scale_factor", "vae_scale_factor",
    )  # fmt: skip
    return int(next(getattr(pipeline, name) for name in names if hasattr(pipeline, name)))


@contextmanager
def reads(pipeline: Any, conditioning: Conditioning, given: Callable[..., Any]) -> Iterator[None]:
    """Inside the `with` block the pipeline's prompts are read as the given conditioning, in their order.

    Calls without a prompt, as some pipelines make for the empty one of guidance, are left alone.

    Args:
        pipeline: whose `encode_prompt` gives way.
        conditioning: of all prompts that it is going to be called with.
        given: what `encode_prompt` returns: gets itself as it was, its arguments by name, and the prompts' rows.
    """
    places, kept, own = iter(range(conditioning.count)), vars(pipeline).get("encode_prompt"), pipeline.encode_prompt
    signature = inspect.signature(own)

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        asked = dict(signature.bind(*args, **kwargs).arguments)
        asked |= asked.pop("kwargs", {})
        if asked["prompt"] is None:
            return own(*args, **kwargs)
        count = 1 if isinstance(asked["prompt"], str) else len(asked["prompt"])
        return given(own, asked, conditioning.rows([next(places) for _ in range(count)]))

    pipeline.encode_prompt = encode_prompt
    try:
        yield
    finally:
        if kept is None:
            del pipeline.encode_prompt
        else:  # what an edit attached
            pipeline.encode_prompt = kept
