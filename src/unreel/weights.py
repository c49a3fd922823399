"""Weights: the components of models and pipelines by the names that edits use, their hashes, and what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unreel.hashes import differing, parameter_hashes

DENOISERS = ("unet", "transformer")  # what pipelines call theirs


def components_of(target: Any) -> dict[str, nn.Module]:
    """The components of a Model, or of a plain diffusers pipeline, by the names that edits use."""
    if hasattr(target, "reading"):
        return dict(target.components)
    found = {n: m for n, m in target.components.items() if isinstance(m, nn.Module) and n not in DENOISERS}
    denoisers = [getattr(target, name) for name in DENOISERS if getattr(target, name, None) is not None]
    return found | ({"denoiser": denoisers[0]} if denoisers else {})


def hashes_of(components: Mapping[str, nn.Module], names: Sequence[str]) -> dict[str, str]:
    """ "component/parameter" -> hash, of all parameters of some components. ValueError for quantised ones."""
    for key in names:
        for name, parameter in components[key].named_parameters():
            if parameter.dtype not in (torch.float32, torch.float16, torch.bfloat16):
                found = f"the {key.replace('_', ' ')} is quantised ({name} is {parameter.dtype})"
                expected = "expected float16 or float32, as with denoiser_storage=null"
                raise ValueError(f"{found}: {expected}; edit the model first, then quantise it")
    return {f"{key}/{name}": digest for key in names for name, digest in parameter_hashes(components[key]).items()}


def is_finite(tensor: Tensor) -> bool:
    """Whether all its numbers are finite."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def listed(names: Sequence[str], total: int) -> str:
    """How many tensors, and the first names of them, for one line of an error."""
    shown = ", ".join(name.partition("/")[2] or name for name in names[:3])
    return f"{len(names)} of {total} tensors ({shown}{', ...' if len(names) > 3 else ''})"


def unshared(base: Mapping[str, str], components: Mapping[str, nn.Module]) -> str:
    """What differs between the weights that an edit belongs to and a model's; "" when nothing does.

    A video model may hold an image model's denoiser whole, as AnimateDiff does: what its denoiser has beyond counts as
    no difference. A text encoder with more layers is another one.
    """
    said = []
    for key in dict.fromkeys(name.partition("/")[0] for name in base):
        if key not in components:
            return f"it has no {key}"
        own = {name: digest for name, digest in base.items() if name.startswith(f"{key}/")}
        found = hashes_of(components, [key])
        if names := differing(own, found, more=key == "denoiser"):
            said.append(f"in its {key.replace('_', ' ')} {listed(names, len(own))} differ")
    return "; ".join(said)
