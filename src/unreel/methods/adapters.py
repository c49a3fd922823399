"""Adapters: small modules behind attention layers of a denoiser, which add to what the layers return.

    h <- h + w A(h),        A(h) = W_up GELU(W_down h),        W_down: D -> r,  W_up: r -> D,  W_up = 0 at first

h is what an attention layer returns for the visual tokens: all of it, or the first of several things where the text
goes through the same layer (joint attention); what a layer returns for the text stays as it is.

Reference: Chi-Pin Huang et al., "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight
Erasers", ECCV 2024, arXiv 2311.17717, after Neil Houlsby et al., ICML 2019, arXiv 1902.00751.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unreel.edits import ATTACHED, Edit
from unreel.weights import components_of

PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")
Heard = Callable[[str, Tensor], None]


class Adapter(nn.Module):
    """A(h) of h (..., D).

    Args:
        width: D.
        rank: r.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.up(functional.gelu(self.down(hidden.to(self.down.weight.dtype)))).to(hidden.dtype)


class Adapters(nn.ModuleDict):
    """An adapter for each of some layers. Its keys are the layers' names with "/" for ".", which keys cannot have.

    Args:
        widths: name of a layer -> D of what it returns.
        rank: r.
    """

    def __init__(self, widths: Mapping[str, int], rank: int) -> None:
        super().__init__({name.replace(".", "/"): Adapter(width, rank) for name, width in widths.items()})

    @classmethod
    def of_edit(cls, edit: Edit) -> "Adapters":
        """Those that an edit holds, frozen; its tensors are not shared with it."""
        values = _attached(edit)
        with torch.device("meta"):
            made = cls({n[: -len(".up.bias")]: len(t) for n, t in values.items() if n.endswith(".up.bias")},
                       edit.settings["rank"])  # fmt: skip
        made.load_state_dict({name: tensor.clone() for name, tensor in values.items()}, assign=True)
        return made.requires_grad_(False)

    @contextmanager
    def attached(self, denoiser: nn.Module, weight: float = 1.0, heard: Heard | None = None) -> Iterator[None]:
        """Inside the `with` block the adapters add to what their layers return.

        Args:
            denoiser: has layers of these names.
            weight: w; at 0 nothing is attached at all.
            heard: gets each layer's key and w A(h), as they are made.
        """

        def behind(key: str, adapter: nn.Module) -> Callable[..., Any]:
            def hook(_layer: nn.Module, _args: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                added = weight * adapter.to(hidden.device)(hidden)  # where weights come and go
                if heard is not None:
                    heard(key, added)
                return (hidden + added, *output[1:]) if isinstance(output, tuple) else hidden + added

            return hook

        self.to(next(denoiser.parameters()).device)  # not while it renders: inference's weights cannot be trained
        with ExitStack() as stack:
            for key, adapter in self.items() if weight else ():
                layer = denoiser.get_submodule(key.replace("/", "."))
                stack.callback(layer.register_forward_hook(behind(key, adapter)).remove)
            yield


def _attached(edit: Edit) -> dict[str, Tensor]:
    return {n.removeprefix(ATTACHED): tensor for n, tensor in edit.tensors.items() if n.startswith(ATTACHED)}


def denoiser_of(target: Any) -> nn.Module:
    """The denoiser of a diffusers pipeline, or the module itself where it is given alone."""
    return target if isinstance(target, nn.Module) else components_of(target)["denoiser"]


def width_of(layer: nn.Module) -> int:
    """D of what an attention layer of diffusers returns."""
    outward = getattr(layer, "to_out", None)
    return int(outward[0].out_features if outward is not None else layer.to_q.in_features)  # type: ignore[union-attr,arg-type]


def check(denoiser: nn.Module, edit: Edit) -> None:
    """ValueError unless an edit's adapters fit layers of a denoiser, naming the first tensor that does not."""
    rank, layers = edit.settings["rank"], dict(denoiser.named_modules())
    found = {name: tuple(tensor.shape) for name, tensor in _attached(edit).items()}
    expected: dict[str, tuple[int, ...]] = {}
    for key in dict.fromkeys(name.partition(".")[0] for name in found):
        layer = layers.get(key.replace("/", "."))
        if layer is not None and hasattr(layer, "to_q"):
            shapes = ((rank, width_of(layer)), (rank,), (width_of(layer), rank), (width_of(layer),))
            expected |= {f"{key}.{part}": shape for part, shape in zip(PARTS, shapes, strict=True)}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"the edit is damaged: found {ATTACHED}{name[:100]} of shape {found.get(name, 'none')}: expected"
                f" {expected.get(name, 'no such adapter, as the denoiser has no such attention layer')}; make the edit"
                " again"
            )
