"""Composition: the weights that two edits are together, the first one and then the second.

Component by component the sum of two edits is defined where
    both were made from the same weights, and no tensor is changed by both: then their order does not matter;
    the second was made on a model that holds the first, as its hashes of the weights tell: then the second is on top.
Anything else is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unreel.hashes import differing, tensor_hash
from unreel.low_rank import Factors, change_of, names_of, weight_of, weights_of
from unreel.weights import listed

Tensors = Mapping[str, Tensor]
Hashes = Mapping[str, str]


def held(base: Hashes, tensors: Tensors) -> dict[str, str]:
    """ "component/parameter" -> hash, of the weights `base` once the tensors of an edit are in them."""
    return {name: tensor_hash(tensors[name]) if name in tensors else digest for name, digest in base.items()}


def summed(first: tuple[Tensors, Hashes], second: tuple[Tensors, Hashes]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of two edits together, and the hashes of the weights that they belong to together.

    Args:
        first, second: the tensors and the base of each edit.

    Raises:
        ValueError: where the sum is not defined.
    """
    (tensors, base), (others, other_base) = first, second
    after, other_after = held(base, tensors), held(other_base, others)
    for key in dict.fromkeys(name.partition("/")[0] for name in base):
        mine, theirs = _of(key, base), _of(key, other_base)
        if not theirs:
            continue
        where = f"in the {key.replace('_', ' ')} "
        if not (differ := _differing(key, mine, theirs)):
            mine_too = set(weights_of(_of(key, tensors)))
            both = [n for n in weights_of(_of(key, others)) if n in mine_too and not _alike(n, tensors, others)]
            if both:
                raise ValueError(
                    f"these edits cannot be added: {where}both change {listed(both, len(mine))} of the same weights;"
                    " expected edits of different tensors, or the second made on top of the first: train.py onto=A"
                )
        elif _differing(key, _of(key, after), theirs):
            if not _differing(key, mine, _of(key, other_after)):
                raise ValueError(
                    "these edits cannot be added in this order: the first was made on a model that holds the second;"
                    " expected second + first"
                )
            if any(weight_of(name) != name for name in _of(key, tensors)):
                raise ValueError(
                    f"these edits cannot be added: {where}the first holds low-rank factors, and the second belongs to"
                    " other weights than the first was made from; expected both to be made from the same weights"
                )
            raise ValueError(
                f"these edits cannot be added: {where}they belong to other weights, {listed(differ, len(mine))} differ;"
                " expected edits of the same model"
            )
    return _on_top(tensors, others), {**base, **{n: d for n, d in other_base.items() if n not in base}}


def _on_top(tensors: Tensors, others: Tensors) -> dict[str, Tensor]:
    """The tensors of both; factors that change a weight to which the first edit gave a new value are added to that."""
    both = {**tensors, **others}
    for weight in weights_of(others):
        change = change_of(others, weight)
        if isinstance(change, Factors) and weight in tensors:
            both[weight] = change.added_to(tensors[weight])
            for name in names_of(weight):
                del both[name]
    return both


def _alike(weight: str, tensors: Tensors, others: Tensors) -> bool:
    """Whether two edits give a weight the same new value, or the same factors."""
    names = [name for name in (weight, *names_of(weight)) if name in tensors or name in others]
    return all(name in tensors and name in others and torch.equal(tensors[name], others[name]) for name in names)


def _of(key: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of one component."""
    return {name: value for name, value in named.items() if name.startswith(f"{key}/")}


def _differing(key: str, base: Hashes, other: Hashes) -> list[str]:
    """Tensors that differ; a video model may hold an image model's denoiser whole, and more."""
    small, large = (base, other) if len(base) <= len(other) else (other, base)
    return differing(small, large, more=key == "denoiser")
