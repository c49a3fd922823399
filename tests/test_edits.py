"""Edits: bit-exact, restored bit for bit, refused on other weights; the check before every transfer."""

import copy

import pytest
import torch
from transformers import CLIPTextModel

from conftest import small_donor, small_pipeline
from unreel import Edit
from unreel.edits import check_shared, export_text_encoder, parameter_hashes


@pytest.fixture
def edited():
    """A pipeline and an edit of its text encoder; the pipeline is unedited."""
    pipeline = small_pipeline(layers=3)
    changed = copy.deepcopy(pipeline.text_encoder)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "layers.1.mlp" in name:
                parameter.add_(1e-6 * torch.randn_like(parameter))  # less than half precision can tell
    return pipeline, Edit.between(pipeline.text_encoder, changed, {"note": "for a test"}), changed


def test_saved_and_loaded_an_edit_makes_the_trained_encoder_bit_for_bit(edited, tmp_path):
    pipeline, edit, changed = edited
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.hash == edit.hash and loaded.provenance == {"note": "for a test"}
    assert len(loaded.tensors) == 4
    loaded.apply(pipeline)
    wanted = changed.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in pipeline.text_encoder.state_dict().items())


def test_the_context_manager_restores_bit_for_bit_even_after_an_error(edited):
    pipeline, edit, _ = edited
    before = {name: value.clone() for name, value in pipeline.text_encoder.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), edit.applied(pipeline):
        assert any(not torch.equal(v, before[n]) for n, v in pipeline.text_encoder.state_dict().items())
        raise RuntimeError("inside")
    assert all(torch.equal(v, before[n]) for n, v in pipeline.text_encoder.state_dict().items())


def test_other_base_weights_are_refused_by_name_and_nothing_changes(edited):
    pipeline, edit, _ = edited
    with torch.no_grad():
        pipeline.text_encoder.get_parameter("encoder.layers.0.mlp.fc1.bias")[0] += 1
    before = parameter_hashes(pipeline.text_encoder)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors \(encoder\.layers\.0\.mlp\.fc1\.bias\)"):
        edit.apply(pipeline)
    assert parameter_hashes(pipeline.text_encoder) == before


def test_a_half_precision_copy_of_the_same_weights_takes_the_edit(edited):
    pipeline, edit, _ = edited
    edit.apply(pipeline.to(dtype=torch.float16))


@pytest.mark.parametrize("harm", ["cut", "flip", "other", "missing"])
def test_a_damaged_file_is_refused_by_name(edited, tmp_path, harm):
    path = tmp_path / "edit.safetensors"
    edited[1].save(path)
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[:-100])
    elif harm == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif harm == "other":
        path.write_bytes(b"not a safetensors file at all")
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"edit\.safetensors"):
        Edit.load(path)


def test_the_exported_folder_loads_with_plain_transformers(edited, tmp_path):
    pipeline, edit, changed = edited
    edit.apply(pipeline)
    export_text_encoder(pipeline, tmp_path / "text_encoder")
    export_text_encoder(pipeline, tmp_path / "text_encoder")  # over an older one
    loaded = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    assert parameter_hashes(loaded) == parameter_hashes(changed)
    assert [path.name for path in tmp_path.iterdir()] == ["text_encoder"]


def test_the_shared_encoder_check_passes_for_copies_and_says_what_differs():
    donor, recipient = small_donor(layers=3), small_donor(layers=3)
    check_shared(donor, recipient)
    with torch.no_grad():
        recipient.text_encoder.get_parameter("encoder.layers.2.self_attn.k_proj.weight")[0, 0] += 1
    with pytest.raises(ValueError, match=r"1 of \d+ tensors \(encoder\.layers\.2\.self_attn\.k_proj\.weight\)"):
        check_shared(donor, recipient)
    with pytest.raises(ValueError, match="num_hidden_layers is 2, not 3"):
        check_shared(donor, small_donor(layers=2))
    recipient = small_donor(layers=3)
    recipient.tokenizer.add_tokens(["<one-more>"])
    with pytest.raises(ValueError, match="vocabulary"):
        check_shared(donor, recipient)
