"""The concept's words, which tokens they are, and zeroing them in what the denoiser reads."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from transformers import CLIPTokenizer

from test_esd import make_task
from unreel.concepts import to_concept
from unreel.edits import Edit
from unreel.methods.keywords import keywords_of, marked
from unreel.methods.zero_token import ZeroToken, neutral
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero
from unreel.zoo.store import verified

FAMILIES = pytest.mark.parametrize("family", [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero])
PROMPTS, SEEDS = ["a drum on the beach", "a cat at night"], [3, 4]


def make_edit(model, value="zero"):
    return ZeroToken(name="zero_token", value=value).erase(model, make_task([]))


@pytest.mark.parametrize(
    ("entry", "want"),
    [
        ({"kind": "style", "name": "van gogh"}, ["van gogh"]),
        ({"kind": "object", "name": "drum"}, ["drum"]),
        ({"kind": "object", "phrases": ["a crane", "the tower crane"]}, ["crane"]),
        ({"kind": "face", "name": "Elsa Brandt"}, ["Elsa Brandt"]),
        ({"kind": "motion", "name": "spinning"}, ["spinning"]),
        ({"kind": "object", "phrases": ["a red car", "a crimson vehicle"]}, ["red car", "crimson vehicle"]),
        ({"kind": "object", "phrases": ["the"]}, ["the"]),
    ],
)
def test_keywords_are_what_all_phrases_share(entry, want):
    assert keywords_of(to_concept("one", entry)) == want


def test_the_marked_tokens_are_the_keywords_wherever_they_are():
    tokenizer = CLIPTokenizer.from_pretrained(verified("t2i") / "tokenizer")
    texts = ["a drum on the beach", "a cat and a Drum", "a cat", "", "a painting in the style of van gogh"]
    found = marked(tokenizer, texts, ["drum", "van gogh"], 16)
    read = tokenizer(texts, padding="max_length", max_length=16).input_ids
    said = [tokenizer.decode([i for i, mark in zip(ids, row, strict=True) if mark]).strip()
            for ids, row in zip(read, found.tolist(), strict=True)]  # fmt: skip
    assert said == ["drum", "drum", "", "", "van gogh"]
    assert not marked(tokenizer, ["a cat at night and a drum"], ["drum"], 4).any()  # it is cut off


def test_a_marked_place_gets_the_value_and_no_other_does():
    embeds, empty = torch.randn(2, 2, 5, 3)
    marks = torch.tensor([[False, True, True, False, False], [False] * 5])
    wanted = {"zero": torch.zeros(2, 3), "mean": embeds[0].mean(0).expand(2, 3), "empty": empty[0, 1:3]}
    for value, want in wanted.items():
        found = neutral(embeds, marks, value, empty)
        assert torch.equal(found[0, 1:3], want) and torch.equal(found[1], embeds[1])
        assert torch.equal(found[0, [0, 3, 4]], embeds[0, [0, 3, 4]])


@FAMILIES
@pytest.mark.parametrize("value", ["zero", "mean", "empty"])
def test_prompts_without_the_word_stay_bit_identical_and_the_pipeline_is_left_as_it_was(family, value, tmp_path):
    model = family.tiny()
    before, attributes = model.render(PROMPTS, SEEDS), set(vars(model.pipeline))
    make_edit(model, value).save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    with edit.applied(model):
        after = model.render(PROMPTS, SEEDS)
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])
    assert torch.equal(model.render(PROMPTS, SEEDS), before) and set(vars(model.pipeline)) == attributes
    edit.apply(model.pipeline)
    assert torch.equal(model.render(PROMPTS, SEEDS), after)


@FAMILIES
def test_the_denoiser_reads_zero_at_the_word_of_the_prompt(family):
    model, seen = family.tiny(), []
    with make_edit(model).applied(model):

        def hook(_module, _args, kwargs):
            seen.append(kwargs["encoder_hidden_states"])

        handle = model.pipeline.unet.register_forward_pre_hook(hook, with_kwargs=True)
        model.render(PROMPTS[:1], SEEDS[:1])
        handle.remove()
    own = model.encode_prompt(PROMPTS[:1])["prompt_embeds"][0]
    for embeds in seen:
        zero = (embeds == 0).all(2)  # after the beginning of text and "a"
        assert zero.any(1).sum() == len(zero) // 2 and zero[zero.any(1)].nonzero()[:, 1].unique().tolist() == [2]
        said = embeds[zero.any(1)][0]
        torch.testing.assert_close(said[[0, 1, 3, 4]], own[[0, 1, 3, 4]], rtol=1e-4, atol=1e-4)


def test_several_images_of_a_prompt_are_all_changed_and_embeddings_are_not():
    model = StableDiffusion.tiny()
    options = dict(output_type="pt", **model.options)
    embeds = model.encode_prompt(PROMPTS[:1])["prompt_embeds"]

    def images(**asked):
        return model.pipeline(generator=torch.Generator().manual_seed(1), **asked, **options).images

    before, given = images(prompt=PROMPTS[0], num_images_per_prompt=2), images(prompt_embeds=embeds)
    with make_edit(model).applied(model):
        after = images(prompt=PROMPTS[0], num_images_per_prompt=2)
        assert torch.equal(images(prompt_embeds=embeds), given)
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_what_will_not_do_is_refused_in_one_line():
    with pytest.raises(ValueError, match="value"):
        make_edit(StableDiffusion.tiny(), "one")
    with pytest.raises(ValueError, match="found value='one' in the edit: expected zero, mean, empty"):
        Edit({}, {}, "zero_token", {"keywords": ["drum"], "value": "one"}).apply(StableDiffusion.tiny())
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    pipeline = DDIMPipeline(UNet2DModel(32, block_out_channels=(8, 8), norm_num_groups=8, **blocks), DDIMScheduler())
    with pytest.raises(ValueError, match="DDIMPipeline reads prompts otherwise: zero_token expects"):
        make_edit(StableDiffusion.tiny()).apply(pipeline)
