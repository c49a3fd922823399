"""Families of transformers: the whole story of each donor and of all recipients that hold its text encoder."""

import inspect
from pathlib import Path

import pytest
import torch
import train
from diffusers import DiffusionPipeline
from hydra.utils import get_class
from omegaconf import OmegaConf

from conftest import ROOT, configured
from test_running import gradients, saved
from test_train import only_run
from unreel import Edit
from unreel.door import built
from unreel.exports.pipeline import absent_parts
from unreel.hashes import parameter_hashes
from unreel.models.pipeline_model import PipelineModel
from unreel.scores import read_scores

CONF = ROOT / "conf"


def entries(group: str) -> dict[str, type[PipelineModel]]:
    """Stem of each YAML of a family of transformers -> its class; one YAML a class."""
    found = {}
    for path in sorted((CONF / group).glob("*.yaml")):
        entry = OmegaConf.load(path)
        target = get_class((entry[path.stem] if group == "t2v" else entry)._target_)
        if target.denoiser == "transformer" and not path.stem.startswith("zoo"):
            found.setdefault(target, path.stem)
    return {stem: target for target, stem in found.items()}


DONORS, RECIPIENTS = entries("t2i"), entries("t2v")


def asked(stem: str, model: PipelineModel, folder: Path, group: str) -> list[str]:
    """A tiny model in the place of the YAML's: its folder, and the numbers that the YAML has of it."""
    prefix = "t2i" if group == "t2i" else f"t2v.{stem}"
    entry = OmegaConf.load(CONF / group / f"{stem}.yaml")
    known = {**model.options, **model.held, "num_frames": model.num_frames}
    given = {key: known[key] for key in (entry[stem] if group == "t2v" else entry) if key in known}
    if group == "t2i" and "num_frames" in given:
        given["num_frames"] = 1
    return [
        f"{prefix}.folder={folder}",
        f"{prefix}.dtype=float32",
        *(f"{prefix}.{k}={'null' if v is None else v}" for k, v in given.items()),
    ]


def encoder_of(model: PipelineModel) -> dict[str, str]:
    return parameter_hashes(model.components["text_encoder"])


@torch.inference_mode()
def plain_clips(loaded: DiffusionPipeline, model: PipelineModel, prompt: str, seed: int) -> torch.Tensor:
    """What plain diffusers renders when it is called as the model calls it, one prompt alone."""
    loaded.set_progress_bar_config(disable=True)
    for part in loaded.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    found = loaded(prompt, generator=torch.Generator().manual_seed(seed), output_type="pt", **model.options)
    return found.frames if hasattr(found, "frames") else found.images[:, None]


