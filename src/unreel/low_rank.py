"""Low-rank changes of weights, as edits hold them: two small factors in the place of a large matrix.

    W' = W + B A,        A: (r, in),  B: (out, r)

The names are PEFT's: "text_encoder/encoder.layers.0.mlp.fc1.lora_A.weight" and ".lora_B.weight" change the weight
"text_encoder/encoder.layers.0.mlp.fc1.weight". The factor alpha / r that LoRA puts before B A is in B already.

Reference: Edward Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_ENDS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Factors:
    """A change of one weight: A (r, in) and B (out, r)."""

    down: Tensor
    up: Tensor

    def added_to(self, weight: Tensor) -> Tensor:
        """W + B A, computed in float32 where the weight is, in the weight's dtype; W to the bit where B A is 0."""
        down, up = (factor.to(weight.device, torch.float32) for factor in (self.down, self.up))
        change = up @ down
        return torch.where(change == 0, weight, (weight.float() + change).to(weight.dtype))


def names_of(weight: str) -> tuple[str, str]:
    """The names of the factors A and B of a weight "component/module.weight"."""
    stem = weight.removesuffix(".weight")
    return f"{stem}{_ENDS[0]}", f"{stem}{_ENDS[1]}"


def weight_of(name: str) -> str:
    """The weight that a tensor of an edit changes: of a factor the one that it belongs to, of all else itself."""
    end = next((end for end in _ENDS if name.endswith(end)), None)
    return name if end is None else f"{name.removesuffix(end)}.weight"


def weights_of(names: Iterable[str]) -> list[str]:
    """The weights that the tensors of an edit change, each once."""
    return list(dict.fromkeys(map(weight_of, names)))


def change_of(tensors: Mapping[str, Tensor], weight: str) -> Tensor | Factors | None:
    """What an edit's tensors make of a weight "component/parameter": a new value, factors, or nothing."""
    down, up = names_of(weight)
    if weight.endswith(".weight") and down in tensors and up in tensors:
        return Factors(tensors[down], tensors[up])
    return tensors.get(weight)


def misfit(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What of some tensors is no change of weights of these shapes, as "found ...: expected ..."; "" when all are.

    Args:
        tensors: new values and factors by name.
        shapes: "component/parameter" -> its shape.
    """
    for name, tensor in tensors.items():
        weight, found = weight_of(name), f"found {name[:100]} of shape {tuple(tensor.shape)}"
        shape = shapes.get(weight)
        if shape is None:
            return f"{found}: expected no such tensor"
        if name == weight:
            if tensor.shape != shape:
                return f"{found}: expected {tuple(shape)}"
            continue
        if len(shape) != 2 or weight in tensors:
            return f"{found}: expected no factor of {weight[:100]}"
        down, up = names_of(weight)
        pair = down in tensors and up in tensors and tensors[down].ndim == tensors[up].ndim == 2
        rank = len(tensors[down]) if pair else 0
        if not pair or tensors[down].shape != (rank, shape[1]) or tensors[up].shape != (shape[0], rank) or not rank:
            return f"{found}: expected the factors (r, {shape[1]}) and ({shape[0]}, r) of {weight[:100]}"
    return ""
