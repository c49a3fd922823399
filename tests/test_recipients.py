"""Recipients of every family: what they render, and that a clip depends on its prompt and its seed alone."""

import pytest
import torch

from unreel.cache import TensorCache
from unreel.recipients.animatediff import AnimateDiff
from unreel.recipients.images import Images
from unreel.recipients.modelscope import ModelScope
from unreel.recipients.text2video_zero import Text2VideoZero
from unreel.records import Prompt
from unreel.rendering import Renderer


@pytest.fixture(params=["animatediff", "text2video_zero", "modelscope", "modelscope with a unet", "images"])
def recipient(request, small_folders):
    """A recipient and how many frames its clips have."""
    sd, few = small_folders / "sd", {"num_frames": 3, "num_inference_steps": 2}
    match request.param:
        case "animatediff":
            return AnimateDiff(sd, small_folders / "adapter", **few), 3
        case "text2video_zero":
            return Text2VideoZero(sd, num_frames=3, num_inference_steps=4, t0=1, t1=2), 3
        case "modelscope":
            return ModelScope(small_folders / "modelscope", **few), 3
        case "modelscope with a unet":
            return ModelScope(sd, unet=small_folders / "modelscope" / "unet", **few), 3
        case "images":
            return Images(sd, num_inference_steps=2), 1


def test_a_clip_depends_on_its_prompt_and_its_seed_alone(recipient):
    recipient, frames = recipient
    prompts, seeds = ["a cat on the beach", "a drum", "a drum"], [8, 8, 9]
    clips = recipient.render(prompts, seeds)
    assert clips.shape == (3, frames, 3, 32, 32) and clips.dtype == torch.float32
    assert clips.min() >= 0 and clips.max() <= 1 and clips.std() > 0
    assert (clips[1] - clips[2]).abs().max() > 0.01, "another seed, the same clip"
    assert (clips[1] - clips[0]).abs().max() > 0.003, "another prompt, the same clip"
    alone = recipient.render(prompts[1:2], seeds[1:2])
    assert torch.allclose(alone[0], clips[1], atol=1e-3), "the clip changes with its batch"


def test_a_run_is_the_same_on_every_machine_but_its_cached_clips_are_not(small_folders, tmp_path, monkeypatch):
    """A machine without bfloat16 renders other bits, which the others must not take for theirs."""
    made = {}
    for computes in (True, False):
        monkeypatch.setattr("unreel.recipients.recipient.computes_bfloat16", lambda _, computes=computes: computes)
        recipient = AnimateDiff(small_folders / "sd", small_folders / "adapter", num_frames=3, num_inference_steps=2,
                                autocast=True)  # fmt: skip
        renderer = Renderer(recipient, TensorCache(tmp_path), 1)
        clips = renderer.render([Prompt("a drum", "forget", ())], [8], "before").clips
        made[computes] = renderer.content, clips
    assert made[True][0] == made[False][0] and not torch.equal(made[True][1], made[False][1])


def test_a_folder_that_holds_no_video_unet_is_one_line(small_folders):
    with pytest.raises(ValueError, match="expected the folder of a UNet3DConditionModel"):
        ModelScope(small_folders / "sd", unet=small_folders / "sd")
