"""Seconds, memory and operations of a training step, an edit and a clip at real sizes, beside a straightforward loop.

python experiments/cost/benchmark.py sd15          # a YAML of experiments/cost/models, random weights, no download

Every row's peak is its own: on a GPU what torch allocated at most since the row before, on a CPU what a process of its
own held at most. Rows of savings include those above them.
"""

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from counted import MODELS, Rendering, Training, built_model, operations, shapes_only

from unreel.door import built
from unreel.edits import Edit

CONF = Path(__file__).parents[2] / "conf"
ROWS: dict[str, dict[str, Any]] = {  # of a donor: how its model runs, and what the method is given
    "straightforward fp32 loop": {},
    "unreel without a table": {"given": ["method.data.table=null"]},
    "+ table of the anchors' errors": {},
    "+ denoiser in bfloat16": {"common": {"denoiser_dtype": "bfloat16"}},
    "+ checkpointing": {"common": {"denoiser_dtype": "bfloat16", "checkpointing": True}},
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def timed(work: Callable[[], Any], times: int) -> float:
    """Seconds of one of so many turns."""
    _wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return (time.perf_counter() - started) / times


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """What this process has held at most."""
    return (
        torch.cuda.max_memory_allocated()
        if DEVICE == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def matmul_rate(dtype: torch.dtype, edge: int = 2048) -> float:
    """Operations a second of the machine's own matrix product."""
    a = torch.randn(edge, edge, device=DEVICE).to(dtype)
    timed(lambda: a @ a, 1)
    return 2 * edge**3 / timed(lambda: a @ a, 5)


def settings(row: str) -> Any:
    """The config of a run of the default method on Stable Diffusion, with what the row gives."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["concept=van_gogh", "t2i=sd15", *ROWS[row].get("given", [])])


class Loop:
    """What one would write down first: the same loss over the same modules, all in float32, nothing kept."""

    def __init__(self, training: Training) -> None:
        pipeline, self.frozen = training.model.pipeline, training.reference.pipeline.text_encoder
        self.encoder, self.unet, self.scheduler = pipeline.text_encoder, pipeline.unet, pipeline.scheduler
        self.tokenizer, self.optimizer, self.batch = pipeline.tokenizer, training.optimizer, training.batch
        self.guard = training.method.guard

    def embeds(self, encoder: Any, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return encoder(tokens.input_ids.to(self.batch.latents.device))[0]

    def error(self, embeds: torch.Tensor) -> torch.Tensor:
        b = self.batch
        noisy = self.scheduler.add_noise(b.latents, b.noise, b.timesteps)
        predicted = self.unet(noisy, b.timesteps, encoder_hidden_states=embeds[: len(noisy)]).sample
        return (predicted - b.noise).square().flatten(1).mean(1)

    def step(self) -> None:
        b = self.batch
        forget, retain = self.embeds(self.encoder, b.forget), self.embeds(self.encoder, b.retain)
        with torch.no_grad():
            anchors, named, kept = (self.embeds(self.frozen, texts) for texts in (b.anchors, b.forget, b.retain))
            target = anchors + self.guard.anchor_eta * (anchors - named)
            without = self.error(anchors)
        loss = functional.relu(1 - self.error(forget) / without).mean()
        loss = loss + self.guard.anchor_weight * functional.mse_loss(forget, target) / target.square().mean()
        loss = loss + self.guard.retain_weight * functional.mse_loss(retain, kept) / kept.square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measured(name: str, row: str, steps: int) -> dict[str, float]:
    """One row: of the training of a donor."""
    config = settings(row)
    method = built(config.method)
    common = ROWS[row].get("common", {})

    def training() -> Any:
        return Training(method, built_model(name, **common), list(config.parameters.roles))

    with shapes_only():
        counted = training()
        step = Loop(counted).step if row == next(iter(ROWS)) else counted.step
        flops = operations(step)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        real = training()
        step = Loop(real).step if row == next(iter(ROWS)) else real.step
        step()  # Adam's state, and kernels that are chosen at the first call
        seconds = timed(step, steps)
    found = {"seconds": seconds, "bytes": peak_bytes(), "flops": flops}
    if row == list(ROWS)[-1]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "edit.safetensors"
            found["edit"] = timed(lambda: Edit.between(real.reference, real.model, ["text_encoder"]).save(path), 1)
    return found


def measured_clip(name: str, dtype: str) -> dict[str, float]:
    """One row: two steps of a clip and its decoding."""
    with shapes_only():
        counted = Rendering(built_model(name, dtype, vae_slicing=True))
        flops = 2 * operations(counted.denoise) + operations(counted.decode)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = built_model(name, dtype, vae_slicing=True)
    if DEVICE == "cuda":
        model.render(["a cat on the beach"], [0])  # kernels are chosen at the first call
    seconds = timed(lambda: model.render(["a cat on the beach"], [0]), 1)
    return {"seconds": seconds, "bytes": peak_bytes(), "flops": flops}


def row_of(name: str, row: str, steps: int) -> dict[str, float]:
    """What `measured` or `measured_clip` gives."""
    return measured_clip(name, row[5:]) if row.startswith("clip ") else measured(name, row, steps)


def alone(name: str, row: str, steps: int) -> dict[str, float]:
    """`row_of` with a peak of its own, on a CPU in a process of its own; {} where no memory was left."""
    if DEVICE == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            return row_of(name, row, steps)
        except torch.cuda.OutOfMemoryError as error:
            print(str(error).splitlines()[0])
            return {}
    command = [sys.executable, __file__, name, "--steps", str(steps), "--row", row]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        print(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"ended with {ended.returncode}")
        return {}
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    names = sorted(path.stem for path in MODELS.glob("[!_]*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=names)
    parser.add_argument("--steps", type=int, default=2, help="training steps that are timed")
    parser.add_argument("--row", help="this one alone, as JSON")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(row_of(given.model, given.row, given.steps)))
        return

    rates = {dtype: matmul_rate(getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}
    said = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    table = Table("what", "seconds", "of the first", "peak GB", "of the first", "TFLOP", "of the matmul rate",
                  title=f"{given.model} on {DEVICE}, {torch.get_num_threads()} threads; matmul {said}")  # fmt: skip
    rows = ["clip float32", "clip float16" if DEVICE == "cuda" else "clip bfloat16"]
    rows = rows if given.model == "animatediff" else [*ROWS, *rows]
    first: dict[str, float] = {}
    for row in rows:
        found = alone(given.model, row, given.steps)
        if not found:
            continue
        first = found if row.startswith("clip float32") or not first else first
        half = row == rows[-1] or "common" in ROWS.get(row, {})  # the denoiser, which does most of the work
        table.add_row(
            row, f"{found['seconds']:.3g}", f"{found['seconds'] / first['seconds']:.2f}", f"{found['bytes'] / 1e9:.1f}",
            f"{found['bytes'] / first['bytes']:.2f}", f"{found['flops'] / 1e12:.1f}",
            f"{found['flops'] / found['seconds'] / rates['bfloat16' if half else 'float32']:.0%}",
        )  # fmt: skip
        print(row, json.dumps(found), flush=True)
        if "edit" in found:
            print(f"one edit, found and written: {found['edit']:.1f} s")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
