"""T2VUnlearning: its adapters are an edit like any other, its mask is where the concept is, its training goes on."""

from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from diffusers import CogVideoXTransformer3DModel

from test_esd import make_task
from unreel.batches import Batches, BatchSizes, Step
from unreel.edits import Edit, hashes_of
from unreel.hashes import parameter_hashes
from unreel.methods.adapters import Adapter, Adapters, width_of
from unreel.methods.attention_maps import Capture, grid_of, mask_of
from unreel.methods.gradient import ErasureModule
from unreel.methods.t2v_unlearning import T2VUnlearning, localisation
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.roles import holders
from unreel.models.stable_diffusion import StableDiffusion
from unreel.models.text2video_zero import Text2VideoZero
from unreel.sharing import Held

FAMILIES = pytest.mark.parametrize("family", [StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero])
CROSS, PROMPTS, SEEDS = ["denoiser.cross_attention"], ["a drum on the beach", "a cat at night"], [3, 4]


def make_method(steps=2, batch=2, lr=1e-2, **changes):
    data = BatchSizes(steps=steps, epochs=None, batch=batch, pairs=0, retain=4)
    options = dict(
        eta=5.0, origin="null", localisation=1.0, preservation=1.0, threshold=0.1, layers="all", rank=4, weight=1.0,
        clips=3, frames=2,
    ) | changes  # fmt: skip
    return T2VUnlearning(name="t2v_unlearning", optimizer={"lr": lr}, data=data, guard=None, **options)


def make_edit(model, seed=0, filled=True, **settings):
    """An edit of adapters behind the cross-attention, as the method makes them; `filled` with random numbers."""
    adapters = make_method().brings(model, make_task(CROSS, seed))
    if filled:
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
    tensors = {f"attached/{name}": value.detach() for name, value in adapters.named_parameters()}
    base = hashes_of(model.components, ["denoiser"])
    return Edit(tensors, base, "t2v_unlearning", {"rank": 4, "weight": 1.0} | settings)


def step_of(model, method, brought=True):
    task = make_task(CROSS)
    batches = Batches(model, task.captions, None, method.data, 0)
    reference = model.reference([])
    prepared = method.prepare(reference, task, batches)
    return Step(model, reference, batches.batch(0), prepared, method.brings(model, task) if brought else None)


def test_an_adapter_has_so_many_parameters_and_adds_nothing_at_first():
    with torch.device("meta"):
        count = sum(p.numel() for p in Adapter(1920, 128).parameters())
    assert 30 * count == 14_807_040  # all 30 blocks of CogVideoX-2B
    hidden = torch.randn(2, 5, 32)
    assert torch.equal(hidden + Adapter(32, 4)(hidden), hidden)


@FAMILIES
def test_fresh_adapters_and_a_weight_of_zero_are_the_unedited_model_to_the_bit(family):
    model = family.tiny()
    before = model.render(PROMPTS, SEEDS)
    for edit in (make_edit(model, filled=False), make_edit(model, weight=0.0)):
        with edit.applied(model):
            assert torch.equal(model.render(PROMPTS, SEEDS), before)
    with make_edit(model).applied(model):
        assert not torch.equal(model.render(PROMPTS, SEEDS), before)
    assert torch.equal(model.render(PROMPTS, SEEDS), before)


def test_in_joint_attention_visual_tokens_alone_change():
    torch.manual_seed(0)
    denoiser = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=8,
        num_layers=2, sample_width=4, sample_height=4, sample_frames=5, max_text_seq_length=6,
    ).eval()  # fmt: skip
    place = "transformer_blocks.0.attn1"
    layer = denoiser.get_submodule(place)
    adapters = Adapters({place: width_of(layer)}, 4)
    torch.nn.init.normal_(adapters["transformer_blocks/0/attn1"].up.weight)
    hidden, text = torch.randn(1, 12, 16), torch.randn(1, 6, 16)
    with torch.no_grad():
        visual, said = layer(hidden, encoder_hidden_states=text)
        with adapters.attached(denoiser):
            visual_now, said_now = layer(hidden, encoder_hidden_states=text)
    assert torch.equal(said_now, said) and not torch.equal(visual_now, visual)
    assert layer in holders(denoiser, ["denoiser/transformer_blocks.0.attn1.to_q.weight"]).values()


