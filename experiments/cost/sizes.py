"""What an edit on real weights and a clip need: GB of files and of memory, and operations, without a download.

python experiments/cost/sizes.py                   # the table of the README, in some minutes

Models of sizes.yaml on torch's meta device. Files and memory are those of weights in 16 bits; activations come on top.
An edit is four shots and 60 steps of the default's batch, of which the text encoders' and the denoiser's passes are
counted, and a clip is the denoiser's; steps, as the YAML of each in conf says.
"""

import sys
from functools import cache, partial
from math import nan
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from counted import operations, shapes_only

from unreel.known import known

STEPS, SHOTS, IMAGES, CAPTIONS = 60, 4, 4, 40  # of an edit, its shots, and a step of it
SIZES: Any = OmegaConf.load(Path(__file__).with_name("sizes.yaml"))


@cache
def parts(name: str) -> dict[str, nn.Module]:
    """A model's parts, without values."""
    with shapes_only():
        return {key: instantiate(part, _convert_="all") for key, part in SIZES.models[name].parts.items()}


def size(*modules: nn.Module) -> float:
    """GB of their parameters in 16 bits."""
    return 2e-9 * sum(parameter.numel() for module in modules for parameter in module.parameters())


def tensors(shapes: Any) -> Any:
    """What a denoiser is called with: tensors of these shapes, and numbers."""
    if OmegaConf.is_dict(shapes):
        return {key: tensors(value) for key, value in shapes.items()}
    return torch.zeros(*shapes) if OmegaConf.is_list(shapes) else shapes


def denoising(name: str, still: bool = False, learning: bool = False) -> float:
    """Operations of one call with guidance; with `learning` of one that goes back to the prompt's embeddings, too.

    nan where the denoiser reads values, of which there are none here: Mochi's and HunyuanVideo-1.5's sort tokens by
    their mask.
    """
    entry, denoiser = SIZES.models[name], parts(name)["denoiser"].requires_grad_(False)
    with shapes_only():
        inputs = tensors(entry.still if still and "still" in entry else entry.call)
        inputs["encoder_hidden_states"].requires_grad_(learning)
        try:
            return operations(lambda: _run(denoiser, learning, **inputs))
        except RuntimeError as error:
            if "meta" in str(error):
                return nan
            raise


def encoding(name: str) -> int:
    """Operations of all text encoders of a model on the captions of a step; of the one that is edited back, too."""
    counted, edited = 0, SIZES.models[name].get("edited", "text_encoder")
    for key, encoder in parts(name).items():
        if key.startswith("text_encoder"):
            learning = key == edited
            encoder.requires_grad_(False).get_input_embeddings().weight.requires_grad_(learning)
            with shapes_only():
                length = min(SIZES.captions[name], getattr(encoder.config, "max_position_embeddings", 512))
                inputs = {"input_ids": torch.zeros(CAPTIONS, length, dtype=torch.long)}
                counted += operations(partial(_run, encoder, learning, **inputs))
    return counted


def _run(module: nn.Module, learning: bool, **inputs: Any) -> None:
    with torch.set_grad_enabled(learning):
        found = module(**inputs)
        first: Tensor = found[0]
        if learning:
            first.sum().backward()


def entry_of(group: str, name: str) -> Any:
    return next(each.entry for each in known(group) if each.name == name)


def row(donor: str, recipient: str) -> list[str]:
    """A row of the table."""
    ours, theirs = parts(donor), parts(recipient)
    one, two = entry_of("t2i", donor), entry_of("t2v", recipient)
    if not OmegaConf.is_missing(one, "folder") and one.folder == two.folder:  # one download, and what turns it to clips
        files = size(*ours.values()) + max(size(theirs["denoiser"]) - size(ours["denoiser"]), 0)
    else:
        files = size(*ours.values(), *theirs.values())
    shots = SHOTS * one.num_inference_steps * denoising(donor, still=True)
    training = STEPS * (IMAGES / 2 * denoising(donor, still=True, learning=True) + encoding(donor))
    clip = two.num_inference_steps * denoising(recipient)
    command = f"`t2i={donor} t2v={recipient}`"
    numbers = (files, size(*ours.values()), size(*theirs.values()), (shots + training) / 1e15, clip / 1e15)
    return [command, *(f"{number:.1f}" if number == number else "not counted" for number in numbers)]


def main() -> None:
    command, memory = "`python train.py concept=van_gogh ...`", ("weights in training, GB", "in rendering, GB")
    print(f"| {' | '.join([command, 'files, GB', *memory, 'an edit, PFLOP', 'a clip, PFLOP'])} |")
    print(f"|{' --- |' * 6}")
    for pair in SIZES.pairs:
        print(f"| {' | '.join(row(*pair))} |", flush=True)


if __name__ == "__main__":
    main()
