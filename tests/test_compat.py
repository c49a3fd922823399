"""compat: seven points of a pair, weights last; what differs, and which known donor would fit."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import ModelMixin, TextToVideoSDPipeline
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from conftest import ROOT, configured
from test_contracts import small_method
from unreel import compat, known
from unreel.compat import compared, refusal, rounding
from unreel.models.hunyuan_video_15 import HunyuanVideo15
from unreel.models.latte import Latte
from unreel.models.modelscope import ModelScope, tiny_unet3d
from unreel.models.outline import outlined, stored_in, unread
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import StableDiffusion, tiny_parts, tiny_pipeline
from unreel.sharing import Unshared, plan
from unreel.zoo.store import verified

MLP = ["mlp"]
WEIGHTS = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A donor, a video model with its encoder, one with a smaller encoder, and a pair with a T5."""
    folder = tmp_path_factory.mktemp("pairs")
    tiny_pipeline().save_pretrained(folder / "donor")
    for name, parts in {"video": tiny_parts(), "wrong": tiny_parts(layers=1)}.items():
        TextToVideoSDPipeline(**parts | {"unet": tiny_unet3d()}).save_pretrained(folder / name)
    for family in (PixArt, Latte):
        family.tiny().pipeline.save_pretrained(folder / family.__name__)
    return folder


@pytest.fixture
def unreadable(monkeypatch):
    """From here on nothing loads weights."""

    def refused(*_args, **_kwargs):
        raise AssertionError("weights were read")

    for owner in (PreTrainedModel, ModelMixin):
        monkeypatch.setattr(owner, "from_pretrained", refused)
    monkeypatch.setattr("safetensors.safe_open", refused)


def rows(donor, recipient, roles=MLP, weights=True):
    return {row.point: row for row in compared(donor, recipient, roles, weights)}


