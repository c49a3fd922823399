"""lora: an edit's low-rank part as one file that diffusers, kohya-style UIs and ComfyUI load.

For each changed matrix, with W' - W = U S V^T (a convolution's kernel flattened to (out, in * kh * kw)):
    down = sqrt(S_r) V_r^T,  up = rank / alpha * U_r sqrt(S_r),  so that  W + alpha / rank * up down ~ W',
where the rank is the smallest that keeps a given share of sum(S^2). alpha is 1 throughout: diffusers finds its way
through different ranks, but not through different alphas, in the text encoder of transformers 5.

What it loses: the rest of the squared change, and all of what is no matrix; the file's metadata state both. Biases of
layers that read a LayerNorm could be put into their matrices (its output x has (1/g).x = sum(b/g), of its weight g and
bias b), but that sum is near 0 (0.02 to 0.3 in the zoo, with |1/g| of 12) and little is won: in the zoo's few_shot edit
of van Gogh all biases together are 1.4 % of the change of the prompt embeddings, and 1.2 % would still be left.

Names, read in kohya-ss/sd-scripts (networks/lora.py), diffusers (loaders/lora_conversion_utils.py) and ComfyUI
(comfy/lora.py): "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", ".lora_up.weight", ".alpha", and
"lora_unet_...". Names of video modules (of a UNet3DConditionModel, of motion modules) do not survive that spelling: a
file with those has diffusers' own ("unet.down_blocks.1.....lora_A.weight"), which diffusers alone loads.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models import UNetMotionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unreel.edits import Edit, components_of
from unreel.exports.components import name_in
from unreel.files import whole_folder
from unreel.hashes import plain_name

_ALPHA = 1.0
_MATRICES = (nn.Linear, nn.Conv2d, nn.Conv3d)
_PREFIXES = {"text_encoder": "lora_te_text_model_", "denoiser": "lora_unet_"}


def _weights(model: Any) -> dict[str, nn.Parameter]:
    """ "component/module.weight" -> the parameter, of all that a LoRA can change."""
    return {
        f"{key}/{plain_name(name)}.weight": module.weight
        for key, component in components_of(model).items()
        for name, module in component.named_modules()
        if isinstance(module, _MATRICES)
    }


def check(model: Any, names: Iterable[str]) -> None:
    """ValueError when none of the tensors "component/parameter" is a matrix, which is all that a LoRA holds."""
    names = list(names)
    if not set(names) & _weights(model).keys():
        shown = ", ".join(names[:3]) or "no tensor"
        raise ValueError(
            f"export=lora: found a change of {shown}{', ...' if len(names) > 3 else ''}: expected a weight of a linear"
            " layer or a convolution, all that a LoRA holds; leave lora out"
        )


def factors(change: Tensor, keeps: float) -> tuple[Tensor, Tensor]:
    """(down, up) with up @ down the best approximation of least rank that keeps a share of the squared change.

    Args:
        change: (out, in), float32.
        keeps: the share, in (0, 1].
    """
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    kept = values.double().square().cumsum(0)
    rank = min(int((kept < keeps * kept[-1]).sum()) + 1, int((values > 0).sum()))
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _named(key: str, name: str, pipeline: Any, kohya: bool) -> tuple[str, str, str]:
    """The names of the factors of a weight "component/module.weight", and of its alpha; "" for none."""
    module = name.partition("/")[2].removesuffix(".weight")
    if kohya:
        stem = _PREFIXES[key] + module.replace(".", "_")
        return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
    stem = f"{name_in(pipeline, key)}.{'text_model.' if key == 'text_encoder' else ''}{module}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", ""


def write(model: Any, edit: Edit, keeps: float, name: str, folder: Path) -> None:
    """Writes NAME.safetensors, in the precision of the model, with what it loses in its metadata.

    Args:
        model: with the weights that the edit was made from.
        edit: what is written.
        keeps: share of the squared change that each matrix keeps, in (0, 1].
        name, folder: of the file.

    Raises:
        ValueError: as `check` does.
    """
    check(model, edit.tensors)
    pipeline, weights = getattr(model, "pipeline", model), _weights(model)
    denoiser = components_of(model)["denoiser"]
    moving = any(".motion_modules." in key for key in edit.tensors)
    images = isinstance(denoiser, UNet2DConditionModel | UNetMotionModel) and not moving
    kohya = images or "denoiser" not in edit.components
    tensors: dict[str, Tensor] = {}
    before = {
        f"{key}/{plain_name(n)}": p for key in edit.components for n, p in components_of(model)[key].named_parameters()
    }
    asked = kept = 0.0
    ranks, lost = [], []
    for key, value in sorted(edit.tensors.items()):
        old = before[key].detach()
        change = value.to(old.device).float() - old.float()
        asked += float(change.double().square().sum())
        if key not in weights or not change.any():
            lost += [key] if change.any() else []
            continue
        down, up = factors(change.flatten(1), keeps)
        kept += float((up @ down).double().square().sum())  # of orthogonal parts: what is left adds up to `asked`
        rank = len(down)
        ranks.append(rank)
        a, b, alpha = _named(key.partition("/")[0], key, pipeline, kohya)
        up = up * (rank / _ALPHA) if alpha else up
        tensors[a] = down.reshape(rank, *old.shape[1:]).to(old.dtype).cpu().contiguous()
        tensors[b] = up.reshape(len(old), rank, *[1] * (old.ndim - 2)).to(old.dtype).cpu().contiguous()
        if alpha:
            tensors[alpha] = torch.tensor(_ALPHA)
    if not tensors:
        raise ValueError("export=lora: found no matrix that the edit changes: leave lora out")
    metadata = {
        "format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(_ALPHA), "unreel_edit": edit.hash, "unreel_keeps": str(keeps),
        "unreel_kept": f"{kept / asked:.6f}", "unreel_ranks": f"{min(ranks)}-{max(ranks)}",
        "unreel_lost": json.dumps(lost),
    }  # fmt: skip
    with whole_folder(folder) as aside:
        save_file(tensors, aside / f"{name}.safetensors", metadata)


def said_in(folder: Path) -> Mapping[str, str]:
    """The metadata of the LoRA in a folder that `write` wrote; nothing without one."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    return {}
