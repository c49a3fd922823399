"""comfyui: an edited text encoder and an edited UNet as single files, for the folders of those names in ComfyUI/models.

Names, read in comfyanonymous/ComfyUI: a text encoder's begin with "text_model.encoder.layers." (comfy/sd.py,
`detect_te_model`), a UNet's are those of diffusers (comfy/model_detection.py, `unet_config_from_diffusers_unet`, which
maps them to its own).

ComfyUI tells a model by its size, so that what is loaded has to be one that it knows: a text encoder with 12 layers is
taken for CLIP ViT-L (Stable Diffusion 1), with 23 for ViT-H (2), with 31 for ViT-G; a UNet has to have the widths of
Stable Diffusion 1, 2 or XL. The zoo's models are none of these: their files have the right names, but no ComfyUI runs
them. It knows neither UNet3DConditionModel nor UNetMotionModel; its AnimateDiff nodes take the image model's UNet.
"""

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from unreel.files import whole_folder
from unreel.hashes import plain_name
from unreel.weights import components_of

PLACES = {"text_encoder": "text_encoders", "denoiser": "diffusion_models"}  # component -> folder in ComfyUI/models


def check(model: Any, components: tuple[str, ...]) -> None:
    """ValueError for a component that ComfyUI has no loader for, or that is not written for it, naming what is."""
    found = components_of(model)
    for key in components:
        if key not in PLACES:
            raise ValueError(f"export=comfyui: found an edit of {key}: expected one of {' or '.join(PLACES)}")
        if key == "denoiser" and not isinstance(found[key], UNet2DConditionModel):
            raise ValueError(
                f"export=comfyui: found a {type(found[key]).__name__}, which ComfyUI does not load: expected the UNet"
                " of an image model; leave comfyui out"
            )
        if key == "text_encoder" and not isinstance(found[key], CLIPTextModel | CLIPTextModelWithProjection):
            raise ValueError(
                f"export=comfyui: found a {type(found[key]).__name__}: expected a CLIP text encoder; leave comfyui out"
            )


def write(model: Any, components: tuple[str, ...], name: str, folder: Path) -> None:
    """Writes components as they are now, in their own precision: text_encoders/NAME.safetensors, diffusion_models/...

    Raises:
        ValueError: as `check` does.
    """
    check(model, components)
    found = components_of(model)
    with whole_folder(folder) as aside:
        for key in components:
            prefix = "text_model." if isinstance(found[key], CLIPTextModel) else ""
            tensors = {
                f"{prefix}{plain_name(n)}": value.detach().cpu().contiguous()
                for n, value in found[key].state_dict().items()
            }
            place = aside / PLACES[key]
            place.mkdir()
            save_file(tensors, place / f"{name}.safetensors", {"format": "pt"})
