"""Small real pipelines with random weights, of other sizes than the zoo's: what Stable Diffusion's own path runs on."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from diffusers import TextToVideoSDPipeline
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from unreel import door, training
from unreel.models.animatediff import tiny_adapter
from unreel.models.modelscope import tiny_unet3d
from unreel.models.stable_diffusion import StableDiffusion, tiny_pipeline

ROOT = Path(__file__).parents[1]


def small_model(prediction_type: str = "epsilon", layers: int = 12, seed: int = 0) -> StableDiffusion:
    """A donor with 12 text layers of width 32, as CLIP ViT-L has 12 of width 768."""
    pipeline = tiny_pipeline(prediction_type, layers, seed)
    return StableDiffusion.of(pipeline, num_inference_steps=2, guidance_scale=4.0, name="small")


@pytest.fixture
def model() -> StableDiffusion:
    return small_model()


def configured(name, overrides, hydra=False):
    """A config as the command line composes it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, overrides, return_hydra_config=hydra)


def opened(config):
    """The parts of a run, after all checks that train.py makes."""
    door.check(config)
    return training.opened(config, door.questions_of(config))


@pytest.fixture(scope="session")
def small_folders(tmp_path_factory):
    """A pipeline folder, and what makes it video: a motion adapter, and a pipeline with a video UNet of its own."""
    folder = tmp_path_factory.mktemp("small")
    pipeline = tiny_pipeline(layers=12)
    pipeline.save_pretrained(folder / "sd")
    tiny_adapter().save_pretrained(folder / "adapter")
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    TextToVideoSDPipeline(unet=tiny_unet3d(), **parts).save_pretrained(folder / "modelscope")
    return folder


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    """A small open_clip model with random weights, and open_clip's own tokenizer."""
    folder = tmp_path_factory.mktemp("judge")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(2)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def pytest_terminal_summary(terminalreporter):
    """Of the tests of faults: how many were tried, and how many survived."""
    ended = {
        outcome: [r for r in terminalreporter.stats.get(outcome, []) if "test_faults_" in r.nodeid]
        for outcome in ("passed", "failed", "error")
    }
    if tried := sum(map(len, ended.values())):
        terminalreporter.write_line(f"faults tried: {tried}, survived: {len(ended['passed'])}")