@pytest.mark.parametrize("donor", DONORS)
def test_the_whole_story(donor, judge_folder, tmp_path):
    """Shots, edit, clips, scores, export; and a plain pipeline that renders the clips of the run."""
    model = DONORS[donor].tiny()
    alike = [stem for stem, family in RECIPIENTS.items() if encoder_of(family.tiny()) == encoder_of(model)]
    assert alike, f"no recipient shares the text encoder of {donor}"
    tiny = {stem: RECIPIENTS[stem].tiny() for stem in alike}
    for stem, each in {"donor": model, **tiny}.items():
        each.pipeline.save_pretrained(tmp_path / "models" / stem)
    options = [
        f"t2i={donor}", *asked(donor, model, tmp_path / "models" / "donor", "t2i"), f"t2v=[{','.join(alike)}]",
        *(o for stem in alike for o in asked(stem, tiny[stem], tmp_path / "models" / stem, "t2v")),
        "t2i.training.lr=0.1", "concept=van_gogh", f"judge.model=local-dir:{judge_folder}", "judge.pretrained=null",
        "shots=2", "method.data.steps=2", "method.guard.check_every=2", "method.guard.gone_below=-9",
        "evaluation.prompts=2", "logger=none", "device=cpu", "export=[transformers,pipeline]",
        f"runs={tmp_path / 'runs'}", f"cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    config = configured("train", options)
    train.main(config)
    run = only_run(tmp_path)
    scores = read_scores(run / "scores.jsonl")
    assert {s.t2v for s in scores} == set(alike) and {s.stage for s in scores} == {"before", "after"}
    edit = Edit.load(run / "edit.safetensors")
    assert edit.tensors and edit.components == ("text_encoder",)
    exported, plain = run / model.part("text_encoder"), DiffusionPipeline.from_pretrained(tmp_path / "models" / "donor")
    edit.apply(plain)
    with edit.applied(model):
        wanted = model.render(["a drum"], [3])
    assert torch.allclose(plain_clips(plain, model, "a drum", 3), wanted, rtol=0, atol=1e-5)
    for stem in alike:
        each, folder = built(config.t2v[stem], device="cpu"), tmp_path / "models" / stem
        before = each.render(["a drum"], [3])
        with edit.applied(each):
            wanted = each.render(["a drum"], [3])
        assert (wanted - before).abs().max() > 1e-3, f"the edit shows in no clip of {stem}"
        written = run / "pipeline" / stem
        weights = {path.parent.name: path.is_symlink() for path in written.rglob("*.safetensors")}
        assert not weights.pop("text_encoder") and weights and all(weights.values()), "base weights were copied"
        kind = type(each.pipeline.text_encoder)
        ways = [
            DiffusionPipeline.from_pretrained(written, **dict.fromkeys(absent_parts(each.pipeline))),
            DiffusionPipeline.from_pretrained(folder, text_encoder=kind.from_pretrained(exported)),
            DiffusionPipeline.from_pretrained(folder),
        ]
        edit.apply(ways[2])
        for loaded in ways:
            found = plain_clips(loaded, each, "a drum", 3)  # weights elsewhere in memory meet other kernels of torch
            assert torch.allclose(found, wanted, rtol=0, atol=1e-5), f"{stem}: {(found - wanted).abs().max()}"


FAMILIES = sorted({*DONORS.values(), *RECIPIENTS.values()}, key=lambda family: family.__name__)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def rebuilt(request, tmp_path_factory):
    """Builds a tiny model of each family from its folder, with what is common to all."""
    folder, tiny = tmp_path_factory.mktemp("models") / "tiny", request.param.tiny()
    tiny.pipeline.save_pretrained(folder)
    taken = inspect.signature(request.param.__init__).parameters
    known = {**tiny.options, **tiny.held, "num_frames": tiny.num_frames, "fps": tiny.fps}
    own = {k: v for k, v in known.items() if k in taken}
    return lambda **common: request.param(folder, **own, name="tiny", **common)


@pytest.mark.slow
@pytest.mark.parametrize(
    "common",
    [{"vae_slicing": True}, {"group_offload": True}, {"denoiser_storage": "float8"}, {"denoiser_dtype": "bfloat16"},
     {"autocast": True}, {"dtype": "float16"}],
    ids=str,
)  # fmt: skip
def test_every_family_runs_in_every_way(rebuilt, common):
    plain, other = rebuilt(), rebuilt(**common)
    assert plain.content != other.content or "group_offload" in common
    clips = [model.render(["a drum", "a cat"], [3, 4]) for model in (plain, other)]
    assert clips[1].isfinite().all() and (clips[0] - clips[1]).abs().mean() < 0.05
    if next(iter(common)) in ("vae_slicing", "group_offload"):
        assert torch.allclose(*clips, rtol=0, atol=1e-4)


def test_every_family_computes_again_what_it_does_not_keep(rebuilt):
    plain, less = rebuilt(), rebuilt(checkpointing=True)
    ours, theirs = gradients(plain), gradients(less)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-6) for name in ours)
    assert saved(less) < saved(plain)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.temporal], ids=lambda family: family.__name__)
def test_clips_that_do_not_fit_the_latents_are_refused_before_anything_is_loaded(family, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    assert family(tmp_path)._pipeline is None, "what its pipeline renders by default"
    frames, px = family.grid
    with pytest.raises(ValueError, match=rf"found num_frames={frames + 2}: .* as {frames + 1} or {2 * frames + 1}"):
        family(tmp_path, num_frames=frames + 2)
    for edge in ("height", "width"):
        with pytest.raises(ValueError, match=rf"found {edge}={px + 1}: expected a multiple of {px}"):
            family(tmp_path, **{edge: px + 1})
    assert family(tmp_path, num_frames=1)._pipeline is None


def test_steps_of_flow_matching_are_not_spread_otherwise():
    family = RECIPIENTS["ltx"]
    with pytest.raises(ValueError, match=r"tiny_ltx: found timestep_spacing='trailing': expected null"):
        family.of(family.tiny().pipeline, name="tiny_ltx", timestep_spacing="trailing")
