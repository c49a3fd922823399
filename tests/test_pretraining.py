"""A pretraining that is killed at any moment continues where it stood and ends with the same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TINY = [
    "stage=vae", "precision=32-true", "accelerator=cpu", "threads=1", "minutes_between_checkpoints=0.002",
    "drawings.count=32", "vae.steps=150", "vae.batch=4", "vae.channels=[16,16,16]", "vae.latent_channels=4",
]  # fmt: skip


def _pretrain(work: Path, *extra: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "unreel.zoo.pretrain", f"work={work}", *TINY, *extra]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_a_killed_stage_continues_and_ends_as_if_unbroken(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    _finish(_pretrain(whole))
    process = _pretrain(broken)
    checkpoint = broken / "vae" / "last.ckpt"
    for _ in range(6000):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not (broken / "vae" / "model").exists(), "the kill came too late to test anything"
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 150
    _finish(_pretrain(broken))
    name = Path("vae") / "model" / "diffusion_pytorch_model.safetensors"
    first, second = load_file(whole / name), load_file(broken / name)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("stage=unet9", "motion_judge"),
        ("stage=t2i", "latents.safetensors"),
        ("init_from=/nowhere", "/nowhere"),
        ("unet3d.share=0.5", "found unet3d.share=0.5"),
        ("export.models=[sana]", "found sana"),
        ("stage=latte", "pixart/model"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, option, says):
    process = _pretrain(tmp_path, option)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and says in output and "Traceback" not in output
