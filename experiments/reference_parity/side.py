"""One side of the comparison: erases a concept by the authors' script or by ours, and saves an edit. `run.py` calls it.

    python side.py authors|ours CONCEPT SEED IMAGES OUT [--repository FOLDER]

The authors' code (fmp453/few-shot-erasing) is imported from a checkout of the user's and runs as it is, but for what
ties it to Stable Diffusion 1.x: models, schedule, latent scale, image size and number of layers are the zoo's. Nothing
of it is here. Prints one line of JSON: seconds of the erasing, without loading, and MB by which memory peaked above the
loaded models.
"""

import argparse
import json
import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import DDPMScheduler
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from unreel import assembly, door
from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.edits import Edit
from unreel.methods.method import Task
from unreel.shots import Shots

ROOT = Path(__file__).resolve().parents[2]
THEIR_SCALE = 0.18215  # by which their data.py multiplies latents, whatever the VAE


def by_authors(donor: Any, config: Any, name: str, kind: str, images: Path, out: Path, repository: Path) -> int:
    """Trains the donor's text encoder in place; the number of steps."""
    sys.path.insert(0, str(repository))
    sys.modules.setdefault("pandas", ModuleType("pandas"))  # only their plot of the loss needs it
    import data
    import train
    import utils

    pipeline, scale = donor.pipeline, donor.pipeline.vae.config.scaling_factor
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    loaded = (pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet, scheduler)
    encode, freeze, dataset = pipeline.vae.encode, utils.freeze_and_unfreeze_text_encoder, data.AblatingDataset

    def scaled(pixels: torch.Tensor) -> Any:
        found = encode(pixels).latent_dist
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: found.sample() * scale / THEIR_SCALE))

    def unfrozen(text_encoder: Any, method: str) -> Any:
        freeze(text_encoder, method)
        last = text_encoder.config.num_hidden_layers - 1  # theirs is 11
        for parameter_name, parameter in text_encoder.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or f".{last}.self_attn." in parameter_name)
        return text_encoder

    utils.load_models_from_local_optioned_path = lambda **_: loaded
    utils.freeze_and_unfreeze_text_encoder, utils.plot_loss = unfrozen, lambda *_: None
    train.AblatingDataset = lambda **options: dataset(**{**options, "size": donor.size_px})
    pipeline.vae.encode, pipeline.text_encoder.save_pretrained = scaled, lambda *_: None
    train.train(
        train.Configuration(
            {"concept": name, "concept_type": kind, "optim": "Adam", "lr": config.optimizer.lr, "beta1": 0.9,
             "beta2": 0.98, "eps": 1e-6, "weight_decay": 1e-8, "batch_size": config.data.batch, "local": True,
             "gpu_id": 0, "data": str(images), "save": str(out), "epochs": config.data.epochs, "clip_ver": "oa",
             "sd_ver": "15", "text_encoder_path": "", "diffusion_path": "", "tokenizer_version": "",
             "is_zero_shot": False}
        )
    )  # fmt: skip
    pipeline.vae.encode = encode
    pipeline.text_encoder.eval()
    return config.data.epochs * -(-len(list(images.glob("*.png"))) // config.data.batch)


def trainer(steps: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=["authors", "ours"])
    for name, kind in (("concept", str), ("seed", int), ("images", Path), ("out", Path)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--repository", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    overrides = [f"concept={given.concept}", f"concept.{given.concept}.images={given.images}", "method=few_shot_plain"]
    overrides += [f"seed={given.seed}", f"evaluation.seed={given.seed}", "evaluation.prompts=16", *given.overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides)
    OmegaConf.resolve(config)
    random.seed(given.seed)
    pl.seed_everything(given.seed, verbose=False)
    questions, donor = door.questions_of(config), assembly.donor_of(config, "cpu")
    texts = [prompt.text for prompt in questions.prompts]
    captions = [TrainingCaptions(c, questions.surroundings, texts) for c in questions.concepts]
    (concept,) = questions.concepts
    donor.encode_prompt(["a picture"])  # loads it
    reference = donor.reference(["text_encoder"])
    loaded, started = peak_mb(), time.perf_counter()
    if given.who == "authors":
        kind = "style" if concept.kind == "style" else "object"
        name = concept.phrases[0].removeprefix("a ").removeprefix("in the style of ")
        steps = by_authors(donor, config.method, name, kind, given.images, given.out.parent, given.repository)
        edit = Edit.between(reference, donor, ["text_encoder"], "few_shot_plain")
        facts = {"steps": steps, "most_steps": steps, "stopped": "", "best_step": None, "tensors": len(edit.tensors),
                 "parameters": 0, "of": 0, "components": ["text_encoder"]}  # fmt: skip
        config.method.name = "authors"
    else:
        shots = Shots(captions, config.shots, config.seed, TensorCache(given.out.parent / "cache"))
        shots.make(donor)
        task = Task(captions, list(config.parameters.roles), config.seed, shots, trainer)
        edit = door.built(config.method).erase(donor, task)
        facts = edit.provenance["facts"]
    spent = {"seconds": round(time.perf_counter() - started, 2), "mb": round(peak_mb() - loaded)}
    settings = OmegaConf.to_container(config)
    replace(edit, provenance={"facts": facts, "config": settings, "run": given.out.stem}).save(given.out)
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