def edited_copy(folder, tmp_path, change):
    """A copy of a pipeline's folder with other weights in its text encoder."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = load_file(copy / WEIGHTS)
    save_file(change(tensors), copy / WEIGHTS, {"format": "pt"})
    return copy


@pytest.mark.parametrize("donor, recipient", [("donor", "video"), ("PixArt", "Latte")])
def test_a_pair_that_shares_its_encoder_agrees_in_every_point(folders, donor, recipient):
    kinds = {"donor": StableDiffusion, "video": ModelScope, "PixArt": PixArt, "Latte": Latte}
    ours, theirs = (kinds[name](folders / name, name=name) for name in (donor, recipient))
    found = rows(ours, theirs)
    assert list(found) == [
        "files", "text encoder", "vocabulary", "reading", "edited layers", "other encoders", "weights", "probe",
    ]  # fmt: skip
    assert {row.verdict for row in found.values()} == {"same"} and "1.0000" in found["probe"].said
    assert ours._pipeline is None and theirs._pipeline is None, "no denoiser was wanted"
    assert refusal({recipient: list(found.values())}, {}) == ""


def test_a_wrong_pair_is_refused_before_weights_are_read_and_says_who_fits(folders, unreadable):
    donor = StableDiffusion(folders / "donor", name="sd15")
    config = configured("train", ["concept=drum", "t2v=modelscope", f"t2v.modelscope.folder={folders / 'wrong'}"])
    recipient = ModelScope(folders / "wrong", name="modelscope")
    found = list(compared(donor, recipient, MLP))
    assert found[-1].verdict == "differs"
    said = refusal({"modelscope": found}, config.t2v)
    assert "modelscope has another text encoder than sd15: num_hidden_layers is 1, not 2" in said
    assert "is said to have OpenCLIP ViT-H/14, as t2i=bk_sdm_v2, t2i=sd21" in said and "\n" not in said
    method, roles = small_method("few_shot")
    with pytest.raises(Unshared, match="modelscope has another text encoder than sd15: num_hidden_layers is 1, not 2"):
        plan(donor, [recipient], method, roles)  # train.py's own, in the same words
    assert donor._pipeline is None and recipient._pipeline is None


def test_the_command_ends_with_its_status_and_one_line(folders):
    def run(*arguments):
        command = [sys.executable, "-m", "unreel.compat", "t2i=sd15", "t2v=modelscope", "parameters=mlp", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    fit = run(f"t2i.folder={folders / 'donor'}", f"t2v.modelscope.folder={folders / 'video'}")
    assert fit.returncode == 0 and fit.stdout.splitlines()[-1] == "an edit of sd15 fits modelscope"
    wrong = run(f"t2i.folder={folders / 'donor'}", f"t2v.modelscope.folder={folders / 'wrong'}")
    assert wrong.returncode == 1 and wrong.stderr.splitlines()[-1].startswith("unreel: modelscope has another text")


def test_weights_that_only_rounding_tells_apart_are_told_from_others(folders, tmp_path):
    name = "text_model.embeddings.token_embedding.weight"

    def bf16(tensors):
        return {key: value.bfloat16() for key, value in tensors.items()}

    def half(tensors):
        return {key: value.half() for key, value in tensors.items()}

    ours = folders / "donor" / "text_encoder"
    key = next(key for key in load_file(ours / "model.safetensors") if name.endswith(key))
    rounded = edited_copy(folders / "donor", tmp_path / "bf16", bf16) / "text_encoder"
    same = edited_copy(folders / "donor", tmp_path / "half", half) / "text_encoder"
    other = edited_copy(folders / "donor", tmp_path / "other", lambda t: t | {key: t[key] + 1}) / "text_encoder"
    assert rounding(ours, same)[:2] == ([], [])
    assert rounding(ours, rounded)[0] and not rounding(ours, rounded)[1]
    assert rounding(ours, other)[:2] == ([], [name.removeprefix("text_model.")])
    recipient = StableDiffusion(other.parent, name="other")
    said = rows(StableDiffusion(folders / "donor", name="donor"), recipient)["weights"]
    assert said.verdict == "differs" and "other holds other weights than donor: 1 of 36 tensors" in said.said


def test_another_reading_is_a_warning_and_shows_in_the_probe(folders):
    found = rows(PixArt(folders / "PixArt", name="a"), PixArt(folders / "PixArt", max_sequence_length=4, name="b"))
    assert found["reading"].verdict == "warning" and "max_length is 4, not 120" in found["reading"].said
    assert found["weights"].verdict == "same" and found["probe"].verdict == "warning"
    assert refusal({"b": list(found.values())}, {}) == ""


class Penultimate(StableDiffusion):
    """Reads the last state but one, as SDXL does: what its last layer makes of it is never seen."""

    def encode_prompt(self, texts):
        ids, _ = self.tokenized(texts)
        states = self.pipeline.text_encoder(ids.to(self.device), output_hidden_states=True).hidden_states
        return type(super().encode_prompt(["a"]))({"prompt_embeds": states[-2]})


def test_layers_that_the_recipient_does_not_read_are_found_without_weights(folders, unreadable):
    donor, recipient = StableDiffusion(folders / "donor", name="a"), Penultimate(folders / "donor", name="b")
    names = [f"text_encoder/{n}" for n, _ in outlined(recipient).pipeline.text_encoder.named_parameters()]
    dead = unread(outlined(recipient), names)
    assert dead and all("layers.1." in name or "final_layer_norm" in name for name in dead)
    assert not unread(outlined(donor), names)
    assert rows(donor, donor, ["mlp", "final_attention"], False)["edited layers"].verdict == "same"
    assert rows(donor, recipient, MLP, False)["edited layers"].verdict == "warning"
    found = rows(donor, recipient, ["final_attention"], False)
    assert found["edited layers"].verdict == "differs" and "weights" not in found
    method, _ = small_method("few_shot")
    with pytest.raises(Unshared, match=r"b does not read the layers that parameters\.roles="):
        plan(donor, [recipient], method, ["final_attention"])


def test_a_folder_that_is_not_whole_says_what_is_missing(folders, tmp_path):
    folder = tmp_path / "text_encoder"
    shutil.copytree(folders / "donor" / "text_encoder", folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"found [\d,]+ bytes of [\d,]+: expected a whole file; download it again"):
        stored_in(folder)
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="found no safetensors header"):
        stored_in(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"found no weights: expected model\.safetensors"):
        stored_in(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found pytorch_model\.bin, pickled weights.* expected safetensors"):
        stored_in(folder)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model-1.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"found 1 of 2 files of weights, model-2\.safetensors is missing"):
        stored_in(folder)


def test_models_that_are_not_here_are_said_not_to_be_looked_at():
    found = list(compared(StableDiffusion("nobody/nothing", name="a"), StableDiffusion("nobody/nothing"), MLP))
    assert [(row.point, row.verdict) for row in found] == [("files", "not looked at")]
    assert "a is not on this machine" in refusal({"x": found}, {})


def test_the_readmes_table_of_pairs_is_the_commands_and_the_zoo_was_looked_at():
    assert known.markdown() in (ROOT / "README.md").read_text(encoding="utf-8")
    zoo = [line for line in known.looked_at() if line.startswith("the zoo's CLIP")]
    assert len(zoo) >= 4 and all("agrees with t2i=zoo in names, shapes and vocabulary" in line for line in zoo)


def test_every_model_says_its_encoder():
    assert all(each.encoder != "not said" for group in ("t2i", "t2v") for each in known.known(group))


def test_the_zoos_pair_is_found_to_fit():
    folder = verified("t2i")
    donor = StableDiffusion(folder, name="zoo")
    assert {row.verdict for row in compat.compared(donor, StableDiffusion(folder, name="images"), MLP)} == {"same"}


def test_a_folder_without_a_config_that_its_pipeline_asks_for_is_refused_in_one_line(tmp_path):
    HunyuanVideo15.tiny().pipeline.save_pretrained(tmp_path)
    assert outlined(HunyuanVideo15(tmp_path)).pipeline.vae.device.type == "meta"
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"found no vae/config.json: expected a whole folder") as error:
        outlined(HunyuanVideo15(tmp_path))
    assert "\n" not in str(error.value)
