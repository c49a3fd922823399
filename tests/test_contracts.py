"""Contracts: what every YAML promises, over every YAML there is and every tiny model that it fits."""

import inspect
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_class, get_object
from omegaconf import OmegaConf

from conftest import ROOT, configured
from test_models import FAMILIES
from test_shots import VOCABULARY, make_shots
from unreel import Edit
from unreel.assembly import donor_of
from unreel.concepts import to_concept
from unreel.door import built
from unreel.edits import method_named
from unreel.hashes import parameter_hashes
from unreel.judges.judge import Judge, Judged
from unreel.methods.gradient import GradientMethod
from unreel.methods.method import Method, Task
from unreel.metrics.metric import Metric
from unreel.models.model import Model
from unreel.models.modelscope import ModelScope
from unreel.models.stable_diffusion import StableDiffusion
from unreel.prompts import PromptSource
from unreel.records import PARTS, Prompt, plain_split
from unreel.rendering import Rendered
from unreel.vocabulary import Surroundings

CONF = ROOT / "conf"


def yamls(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def over(group: str):
    return pytest.mark.parametrize("path", yamls(group), ids=lambda path: path.stem)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_yaml_opens_with_what_it_means(path):
    first, second = [*path.read_text().splitlines(), "", ""][:2]
    assert (second if first.startswith("# @package") else first).startswith("# ")


# methods that some families cannot have, by how their names begin, and what they say that they expect of a model
NOT_EVERYWHERE = {
    "safree": "SAFREE expects one CLIP text encoder",
    "s_grace": "s_grace expects a CLIP text encoder",
    "tea": "tea expects one text encoder",
    "mute": "mute expects one tokenizer and one text encoder",
    "zero_token": "zero_token expects one tokenizer and one text encoder",
    "negative_prompt": "reads no negative prompt: expected a pipeline whose encode_prompt takes one",
}


def small_method(name: str) -> tuple[Method, list[str]]:
    """A method of conf/method as it is configured, with a few small steps, and the roles that it changes."""
    config = configured("train", [f"method={name}", "concept=drum"])
    OmegaConf.resolve(config)
    return shrunk(built(config.method)), list(config.parameters.roles)


def shrunk(method: Method) -> Method:
    """A method with a few small steps; of one that is made of several all of them."""
    members = {key: value for key, value in vars(method).items() if isinstance(value, Method)}
    method = replace(method, **{key: shrunk(value) for key, value in members.items()})
    if isinstance(method, GradientMethod):
        sizes = replace(method.data, steps=2, epochs=None, pairs=min(method.data.pairs, 2), retain=2)
        guard = replace(method.guard, check_every=1, probes=2) if method.guard else None
        method = replace(method, data=sizes, guard=guard)
    few = {"trajectories": 1, "retain_trajectories": 1, "num_inference_steps": 2, "clips": 1}  # of those that sample
    return replace(method, **{key: value for key, value in few.items() if hasattr(method, key)})


def trainer(steps, callbacks, accelerator="cpu"):
    return pl.Trainer(
        max_steps=steps, accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
    )  # fmt: skip


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def tiny(request) -> Model:
    return request.param.tiny()


@over("method")
def test_a_methods_name_is_that_of_its_file_and_is_found_by_it(path):
    method, _ = small_method(path.stem)
    assert isinstance(method, Method) and method.name == path.stem
    assert method_named(path.stem) is type(method)
    levels = [c for c in type(method).__mro__ if issubclass(c, Method)]
    assert len(levels) <= 3 and inspect.getdoc(inspect.getmodule(type(method)))
    assert "Reference:" in inspect.getdoc(inspect.getmodule(type(method)))
    assert "Departures:" in inspect.getdoc(inspect.getmodule(type(method)))


@over("method")
def test_a_method_changes_what_it_says_and_its_edit_is_data(path, tiny, tmp_path):
    """On every family that it fits: the declared facts, measured."""
    method, roles = small_method(path.stem)
    if "clips" in method.needs and tiny.num_frames < 2:
        with pytest.raises(ValueError, match=f"{path.stem} learns from clips"):
            method.check(tiny, roles)
        return
    try:
        method.check(tiny, roles)
    except ValueError as error:
        expected = [said for stem, said in NOT_EVERYWHERE.items() if path.stem.startswith(stem)]
        expected += ["joint attention"] if any("cross_attention" in role for role in roles) else []
        assert any(said in str(error) for said in expected) and "\n" not in str(error), str(error)
        assert not isinstance(tiny, StableDiffusion)
        return
    shots = make_shots(tmp_path, shots=2)
    if "shots" in method.needs:
        shots.make(tiny)
    task = Task(shots.captions, roles, 0, shots, trainer)
    before = {key: parameter_hashes(module) for key, module in tiny.components.items()}
    prompts, seeds = ["a drum on the beach", "a drum"], [0, 1]
    clips = tiny.render(prompts, seeds)

    edit = method.erase(tiny, task)
    assert {key: parameter_hashes(module) for key, module in tiny.components.items()} == before, "erasing left a trace"
    assert not any(p.requires_grad for module in tiny.components.values() for p in module.parameters())
    assert edit.method == path.stem and set(edit.components) <= set(method.edits)
    assert bool(edit.tensors) == bool(method.edits) and (edit.tensors or edit.is_attached)
    chosen = set(tiny.select(roles)) if method.edits else set()
    assert {name for name in edit.tensors if not name.startswith("attached/")} <= chosen
    assert all(tensor.isfinite().all() for tensor in edit.tensors.values())
    facts = edit.provenance["facts"]
    assert {"tensors", "parameters", "of", "components", "steps", "stopped", "best_step"} <= facts.keys()

    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.hash == edit.hash and loaded.base == edit.base
    with loaded.applied(tiny):
        inside = tiny.render(prompts, seeds)
    assert not torch.equal(inside, clips) or not edit.tensors, "the edit does nothing"
    assert torch.equal(tiny.render(prompts, seeds), clips), "the model was not restored bit for bit"
    assert method.erase(tiny, task).hash == edit.hash, "the same seed made another edit"
    loaded.apply(tiny.pipeline)  # a plain diffusers pipeline
    assert torch.equal(tiny.render(prompts, seeds), inside)


@over("method")
def test_a_training_that_was_stopped_and_resumed_ends_with_the_bits_of_one_that_was_not(path, tmp_path):
    method, roles = small_method(path.stem)
    if not isinstance(method, GradientMethod):
        return
    method = replace(method, data=replace(method.data, steps=3))
    model = ModelScope.tiny() if "clips" in method.needs else StableDiffusion.tiny()
    shots = make_shots(tmp_path, shots=2)
    if "shots" in method.needs:
        shots.make(model)

    def ended(folder, last, checkpoint=None):
        def trainer_to(steps, callbacks):
            kept = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
            return pl.Trainer(
                max_steps=min(steps, last), accelerator="cpu", logger=False, enable_progress_bar=False,
                enable_model_summary=False, callbacks=[*callbacks, kept],
            )  # fmt: skip

        task = Task(shots.captions, roles, 0, shots, trainer_to, checkpoint)
        return method.erase(model, task).hash

    whole, stopped = ended(tmp_path / "whole", 3), ended(tmp_path / "part", 2)
    assert stopped != whole
    assert ended(tmp_path / "part", 3, tmp_path / "part" / "last.ckpt") == whole


@over("method")
def test_a_method_refuses_weights_that_it_does_not_change(path):
    method, _ = small_method(path.stem)
    if method.edits:
        other = "denoiser.all" if "denoiser" not in method.edits else "text_encoder.all"
        model = ModelScope.tiny() if "clips" in method.needs else StableDiffusion.tiny()
        with pytest.raises(ValueError, match=f"method {path.stem} cannot change"):
            method.check(model, [other])


@pytest.mark.parametrize("group", ["t2i", "t2v"])
def test_every_model_is_built_without_loading_anything(group):
    for path in yamls(group):
        config = configured("train", ["concept=drum", f"{group}={path.stem}"])
        entries = [config.t2i] if group == "t2i" else list(config.t2v.values())
        for entry in entries:
            assert entry.name == path.stem
            assert get_class(entry._target_) in FAMILIES, "no contract test runs over this family"
            if not OmegaConf.missing_keys(entry):
                model = donor_of(config, "cpu") if group == "t2i" else built(entry, device="cpu")
                assert model._pipeline is None


@over("parameters")
def test_parameters_select_something_of_a_tiny_model(path):
    config = OmegaConf.load(path)
    assert config.name == path.stem and StableDiffusion.tiny().select(list(config.roles))


@over("judge")
def test_a_judge_can_be_asked_before_it_is_loaded(path, judge_folder):
    config = OmegaConf.create({"judge": OmegaConf.load(path), "vocabulary": VOCABULARY})
    target = get_object(config.judge._target_)
    owner = target if inspect.isclass(target) else target.__self__
    assert issubclass(owner, Judge) and set(owner.parts) <= set(PARTS)
    if "model" in config.judge:
        config.judge.update({"model": f"local-dir:{judge_folder}", "pretrained": None})
    prompts = [Prompt("a drum", "forget", (("subject", "a drum"),), "drum", "subject")]
    judge = built(config.judge)
    judge = judge(prompts=prompts, concepts=[], device="cpu") if callable(judge) else judge
    drum = to_concept("drum", {"name": "drum", "kind": "object"})
    judge.check(prompts, [drum], [8])
    assert not {"model", "clip", "motion_judge"} & vars(judge).keys(), "it was loaded to be asked"
    clips = torch.rand(2, 8, 3, 32, 32)
    frames, texts = judge.embed_clips(clips), judge.embed_texts(["a drum", "a cat"])
    assert frames.shape[:2] == (2, 8) and texts.shape == (2, frames.shape[2])
    assert torch.allclose(frames.norm(dim=-1), torch.ones(2, 8), atol=1e-4)
    assert len(judge.names("subject", clips, frames)) == 2 and len(judge.content) == 24


@over("metric")
def test_a_metric_says_its_unit_and_which_direction_is_good(path):
    ((_, entry),) = OmegaConf.load(path).items()
    metric, generator = built(entry), torch.Generator().manual_seed(0)
    assert isinstance(metric, Metric)
    for split, part in itertools.product(("forget", "retain", "forget_long"), ("subject", "motion")):
        says = (("subject", "a drum"), ("motion", "jumping"))
        prompts = [Prompt("a drum jumping", split, says, "c", part)] * 3
        rendered = Rendered("v", "after", prompts, torch.rand(3, 4, 3, 32, 32, generator=generator), [1.0] * 3, 8)
        frames = torch.nn.functional.normalize(torch.randn(3, 4, 5, generator=generator), dim=-1)
        marks = [{"subject": i != 1, "motion": i != 2} for i in range(3)]
        judged = Judged(
            rendered, marks, frames, frames[:, 0], [{"subject": [True, i != 1, True, False]} for i in range(3)]
        )
        values = metric(judged, judged)
        assert values == metric(judged, judged) and (values or part == "motion")
        assert len({(value.split, value.name) for value in values}) == len(values)
        assert {plain_split(value.split) for value in values} <= {plain_split(split), "context"}
        for value in values:
            assert value.unit in ("share", "points", "s") and value.goal in ("up", "down", "") and value.n == 3
            assert -100 <= value.value <= (1 if value.unit == "share" else 100) and value.name and value.split


@over("prompts")
def test_a_prompt_source_gives_prompts_of_every_concept(path, tmp_path):
    config = configured("train", [f"prompts={path.stem}", "concept=drum"])
    if OmegaConf.missing_keys(config.prompts):
        (tmp_path / "mine.txt").write_text("a drum at night\n")
        config.prompts.path = str(tmp_path / "mine.txt")
    source = built(config.prompts)
    drum = to_concept("drum", {"name": "drum", "kind": "object"})
    prompts = source.prompts([drum], Surroundings(VOCABULARY, [drum], False), 0)
    assert isinstance(source, PromptSource) and {p.concept for p in prompts} == {"drum"}
    assert prompts == source.prompts([drum], Surroundings(VOCABULARY, [drum], False), 0)


@over("concept")
def test_a_concept_is_named_as_its_file(path):
    ((slug, entry),) = OmegaConf.to_container(OmegaConf.load(path)).items()
    assert slug == path.stem and to_concept(slug, entry).phrases
