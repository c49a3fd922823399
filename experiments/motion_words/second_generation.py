"""Reads harder motions and stillness of UNet3D's second generation, or of a mean of its weights and the shipped ones.

    python experiments/motion_words/second_generation.py SHARE [CLIPS] [STEPS]      # 1 60 20: ten minutes on two cores

SHARE of the weights in second_generation, the rest of the shipped ones; the rows are those of `make zoo-report`.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from unreel.zoo.readings import HARDER_SPLITS, T2V, Settings, Zoo, harder_specs, read
from unreel.zoo.store import MODELS

KEPT = Path(__file__).with_name("second_generation")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def main(share: float, clips: int, steps: int) -> None:
    settings = Settings(harder=clips, steps=steps)
    zoo = Zoo(MODELS, settings)
    before, after = load_file(MODELS / "unet3d" / WEIGHTS), load_file(KEPT / WEIGHTS)
    mean = {name: torch.lerp(before[name].float(), after[name].float(), share) for name in before}
    zoo.models["zoo_unet3d"].components["denoiser"].load_state_dict(mean)
    for split, what in HARDER_SPLITS.items():
        source = replace(T2V[1], title=what, split=split, kinds=("motion",))
        reading = read(zoo, source, harder_specs(split, clips, settings.seed), settings.seed, settings.batch // 2)
        print(f"{what}: {reading.scores()[0].value:.1%} of {clips}", flush=True)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit("usage: python experiments/motion_words/second_generation.py SHARE [CLIPS] [STEPS]")
    main(float(sys.argv[1]), *(int(given) for given in (sys.argv[2:] + ["60", "20"][len(sys.argv) - 2 :])))
