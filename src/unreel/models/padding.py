"""Padding that nobody reads is not encoded: a caption of 20 tokens costs a training 20 places of the 120 to 512."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad

from unreel.models.model import Reading


@contextmanager
def unpadded(encoder: nn.Module, reading: Reading) -> Iterator[None]:
    """Inside the `with` block the text encoder is called without the padding behind the longest text.

    Its states have their length again, with zeros in place of those that were left out. All else is as before, up to
    rounding: what is told which tokens are padding does not see it. Nothing is left out where the denoiser reads the
    states of padding, nor where the encoder is not told, nor of tensors without values.

    Args:
        encoder: a text encoder of transformers, called with ids (B, L) and a mask of them (B, L), the second argument.
        reading: how the denoiser reads its states.
    """
    with ExitStack() as hooks:
        if reading.masked and reading.pads != "read":
            left_out: list[int] = []  # of each call that is under way

            def shorten(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
                if mask is None or mask.is_meta:
                    left_out.append(0)
                    return args, kwargs
                end, shape = _longest(mask), mask.shape
                left_out.append(shape[1] - end)
                cut = {name: value[:, :end] if _is(value, shape) else value for name, value in kwargs.items()}
                return tuple(value[:, :end] if _is(value, shape) else value for value in args), cut

            def restore(_: nn.Module, __: tuple[Any, ...], found: Any) -> Any:
                if count := left_out.pop():
                    found["last_hidden_state"] = pad(found["last_hidden_state"], (0, 0, 0, count))
                    if found.get("hidden_states"):
                        found["hidden_states"] = tuple(pad(s, (0, 0, 0, count)) for s in found["hidden_states"])
                return found

            hooks.callback(encoder.register_forward_pre_hook(shorten, with_kwargs=True).remove)
            hooks.callback(encoder.register_forward_hook(restore).remove)
        yield


def _is(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, Tensor) and value.shape == shape


def _longest(mask: Tensor) -> int:
    """How many places a text takes at most, with what is padding in front of it; all, where all is padding."""
    places = mask.any(0).nonzero()
    return int(places[-1]) + 1 if len(places) else mask.shape[1]