@FAMILIES
def test_at_eta_minus_one_nothing_is_to_be_learnt(family):
    method = make_method(eta=-1.0)
    step = step_of(family.tiny(), method)
    scalars = method.loss(step)
    step.close()
    assert {name: float(scalars[name]) for name in ("unlearn", "localisation", "preservation")} == {
        "unlearn": pytest.approx(0, abs=1e-10), "localisation": 0.0, "preservation": pytest.approx(0, abs=1e-10)
    }  # fmt: skip


def test_the_loss_is_what_the_formula_says():
    """Against the parts computed one by one, with adapters that add something."""
    model, method = ModelScope.tiny(), make_method(eta=5.0, localisation=2.0, preservation=3.0)
    step = step_of(model, method)
    for parameter in step.brought.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    scalars = method.loss(step)
    step.close()
    rows, kept, latents, noise, timesteps = step.prepared.draw(step.batch, model)
    noisy, _ = model.noised(latents[:, :, :2], noise[:, :, :2], timesteps)
    denoiser, said = model.components["denoiser"], step.prepared.said.rows(rows)
    with torch.no_grad():
        pre = model.encode_prompt(kept)
        null = model.predict(noisy, timesteps, model.encode_prompt([""] * 2))
        cond, pre_frozen = (model.predict(noisy, timesteps, texts) for texts in (said, pre))
        with step.brought.attached(denoiser):
            cond_now, pre_now = (model.predict(noisy, timesteps, texts) for texts in (said, pre))
    unlearn = (cond_now - (null - 5 * (cond - null))).square().mean()
    preserve = (pre_now - pre_frozen).square().mean()
    torch.testing.assert_close(scalars["unlearn"], unlearn, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scalars["preservation"], preserve, rtol=1e-4, atol=1e-5)
    whole = unlearn + 2 * scalars["localisation"] + 3 * preserve
    torch.testing.assert_close(scalars["loss"], whole, rtol=1e-4, atol=1e-5)
    assert not denoiser.get_submodule("mid_block")._forward_hooks and scalars["localisation"] >= 0


def test_guidance_starts_from_the_empty_prompt_or_from_the_same_caption_without_the_concept():
    model = StableDiffusion.tiny()
    for origin, said in (("null", False), ("anchor", True)):
        step = step_of(model, make_method(origin=origin))
        found = step.prepared.origin["prompt_embeds"]
        empty = model.encode_prompt([""])["prompt_embeds"]
        assert found.shape == step.prepared.said["prompt_embeds"].shape
        assert (found - empty).abs().amax((1, 2)).gt(1e-3).tolist() == [said] * len(found)
        assert not torch.allclose(found, step.prepared.said["prompt_embeds"])


def test_the_localisation_is_of_what_is_outside_of_the_mask():
    added = [torch.randn(6, 16, 8), torch.randn(6, 4, 8)]  # two layers, of 4 x 4 and of 2 x 2 tokens a frame
    assert localisation(added, torch.ones(6, 4, 4)) == 0
    whole = torch.stack([each.square().mean() for each in added]).mean()
    torch.testing.assert_close(localisation(added, torch.zeros(6, 4, 4)), whole)
    left = torch.zeros(6, 4, 4)
    left[:, :, :2] = 1
    right = [added[0].view(6, 4, 4, 8)[:, :, 2:], added[1].view(6, 2, 2, 8)[:, :, 1:]]
    want = torch.stack([each.square().sum() / own.numel() for each, own in zip(right, added, strict=True)]).mean()
    torch.testing.assert_close(localisation(added, left), want)
    joint = [own.view(2, -1, 8) for own in added]  # all frames of a clip in one row
    torch.testing.assert_close(localisation(joint, left), want)


