"""Roles of weights: the names by which methods and users choose parameters, found in a model's real modules."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from unreel.hashes import plain_name


def _matching(pattern: str) -> Callable[[nn.Module], set[str]]:
    return lambda module: {name for name, _ in module.named_parameters() if re.search(pattern, name)}


def _last_layer(module: nn.Module) -> set[str]:
    names = [name for name, _ in module.named_parameters()]
    last = max((int(layer[1]) for name in names if (layer := re.search(r"\.layers\.(\d+)\.", name))), default=-1)
    return {name for name in names if f".layers.{last}.self_attn." in name}


def _attentions(module: nn.Module, reads_text: bool) -> dict[str, nn.Module]:
    """Name -> attention layer, of those that read the text, or of the others."""
    found = {name: m for name, m in module.named_modules() if hasattr(m, "is_cross_attention")}
    return {name: m for name, m in found.items() if bool(m.is_cross_attention) == reads_text}


def holders(denoiser: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Name -> attention layer of a denoiser, of those that hold one of the parameters "denoiser/NAME"."""
    wanted = [plain_name(name.removeprefix("denoiser/")) for name in names if name.startswith("denoiser/")]
    layers = {name: module for name, module in denoiser.named_modules() if hasattr(module, "to_q")}
    return {n: layer for n, layer in layers.items() if any(each.startswith(f"{n}.") for each in wanted)}


def _within(prefixes: Iterable[str], module: nn.Module, tails: str = "") -> set[str]:
    starts = tuple(f"{prefix}." for prefix in prefixes)
    names = (name for name, _ in module.named_parameters())
    return {name for name in names if starts and name.startswith(starts) and re.search(tails, name)}


def _cross(tails: str = "") -> Callable[[nn.Module], set[str]]:
    return lambda module: _within(_attentions(module, True), module, tails)


def _not_cross(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()} - _cross()(module)


# role -> names of the parameters of the component in front of the first dot
ROLES: dict[str, Callable[[nn.Module], set[str]]] = {
    "text_encoder.all": _matching(""),
    "text_encoder.embeddings": _matching(r"(^|\.)token_embedding\."),
    "text_encoder.mlp": _matching(r"\.mlp\."),
    "text_encoder.attention": _matching(r"\.self_attn\."),
    "text_encoder.final_attention": _last_layer,
    "text_encoder.first_layer": _matching(r"\.layers\.0\."),
    "text_encoder.final_layer_norm": _matching(r"(^|\.)final_layer_norm\."),
    "denoiser.all": _matching(""),
    "denoiser.cross_attention": _cross(),
    "denoiser.cross_attention.kv": _cross(r"\.to_[kv]\.weight$"),
    "denoiser.not_cross_attention": _not_cross,
    "denoiser.self_attention": lambda module: _within(_attentions(module, False), module),
}
_BARE = {name.removeprefix("text_encoder."): name for name in ROLES if name.startswith("text_encoder.")}


def select(components: Mapping[str, nn.Module], roles: Sequence[str]) -> list[str]:
    """Names "component/parameter" of the parameters that have one of the roles, in the order of the model.

    Args:
        components: of a model, as in `Model.components`.
        roles: keys of ROLES (those of the text encoder also without "text_encoder."), or regular expressions that are
            searched in the names "component/parameter".

    Raises:
        ValueError: for a role that matches nothing, naming what was tried and the names there are.
    """
    names = [f"{component}/{name}" for component, module in components.items() for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    for role in roles:
        known = role if role in ROLES else _BARE.get(role)
        if known:
            component = known.split(".")[0]
            found = {f"{component}/{name}" for name in ROLES[known](components[component])}
        else:
            try:
                found = {name for name in names if re.search(role, name)}
            except re.error as error:
                raise ValueError(f"parameters: {role!r} is no role and no regular expression ({error})") from None
        if not found:
            tails = sorted({re.sub(r"^.*?\.layers\.\d+\.", "", n.split("/")[1]) for n in names if n.startswith("text")})
            raise ValueError(
                f"parameters: {role!r} matches nothing; roles: {', '.join([*_BARE, *ROLES])}; names: {', '.join(tails)}"
            )
        chosen |= found
    if not chosen:
        raise ValueError(f"parameters: expected at least one role of {', '.join(ROLES)}")
    return [name for name in names if name in chosen]


def split_name(name: str) -> tuple[str, str]:
    """ "component/parameter" as (component, parameter), the parameter below any "text_model." prefix."""
    component, _, parameter = name.partition("/")
    return component, plain_name(parameter)
