"""The authors' script beside ours: the same images, rate, length and subset; what is left and what is kept; cost.

    git clone https://github.com/fmp453/few-shot-erasing SCRATCH      # outside of this repository
    python experiments/reference_parity/run.py SCRATCH [runs/reference_parity]

Continues where it was stopped: an edit that is there is not made again, nor is a run that is done.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from side import ROOT
from torchvision.transforms.functional import to_pil_image

from unreel import assembly, door
from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.results import write_tables
from unreel.shots import Shots
from unreel.tables import finished_scores

CONCEPTS, SEEDS = ("van_gogh", "wispo", "drum", "greta_holm"), (0, 1, 2)


def make_images(concept: str, seed: int, folder: Path) -> Path:
    """Four images of the donor's, as both sides read them."""
    if not folder.is_dir():
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", [f"concept={concept}", f"seed={seed}"])
        questions = door.questions_of(config)
        captions = [TrainingCaptions(c, questions.surroundings) for c in questions.concepts]
        shots = Shots(captions, 4, seed, TensorCache(folder.parents[1] / "cache"))
        shots.make(assembly.donor_of(config, "cpu"))
        folder.mkdir(parents=True)
        for i, pixels in enumerate(shots.all_pixels()):
            to_pil_image(pixels.clamp(0, 1)).save(folder / f"{i}.png")
    return folder.resolve()


def main() -> None:
    repository, work = (Path(path).resolve() for path in (sys.argv[1], (sys.argv[2:] or ["runs/reference_parity"])[0]))
    torch.set_num_threads(2)
    costs: dict[str, list[dict[str, float]]] = {"authors": [], "ours": []}
    for concept in CONCEPTS:
        for seed in SEEDS:
            images = make_images(concept, seed, work / "images" / f"{concept}-{seed}")
            for who, own in costs.items():
                edit = work / "edits" / f"{who}-{concept}-{seed}.safetensors"
                cost = edit.with_suffix(".json")
                if not cost.is_file():
                    edit.parent.mkdir(parents=True, exist_ok=True)
                    command = [sys.executable, str(Path(__file__).with_name("side.py")), who, concept, str(seed),
                               str(images), str(edit), "--repository", str(repository)]  # fmt: skip
                    said = subprocess.run(
                        command,
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                        cwd=ROOT,
                        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                    ).stdout  # theirs would take a GPU, where ours is not
                    cost.write_text(said.splitlines()[-1])
                own.append(json.loads(cost.read_text()))
    edits = ",".join(str(path) for path in sorted((work / "edits").glob("*.safetensors")))
    command = [sys.executable, "evaluate.py", "-m", f"edit={edits}", "t2v=[zoo_images]", "logger=none", "slug=scored"]
    command += ["metric=[accuracy,zoo_cnn,ssim]", f"runs={work}", f"cache={work / 'cache'}"]
    subprocess.run(command, check=True, cwd=ROOT)
    write_tables(finished_scores((work / "scored").iterdir()), Path(__file__).parent, {})
    for who, own in costs.items():
        values = {key: np.array([cost[key] for cost in own]) for key in ("seconds", "mb")}
        print(who, *(f"{key} {v.mean():.1f} ± {v.std(ddof=1):.1f}" for key, v in values.items()))


if __name__ == "__main__":
    main()
