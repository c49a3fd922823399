"""LoRA: gradient methods train two small factors beside each matrix in the place of the matrix itself.

    W' = W + alpha / r B A,     A: (r, in), random at first,     B: (out, r), 0 at first

so that the training begins with the model as it was, to the bit, keeps its base weights, which the frozen reference
shares, and leaves an edit of a few hundredths of the size. The trust region of the guard rails goes back along the way
that W' came: it halves B and leaves A alone, which halves B A, where both halved would quarter it.

Reference: Edward Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685; as in
PEFT, https://github.com/huggingface/peft.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from unreel.hashes import plain_name
from unreel.low_rank import names_of
from unreel.models.model import Model
from unreel.validation import checked


@checked
class LoRA:
    """Which changes a training may make of the weights that `parameters.roles` chooses: those of low rank.

    Attributes:
        rank: r.
        alpha: alpha / r is the factor before B A.

    Raises:
        ValueError: for numbers that will not do, and where PEFT is not installed.
    """

    rank: PositiveInt
    alpha: PositiveInt

    def __post_init__(self) -> None:
        if find_spec("peft") is None:
            raise ValueError(
                'found parameters.lora without peft: pip install -e ".[lora]", or another parameters=NAME, as'
                " parameters=mlp"
            )

    def matrices(self, model: Model, roles: Sequence[str]) -> list[str]:
        """The weights "component/module.weight" with these roles that get factors: those of linear layers.

        Raises:
            ValueError: when there is none, or one is smaller than its factors.
        """
        chosen = model.select(roles)
        found = {
            f"{key}/{name}.weight": min(module.weight.shape)
            for key in dict.fromkeys(name.partition("/")[0] for name in chosen)
            for name, module in model.components[key].named_modules()
            if isinstance(module, nn.Linear)
        }
        held = [name for name in chosen if name in found]
        if not held:
            raise ValueError(
                f"found parameters.roles={list(roles)} with parameters.lora: expected a role of linear layers, all that"
                " LoRA changes, as mlp or attention"
            )
        if small := [name for name in held if found[name] < self.rank]:
            raise ValueError(
                f"found parameters.lora.rank={self.rank}: expected at most {found[small[0]]}, the smaller side of"
                f" {small[0]}"
            )
        return held


class LowRank:
    """Factors in their places in a model, until `take_out`; the model's own weights never change.

    Args:
        lora: their sizes.
        model: gets them.
        roles: of which weights.
        seed: of A.
    """

    def __init__(self, lora: LoRA, model: Model, roles: Sequence[str], seed: int) -> None:
        import peft  # of the extra `lora`
        from peft.tuners.lora import LoraLayer

        self.parameters: dict[str, nn.Parameter] = {}
        self._tuners: list[Any] = []
        self._scale = lora.alpha / lora.rank
        matrices = lora.matrices(model, roles)
        for key in dict.fromkeys(name.partition("/")[0] for name in matrices):
            layers = [n.partition("/")[2].removesuffix(".weight") for n in matrices if n.startswith(f"{key}/")]
            options = peft.LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules="|".join(map(re.escape, layers))
            )  # fmt: skip
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._tuners.append(peft.LoraModel(model.components[key], options, "default"))
            for name, layer in model.components[key].named_modules():
                if isinstance(layer, LoraLayer):
                    down, up = names_of(f"{key}/{plain_name(name)}.weight")
                    own: Any = layer
                    for factors in (own.lora_A, own.lora_B):
                        factors["default"].float()  # beside coarser weights too: Adam's steps are small
                    self.parameters |= {down: own.lora_A["default"].weight, up: own.lora_B["default"].weight}

    def tensors(self) -> dict[str, Tensor]:
        """The factors as an edit holds them, on the CPU: alpha / r is in B."""
        found = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        return {name: self._scale * t if _is_up(name) else t for name, t in found.items()}

    def origin(self, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state without any change that is nearest: B as it was before, A as it is.

        Half way to it is half of the change.
        """
        return {name: before[name] if _is_up(name) else p.detach().clone() for name, p in self.parameters.items()}

    def take_out(self) -> None:
        """Leaves the model as it was."""
        for tuner in self._tuners:
            tuner.unload()
        self._tuners = []


def _is_up(name: str) -> bool:
    return name.endswith(".lora_B.weight")
