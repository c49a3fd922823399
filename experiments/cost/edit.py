"""PFLOP of a whole edit at the sizes of Stable Diffusion 1.5: what a run asks of its donor, times what each call costs.

python experiments/cost/edit.py van_gogh wispo drum greta_holm       # a minute a concept and row on 2 CPU cores

A run of the zoo says how often denoiser and text encoder are called, with and without a gradient, until what was to be
forgotten is gone; each call's operations are counted at the real size (counted.py).
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from counted import built_model, operations, shapes_only

from unreel import assembly, door, training
from unreel.libraries import prepare_libraries
from unreel.methods.method import Task
from unreel.models.model import Conditioning

CONF = Path(__file__).parents[2] / "conf"
ROWS = {  # what is given; the first is how the default was before the table of shots
    "before": ["method.data.table=null", "method.guard.check_every=20"],
    "default": [],
    "rendering=fast": ["rendering=fast"],
}
DONORS = ("sd15", "bk_sdm_small")


def config_of(*given: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(given))


def calls(concept: str, given: list[str], folder: Path) -> Counter[str]:
    """How many prompts and latents the donor's text encoder and denoiser are given by a training on the zoo."""
    config = config_of(f"concept={concept}", "t2v=[zoo_images]", "logger=none", f"output={folder}/run",
                       f"cache={folder}/cache", *given)  # fmt: skip
    parts = training.opened(config, door.questions_of(config))
    parts.shots.make(parts.donor)
    found: Counter[str] = Counter()

    def count(key: str) -> Any:
        def hook(_module: Any, _args: Any, kwargs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else next(iter(output.values()))
            found[f"{key} {'with' if first.requires_grad else 'without'} gradient"] += len(first)

        return hook

    for key in ("text_encoder", "denoiser"):  # the frozen copy takes the hook with it
        parts.donor.components[key].register_forward_hook(count(key), with_kwargs=True)

    def trainer(steps: int, callbacks: list[pl.Callback]) -> pl.Trainer:
        return assembly.trainer_of(config, folder, [], pl.Callback(), steps, callbacks)

    task = Task(parts.captions, list(config.parameters.roles), config.seed, parts.shots, trainer)
    edit = parts.method.erase(parts.donor, task)
    found["steps"] = edit.provenance["facts"]["steps"]
    real = config_of(f"concept={concept}", "t2i=sd15", "t2v=animatediff", *given)
    found["shots"] = 2 * real.shots * real.t2i.num_inference_steps  # with guidance: two latents a step
    return found


def costs(name: str) -> dict[str, float]:
    """Operations of each kind of call at the real size, a prompt or a latent."""
    with shapes_only():
        model = built_model(name)
        encoder, width = model.components["text_encoder"], model.components["text_encoder"].config.hidden_size
        latents, said = torch.randn(1, *model.latent_shape), ["a cat"]

        def denoised(gradient: bool) -> None:
            embeds = torch.randn(1, model.reading.max_length, width, requires_grad=gradient)
            found = model.predict(latents, torch.full((1,), 500), Conditioning({"prompt_embeds": embeds}))
            if gradient:
                found.sum().backward()

        def encoded(gradient: bool) -> None:
            encoder.requires_grad_(gradient)
            found = model.encode_prompt(said)["prompt_embeds"]
            if gradient:
                found.sum().backward()

        works = {"denoiser": denoised, "text_encoder": encoded}
        return {
            f"{key} {'with' if gradient else 'without'} gradient": operations(lambda w=work, g=gradient: w(g))
            for key, work in works.items()
            for gradient in (False, True)
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", default=["van_gogh", "wispo", "drum", "greta_holm"])
    concepts = parser.parse_args().concepts
    prepare_libraries(None)
    units = {name: costs(name) for name in DONORS}
    table = Table("what is given", "steps", "shots", *(f"training, {name}" for name in DONORS), "whole", "of 2.4",
                  title=f"PFLOP of an edit at real sizes, mean over {', '.join(concepts)}")  # fmt: skip
    for row, given in ROWS.items():
        total: Counter[str] = Counter()
        for concept in concepts:
            with tempfile.TemporaryDirectory() as folder:
                total += calls(concept, given, Path(folder))
        mean = {key: value / len(concepts) for key, value in total.items()}
        spent = {name: sum(mean.get(key, 0) * cost for key, cost in unit.items()) for name, unit in units.items()}
        shots = mean["shots"] * units["sd15"]["denoiser without gradient"]
        whole = shots + spent["sd15"]
        table.add_row(row, f"{mean['steps']:.0f}", f"{shots / 1e15:.2f}", *(f"{s / 1e15:.2f}" for s in spent.values()),
                      f"{whole / 1e15:.2f}", f"{whole / 2.4e15:.2f}")  # fmt: skip
        print(row, {key: round(value, 1) for key, value in mean.items()}, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
