"""Roles of weights: the names by which methods and users choose parameters, found in a model's real modules."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from unreel.hashes import plain_name

# parts of text encoders as transformers calls them, in CLIP, in T5 and UMT5, and in language models
_LAYER = r"(?:^|\.)(?:layers|block)\."
_ATTENTION = r"\.(?:self_attn|SelfAttention)\."
# what denoisers project the text with, before any of their blocks, as diffusers calls it
_PROJECTIONS = "caption_projection|caption_norm|caption_proj|text_embedder|text_proj|context_embedder|pooler"


def _matching(pattern: str) -> Callable[[nn.Module], set[str]]:
    return lambda module: {name for name, _ in module.named_parameters() if re.search(pattern, name)}


def _last_layer(module: nn.Module) -> set[str]:
    names = [name for name, _ in module.named_parameters()]
    found = {name: int(layer[1]) for name in names if (layer := re.search(rf"{_LAYER}(\d+)\.", name))}
    last = max(found.values(), default=-1)
    return {name for name, layer in found.items() if layer == last and re.search(_ATTENTION, name)}


def attentions(module: nn.Module, reads_text: bool) -> dict[str, nn.Module]:
    """Name -> attention layer, of those that read the text, or of the others.

    Layers of some families do not say what they attend to; all of them call the second one of a block `attn2`.
    """
    found = {name: m for name, m in module.named_modules() if hasattr(m, "to_q") or hasattr(m, "is_cross_attention")}
    return {n: m for n, m in found.items() if _is_cross(n, m) == reads_text}


def _is_cross(name: str, layer: nn.Module) -> bool:
    return bool(getattr(layer, "is_cross_attention", re.search(r"(^|\.)attn2$", name)))


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
    return lambda module: _within(attentions(module, True), module, tails)


def _not_cross(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()} - _cross()(module)


# role -> names of the parameters of the component in front of the first dot
ROLES: dict[str, Callable[[nn.Module], set[str]]] = {
    "text_encoder.all": _matching(""),
    "text_encoder.embeddings": _matching(r"(^|\.)(token_embedding|shared|embed_tokens)\."),
    "text_encoder.mlp": _matching(r"\.(mlp|DenseReluDense)\."),
    "text_encoder.attention": _matching(_ATTENTION),
    "text_encoder.final_attention": _last_layer,
    "text_encoder.layers": _matching(_LAYER),
    "text_encoder.first_layer": _matching(rf"{_LAYER}0\."),
    "text_encoder.final_layer_norm": _matching(r"(^|\.)final_layer_norm\.|^norm\."),
    "denoiser.all": _matching(""),
    "denoiser.cross_attention": _cross(),
    "denoiser.cross_attention.kv": _cross(r"\.to_[kv]\.weight$"),
    "denoiser.text_projection": _matching(rf"^(.*\.)?({_PROJECTIONS})\."),
    "denoiser.not_cross_attention": _not_cross,
    "denoiser.self_attention": lambda module: _within(attentions(module, False), module),
}
_BARE = {name.removeprefix("text_encoder."): name for name in ROLES if name.startswith("text_encoder.")}


def select(components: Mapping[str, nn.Module], roles: Sequence[str]) -> list[str]:
    """Names "component/parameter" of the parameters that have one of the roles, in the order of the model.

    Args:
        components: of a model, as in `Model.components`.
        roles: keys of ROLES (those of the text encoder also without "text_encoder.", and of further ones with
            "text_encoder_2." and so on), or regular expressions that are searched in the names "component/parameter".

    Raises:
        ValueError: for no list of texts, and for a role that matches nothing, naming what was tried and the names
            there are.
    """
    if not roles or isinstance(roles, str) or not all(isinstance(role, str) for role in roles):
        raise ValueError(f"found parameters.roles={roles!r:.80}: expected a list of names, as parameters.roles=[mlp]")
    names = [f"{component}/{name}" for component, module in components.items() for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    for role in roles:
        known = role if role in ROLES else _BARE.get(role)
        component = (known or role).split(".")[0]
        if component.startswith("text_encoder_") and component in components:  # one more, with the roles of the first
            known = role.replace(component, "text_encoder", 1) if role not in ROLES else role
        if known in ROLES:
            found = {f"{component}/{name}" for name in ROLES[known](components[component])}
        else:
            try:
                found = {name for name in names if re.search(role, name)}
            except re.error as error:
                raise ValueError(f"parameters: {role!r} is no role and no regular expression ({error})") from None
        if not found:
            if role.startswith("denoiser.cross_attention"):
                raise ValueError(
                    f"parameters: {role!r} matches nothing: this denoiser has no keys and values of the text alone, as"
                    " text and frames go through joint attention; expected denoiser.text_projection, or other weights"
                )
            tails = sorted({re.sub(rf"^.*?{_LAYER}\d+\.", "", n.split("/")[1]) for n in names if n.startswith("text")})
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
