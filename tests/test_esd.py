"""ESD: its sign convention, its subsets of weights, its trajectories, and that it moves the concept's prediction."""

from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from unreel.batches import Batches, BatchSizes
from unreel.captions import TrainingCaptions
from unreel.concepts import to_concept
from unreel.hashes import parameter_hashes
from unreel.methods.esd import ESD, negative_guidance, sample_trajectories
from unreel.methods.method import Task
from unreel.models.animatediff import AnimateDiff
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion, tiny_pipeline
from unreel.models.text2video_zero import Text2VideoZero
from unreel.vocabulary import Surroundings

CONF = Path(__file__).parents[1] / "conf"
FAMILIES = (StableDiffusion, AnimateDiff, ModelScope, Text2VideoZero)
X, STRICT, U = "denoiser.cross_attention", "denoiser.cross_attention.kv", "denoiser.not_cross_attention"
VOCABULARY = {
    "subject": ["a cat", "a dog", "a car", "a fish", "an owl"],
    "scene": ["on the beach", "at night", "in the snow", "in the city"],
    "style": ["as a pencil sketch", "as pixel art"],
}


def make_method(steps=2, batch=2, lr=1e-3, **changes):
    data = BatchSizes(steps=steps, epochs=None, batch=batch, pairs=0, retain=0)
    options = dict(eta=1.0, trajectories=3, num_inference_steps=3, guidance_scale=3.0) | changes
    return ESD(name="esd", optimizer={"lr": lr}, data=data, guard=None, **options)


def make_task(roles=(X,), seed=0, names=("drum",), watch=()):
    concepts = [to_concept(name, {"name": name, "kind": "object"}) for name in names]
    captions = [TrainingCaptions(concept, Surroundings(VOCABULARY, concepts, False)) for concept in concepts]

    def trainer(steps, callbacks):
        return pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[*callbacks, *watch],
        )  # fmt: skip

    return Task(captions, list(roles), seed, trainer=trainer)


class Watch(pl.Callback):
    """Keeps the losses, and hashes of what must not be trained, as they are when the training ends."""

    def __init__(self):
        self.losses, self.frozen = [], {}

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer, module):
        frozen = {"reference": module.reference.components["denoiser"]}
        frozen |= {key: module.model.components[key] for key in ("text_encoder", "vae")}
        self.frozen = {key: parameter_hashes(component) for key, component in frozen.items()}


def test_the_target_lies_beyond_the_null_prediction_by_eta():
    null, cond = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(negative_guidance(null, cond, -1.0), cond)
    assert torch.equal(negative_guidance(null, cond, 0.0), null)
    assert torch.allclose(negative_guidance(null, cond, 1.0), null - (cond - null))


