"""What each method costs on the zoo's image model: seconds and memory of the erasing, and sampling afterwards.

    python experiments/leaderboard/costs.py [METHOD ...]       # on an otherwise idle machine; all methods if none

Every method runs in a process of its own. Memory is by how many MB the process peaked above the loaded model. Sampling
is the time of the same images with the edit over that without it, in turns. Of all methods it writes costs.md here.
"""

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from unreel import assembly, door
from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.files import write_text
from unreel.methods.method import Task
from unreel.shots import Shots

ROOT, CONCEPT, TURNS = Path(__file__).resolve().parents[2], "van_gogh", 3


def trainer(steps: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def peak_mb(device: str) -> float:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated() / 2**20


def cost_of(method_name: str) -> str:
    """One row of the table."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"concept={CONCEPT}", f"method={method_name}"])
    OmegaConf.resolve(config)
    device, questions = assembly.device_of(config), door.questions_of(config)
    donor, method = assembly.donor_of(config, device), door.built(config.method)
    captions = [TrainingCaptions(c, questions.surroundings) for c in questions.concepts]
    shots = Shots(captions, config.shots, config.seed, TensorCache(ROOT / config.cache))
    prompts, seeds = [prompt.text for prompt in questions.prompts[:4]], [0, 1, 2, 3]
    pl.seed_everything(config.seed, verbose=False)
    if "shots" in method.needs:
        shots.make(donor)  # all methods that need them need the same ones
    donor.render(prompts[:1], [0])
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    loaded, started = peak_mb(device), time.perf_counter()
    edit = method.erase(donor, Task(captions, list(config.parameters.roles), config.seed, shots, trainer))
    seconds, mb = time.perf_counter() - started, peak_mb(device) - loaded
    spent: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(TURNS):
        began = time.perf_counter()
        donor.render(prompts, seeds)
        spent["without"].append(time.perf_counter() - began)
        with edit.applied(donor):
            began = time.perf_counter()
            donor.render(prompts, seeds)
            spent["with"].append(time.perf_counter() - began)
    ratio = statistics.median(spent["with"]) / statistics.median(spent["without"])
    changed = sum(tensor.numel() for tensor in edit.tensors.values())
    return f"| {method_name} | {seconds:.1f} | {max(mb, 0):.0f} | {changed:,} | {ratio:.2f} |"


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(cost_of(sys.argv[2]))
        return
    names = sys.argv[1:] or sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--one", name]
        rows.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        print(rows[-1], flush=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    text = f"One run each on {CONCEPT}, the zoo's image model, {machine}.\n\n"
    head = f"| method | seconds | MB above the model | numbers changed | sampling over unedited |\n{'| --- ' * 5}|\n"
    if not sys.argv[1:]:
        write_text(Path(__file__).with_name("costs.md"), text + head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
