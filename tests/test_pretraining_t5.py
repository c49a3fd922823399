"""The stages of the zoo's second family, at tiny sizes: they leave PixArt and Latte as plain diffusers have them."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import LattePipeline, LatteTransformer3DModel, PixArtAlphaPipeline, PixArtTransformer2DModel
from safetensors import safe_open
from transformers import AutoTokenizer

from conftest import configured
from unreel.zoo import store
from unreel.zoo.diffusion_transformers import LatteConditioning, LatteTextToVideo, OneDenoiser, PixArtConditioning
from unreel.zoo.drawings import Drawings
from unreel.zoo.export import export_models
from unreel.zoo.pretrain import STAGES
from unreel.zoo.t5_text import MAX_TOKENS, mean_of_tokens, train_t5_tokenizer

TINY = [
    "precision=32-true", "accelerator=cpu", "drawings.count=16", "latents.clips=16", "t5_tokenizer.captions=200",
    "t5_tokenizer.vocabulary=180", "t5.steps=2", "t5.batch=8", "t5.width=16", "t5.layers=1", "t5.heads=2",
    "pixart.steps=2", "pixart.batch=2", "pixart.width=16", "pixart.layers=2", "pixart.heads=2", "latte.steps=2",
    "latte.batch=2", "latte.stills=2",
]  # fmt: skip
TEXTS = ["a cat on the beach", "the face of greta holm jumping high under the night sky, as pixel art"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The work folder of the second family's stages, on the shipped VAE; `models` in it is what they export."""
    folder = tmp_path_factory.mktemp("zoo")
    shutil.copytree(store.MODELS / "t2i" / "vae", folder / "vae" / "model")
    cfg = configured("zoo", [f"work={folder}", *TINY])
    for name in ("t5_tokenizer", "t5", "latents", "pixart", "latte"):
        STAGES[name](cfg)
    export_models(folder, ["pixart", "latte"], folder / "models")
    return folder