@pytest.mark.parametrize("kind", ["sample", "v_prediction", "epsilon"])
def test_the_target_is_the_same_whatever_the_model_predicts(kind):
    scheduler = tiny_pipeline(prediction_type=kind).scheduler
    scheduler.set_timesteps(10)
    null, cond, noisy = torch.randn(3, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[4]

    def noise_of(predicted):
        """As diffusers' own scheduler understands what a model of this kind predicts."""
        clean = scheduler.step(predicted, t, noisy).pred_original_sample
        kept = scheduler.alphas_cumprod[t]
        return (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()

    target = noise_of(negative_guidance(null, cond, 1.0))
    torch.testing.assert_close(target, negative_guidance(noise_of(null), noise_of(cond), 1.0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_minus_one_the_loss_stays_zero_and_nothing_changes(family):
    watch = Watch()
    edit = make_method(eta=-1.0).erase(family.tiny(), make_task([X, U], watch=[watch]))
    assert watch.losses == [0.0, 0.0] and not edit.tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_x_and_u_are_disjoint_and_together_the_whole_denoiser(family):
    model = family.tiny()
    x, strict, u = (set(model.select([role])) for role in (X, STRICT, U))
    assert not x & u and strict < x
    assert x | u == {f"denoiser/{name}" for name, _ in model.components["denoiser"].named_parameters()}


@pytest.mark.parametrize("role", [X, STRICT, U])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_chosen_weights_are_trained(family, role):
    model, watch = family.tiny(), Watch()
    before = {key: parameter_hashes(component) for key, component in model.components.items()}
    edit = make_method(steps=1).erase(model, make_task([role], watch=[watch]))
    assert edit.components == ("denoiser",) and watch.losses[0] > 0
    chosen = set(model.select([role]))
    assert set(edit.tensors) <= chosen if role == U else set(edit.tensors) == chosen  # some of U's have no gradient
    assert watch.frozen["reference"] == before["denoiser"]
    assert all(watch.frozen[key] == before[key] for key in ("text_encoder", "vae"))
    assert {key: parameter_hashes(component) for key, component in model.components.items()} == before
    clips = model.render(["a drum"], [0])
    with edit.applied(model):
        assert not torch.equal(model.render(["a drum"], [0]), clips)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_training_moves_the_conditional_prediction_towards_the_null_one(eta):
    model = StableDiffusion.tiny()
    edit = make_method(steps=30, batch=4, eta=eta, lr=1e-3).erase(model, make_task())
    noisy = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(7))
    timesteps = torch.tensor([100, 400, 700, 900])

    @torch.no_grad()
    def predict(text):
        return model.predict(noisy, timesteps, model.encode_prompt([text] * 4))

    null, cond = predict(""), predict("a drum")
    with edit.applied(model):
        moved = predict("a drum") - cond
    share = float((moved * (null - cond)).sum() / (null - cond).square().sum())  # of the way to the null prediction
    assert share > 0.5 * (1 + eta)
    if eta == 0:
        assert (cond + moved - null).norm() < 0.8 * (cond - null).norm()


def test_the_same_seed_gives_the_same_edit():
    def hash_of(seed):
        return make_method(steps=3).erase(StableDiffusion.tiny(), make_task(seed=seed)).hash

    assert hash_of(0) == hash_of(0) != hash_of(1)


def test_what_a_step_draws_depends_on_seed_and_step_and_processes_share_it():
    method, model = make_method(steps=4, batch=4, trajectories=5), StableDiffusion.tiny()
    task = make_task(names=("drum", "kite"))
    drawn = []
    for _ in range(2):
        trajectories = method.prepare(model, task, None)
        batch = Batches(model, task.captions, None, method.data, task.seed).batch(3)
        parts = [trajectories.draw(batch.share(rank, 2), model.device) for rank in range(2)]
        drawn.append(trajectories.draw(batch, model.device))
        for whole, *shared in zip(drawn[-1][:2], *(part[:2] for part in parts), strict=True):
            assert torch.equal(whole[0::2], shared[0]) and torch.equal(whole[1::2], shared[1])
    assert torch.equal(drawn[0][0], drawn[1][0]) and torch.equal(drawn[0][1], drawn[1][1])
    other = trajectories.draw(replace(batch, number=4), model.device)
    assert not torch.equal(drawn[0][0], other[0])
    assert trajectories.noisy.shape == (10, 3, 4, 16, 16)  # five of each concept


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
)
def test_trajectories_are_those_of_the_pipeline(scheduler):
    model, passed = StableDiffusion.tiny(), []
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    sampler = model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config, **options)
    found = sample_trajectories(model, ["a drum", "one drum", "the drum"], 4, 3.0, seed=0, batch=2).noisy
    alone = sample_trajectories(model, ["a drum"], 4, 3.0, seed=0, batch=2).noisy
    torch.testing.assert_close(found[:1], alone, rtol=1e-3, atol=1e-3)  # whatever else is sampled

    sampler.set_timesteps(4)
    # Euler's latents are clean ones plus sigma times noise, and the denoiser reads them over sqrt(sigma^2 + 1)
    factors = (sampler.sigmas**2 + 1).sqrt() if scheduler is EulerDiscreteScheduler else torch.ones(9)
    start = found[:1, 0] * factors[0] / sampler.init_noise_sigma

    def keep(pipeline, step, t, given):
        passed.append(given["latents"] / factors[step + 1])
        return {}

    model.pipeline(
        "a drum", num_inference_steps=4, guidance_scale=3.0, latents=start, output_type="latent",
        callback_on_step_end=keep,
    )  # fmt: skip
    expected = torch.stack(passed[:-1], 1)
    torch.testing.assert_close(found[:1, 1:], expected, rtol=1e-3, atol=1e-3)
    assert (expected[:, 0] - found[:1, 0]).abs().max() > 0.1


@pytest.mark.parametrize("wrong", [{"trajectories": 0}, {"num_inference_steps": 2.5}, {"trajectories": True}])
def test_numbers_that_will_not_do_are_named(wrong):
    with pytest.raises(ValueError, match=f"ESD\n{next(iter(wrong))}\n"):
        make_method(**wrong)


@pytest.mark.parametrize(("name", "role"), [("esd", X), ("esd_u", U), ("esd_x_strict", STRICT)])
def test_each_variant_has_a_choice_of_its_own(name, role):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"method={name}", "concept=drum", "t2i=zoo"])
        changed = compose("train", [f"method={name}", "concept=drum", "t2i=zoo", "parameters=attention"])
    method = instantiate(config.method)
    assert method.name == name and method.eta == 1.0 and method.guidance_scale == 3.0
    assert list(config.parameters.roles) == [role] and list(changed.parameters.roles) == ["attention"]
    with pytest.raises(ValueError, match=f"method {name} cannot change text_encoder/"):
        method.check(StableDiffusion.tiny(), changed.parameters.roles)
