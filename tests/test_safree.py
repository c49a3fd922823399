"""SAFREE: its projectors, which tokens it finds, on which steps it acts, and that all other prompts stay the same."""

from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.edits import Edit
from unreel.hashes import parameter_hashes
from unreel.methods.method import Task
from unreel.methods.safree import SAFREE, Filter, holding, last_step, projector, reattended
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
FORGET, RETAIN = "a drum on the beach", "a cat at night"


def make_edit(model, **changes):
    concept = to_concept("drum", {"name": "drum", "kind": "object"})
    captions = [TrainingCaptions(concept, Surroundings(VOCABULARY, [concept], False))]
    options: dict[str, Any] = (
        dict(alpha=0.5, steps=50, sharpness=2.5, midpoint=0.0, re_attention=[0.9, 0.2], negative=True) | changes
    )
    return SAFREE(name="safree", **options).erase(model, Task(captions, [], 0))


def planted(family=StableDiffusion):
    """A tiny model whose text encoder pools nearly the same from all words but "drum".

    All other tokens have one embedding and a little of their own, places have none, and attention takes the mean.
    """
    model = family.tiny()
    encoder, tokenizer = model.pipeline.text_encoder, model.pipeline.tokenizer
    width, drum = encoder.config.hidden_size, tokenizer.convert_tokens_to_ids("drum</w>")
    with torch.no_grad():
        embedding = encoder.get_input_embeddings().weight
        torch.manual_seed(5)
        all_else, planted = torch.randn(2, width)
        embedding.copy_(all_else + 0.05 * torch.randn(embedding.shape))
        embedding[drum] = planted
        encoder.embeddings.position_embedding.weight.zero_()
        for layer in encoder.encoder.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                linear.weight.zero_()
                linear.bias.zero_()
            layer.self_attn.v_proj.weight.copy_(torch.eye(width))
            layer.self_attn.out_proj.weight.copy_(torch.eye(width))
    return model


def rendered(model, prompts=(FORGET, RETAIN), seeds=(3, 4)):
    return model.render(list(prompts), list(seeds))


def inputs_of(model, prompts):
    """What the UNet reads, pass by pass: (timestep, encoder_hidden_states)."""
    seen = []
    hook = lambda module, args, kwargs: seen.append((int(args[1]), kwargs["encoder_hidden_states"]))  # noqa: E731
    handle = model.pipeline.unet.register_forward_pre_hook(hook, with_kwargs=True)  # after the edit's own
    try:
        rendered(model, prompts, range(len(prompts)))
    finally:
        handle.remove()
    return seen


def found_in(model, prompt, **changes):
    own = Filter(model.pipeline, make_edit(model, **changes).settings)
    embeds = model.encode_prompt([prompt])["prompt_embeds"][0]
    return own.look(prompt, embeds)


@pytest.mark.parametrize("columns", [torch.randn(8, 3), torch.ones(8, 2), torch.randn(4, 9), 1e-3 * torch.randn(8, 5)])
def test_a_projector_is_its_own_square_and_its_own_transpose(columns):
    matrix = projector(columns)
    assert torch.allclose(matrix, matrix @ matrix, atol=1e-12) and torch.allclose(matrix, matrix.T, atol=1e-12)
    assert torch.allclose(matrix @ columns.double(), columns.double(), atol=1e-9)
    assert round(matrix.trace().item()) == torch.linalg.matrix_rank(columns)


def test_a_token_holds_the_concept_when_its_masking_leads_away_from_it():
    distances = torch.tensor([1.0, 1.0, 2.0, 1.0])
    assert holding(distances, torch.tensor(1.0), 0.01).tolist() == [False, False, True, False]
    assert not holding(distances, torch.tensor(1.0), 1e9).any()
    assert not holding(distances, torch.tensor(1.0), 1.0).any()  # exactly twice the others is not more than twice
    assert holding(torch.tensor([3.0]), torch.tensor(1.0), 0.5).tolist() == [True]
    assert not holding(torch.tensor([1.0]), torch.tensor(3.0), 0.5).any()


def test_the_last_step_grows_with_b_up_to_the_most():
    steps = [last_step(b, 10, 2.5, 5.333) for b in (0.0, 0.5, 0.5333, 0.6, 1.0)]
    assert steps == sorted(steps) and steps[0] == 0 and steps[2] == 5 and steps[-1] == 10


def test_re_attention_scales_what_grew_at_low_frequencies_and_nothing_else():
    torch.manual_seed(0)
    before = torch.randn(2, 3, 8, 8)
    assert torch.allclose(reattended(before, before, 0.2), before, atol=1e-5)
    assert torch.allclose(reattended(before / 2, before, 0.2), before / 2, atol=1e-5)  # nothing grew
    flat = torch.full((1, 1, 8, 8), 3.0)
    assert torch.allclose(reattended(flat, flat / 2, 0.2), 0.2 * flat, atol=1e-5)
    checks = flat * (-1) ** (torch.arange(8)[:, None] + torch.arange(8))  # the highest frequency
    assert torch.allclose(reattended(checks, checks / 2, 0.2), checks, atol=1e-5)


def test_the_planted_token_is_found_and_its_row_alone_changes():
    model = planted()
    ids = model.pipeline.tokenizer(FORGET).input_ids
    at = ids.index(model.pipeline.tokenizer.convert_tokens_to_ids("drum</w>"))
    found = found_in(model, FORGET)
    changed = (found.own != found.safe).any(1).nonzero().flatten().tolist()
    assert at == 2 and changed == [at]  # after the beginning of text and "a"
    assert found_in(model, RETAIN) is None and found_in(model, "") is None
    assert found_in(model, FORGET, alpha=1e9) is None