@pytest.fixture(scope="module")
def pixart(work):
    pipeline = PixArtAlphaPipeline.from_pretrained(work / "models" / "pixart")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def latte(work):
    transformer = LatteTransformer3DModel.from_pretrained(work / "models" / "latte")
    pipeline = LattePipeline.from_pretrained(work / "models" / "pixart", transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(work, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(work, again, ignore=shutil.ignore_patterns("pixart", "latte", "models"))
    STAGES["pixart"](configured("zoo", [f"work={again}", *TINY, "compile=true"]))
    plain, compiled = (
        PixArtTransformer2DModel.from_pretrained(folder / "pixart" / "model").state_dict() for folder in (work, again)
    )
    for name, weights in plain.items():
        torch.testing.assert_close(compiled[name], weights, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_exported_folders_are_whole_pipelines_of_plain_diffusers_in_fp16(work, pixart, latte):
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt", "clean_caption": False}
    images = pixart(TEXTS, use_resolution_binning=False, **options).images
    assert images.shape == (2, 3, 64, 64) and images.isfinite().all()
    clips = latte(TEXTS, video_length=8, **options).frames
    assert clips.shape == (2, 8, 3, 64, 64) and clips.isfinite().all()
    still = latte(TEXTS[0], video_length=1, enable_temporal_attentions=False, **options).frames
    assert still.shape == (1, 1, 3, 64, 64) and still.isfinite().all()
    for path in (work / "models").rglob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            assert {tensors.get_slice(k).get_dtype() for k in tensors.keys()} == {"F16"}, path  # noqa: SIM118
    assert set(store.read_sums(work / "models")) == {
        p.relative_to(work / "models").as_posix() for p in (work / "models").rglob("*") if p.is_file()
    } - {store.SUMS}


def test_an_export_of_some_models_leaves_the_others(work):
    models = work / "models"
    others = {p: p.read_bytes() for p in (models / "pixart").rglob("*") if p.is_file()}
    export_models(work, ["latte"], models)
    assert others and all(path.read_bytes() == data for path, data in others.items())
    assert store.verified("latte", models) == models / "latte"


def test_the_tokenizer_knows_all_of_ascii_and_no_piece_joins_words_to_punctuation(pixart):
    tokenizer = pixart.tokenizer
    text = 'a zebra-crossing (no 42), wispo\'s #1: "quonk"?'
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id in tokenizer("東京").input_ids
    captions = ["a cat, standing", "the cat; a cat, a cat"] * 50
    own = train_t5_tokenizer(captions, 130)
    assert own.tokenize("cat, cat;") == ["▁cat", ",", "▁cat", ";"]
    assert not [p for p in own.get_vocab() if any(c.isalpha() for c in p) and any(c in ",.;:" for c in p)]


def test_the_tokenizer_loads_by_its_name_alone_and_reads_the_same(work, pixart):
    by_name = AutoTokenizer.from_pretrained(work / "models" / "pixart" / "tokenizer")
    assert type(by_name) is type(pixart.tokenizer) and by_name.model_max_length == MAX_TOKENS
    assert by_name(TEXTS).input_ids == pixart.tokenizer(TEXTS).input_ids
    special = ("<pad>", "</s>", "<unk>")
    assert by_name.convert_tokens_to_ids(special) == [0, 1, 2] and by_name(TEXTS[0]).input_ids[-1] == 1


def test_the_mean_of_a_text_does_not_depend_on_its_padding():
    states = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = mean_of_tokens(states, mask)
    assert torch.allclose(pooled[0], states[0, :3].mean(0)) and torch.allclose(pooled[1], states[1].mean(0))


class _Says:
    """Mixed into a conditioning: its captions are these texts, the `empty` ones dropped, several at once or not."""

    def captions(self, indices, rng, drop):
        return [TEXTS[i] for i in indices]


class _Draws:
    """Stands for a generator of random numbers whose next values are known."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def _data(work, pipeline, kind):
    latents, masks = torch.randn(16, 8, 4, 16, 16), torch.rand(16, 8, 16, 16)
    drawings = Drawings(work, 16, 1)
    return type("Data", (_Says, kind), {})(drawings, latents, masks, pipeline.tokenizer, pipeline.text_encoder)


def test_pixart_learns_prompts_as_its_pipeline_reads_them(work, pixart):
    data = _data(work, pixart, PixArtConditioning)
    read = data.encode_prompt(np.array([0, 1, 0]), _Draws(0.5, 0.5, 0.0), 0.0, torch.device("cpu"))
    states, mask, of_nothing, mask_of_nothing = pixart.encode_prompt(TEXTS, device=torch.device("cpu"))
    for i, (expected, kept) in enumerate(
        [(states[0], mask[0]), (states[1], mask[1]), (of_nothing[0], mask_of_nothing[0])]
    ):
        n = int(kept.sum())
        assert int(read["encoder_attention_mask"][i].sum()) == n
        assert torch.allclose(read["encoder_hidden_states"][i, :n], expected[:n], atol=1e-5)


def test_latte_learns_prompts_as_its_pipeline_reads_them(work, latte):
    data, device = _data(work, latte, LatteConditioning), torch.device("cpu")
    alone = data.encode_prompt(np.array([0, 1, 0]), _Draws(0.9, 0.5, 0.5, 0.0), 0.0, device)
    for i, text in enumerate(TEXTS):
        states, of_nothing = latte.encode_prompt(text, device=device)
        n = int(alone["encoder_attention_mask"][i].sum())
        assert states.shape[1] == n
        assert torch.allclose(alone["encoder_hidden_states"][i, :n], states[0], atol=1e-5)
        if i == 0:  # the empty prompt is cut to the other one's length, with what the encoder says at its padding
            assert int(alone["encoder_attention_mask"][2].sum()) == n
            assert torch.allclose(alone["encoder_hidden_states"][2, :n], of_nothing[0], atol=1e-5)
    together = data.encode_prompt(np.array([0, 1, 0]), _Draws(0.05, 0.5, 0.5, 0.0), 0.0, device)
    states, of_nothing = latte.encode_prompt(TEXTS, device=device)
    assert together["encoder_attention_mask"].all()
    expected = torch.stack([states[0], states[1], of_nothing[0]])
    assert torch.allclose(together["encoder_hidden_states"], expected, atol=1e-5)


def test_clips_of_a_motion_are_drawn_as_often_as_it_says(work, pixart, latte):
    data = _data(work, latte, LatteConditioning)
    motions = [spec.motion for spec in data.drawings.specs]
    often, seldom = motions[0], next(motion for motion in motions if motion != motions[0])
    options = {"stills": 2, "steps": 1, "batch": 2, "lr": 1e-3, "seed": 0}
    equal = LatteTextToVideo(data, pixart.transformer, oftener={}, **options)
    assert np.allclose(equal.shares, 1 / 16)
    uneven = LatteTextToVideo(data, pixart.transformer, oftener={often: 3, seldom: 0}, **options)
    shares = dict(zip(motions, uneven.shares, strict=True))
    others = [shares[motion] for motion in motions if motion not in (often, seldom)]
    assert shares[seldom] == 0 and np.allclose(others, shares[often] / 3) and np.isclose(uneven.shares.sum(), 1)
    drawn = []  # of clips and of stills in turns
    data.captions = lambda indices, *_: drawn.append([motions[i] for i in indices]) or [TEXTS[0]] * len(indices)
    with torch.no_grad():
        for seed in range(8):
            uneven.loss(np.random.default_rng(seed), torch.Generator().manual_seed(seed))
    assert len(drawn) == 16 and seldom not in {motion for batch in drawn[::2] for motion in batch}


def test_latte_starts_as_pixart_and_a_mask_is_a_cut(work, pixart, latte):
    data = _data(work, latte, LatteConditioning)
    video = LatteTextToVideo(
        data, pixart.transformer, stills=2, oftener={}, steps=1, batch=2, lr=1e-3, seed=0
    ).denoiser.eval()
    noisy, timesteps = torch.randn(2, 4, 1, 16, 16), torch.tensor([300, 700])
    states, mask = torch.randn(2, 6, 16), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    read = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    with torch.no_grad():
        of_images = pixart.transformer(noisy[:, :, 0], timestep=timesteps, **read).sample
        of_stills = video(noisy, timesteps, **read).sample
        assert of_images.std() > 0 and torch.allclose(of_stills[:, :, 0], of_images, atol=1e-5)
        clips = torch.randn(2, 4, 8, 16, 16)
        trained = OneDenoiser(latte.transformer)
        masked = trained(clips, timesteps, **read).sample[:1]
        cut = latte.transformer(clips[:1], timestep=timesteps[:1], encoder_hidden_states=states[:1, :3]).sample
        assert torch.allclose(masked, cut, atol=1e-5)
        for block in video.transformer.temporal_transformer_blocks:
            hidden = torch.randn(4, 8, 16)
            assert torch.equal(block(hidden, timestep=torch.randn(4, 96)), hidden)
