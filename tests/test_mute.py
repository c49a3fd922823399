"""MUTE: its gate and its formula, on the rows that say the concept alone, and with nothing left of it afterwards."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from test_esd import make_task
from unreel.edits import Edit
from unreel.methods.mute import Mute, gate, muted
from unreel.methods.zero_token import marks_in, neutral
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero

FAMILIES = pytest.mark.parametrize("family", [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero])
PROMPTS, SEEDS = ["a drum on the beach", "a cat at night"], [3, 4]


def make_edit(model, alpha=5.0, names=("drum",)):
    return Mute(name="mute", alpha=alpha).erase(model, make_task([], names=names))


def passes_of(model, prompts=PROMPTS):
    """What the denoiser was given and what it returned, pass by pass: (rows, output), as the pipeline sees it."""
    seen = []

    def hook(_, args, kwargs, output):
        seen.append((args, kwargs, output[0].clone()))

    handle = model.components["denoiser"].register_forward_hook(hook, with_kwargs=True)
    try:
        model.render(list(prompts), SEEDS[: len(prompts)])
    finally:
        handle.remove()
    return seen


def test_the_gate_is_one_where_the_direction_is_longest_and_zero_where_it_is_nothing():
    direction = torch.zeros(2, 3, 2, 4, 4)
    direction[0, :, 1, 2, 3] = torch.tensor([3.0, 0.0, 4.0])
    direction[0, :, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    found = gate(direction)
    assert found.shape == (2, 1, 2, 4, 4) and found[0, 0, 1, 2, 3] == 1 and found[0, 0, 0, 0, 0] == pytest.approx(0.2)
    assert found[0].count_nonzero() == 2 and not found[1].any()  # and no number is none


def test_what_is_subtracted_is_gated_and_of_several_concepts_the_sum():
    cond, one, two = torch.randn(3, 2, 4, 3, 5, 5)
    d = cond - one
    torch.testing.assert_close(muted(cond, [one], 5.0), cond - 5 * gate(d) * d)
    torch.testing.assert_close(
        muted(cond, [one, two], 2.0), cond - 2 * gate(d) * d - 2 * gate(cond - two) * (cond - two)
    )
    assert torch.equal(muted(cond, [cond], 5.0), cond) and torch.equal(muted(cond, [one], 0.0), cond)


@FAMILIES
def test_prompts_without_the_word_stay_bit_identical_and_nothing_is_left_of_it(family, tmp_path):
    model = family.tiny()
    before, attributes = model.render(PROMPTS, SEEDS), set(vars(model.pipeline))
    make_edit(model).save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    with edit.applied(model):
        after = model.render(PROMPTS, SEEDS)
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])
    assert torch.equal(model.render(PROMPTS, SEEDS), before) and set(vars(model.pipeline)) == attributes
    assert not model.components["denoiser"]._forward_hooks
    edit.apply(model.pipeline)
    assert torch.equal(model.render(PROMPTS, SEEDS), after)


@FAMILIES
def test_at_zero_and_for_a_word_that_no_prompt_says_clips_are_the_unedited_models_to_the_bit(family):
    model = family.tiny()
    before = model.render(PROMPTS, SEEDS)
    for edit in (make_edit(model, alpha=0.0), make_edit(model, names=("guitar",))):
        with edit.applied(model):
            assert torch.equal(model.render(PROMPTS, SEEDS), before)


@FAMILIES
def test_the_first_step_is_the_formula_on_the_prompts_rows_and_nothing_on_the_others(family):
    """Against passes that are made one by one; the first step's latents are those of the unedited model."""
    model = family.tiny()
    prompts = PROMPTS if family is not Text2VideoZero else PROMPTS[:1]  # which takes one at a time
    plain = passes_of(model, prompts)[0]
    with make_edit(model).applied(model):
        own = passes_of(model, prompts)[0][2]
    embeds = plain[1]["encoder_hidden_states"]
    cond = model.encode_prompt(prompts)["prompt_embeds"]
    other = neutral(cond, marks_in(model.pipeline, prompts, cond, ["drum"]), "mean")
    changed = embeds.clone()
    for row, text in enumerate(embeds):
        if torch.allclose(text, cond[0], atol=1e-4):
            changed[row] = other[0]
    with torch.no_grad():
        denoiser = model.components["denoiser"]
        neutralised = denoiser.forward(*plain[0], **plain[1] | {"encoder_hidden_states": changed})[0]
    each = len(embeds) // len(own)
    said = (changed != embeds).flatten(1).any(1).view(len(own), each).any(1)
    assert said.any() and not said.all()
    torch.testing.assert_close(own[said], muted(plain[2][said], [neutralised[said]], 5.0), rtol=1e-3, atol=1e-4)
    assert torch.equal(own[~said], plain[2][~said])


@pytest.mark.parametrize("family", [StableDiffusion, AnimateDiff, ModelScope])
def test_the_third_pass_is_of_the_prompt_alone(family):
    model, rows = family.tiny(), []
    denoiser = model.components["denoiser"]

    def hook(_module, args):
        rows.append(len(args[0]))

    handle = denoiser.conv_in.register_forward_pre_hook(hook)  # of a forward pass within the hook, too
    with make_edit(model).applied(model):
        model.render(PROMPTS, SEEDS)
    handle.remove()
    assert {a / b for a, b in zip(rows[::2], rows[1::2], strict=True)} == {4.0}  # null and prompt of two; and one


def test_a_conditioning_is_left_as_it_is_and_two_concepts_are_muted_each():
    model = StableDiffusion.tiny()
    conditioning = model.encode_prompt(PROMPTS[:1])
    before = model.render(conditioning, SEEDS[:1])
    prompt = ["a drum and a guitar"]
    clips = []
    for names in (("drum",), ("guitar",), ("drum", "guitar")):
        with make_edit(model, names=names).applied(model):
            clips.append(model.render(prompt, SEEDS[:1]))
            assert torch.equal(model.render(conditioning, SEEDS[:1]), before)
    assert not torch.equal(clips[0], clips[2]) and not torch.equal(clips[1], clips[2])


def test_what_will_not_do_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        make_edit(StableDiffusion.tiny(), alpha=-1.0)
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    pipeline = DDIMPipeline(UNet2DModel(32, block_out_channels=(8, 8), norm_num_groups=8, **blocks), DDIMScheduler())
    with pytest.raises(ValueError, match="DDIMPipeline reads prompts otherwise: mute expects"):
        make_edit(StableDiffusion.tiny()).apply(pipeline)
