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
"lora_unet_...". Nothing loads a LoRA of a UNet3DConditionModel (diffusers has no `load_lora_adapter` there, so that its
TextToVideoSDPipeline takes one of the text encoder by `load_lora_into_text_encoder` alone), and names of AnimateDiff's
motion modules do not survive that spelling: changes of those are lost.
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

from unreel.edits import Edit
from unreel.files import whole_folder
from unreel.hashes import plain_name
from unreel.low_rank import Factors, change_of
from unreel.weights import components_of

_ALPHA = 1.0
_MATRICES = (nn.Linear, nn.Conv2d)
_READERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # of a text encoder, those that all loaders know
_PREFIXES = {"text_encoder": "lora_te_text_model_", "denoiser": "lora_unet_"}


def _held(model: Any) -> set[str]:
    """The names "component/module.weight" of all weights that a LoRA in this spelling can change."""
    found = components_of(model)
    loaded = isinstance(found["denoiser"], UNet2DConditionModel | UNetMotionModel)
    return {
        f"{key}/{plain_name(name)}.weight"
        for key in (["text_encoder", "denoiser"] if loaded else ["text_encoder"])
        for name, module in found[key].named_modules()
        if isinstance(module, _MATRICES) and ".motion_modules." not in name
        if key == "denoiser" or name.rpartition(".")[2] in _READERS
    }


def check(model: Any, names: Iterable[str]) -> None:
    """ValueError when none of the tensors "component/parameter" is a matrix that a LoRA holds."""
    names = list(names)
    if not set(names) & _held(model):
        shown = ", ".join(names[:3]) or "no tensor"
        raise ValueError(
            f"export=lora: found a change of {shown}{', ...' if len(names) > 3 else ''}: expected a weight of a linear"
            " layer or a convolution, of a text encoder or of an image's UNet, all that a LoRA holds; leave lora out"
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


def _spelled(key: str, down: Tensor, up: Tensor, like: Tensor) -> dict[str, Tensor]:
    """Names and tensors in the file of the factors (rank, in) and (out, rank) of a weight "component/module.weight"."""
    component, _, parameter = key.partition("/")
    stem, rank = _PREFIXES[component] + parameter.removesuffix(".weight").replace(".", "_"), len(down)
    shaped = {
        "lora_down": down.reshape(rank, *like.shape[1:]),
        "lora_up": up.mul(rank / _ALPHA).reshape(len(like), rank, *[1] * (like.ndim - 2)),
    }
    named = {f"{stem}.{name}.weight": value.to("cpu", like.dtype).contiguous() for name, value in shaped.items()}
    return named | {f"{stem}.alpha": torch.tensor(_ALPHA)}


def write(model: Any, edit: Edit, keeps: float, name: str, folder: Path) -> None:
    """Writes NAME.safetensors, in the precision of the model, with what it loses in its metadata.

    Factors that the edit holds itself are written as they are, and lose nothing.

    Args:
        model: with the weights that the edit was made from.
        edit: what is written.
        keeps: share of the squared change that each other matrix keeps, in (0, 1].
        name, folder: of the file.

    Raises:
        ValueError: as `check` does.
    """
    check(model, edit.changed)
    held, found = _held(model), components_of(model)
    before = {f"{key}/{plain_name(n)}": p for key in edit.components for n, p in found[key].named_parameters()}
    asked = kept = 0.0
    tensors: dict[str, Tensor] = {}
    ranks, lost = [], []
    for key in sorted(edit.changed):
        old, value = before[key].detach(), change_of(edit.tensors, key)
        assert value is not None
        if isinstance(value, Factors):
            down, up = value.down.float(), value.up.float()
            size = float(((up.T @ up) * (down @ down.T)).double().sum())  # the squared norm of B A
        else:
            change = value.to(old.device).float() - old.float()
            size = float(change.double().square().sum())
        asked += size
        if not size:
            continue
        if key not in held:
            lost.append(key)
            continue
        if not isinstance(value, Factors):
            down, up = factors(change.flatten(1), keeps)
            size = float((up @ down).double().square().sum())  # parts of an SVD are orthogonal: shares add up
        kept += size
        ranks.append(len(down))
        tensors |= _spelled(key, down, up, old)
    if not tensors:
        raise ValueError("export=lora: found no matrix that the edit changes: leave lora out")
    outputs = [key for key in sorted(held) if key.startswith("text_encoder/") and key.endswith(".out_proj.weight")]
    if any("_self_attn_" in name for name in tensors) and not any("_out_proj." in name for name in tensors):
        old = before[outputs[0]].detach()  # diffusers knows this spelling of q, k and v by an out_proj beside them
        tensors |= _spelled(outputs[0], old.new_zeros(1, old.shape[1]), old.new_zeros(len(old), 1), old)
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
