"""One edit or several: who gets the donor's edit, who is edited alone, and who is refused before any work."""

import pytest
import torch
from diffusers import AnimateDiffPipeline, TextToVideoSDPipeline, TextToVideoZeroPipeline

from test_contracts import small_method
from unreel.models.animatediff import AnimateDiff, tiny_adapter
from unreel.models.latte import Latte
from unreel.models.modelscope import ModelScope, tiny_unet3d
from unreel.models.pixart import PixArt
from unreel.models.stable_diffusion import NO_CHECKER, StableDiffusion, tiny_parts, tiny_pipeline
from unreel.models.text2video_zero import Text2VideoZero
from unreel.sharing import plan


@pytest.fixture
def models():
    """A donor, and one of each video family on its text encoder; the first two hold its UNet."""
    animated = AnimateDiff.of(AnimateDiffPipeline(**tiny_parts(), motion_adapter=tiny_adapter()), name="animated")
    zero = Text2VideoZero.of(TextToVideoZeroPipeline(**tiny_parts(), **NO_CHECKER), name="zero")
    video = ModelScope.of(TextToVideoSDPipeline(**tiny_parts() | {"unet": tiny_unet3d()}), name="video")
    return StableDiffusion.of(tiny_pipeline(), name="donor"), [animated, zero, video]


def planned(name, donor, recipients):
    method, roles = small_method(name)
    return [(share.maker.name, [r.name for r in share.recipients]) for share in plan(donor, recipients, method, roles)]


@pytest.mark.parametrize("name", ["few_shot", "anchored", "negative_prompt"])
def test_what_all_share_is_edited_once(models, name):
    assert planned(name, *models) == [("donor", ["animated", "zero", "video"])]


@pytest.mark.parametrize("name", ["uce", "esd"])
def test_a_video_unet_of_its_own_is_edited_alone(models, name):
    donor, recipients = models
    assert planned(name, donor, recipients) == [("donor", ["animated", "zero"]), ("video", ["video"])]
    assert planned(name, donor, recipients[2:]) == [("video", ["video"])]


def test_another_text_encoder_is_edited_alone_or_refused_saying_what_differs(models):
    donor, recipients = models
    other = StableDiffusion.of(tiny_pipeline(seed=5), name="other")
    assert planned("anchored", donor, [*recipients, other])[1] == ("other", ["other"])
    with pytest.raises(
        ValueError, match=r"other holds other weights than donor: in its text encoder .* learns from shots"
    ):
        planned("few_shot", donor, [*recipients, other])


def test_an_edit_of_t5_goes_from_images_to_clips_and_not_to_another_t5_nor_to_clip(caplog):
    donor, recipient = PixArt.tiny(), Latte.tiny()
    assert planned("anchored", donor, [recipient]) == [("tiny_pixart", ["tiny_latte"])]
    assert not caplog.records, "they read alike"
    assert planned("uce", donor, [recipient]) == [("tiny_latte", ["tiny_latte"])]
    other = Latte.tiny()
    with torch.no_grad():
        other.components["text_encoder"].shared.weight[5, 0] += 1.0
    with pytest.raises(ValueError, match=r"tiny_latte holds other weights than tiny_pixart: in its text encoder 1 of"):
        planned("few_shot", donor, [recipient, other])
    other = Latte.tiny()
    other.pipeline.text_encoder.config.relative_attention_num_buckets = 16
    with pytest.raises(ValueError, match=r"than tiny_pixart: relative_attention_num_buckets is 16"):
        planned("few_shot", donor, [other])
    with pytest.raises(
        ValueError,
        match="has another text encoder than tiny_pixart: model_type is clip_text_model, not t5",
    ):
        planned("few_shot", donor, [recipient, StableDiffusion.tiny()])


def test_a_recipient_that_reads_prompts_otherwise_is_named_with_how(caplog):
    donor = PixArt.of(PixArt.tiny().pipeline, max_sequence_length=300, name="sigma")
    assert planned("anchored", donor, [Latte.tiny()]) == [("sigma", ["tiny_latte"])]
    assert (
        "tiny_latte reads prompts otherwise than sigma" in caplog.text and "max_length is 120, not 300" in caplog.text
    )