def test_a_found_row_is_orthogonal_to_the_concept():
    model = planted()
    own, found = Filter(model.pipeline, make_edit(model).settings), found_in(model, FORGET)
    inside = torch.eye(len(own.outside)) - own.outside
    changed = (found.own != found.safe).any(1)
    before, after = ((row[changed].double() @ inside).norm() for row in (found.own, found.safe))
    assert after < 1e-4 * before


def test_a_prompt_of_the_concept_alone_is_found():
    model = planted()
    assert found_in(model, "drum") is not None and found_in(model, "cat") is None


def test_words_are_found_where_a_tokenizer_has_no_beginning_of_text():
    own = Filter(planted().pipeline, make_edit(StableDiffusion.tiny()).settings)
    ids, mask = own.tokens([FORGET])
    assert own.places(ids, mask).tolist() == [1, 2, 3, 4, 5]
    assert own.places(ids[:, 1:], mask[:, 1:]).tolist() == [0, 1, 2, 3, 4]


@FAMILIES
def test_prompts_without_the_concept_stay_bit_identical_beside_one_that_changes(family, tmp_path):
    model = planted(family)
    before, alone, weights = (
        rendered(model),
        rendered(model, [RETAIN], [4]),
        parameter_hashes(model.components["denoiser"]),
    )
    kind, attributes = type(model.pipeline), set(vars(model.pipeline))
    make_edit(model).save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    with edit.applied(model):
        after = rendered(model)
        assert torch.equal(rendered(model, [RETAIN], [4]), alone)
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])
    assert torch.equal(rendered(model), before) and parameter_hashes(model.components["denoiser"]) == weights
    assert type(model.pipeline) is kind and set(vars(model.pipeline)) == attributes
    unet = model.pipeline.unet
    assert not unet._forward_pre_hooks and not any(block._forward_pre_hooks for block in unet.up_blocks)
    edit.apply(model.pipeline)  # a user's plain pipeline, for good
    assert torch.equal(rendered(model), after)


@FAMILIES
def test_nothing_is_found_with_an_infinite_alpha(family):
    model = planted(family)
    before = rendered(model)
    with make_edit(model, alpha=1e9).applied(model):
        assert torch.equal(rendered(model), before)


@FAMILIES
@pytest.mark.parametrize("change", [dict(re_attention=None), dict(negative=False), dict(steps=0)])
def test_each_part_does_something_of_its_own(family, change):
    model = planted(family)
    with make_edit(model).applied(model):
        whole = rendered(model, [FORGET], [3])
    with make_edit(model, **change).applied(model):
        part = rendered(model, [FORGET], [3])
    assert not torch.equal(whole, part) and not torch.equal(part, rendered(model, [FORGET], [3]))


@FAMILIES
def test_the_projection_holds_on_the_first_steps_for_the_prompts_rows_alone(family):
    model = planted(family)
    model.options["num_inference_steps"] = 10
    if family is Text2VideoZero:
        model.options |= {"t0": 3, "t1": 5}  # goes back and forth over the same timesteps
    own = model.encode_prompt([FORGET])["prompt_embeds"][0]
    found = found_in(model, FORGET)
    edit = make_edit(model, steps=15, midpoint=-100, negative=False, re_attention=None)  # N = 15 * 10 / 50 = 3
    with edit.applied(model):
        seen = inputs_of(model, [FORGET])
    timesteps = model.pipeline.scheduler.timesteps.tolist()
    assert len(seen) >= 10
    for timestep, embeds in seen:
        null, prompt = embeds.chunk(2)
        want = found.safe if timesteps.index(timestep) <= 3 else own
        assert torch.allclose(prompt, want.expand_as(prompt), atol=1e-5)
        assert not torch.allclose(null, want.expand_as(null), atol=1e-3)


def test_it_acts_on_a_conditioning_in_no_way_and_stays_attached():
    model = planted()
    conditioning = model.encode_prompt([FORGET])
    before = model.render(conditioning, [3])
    with make_edit(model).applied(model):
        after = rendered(model, [FORGET], [3])
        assert torch.equal(model.render(conditioning, [3]), before)
        assert torch.equal(rendered(model, [FORGET], [3]), after)
    assert not torch.equal(after, before)


def test_the_users_negative_prompt_is_kept_for_the_prompts_that_change_and_the_others():
    model = planted()
    model.options |= {"negative_prompt": ["blurry"] * 2}
    before = rendered(model)
    with make_edit(model, steps=0, midpoint=100, re_attention=None).applied(model):
        after = rendered(model)
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])


def test_several_images_of_a_prompt_are_all_filtered():
    model = planted()
    options = dict(output_type="pt", num_images_per_prompt=2, **model.options)

    def images():
        return model.pipeline([FORGET], generator=torch.Generator().manual_seed(1), **options).images

    before = images()
    with make_edit(model, negative=False).applied(model):
        after = images()
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("change", [dict(alpha=-1.0), dict(steps=-1), dict(re_attention=[0.9])])
def test_numbers_that_will_not_do_are_refused(change):
    with pytest.raises(ValueError, match=f"SAFREE\n{next(iter(change))}\n"):
        make_edit(StableDiffusion.tiny(), **change)


def test_a_pipeline_that_reads_prompts_otherwise_is_refused():
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    pipeline = DDIMPipeline(UNet2DModel(32, block_out_channels=(8, 8), norm_num_groups=8, **blocks), DDIMScheduler())
    with pytest.raises(ValueError, match="DDIMPipeline reads prompts otherwise"):
        make_edit(StableDiffusion.tiny()).apply(pipeline)
