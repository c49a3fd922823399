"""Negative prompt: it is the pipeline's own, it keeps the user's, and a Conditioning does not take it away."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.edits import Edit
from unreel.hashes import parameter_hashes
from unreel.methods.method import Task
from unreel.methods.negative_prompt import NegativePrompt, appended
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero
from unreel.vocabulary import Surroundings

FAMILIES = pytest.mark.parametrize("family", [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero])
VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
}
PROMPTS, SEEDS = ["a drum on the beach", "a cat at night"], [3, 4]


def make_edit(model, text=None, names=("drum",)):
    concepts = [to_concept(name, {"name": name, "kind": "object"}) for name in names]
    captions = [TrainingCaptions(concept, Surroundings(VOCABULARY, concepts, False)) for concept in concepts]
    return NegativePrompt(name="negative_prompt", text=text).erase(model, Task(captions, [], 0))


def rendered(model):
    return model.render(PROMPTS, SEEDS)


def plainly(model, **options):
    """What the pipeline gives when it is called with these options of its own."""
    before = model.options
    model.options = before | options
    try:
        return model.render([PROMPTS[0]], SEEDS[:1])
    finally:
        model.options = before


def test_it_says_all_phrases_of_all_concepts():
    edit = make_edit(StableDiffusion.tiny(), names=("drum", "guitar"))
    assert edit.settings == {"negative_prompt": "a drum, the drum, one drum, a guitar, the guitar, one guitar"}
    assert not edit.tensors and not edit.base and edit.is_attached


@FAMILIES
def test_an_empty_text_is_classifier_free_guidance_bit_for_bit(family):
    model = family.tiny()
    before = rendered(model)
    with make_edit(model, text="").applied(model):
        assert torch.equal(rendered(model), before)


@FAMILIES
def test_it_is_the_pipelines_own_negative_prompt_and_nothing_is_left_of_it(family, tmp_path):
    model = family.tiny()
    before, weights = rendered(model), parameter_hashes(model.components["denoiser"])
    kind, attributes = type(model.pipeline), set(vars(model.pipeline))
    make_edit(model).save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    with edit.applied(model):
        after = rendered(model)
        alone = model.render([PROMPTS[0]], SEEDS[:1])
    assert torch.equal(alone, plainly(model, negative_prompt="a drum, the drum, one drum" if family is Text2VideoZero
                                      else ["a drum, the drum, one drum"]))  # fmt: skip
    assert not torch.equal(after, before)
    assert torch.equal(rendered(model), before) and parameter_hashes(model.components["denoiser"]) == weights
    assert type(model.pipeline) is kind and set(vars(model.pipeline)) == attributes
    edit.apply(model.pipeline)  # a user's plain pipeline, for good
    assert torch.equal(rendered(model), after)


@FAMILIES
def test_a_negative_prompt_of_the_users_own_comes_first(family):
    model = family.tiny()
    listed = family is not Text2VideoZero
    both, own = "blurry, a drum, the drum, one drum", "blurry"
    want = plainly(model, negative_prompt=[both] if listed else both)
    with make_edit(model).applied(model):
        found = plainly(model, negative_prompt=[own] if listed else own)
    assert torch.equal(found, want)


@FAMILIES
def test_a_conditioning_is_steered_too_and_the_edit_stays_attached(family):
    model = family.tiny()
    conditioning = model.encode_prompt(PROMPTS)
    before = model.render(conditioning, SEEDS)
    with make_edit(model).applied(model):
        after = rendered(model)
        assert torch.allclose(model.render(conditioning, SEEDS), after, atol=1e-4)
        assert torch.equal(rendered(model), after)  # what the Conditioning had patched is gone, the edit is not
    assert not torch.equal(after, before)
    assert torch.equal(model.render(conditioning, SEEDS), before)


def test_embeddings_in_place_of_prompts_are_steered_and_negative_ones_are_refused():
    model = StableDiffusion.tiny()
    embeds = model.encode_prompt(PROMPTS)["prompt_embeds"]
    options = dict(output_type="pt", **model.options)

    def images(**asked):
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        return model.pipeline(generator=generators, **asked, **options).images

    want = images(prompt=PROMPTS, negative_prompt=["a drum, the drum, one drum"] * 2)
    with make_edit(model).applied(model):
        assert torch.allclose(images(prompt_embeds=embeds), want, atol=1e-4)
        with pytest.raises(ValueError, match="found negative_prompt_embeds"):
            images(prompt_embeds=embeds, negative_prompt_embeds=embeds)


def test_two_edits_are_attached_one_in_the_other():
    model = StableDiffusion.tiny()
    want = plainly(model, negative_prompt=["a cat, a drum"])
    with make_edit(model, text="a drum").applied(model), make_edit(model, text="a cat").applied(model):
        assert torch.equal(plainly(model), want)


def test_a_pipelines_own_attribute_is_wrapped_and_comes_back():
    model = StableDiffusion.tiny()
    own = model.pipeline.encode_prompt
    model.pipeline.encode_prompt = mine = lambda prompt, device, n, cfg, negative_prompt=None, **more: own(
        prompt, device, n, cfg, negative_prompt, **more
    )
    want = plainly(model, negative_prompt=["a drum"])
    with make_edit(model, text="a drum").applied(model):
        assert torch.equal(plainly(model), want)
    assert model.pipeline.encode_prompt is mine


def test_texts_for_some_prompts_alone_leave_the_others_as_they_are():
    asked = {"prompt": ["a", "b"], "negative_prompt": ["", "blurry"]}
    assert appended(asked, ["", ""]) is asked
    assert appended(asked, ["a drum", ""])["negative_prompt"] == ["a drum", "blurry"]
    assert appended({"prompt": "a"}, ["a drum"])["negative_prompt"] == "a drum"
    with pytest.raises(ValueError, match="found 2 negative prompts for 1 prompts"):
        appended(asked, ["a drum"])


def test_a_pipeline_without_negative_prompts_is_refused():
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet = UNet2DModel(32, block_out_channels=(8, 8), norm_num_groups=8, **blocks)
    pipeline = DDIMPipeline(unet, DDIMScheduler())
    with pytest.raises(ValueError, match="DDIMPipeline reads no negative prompt"):
        make_edit(StableDiffusion.tiny()).apply(pipeline)