@pytest.mark.parametrize("family", [StableDiffusion, ModelScope, AnimateDiff])
def test_the_mask_is_where_a_planted_token_is_looked_for_in_each_frame(family):
    """One text token equals the query of a known patch, another one in each frame."""
    model = family.tiny()
    capture, generator = Capture(model.components["denoiser"]), torch.Generator().manual_seed(0)
    shape = model.latent_shape
    frames, prompts, length, token = (shape[1] if len(shape) == 4 else 1), 3, 7, 4
    spots = [(i % 3, (2 * i) % 3) for i in range(2 * frames)]  # in eighths of the frame, of the first two prompts
    for name, layer in capture.layers.items():
        width = layer.to_q.out_features
        edge = 8 if "down" in name or "up" in name else 4
        queries = 0.1 * torch.randn(prompts * frames, edge * edge, width, generator=generator)
        keys = 0.1 * torch.randn(prompts * frames, length, width, generator=generator)
        planted = torch.ones(width)
        keys[:, token] = planted
        for row, (y, x) in enumerate(spots):
            queries[row, (y * edge // 4) * edge + x * edge // 4] = 4 * planted
        capture.queries[name], capture.keys[name] = queries, keys
    columns = torch.zeros(2, length, dtype=torch.bool)
    columns[:, token] = True
    maps = capture.maps(columns, prompts, shape)
    assert len(maps) == len(capture.layers) > 1 and all(len(each) == 2 * frames for each in maps)
    before = [each.clone() for each in maps]
    mask = mask_of(maps, 0.5)
    assert all(torch.equal(each, own) for each, own in zip(maps, before, strict=True)), "a layer's map was written to"
    for row, (y, x) in enumerate(spots):
        for each in maps:
            edge = each.shape[1]
            assert divmod(int(each[row].argmax()), edge) == (y * edge // 4, x * edge // 4)
        edge = mask.shape[1]
        assert mask[row, y * edge // 4, x * edge // 4] == 1 and mask[row].mean() < 0.2
    coarse, fine = torch.rand(2, 2, 2), torch.rand(2, 4, 4)
    assert torch.equal(mask_of([coarse, fine], 0.5, finest=True), (fine >= 0.5).float())
    columns[:, token], columns[:, 0] = False, True
    others = capture.maps(columns, prompts, shape)
    assert all(int(o[0].argmax()) != int(m[0].argmax()) for o, m in zip(others, maps, strict=True))


def test_queries_and_keys_are_those_of_the_layers():
    model = ModelScope.tiny()
    capture, denoiser = Capture(model.components["denoiser"]), model.components["denoiser"]
    noisy = torch.randn(2, *model.latent_shape)
    with torch.no_grad(), capture.listening():
        model.predict(noisy, torch.tensor([5, 900]), model.encode_prompt(PROMPTS))
    frames, length = model.latent_shape[1], model.reading.max_length
    for name, layer in capture.layers.items():
        assert layer is denoiser.get_submodule(name) and "temp" not in name
        assert len(capture.queries[name]) == 2 * frames and capture.keys[name].shape[1] == length
        assert not layer.to_q._forward_hooks
    assert grid_of(12, (6, 8)) == (3, 4) and grid_of(256, (16, 16)) == (16, 16)


@FAMILIES
def test_its_edit_is_saved_loaded_and_attached_to_a_plain_pipeline(family, tmp_path):
    model = family.tiny()
    before, weights = model.render(PROMPTS, SEEDS), parameter_hashes(model.components["denoiser"])
    edit = make_method().erase(model, make_task(CROSS))
    assert {n.split("/")[0] for n in edit.tensors} == {"attached"} and edit.components == ("denoiser",)
    assert edit.provenance["facts"]["attached"] and edit.provenance["facts"]["steps"] == 2
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    with loaded.applied(model):
        after = model.render(PROMPTS, SEEDS)
    assert not torch.equal(after, before) and torch.equal(model.render(PROMPTS, SEEDS), before)
    assert not any(module._forward_hooks for module in model.components["denoiser"].modules())
    loaded.apply(model.pipeline)
    assert torch.equal(model.render(PROMPTS, SEEDS), after)
    assert parameter_hashes(model.components["denoiser"]) == weights


@pytest.mark.parametrize(
    "spoil",
    [
        lambda name, value: (name, value[..., :-1]),
        lambda name, value: (name.replace("blocks", "bricks"), value),
        lambda name, value: (name + "x", value),
    ],
)
def test_adapters_that_do_not_fit_are_refused_in_one_line(spoil):
    model = ModelScope.tiny()
    edit = make_edit(model)
    first, *rest = edit.tensors.items()
    with pytest.raises(ValueError, match="the edit is damaged: found attached/") as caught:
        replace(edit, tensors=dict([spoil(*first), *rest])).apply(model)
    assert "\n" not in str(caught.value) and not hasattr(model, "unreel_edits")
    with pytest.raises(ValueError, match="found other 'rank'"):
        replace(edit, settings={"rank": "4", "weight": 1.0}).apply(model)
    with pytest.raises(ValueError, match="the edit is damaged: found attached/"):
        replace(edit, settings={"rank": 5, "weight": 1.0}).apply(model)


def test_a_donors_adapters_reach_the_video_models_that_hold_its_denoiser_and_no_other():
    donor, animated, video = StableDiffusion.tiny(), AnimateDiff.tiny(), ModelScope.tiny()
    edit, held = make_edit(donor), Held.by(donor, T2VUnlearning.edits)
    assert held.differs(animated) == "" and "in its denoiser" in held.differs(video)
    before = animated.render(PROMPTS, SEEDS)
    with edit.applied(animated):
        assert not torch.equal(animated.render(PROMPTS, SEEDS), before)
    with pytest.raises(ValueError, match="belongs to other weights: in its denoiser"):
        edit.apply(video)


class Saving(pl.Callback):
    """Writes a checkpoint after the second step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


def test_a_training_that_was_killed_ends_as_it_would_have(tmp_path):
    path, method = tmp_path / "last.ckpt", make_method(steps=4)
    whole = method.erase(ModelScope.tiny(), make_task(CROSS, watch=[Saving(path)]))
    saved = torch.load(path, weights_only=True)
    assert all(name.startswith("attached/") for name in saved["state_dict"]), "frozen weights went to disk"
    again = method.erase(ModelScope.tiny(), replace(make_task(CROSS), checkpoint=path))
    assert again.hash == whole.hash and again.provenance["facts"]["steps"] == 4


def test_a_training_that_runs_away_ends_with_the_last_good_state_and_leaves_nothing_behind():
    model = ModelScope.tiny()
    edit = make_method(steps=6, lr=1e30).erase(model, make_task(CROSS))
    assert "last good state" in edit.provenance["facts"]["stopped"]
    assert all(tensor.isfinite().all() for tensor in edit.tensors.values())
    assert not any(module._forward_hooks for module in model.components["denoiser"].modules())


def test_checkpointed_layers_are_computed_again_with_the_adapters_in_them():
    """Gradients with and without activation checkpointing, whose second pass is after the loss was made."""
    gradients = []
    for checkpointing in (False, True):
        model, method = AnimateDiff.tiny(), make_method()
        if checkpointing:
            model.components["denoiser"].enable_gradient_checkpointing()
        step = step_of(model, method)
        torch.manual_seed(0)
        for parameter in step.brought.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        method.loss(step)["loss"].backward()
        step.close()
        gradients.append([p.grad.clone() for p in step.brought.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-3, atol=1e-5)


def test_what_a_step_draws_is_shared_out_and_comes_from_the_models_own_clips():
    model, method = ModelScope.tiny(), make_method(batch=4, clips=5)
    step = step_of(model, method, brought=False)
    assert step.prepared.latents.shape == (5, *model.latent_shape) and step.prepared.columns.any(1).all()
    rows, _, latents, noise, timesteps = step.prepared.draw(step.batch, model)
    for rank in range(2):
        shared = step.prepared.draw(step.batch.share(rank, 2), model)
        assert shared[0] == rows[rank::2] and torch.equal(shared[3], noise[rank::2])
    again = method.prepare(model, make_task(CROSS), None)
    assert torch.equal(again.latents, step.prepared.latents) and torch.equal(latents, again.latents[rows])
    assert not torch.equal(again.latents[0], again.latents[1]) and timesteps.shape == (4,)


def test_training_lowers_what_is_to_be_unlearnt_and_moves_adapters_alone():
    model = StableDiffusion.tiny()
    method = make_method(steps=24, batch=4, lr=5e-3, localisation=0.0, preservation=0.0, eta=1.0)
    module = ErasureModule(method, model, make_task(CROSS))
    assert set(module.state()) == {f"attached/{n}" for n, _ in module.brought.named_parameters()}
    losses = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["train/unlearn"]))

    edit = method.erase(model, make_task(CROSS, watch=[Watch()]))
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    assert all(tensor.any() for name, tensor in edit.tensors.items() if name.endswith("up.weight"))


def test_numbers_and_roles_that_will_not_do_are_refused():
    with pytest.raises(ValueError, match=r"found method\.data\.retain=0"):
        replace(make_method(), data=BatchSizes(steps=1, epochs=None, batch=1, pairs=0, retain=0))
    with pytest.raises(ValueError, match=r"expected the arguments of torch\.optim\.AdamW"):
        replace(make_method(), optimizer={"lr": 1e-3, "rho": 0.9})
    with pytest.raises(ValueError, match="puts adapters behind attention layers: found none"):
        make_method().check(ModelScope.tiny(), ["denoiser/conv_in"])
