"""Attention maps: where in its frames a denoiser's cross-attention looks for some tokens of a prompt.

    P_l = mean over heads of softmax(Q_l K_l^T / sqrt(d)),     m_l = sum of P_l over the tokens' columns, then from 0 to
    1 in each frame;     m = mean of m_l over the layers l, at the finest one's resolution;     M = [m >= threshold]

Q_l and K_l are what a layer's `to_q` and `to_k` return.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unreel.models.roles import attentions


class Capture:
    """Queries and keys of a denoiser's cross-attention, as its layers make them.

    Attributes:
        layers: name -> layer.
        queries, keys: name -> (R, N, D) and (R, L, D) of the last pass; copies.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.layers: dict[str, Any] = attentions(denoiser, True)
        self.queries, self.keys = dict[str, Tensor](), dict[str, Tensor]()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the `with` block they are kept; of several passes those of the last one."""

        def keep(where: dict[str, Tensor], name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                where[name] = output.detach().clone()

            return hook

        with ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.callback(layer.to_q.register_forward_hook(keep(self.queries, name)).remove)
                stack.callback(layer.to_k.register_forward_hook(keep(self.keys, name)).remove)
            yield

    def maps(self, columns: Tensor, prompts: int, latents: tuple[int, ...]) -> list[Tensor]:
        """m_l of each layer, (B * F, h_l, w_l), of the first B prompts of the pass.

        Args:
            columns: which tokens of these prompts count, (B, L) booleans.
            prompts: how many the pass was of.
            latents: shape of one latent: (c, h, w) of an image, (c, F, h, w) of a clip.
        """
        frames, size = (latents[1] if len(latents) == 4 else 1), (latents[-2], latents[-1])
        found = []
        for name, layer in self.layers.items():
            each = len(self.queries[name]) // prompts  # rows of a prompt: one a frame, or one of all frames
            first = slice(len(columns) * each)
            own = concept_map(
                self.queries[name][first], self.keys[name][first], layer.heads, columns.repeat_interleave(each, 0)
            )
            own = own.reshape(len(columns) * frames, -1)
            found.append(ranged(own.unflatten(1, grid_of(own.shape[1], size))))
        return found


def grid_of(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer that sees so many tokens of a frame, of latents of this height and width."""
    smaller = math.sqrt(size[0] * size[1] / tokens)
    height, width = round(size[0] / smaller), round(size[1] / smaller)
    assert height * width == tokens, f"{tokens} tokens are no frame of {size}"
    return height, width


def concept_map(queries: Tensor, keys: Tensor, heads: int, columns: Tensor) -> Tensor:
    """How much queries (R, N, D) attend to the marked ones of keys (R, L, D), the mean over heads: (R, N), float32."""

    def split(x: Tensor) -> Tensor:
        return x.float().unflatten(2, (heads, -1)).transpose(1, 2)

    q, k = split(queries), split(keys)
    attention = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(3)  # (R, heads, N, L)
    return (attention.mean(1) * columns[:, None].to(attention)).sum(2)


def ranged(maps: Tensor) -> Tensor:
    """Maps (M, h, w), each moved and scaled to range from 0 to 1; a flat one is 0."""
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - least) / (most - least).clamp_min(torch.finfo(maps.dtype).tiny)


def mask_of(maps: list[Tensor], threshold: float, finest: bool = False) -> Tensor:
    """M (B * F, h, w) of 0 and 1, of the maps (B * F, h_l, w_l) of all layers or of the finest. It writes to no map."""
    size = max((tuple(each.shape[1:]) for each in maps), key=math.prod)
    maps = [each for each in maps if not finest or tuple(each.shape[1:]) == size]
    alike = [functional.interpolate(each[:, None], size, mode="bilinear")[:, 0] for each in maps]
    return (torch.stack(alike).mean(0) >= threshold).float()
